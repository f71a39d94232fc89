//! Limits on how often one user, or one address, may ask for something.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock};
use http::Method;
use ruma::{OwnedUserId, UserId};

use crate::error::{ApiError, ApiResult};

/// Seconds' worth of requests that may come at once: clients send in bursts when they start.
const BURST: u32 = 10;

/// Requests after which limiters forget who has been quiet.
const TIDY_EVERY: u64 = 10_000;

/// Requests per second of one user, by kind.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Events sent.
    pub message: u32,
    /// Membership changes.
    pub membership: u32,
    /// Log-ins, of one address.
    pub login: u32,
    /// Registrations, of one address.
    pub registration: u32,
    /// Previews of pages.
    pub url_preview: u32,
    /// Everything else, of one user; and what needs no account, of one address.
    pub other: u32,
}

/// The limiters of a server; none if limits are off.
#[derive(Default)]
pub struct RateLimits(Option<Limiters>);

struct Limiters {
    message: DefaultKeyedRateLimiter<OwnedUserId>,
    membership: DefaultKeyedRateLimiter<OwnedUserId>,
    url_preview: DefaultKeyedRateLimiter<OwnedUserId>,
    other: DefaultKeyedRateLimiter<OwnedUserId>,
    stranger: DefaultKeyedRateLimiter<IpAddr>,
    login: DefaultKeyedRateLimiter<IpAddr>,
    password: DefaultKeyedRateLimiter<OwnedUserId>,
    registration: DefaultKeyedRateLimiter<IpAddr>,
    requests: std::sync::atomic::AtomicU64,
}

impl RateLimits {
    /// Limiters with these rates.
    pub fn new(rates: Rates) -> Self {
        Self(Some(Limiters {
            message: limiter(rates.message),
            membership: limiter(rates.membership),
            url_preview: limiter(rates.url_preview),
            other: limiter(rates.other),
            stranger: limiter(rates.other),
            login: limiter(rates.login),
            password: limiter(rates.login),
            registration: limiter(rates.registration),
            requests: std::sync::atomic::AtomicU64::new(0),
        }))
    }

    /// Counts a request of a user; refuses it if there were too many.
    pub fn check_user(&self, user_id: &UserId, method: &Method, route: &str) -> ApiResult<()> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.tidy();
        // Waiting for news is not asking for something.
        if route.ends_with("/sync") || route.ends_with("/events") {
            return Ok(());
        }
        check(limiters.of(method, route), &user_id.to_owned())
    }

    /// Counts a request from an address that needs no account; refuses it if there were too many.
    pub fn check_address(&self, address: IpAddr, route: &str) -> ApiResult<()> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.tidy();
        // Also whether a name is free or a token valid: who asks without end learns them all.
        let limiter = if route.contains("/register") {
            &limiters.registration
        } else if route.ends_with("/login") || route.ends_with("/refresh") {
            &limiters.login
        } else {
            &limiters.stranger
        };
        check(limiter, &site(address))
    }

    /// Counts an attempt to prove to be a user by password; refuses it if there were too many.
    ///
    /// Neither who holds a stolen access token nor who has many addresses may guess a password for long.
    pub fn check_password(&self, user_id: &UserId) -> ApiResult<()> {
        match &self.0 {
            Some(limiters) => check(&limiters.password, &user_id.to_owned()),
            None => Ok(()),
        }
    }
}

impl Limiters {
    fn of(&self, method: &Method, route: &str) -> &DefaultKeyedRateLimiter<OwnedUserId> {
        const SENDS: [&str; 3] = ["/rooms/{room}/send/", "/rooms/{room}/redact/", "/rooms/{room}/state/"];
        const MEMBERSHIP: [&str; 8] =
            ["/join", "/join/{room}", "/knock/{room}", "/invite", "/kick", "/ban", "/unban", "/createRoom"];
        if *method == Method::PUT && SENDS.iter().any(|part| route.contains(part)) {
            &self.message
        } else if *method == Method::POST && MEMBERSHIP.iter().any(|end| route.ends_with(end)) {
            &self.membership
        } else if route.ends_with("/preview_url") {
            &self.url_preview
        } else {
            &self.other
        }
    }

    fn tidy(&self) {
        let requests = self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if requests.is_multiple_of(TIDY_EVERY) {
            for limiter in [&self.message, &self.membership, &self.url_preview, &self.other] {
                limiter.retain_recent();
            }
            self.password.retain_recent();
            for limiter in [&self.stranger, &self.login, &self.registration] {
                limiter.retain_recent();
            }
        }
    }
}

/// The address, or the network that one site has for itself: with IPv6 that is a prefix of 64 bits.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        IpAddr::V4(address) => address.into(),
    }
}

fn limiter<K: std::hash::Hash + Eq + Clone>(per_second: u32) -> DefaultKeyedRateLimiter<K> {
    let rate = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
    RateLimiter::keyed(Quota::per_second(rate).allow_burst(rate.saturating_mul(burst())))
}

fn burst() -> NonZeroU32 {
    NonZeroU32::new(BURST).unwrap_or(NonZeroU32::MIN)
}

fn check<K: std::hash::Hash + Eq + Clone>(limiter: &DefaultKeyedRateLimiter<K>, key: &K) -> ApiResult<()> {
    limiter.check_key(key).map_err(|refused| {
        let wait = refused.wait_time_from(limiter.clock().now());
        ApiError::limit_exceeded(wait.max(Duration::from_millis(1)))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ruma::user_id;

    use super::*;

    const SEND: &str = "/_matrix/client/v3/rooms/{room}/send/{kind}/{txn}";

    #[test]
    fn a_burst_passes_and_then_no_more() {
        let rates =
            Rates { message: 1, membership: 1, login: 1, registration: 1, url_preview: 1, other: 1000 };
        let limits = RateLimits::new(rates);
        let alice = user_id!("@alice:example.org");
        for _ in 0..BURST {
            limits.check_user(alice, &Method::PUT, SEND).unwrap();
        }
        let refused = limits.check_user(alice, &Method::PUT, SEND).unwrap_err();
        assert_eq!(refused.errcode(), "M_LIMIT_EXCEEDED");
        limits.check_user(user_id!("@bob:example.org"), &Method::PUT, SEND).unwrap();
        limits.check_user(alice, &Method::GET, SEND).unwrap();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for _ in 0..BURST {
            limits.check_address(address, "/_matrix/client/v3/login").unwrap();
        }
        assert!(limits.check_address(address, "/_matrix/client/v3/login").is_err());
        RateLimits::default().check_address(address, "/_matrix/client/v3/login").unwrap();
        for _ in 0..BURST {
            limits.check_address(address, "/_matrix/client/v3/register/available").unwrap();
        }
        let validity = "/_matrix/client/v1/register/m.login.registration_token/validity";
        assert!(limits.check_address(address, validity).is_err(), "one limit for all of registering");
        for _ in 0..BURST {
            limits.check_password(alice).unwrap();
        }
        assert_eq!(limits.check_password(alice).unwrap_err().errcode(), "M_LIMIT_EXCEEDED");
    }

    #[test]
    fn a_site_with_many_addresses_has_one_limit() {
        let address = |text: &str| site(text.parse().unwrap());
        assert_eq!(address("2001:db8:1:2:3:4:5:6"), address("2001:db8:1:2::1"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:203.0.113.7"), address("203.0.113.7"));
        assert_ne!(address("203.0.113.7"), address("203.0.113.8"));
    }
}
