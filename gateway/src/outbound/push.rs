//! Calls to push gateways, which clients name: guarded like all requests of strangers.
//!
//! Spec: push gateway API.

use std::time::Duration;

use actors::push::{PushError, PushGateway};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header;
use reqwest::{Client, Url};

use super::{CONNECT_TIMEOUT, IDLE_TIMEOUT, Unread, guard, guard::Guard, innermost, read};

/// The path of every push gateway.
///
/// Spec: client-server API, `POST /_matrix/client/v3/pushers/set`, `data.url`.
const PATH: &str = "/_matrix/push/v1/notify";

/// How long one call may take: gateways pass notifications on before they answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer that is read: a list of one rejected pushkey has at most 512 bytes.
const ANSWER_MAX: usize = 64 << 10;

/// Idle connections that are kept to one gateway: it serves many pushers.
const IDLE_MAX: usize = 16;

/// Calls push gateways with HTTP.
pub struct PushClient {
    client: Client,
    guard: Guard,
}

impl PushClient {
    /// A client that reaches private addresses, and those without TLS, only if that is allowed.
    pub fn new(allow_private_addresses: bool) -> anyhow::Result<Self> {
        let guard = Guard { allow_private: allow_private_addresses };
        let client = Client::builder()
            .user_agent(concat!("Ganglion/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(guard::GuardedDns::new(guard))
            .build()?;
        Ok(Self { client, guard })
    }

    fn parse(&self, url: &str) -> Result<Url, PushError> {
        let url = Url::parse(url).map_err(|_| PushError::Unacceptable("data.url is not a URL"))?;
        let is_scheme_allowed =
            url.scheme() == "https" || (self.guard.allow_private && url.scheme() == "http");
        if !is_scheme_allowed {
            return Err(PushError::Unacceptable("data.url does not begin with https:"));
        }
        if url.path() != PATH {
            return Err(PushError::Unacceptable("data.url's path is not /_matrix/push/v1/notify"));
        }
        match url.host_str() {
            Some(host) if self.guard.permits_host(host) => Ok(url),
            Some(_) => Err(PushError::PrivateAddress),
            None => Err(PushError::Unacceptable("data.url names no host")),
        }
    }

    async fn post(&self, url: &str, body: Bytes) -> Result<Bytes, PushError> {
        let request = self.client.post(self.parse(url)?).header(header::CONTENT_TYPE, "application/json");
        let response = request.body(body).send().await.map_err(|error| failure(&error))?;
        if !response.status().is_success() {
            return Err(PushError::Status(response.status()));
        }
        read(response, ANSWER_MAX).await.map_err(|unread| match unread {
            Unread::TooLarge { .. } => PushError::TooLarge,
            Unread::Cut(error) => failure(&error),
        })
    }
}

impl PushGateway for PushClient {
    fn check(&self, url: &str) -> Result<(), PushError> {
        self.parse(url).map(drop)
    }

    fn notify<'a>(&'a self, url: &'a str, body: Bytes) -> BoxFuture<'a, Result<Bytes, PushError>> {
        Box::pin(self.post(url, body))
    }
}

fn failure(error: &reqwest::Error) -> PushError {
    let text = innermost(error);
    if error.is_timeout() {
        PushError::Timeout
    } else if text.contains(guard::REFUSED) {
        PushError::PrivateAddress
    } else {
        PushError::Unreachable(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_gateways_with_tls_and_the_right_path_are_called() {
        let strict = PushClient::new(false).unwrap();
        let lax = PushClient::new(true).unwrap();
        for (url, expected) in [
            ("https://push.example.org/_matrix/push/v1/notify", (true, true)),
            ("https://push.example.org:8443/_matrix/push/v1/notify?user=1", (true, true)),
            ("http://push.example.org/_matrix/push/v1/notify", (false, true)),
            ("https://127.0.0.1/_matrix/push/v1/notify", (false, true)),
            ("https://[::1]/_matrix/push/v1/notify", (false, true)),
            ("https://push.example.org/", (false, false)),
            ("https://push.example.org/_matrix/push/v1/notify/..", (false, false)),
            ("ftp://push.example.org/_matrix/push/v1/notify", (false, false)),
            ("push.example.org", (false, false)),
            ("", (false, false)),
        ] {
            assert_eq!((strict.check(url).is_ok(), lax.check(url).is_ok()), expected, "{url}");
        }
    }
}
