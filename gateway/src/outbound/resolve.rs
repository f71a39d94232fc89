//! Where a server is: from its name to addresses, the name in its certificate, and the `Host` to send.
//!
//! Spec: server-server API, "Resolving server names".

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actors::{env::Clock, federation::FederationError};
use dashmap::DashMap;
use hickory_resolver::{TokioResolver, proto::rr::RData};
use http::header;
use reqwest::Client;
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;

use super::guard::Guard;

/// The port of servers that name none.
const PORT: u16 = 8448;

/// How long a `.well-known` is believed if it does not say.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest that it is believed, whatever it says.
const LIFETIME_MAX: Duration = Duration::from_secs(48 * 3600);

/// The shortest, and how long the absence of one is believed.
const LIFETIME_MIN: Duration = Duration::from_secs(3600);

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

#[derive(Clone)]
struct Delegation {
    to: Option<OwnedServerName>,
    until_ms: u64,
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
        let (to, lifetime) = match self.fetch_delegation(server).await {
            Ok((to, lifetime)) => (Some(to), lifetime),
            Err(error) => {
                tracing::debug!(%server, error, "no usable .well-known");
                (None, LIFETIME_MIN)
            }
        };
        let lifetime =
            u64::try_from(lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX).as_millis()).unwrap_or_default();
        let delegation = Delegation { to: to.clone(), until_ms: now_ms + lifetime };
        self.delegations.insert(server.to_owned(), delegation);
        to
    }

    async fn fetch_delegation(&self, server: &ServerName) -> Result<(OwnedServerName, Duration), String> {
        let url = format!("https://{}/.well-known/matrix/server", server.host());
        let sent = self.client.get(url).timeout(TIMEOUT).send().await;
        let mut response =
            sent.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())?;
        let lifetime = response
            .headers()
            .get(header::CACHE_CONTROL)
            .and_then(|value| max_age(value.to_str().ok()?))
            .unwrap_or(LIFETIME);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| error.to_string())? {
            if body.len() + chunk.len() > WELL_KNOWN_MAX {
                return Err("it is too large".to_owned());
            }
            body.extend_from_slice(&chunk);
        }
        let well_known: WellKnown = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        Ok((well_known.server, lifetime))
    }
}

/// The lifetime that a `Cache-Control` header states.
fn max_age(value: &str) -> Option<Duration> {
    value.split(',').find_map(|directive| {
        let seconds = directive.trim().strip_prefix("max-age=")?;
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
            let delegation = Delegation { to: Some(to.to_owned()), until_ms: 1_000 };
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
    fn lifetimes_are_read_from_the_header() {
        assert_eq!(max_age("public, max-age=3600"), Some(Duration::from_secs(3600)));
        assert_eq!(max_age("max-age=\"60\""), Some(Duration::from_secs(60)));
        assert_eq!(max_age("no-store"), None);
        assert_eq!(max_age("max-age=soon"), None);
    }
}
