//! What all handlers share.

use std::{ops::Deref, sync::Arc};

use actors::{homeserver::Homeserver, session::AuthenticationFailure};
use http::StatusCode;

use crate::{
    admin::register::Nonces,
    bodies::Unverified,
    client::{rendezvous::Rendezvous, voip::Turn, well_known::WellKnown},
    config::JsonObject,
    error::{ApiError, ApiResult},
    extract::Requester,
    federation::origins::{OriginRates, Origins},
    metrics::RequestMetrics,
    password::Passwords,
    rate_limit::{RateLimits, Rates},
    uia::Sessions,
};

/// What all handlers share. Cloning shares it.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// The parts of [`App`].
pub struct Inner {
    homeserver: Homeserver,
    settings: Settings,
    passwords: Passwords,
    rate_limits: RateLimits,
    origins: Origins,
    unverified: Unverified,
    uia: Sessions,
    rendezvous: Rendezvous,
    nonces: Nonces,
    metrics: RequestMetrics,
}

/// What handlers need to know of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whether access tokens may come in the query string, as very old clients send them.
    pub query_tokens: bool,
    /// Who may register.
    pub registration: Registration,
    /// What the well-known documents say.
    pub well_known: WellKnown,
    /// Requests per second of one user; none if they are not limited.
    pub rates: Option<Rates>,
    /// What one other server may ask for; none if that is not limited.
    pub origin_rates: Option<OriginRates>,
    /// The TURN server.
    pub turn: Turn,
    /// What clients may use for group calls.
    pub rtc_transports: Vec<JsonObject>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<std::net::IpAddr>,
}

/// Who may register.
#[derive(Clone, Default)]
pub struct Registration {
    /// Anybody.
    pub enabled: bool,
    /// Holders of one of these.
    pub tokens: Vec<String>,
    /// Administrators' tools that know this.
    pub shared_secret: Option<String>,
    /// Guests.
    pub guests: bool,
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl App {
    /// The shared parts of a server.
    pub fn new(homeserver: Homeserver, passwords: Passwords, settings: Settings) -> Self {
        let rate_limits = settings.rates.map_or_else(RateLimits::default, RateLimits::new);
        Self(Arc::new(Inner {
            homeserver,
            rate_limits,
            origins: settings.origin_rates.map_or_else(Origins::default, Origins::new),
            unverified: Unverified::default(),
            settings,
            passwords,
            uia: Sessions::default(),
            rendezvous: Rendezvous::default(),
            nonces: Nonces::default(),
            metrics: RequestMetrics::default(),
        }))
    }
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// The server's actors.
    pub fn homeserver(&self) -> &Homeserver {
        &self.homeserver
    }

    /// What handlers need to know of the configuration.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Hashes and checks passwords.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// How often one may ask.
    pub fn rate_limits(&self) -> &RateLimits {
        &self.rate_limits
    }

    /// What one other server may ask for.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Memory for the bodies of other servers.
    pub fn unverified(&self) -> &Unverified {
        &self.unverified
    }

    /// User-interactive authentication under way.
    pub fn uia(&self) -> &Sessions {
        &self.uia
    }

    /// Where devices meet to sign one in.
    pub fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    /// The nonces of registrations with the shared secret.
    pub fn nonces(&self) -> &Nonces {
        &self.nonces
    }

    /// Counts requests.
    pub fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }

    /// Who a request with this access token comes from.
    pub async fn authenticate(&self, token: &str, ip: Option<&str>) -> ApiResult<Requester> {
        self.homeserver.authenticate(token, ip).await.map_err(|failure| {
            let message = failure.to_string();
            match failure {
                AuthenticationFailure::UnknownToken => {
                    ApiError::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", message)
                }
                AuthenticationFailure::Expired => {
                    ApiError::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", message)
                        .with("soft_logout", true)
                }
                AuthenticationFailure::Store(error) => ApiError::internal(&error),
            }
        })
    }
}
