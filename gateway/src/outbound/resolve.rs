//! Where a server is: from its name to addresses, the name in its certificate, and the `Host` to send.
//!
//! Spec: server-server API, "Resolving server names".

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actors::{env::Clock, federation::FederationError};
use dashmap::DashMap;
use hickory_resolver::{TokioResolver, proto::rr::RData};
use http::{StatusCode, header};
use reqwest::Client;
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;

use super::{Unread, guard::Guard, read};

/// The port of servers that name none.
const PORT: u16 = 8448;

/// How long a `.well-known` is believed if it does not say.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest that it is believed, whatever it says.
const LIFETIME_MAX: Duration = Duration::from_secs(48 * 3600);

/// The shortest: whoever says less, or nothing at all, would have it fetched for each request.
const LIFETIME_MIN: Duration = Duration::from_secs(60);

/// How long the first failure to get one is remembered; twice as long each further one.
const FAILURE_FIRST: Duration = Duration::from_secs(60);

/// The longest that a failure is remembered.
const FAILURE_MAX: Duration = Duration::from_secs(3600);

/// Names of which it is remembered; more than that, strangers made up.
const DELEGATIONS_MAX: usize = 20_000;

/// How long it may take to get a `.well-known`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest `.well-known` that is read, in bytes.
const WELL_KNOWN_MAX: usize = 50 * 1024;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The name in its certificate: a host name or an address.
    pub(super) host: String,
    /// The port; none if the addresses have it.
    pub(super) port: Option<u16>,
    /// What to send as `Host`.
    pub(super) host_header: String,
    /// The addresses that SRV records gave.
    pub(super) located: Option<Vec<SocketAddr>>,
}

impl Place {
    /// The authority of its URLs.
    pub(super) fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

/// What is known of a name's `.well-known`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Delegation {
    /// Where it leads, if anywhere.
    to: Option<OwnedServerName>,
    /// When it is to be fetched again.
    until_ms: u64,
    /// When `to`, if there is one, is not to be believed any more, whatever comes of fetching it again.
    at_most_until_ms: u64,
    /// How often in a row it could not be had.
    failures: u32,
}

/// Why there is no usable `.well-known`.
#[derive(Debug, thiserror::Error)]
enum Absence {
    /// Its server says nothing of it now.
    #[error("{0}")]
    Momentary(String),
    /// There is none, or none that can be used.
    #[error("{0}")]
    Definite(String),
}

impl Absence {
    /// What a request that failed says: a server in trouble does not mean that it does not delegate.
    fn of(error: &reqwest::Error) -> Self {
        let is_definite = error
            .status()
            .is_some_and(|status| !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS);
        let text = error.to_string();
        if is_definite { Self::Definite(text) } else { Self::Momentary(text) }
    }
}

impl Delegation {
    /// What is known once a `.well-known` was fetched, with the lifetime that it states.
    ///
    /// Spec: server-server API, "Resolving server names", step 3.
    fn after(&self, fetched: Result<(OwnedServerName, Duration), Absence>, now_ms: u64) -> Self {
        let later =
            |wait: Duration| now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let absence = match fetched {
            Ok((to, lifetime)) => {
                let until_ms = later(lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX));
                return Self { to: Some(to), until_ms, at_most_until_ms: later(LIFETIME_MAX), failures: 0 };
            }
            Err(absence) => absence,
        };
        let wait = FAILURE_FIRST.saturating_mul(1 << self.failures.min(16)).min(FAILURE_MAX);
        let is_believed = matches!(absence, Absence::Momentary(_)) && self.at_most_until_ms > now_ms;
        let to = self.to.clone().filter(|_| is_believed);
        let at_most_until_ms = if to.is_some() { self.at_most_until_ms } else { u64::MAX };
        let failures = self.failures.saturating_add(1);
        Self { to, until_ms: later(wait).min(at_most_until_ms), at_most_until_ms, failures }
    }
}

#[derive(Deserialize)]
struct WellKnown {
    #[serde(rename = "m.server")]
    server: OwnedServerName,
}

/// Finds servers, and remembers what their `.well-known`s say.
pub(super) struct Resolver {
    client: Client,
    dns: TokioResolver,
    guard: Guard,
    clock: Arc<dyn Clock>,
    delegations: DashMap<OwnedServerName, Delegation>,
}

impl Resolver {
    /// A resolver with the system's DNS settings.
    pub(super) fn new(client: Client, guard: Guard, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let dns = TokioResolver::builder_tokio()?.build()?;
        Ok(Self { client, dns, guard, clock, delegations: DashMap::new() })
    }

    /// Where a server is.
    pub(super) async fn resolve(&self, server: &ServerName) -> Result<Place, FederationError> {
        // 1. and 2.: an address or a port leaves nothing to ask.
        if let Some(place) = self.literal(server)? {
            return Ok(place);
        }
        // 3. Delegation.
        if let Some(delegated) = self.delegation(server).await {
            return match self.literal(&delegated)? {
                Some(place) => Ok(place),
                None => self.locate(&delegated).await,
            };
        }
        // 4. to 6.
        self.locate(server).await
    }

    /// The place of a name that is an address or names a port.
    fn literal(&self, server: &ServerName) -> Result<Option<Place>, FederationError> {
        // Some names that are no literals by the specification are addresses where a connection is made.
        if !self.guard.permits_host(server.host()) {
            return Err(FederationError::PrivateAddress);
        }
        if !server.is_ip_literal() && server.port().is_none() {
            return Ok(None);
        }
        Ok(Some(Place {
            host: server.host().to_owned(),
            port: Some(server.port().unwrap_or(PORT)),
            host_header: server.to_string(),
            located: None,
        }))
    }

    /// The place of a host name, by its SRV records, else at the usual port.
    async fn locate(&self, server: &ServerName) -> Result<Place, FederationError> {
        let host = server.host();
        for service in ["_matrix-fed._tcp", "_matrix._tcp"] {
            let located = self.service(&format!("{service}.{host}.")).await;
            if !located.is_empty() {
                return Ok(Place {
                    host: host.to_owned(),
                    port: None,
                    host_header: host.to_owned(),
                    located: Some(located),
                });
            }
        }
        Ok(Place { host: host.to_owned(), port: Some(PORT), host_header: host.to_owned(), located: None })
    }

    /// The addresses that a service's SRV records lead to, the preferred first; none if there are no records.
    async fn service(&self, name: &str) -> Vec<SocketAddr> {
        let Ok(records) = self.dns.srv_lookup(name).await else { return Vec::new() };
        let mut targets: Vec<_> = records
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => {
                    Some((srv.priority, std::cmp::Reverse(srv.weight), srv.port, srv.target.to_utf8()))
                }
                _ => None,
            })
            .collect();
        targets.sort();
        let mut addresses = Vec::new();
        for (_, _, port, target) in targets {
            // A lone dot says that there is no such service.
            let target = target.trim_end_matches('.');
            if let Ok(found) = tokio::net::lookup_host((target, port)).await {
                addresses.extend(found);
            }
        }
        addresses
    }

    /// The server that a name's `.well-known` delegates to.
    async fn delegation(&self, server: &ServerName) -> Option<OwnedServerName> {
        let now_ms = self.clock.now_ms();
        if let Some(known) = self.delegations.get(server)
            && known.until_ms > now_ms
        {
            return known.to.clone();
        }
        let fetched = self.fetch_delegation(server).await;
        if let Err(error) = &fetched {
            tracing::debug!(%server, %error, "no usable .well-known");
        }
        if self.delegations.len() >= DELEGATIONS_MAX {
            self.delegations.retain(|_, known| known.until_ms > now_ms);
        }
        let mut known = self.delegations.entry(server.to_owned()).or_default();
        // Of several requests that fetched it at once, the first counts.
        if known.until_ms <= now_ms {
            *known = known.after(fetched, now_ms);
        }
        known.to.clone()
    }

    async fn fetch_delegation(&self, server: &ServerName) -> Result<(OwnedServerName, Duration), Absence> {
        let url = format!("https://{}/.well-known/matrix/server", server.host());
        let sent = self.client.get(url).timeout(TIMEOUT).send().await;
        let response =
            sent.and_then(reqwest::Response::error_for_status).map_err(|error| Absence::of(&error))?;
        let lifetime = response
            .headers()
            .get(header::CACHE_CONTROL)
            .and_then(|value| lifetime(value.to_str().ok()?))
            .unwrap_or(LIFETIME);
        let body = read(response, WELL_KNOWN_MAX).await.map_err(|unread| match unread {
            Unread::TooLarge { .. } => Absence::Definite("it is too large".to_owned()),
            Unread::Cut(error) => Absence::of(&error),
        })?;
        let well_known: WellKnown =
            serde_json::from_slice(&body).map_err(|error| Absence::Definite(error.to_string()))?;
        Ok((well_known.server, lifetime))
    }
}

/// The lifetime that a `Cache-Control` header states.
fn lifetime(value: &str) -> Option<Duration> {
    let directives = || value.split(',').map(str::trim);
    if directives().any(|directive| matches!(directive, "no-cache" | "no-store")) {
        return Some(Duration::ZERO);
    }
    directives().find_map(|directive| {
        let seconds = directive.strip_prefix("max-age=")?;
        seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    use actors::env::ManualClock;
    use ruma::server_name;

    use super::*;

    fn resolver(allow_private: bool) -> Resolver {
        Resolver::new(Client::new(), Guard { allow_private }, Arc::new(ManualClock::new(0))).unwrap()
    }

    fn place(host: &str, port: u16, host_header: &str) -> Place {
        Place { host: host.to_owned(), port: Some(port), host_header: host_header.to_owned(), located: None }
    }

    #[tokio::test]
    async fn addresses_and_names_with_a_port_are_where_they_say() {
        let resolver = resolver(false);
        for (server, expected) in [
            (server_name!("8.8.8.8"), place("8.8.8.8", 8448, "8.8.8.8")),
            (server_name!("8.8.8.8:443"), place("8.8.8.8", 443, "8.8.8.8:443")),
            (server_name!("[2606:4700::1111]"), place("[2606:4700::1111]", 8448, "[2606:4700::1111]")),
            (server_name!("example.org:80"), place("example.org", 80, "example.org:80")),
        ] {
            assert_eq!(resolver.resolve(server).await.unwrap(), expected, "{server}");
        }
    }

    #[tokio::test]
    async fn private_addresses_are_refused_unless_they_are_allowed() {
        for server in ["127.0.0.1", "[::1]:443", "10.0.0.1:8448", "0x7f.1", "127.1:8448", "2130706433"] {
            let server = <&ServerName>::try_from(server).unwrap();
            let refused = resolver(false).resolve(server).await;
            assert!(matches!(refused, Err(FederationError::PrivateAddress)), "{server}");
            assert!(resolver(true).literal(server).is_ok(), "{server}");
        }
    }

    #[tokio::test]
    async fn a_delegation_that_is_remembered_decides_and_names_the_host() {
        let resolver = resolver(false);
        let delegate = |from: &ServerName, to: &ServerName| {
            let delegation = Delegation { to: Some(to.to_owned()), until_ms: 1_000, ..Delegation::default() };
            resolver.delegations.insert(from.to_owned(), delegation);
        };
        let server = server_name!("example.org");
        delegate(server, server_name!("matrix.example.org:443"));
        let expected = place("matrix.example.org", 443, "matrix.example.org:443");
        assert_eq!(resolver.resolve(server).await.unwrap(), expected);
        delegate(server, server_name!("8.8.8.8"));
        assert_eq!(resolver.resolve(server).await.unwrap(), place("8.8.8.8", 8448, "8.8.8.8"));
        // A document of strangers does not lead inside.
        delegate(server, server_name!("127.0.0.1:8008"));
        assert!(matches!(resolver.resolve(server).await, Err(FederationError::PrivateAddress)));
    }

    #[test]
    fn a_delegation_is_believed_as_long_as_it_says_within_limits() {
        let minute = 60_000;
        for (stated_s, until_ms) in [(0, minute), (600, 10 * minute), (7 * 24 * 3600, 48 * 60 * minute)] {
            let to = server_name!("matrix.example.org").to_owned();
            let fetched = Ok((to.clone(), Duration::from_secs(stated_s)));
            let known = Delegation { failures: 3, ..Delegation::default() }.after(fetched, 5);
            let at_most_until_ms = 48 * 60 * minute + 5;
            let expected = Delegation { to: Some(to), until_ms: until_ms + 5, at_most_until_ms, failures: 0 };
            assert_eq!(known, expected, "{stated_s}");
        }
    }

    #[test]
    fn failures_are_remembered_for_longer_each_time_and_a_good_delegation_outlasts_them() {
        let minute = 60_000;
        let to = server_name!("matrix.example.org").to_owned();
        let fail = |known: &Delegation, now_ms| known.after(Err(Absence::Momentary(String::new())), now_ms);
        let mut known = Delegation::default().after(Ok((to.clone(), Duration::ZERO)), 0);
        let (mut now_ms, mut waits) = (known.until_ms, Vec::new());
        for _ in 0..8 {
            known = fail(&known, now_ms);
            waits.push((known.until_ms - now_ms) / minute);
            now_ms = known.until_ms;
            assert_eq!(known.to.as_ref(), Some(&to));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        let gone = known.after(Err(Absence::Definite(String::new())), now_ms);
        assert_eq!((gone.to, gone.until_ms - now_ms), (None, 60 * minute));
        assert_eq!(fail(&known, 48 * 60 * minute).to, None, "for 48 hours at most");
        assert_eq!(fail(&Delegation::default(), 0).to, None);
    }

    #[test]
    fn lifetimes_are_read_from_the_header() {
        assert_eq!(lifetime("public, max-age=3600"), Some(Duration::from_secs(3600)));
        assert_eq!(lifetime("max-age=\"60\""), Some(Duration::from_secs(60)));
        assert_eq!(lifetime("max-age=3600, no-store"), Some(Duration::ZERO));
        assert_eq!(lifetime("public"), None);
        assert_eq!(lifetime("max-age=soon"), None);
    }
}
