//! No way from a request of strangers into private networks: addresses are checked when a connection is made, after
//! names are resolved, and on every redirect.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use dashmap::DashMap;
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

/// What the error of a refused address contains.
pub const REFUSED: &str = "address is not public";

/// What the error of a name that is nobody's says.
const NO_NAME: &str = "there is no such name";

/// Redirects that are followed, at most.
const REDIRECTS_MAX: usize = 5;

/// Which addresses may be reached.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// Whether loopback and private addresses may be.
    pub allow_private: bool,
}

impl Guard {
    /// Whether an address may be reached.
    pub fn permits(self, address: IpAddr) -> bool {
        self.allow_private || is_public(address)
    }

    /// Whether a host of a URL may be reached, as far as it can be said without resolving it.
    ///
    /// Addresses have many spellings (`127.1`, `0x7f.1`, `2130706433`): it is read as URLs are.
    pub fn permits_host(self, host: &str) -> bool {
        match url::Host::parse(host) {
            Ok(url::Host::Ipv4(address)) => self.permits(address.into()),
            Ok(url::Host::Ipv6(address)) => self.permits(address.into()),
            Ok(url::Host::Domain(_)) => true,
            // No URL can have it.
            Err(_) => false,
        }
    }
}

/// Whether an address belongs to the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                // Shared between a provider's customers, protocol assignments, benchmarks.
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_public(IpAddr::V4(v4));
            }
            let segments = v6.segments();
            // 2000::/3 is what is assigned to the public; parts of it embed IPv4 addresses or are for documentation.
            let is_global = segments[0] & 0xe000 == 0x2000;
            let is_special = segments[0] == 0x2002
                || (segments[0] == 0x2001 && (segments[1] < 0x200 || segments[1] == 0xdb8));
            is_global && !is_special
        }
    }
}

/// The system's resolver (and its hosts file), behind the guard.
pub struct GuardedDns(Guard);

impl GuardedDns {
    /// The system's resolver behind `guard`.
    pub fn new(guard: Guard) -> Arc<Self> {
        Arc::new(Self(guard))
    }
}

impl Resolve for GuardedDns {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0;
        Box::pin(async move {
            if is_no_name(name.as_str()) {
                return Err(NO_NAME.into());
            }
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            permitted(guard, found)
        })
    }
}

/// Whether a name is one of those that are nobody's for ever, about which no resolver needs to be asked.
///
/// Spec: RFC 6761, section 6.4.
fn is_no_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "invalid" || name.ends_with(".invalid")
}

fn permitted(
    guard: Guard,
    found: Vec<SocketAddr>,
) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    let permitted: Vec<_> = found.into_iter().filter(|address| guard.permits(address.ip())).collect();
    if permitted.is_empty() {
        return Err(REFUSED.into());
    }
    Ok(Box::new(permitted.into_iter()))
}

/// Names whose addresses are remembered; they are looked up again for each connection to be made.
const ADDRESSES_MAX: usize = 20_000;

/// The addresses that SRV records gave, by the name that they were asked for.
#[derive(Default)]
pub struct Addresses(DashMap<String, Vec<SocketAddr>>);

impl Addresses {
    /// Notes the addresses of a name.
    pub fn set(&self, name: &str, addresses: &[SocketAddr]) {
        if self.0.len() >= ADDRESSES_MAX {
            self.0.clear();
        }
        self.0.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }
}

/// A resolver that knows what SRV records gave, behind the guard.
pub struct Located {
    guard: Guard,
    addresses: Arc<Addresses>,
}

impl Located {
    /// A resolver of `addresses` behind `guard`.
    pub fn new(guard: Guard, addresses: Arc<Addresses>) -> Arc<Self> {
        Arc::new(Self { guard, addresses })
    }
}

impl Resolve for Located {
    fn resolve(&self, name: Name) -> Resolving {
        let found =
            self.addresses.0.get(name.as_str()).map(|addresses| addresses.clone()).unwrap_or_default();
        let guard = self.guard;
        Box::pin(async move { permitted(guard, found) })
    }
}

/// Follows a few redirects to hosts that the guard permits.
pub fn redirects(guard: Guard) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        match attempt.url().host_str() {
            Some(host) if guard.permits_host(host) => attempt.follow(),
            _ => attempt.error(REFUSED),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Guard, is_no_name};

    #[test]
    fn names_under_invalid_are_nobodys() {
        for name in ["invalid", "matrix.invalid", "Matrix.INVALID."] {
            assert!(is_no_name(name), "{name}");
        }
        for name in ["invalid.example.org", "notinvalid", "localhost"] {
            assert!(!is_no_name(name), "{name}");
        }
    }

    #[test]
    fn only_public_addresses_are_permitted() {
        let guard = Guard { allow_private: false };
        for address in ["8.8.8.8", "172.32.0.1", "2606:4700::1111"] {
            assert!(guard.permits(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
        ] {
            assert!(!guard.permits(address.parse().unwrap()), "{address}");
        }
        for host in ["[::1]", "127.1", "0x7f.1", "2130706433", "127.0.0.1.", "169.254.43518", "1.2.3.4.5"] {
            assert!(!guard.permits_host(host), "{host}");
        }
        assert!(guard.permits_host("example.org"));
    }
}
