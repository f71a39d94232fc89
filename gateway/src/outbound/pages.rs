//! Pages of the web, got for clients that want a preview: only public ones, and only of hosts that the operator wants.

use std::{sync::Arc, time::Duration};

use actors::media::{Page, PageClient, PageError};
use futures_util::{StreamExt, future::BoxFuture};
use http::{HeaderValue, header};
use reqwest::{Client, Url, redirect};

use super::{
    guard::{Guard, GuardedDns, REFUSED},
    innermost,
};

/// How long a server may take to begin its answer, redirects included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long setting up a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Redirects that are followed, at most.
const REDIRECTS_MAX: usize = 5;

/// What an error says of a host that the operator does not want.
const UNWANTED: &str = "its host is not wanted";

/// Which pages may be got.
#[derive(Clone, Debug)]
pub struct PagePolicy {
    /// Which addresses may be reached.
    pub guard: Guard,
    /// The only hosts, with their subdomains; all if there is none.
    pub allow: Vec<String>,
    /// Hosts that are left out, with their subdomains.
    pub deny: Vec<String>,
}

impl PagePolicy {
    /// Whether a page may be got, as far as it can be said without resolving its host; else why not.
    fn check(&self, url: &Url) -> Result<(), &'static str> {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let names = |hosts: &[String]| hosts.iter().any(|known| is_in(host, known));
        if names(&self.deny) || !(self.allow.is_empty() || names(&self.allow)) {
            return Err(UNWANTED);
        }
        if host.is_empty() || !self.guard.permits_host(host) {
            return Err(REFUSED);
        }
        Ok(())
    }
}

/// Whether a host is a known one or a subdomain of it.
fn is_in(host: &str, known: &str) -> bool {
    let known = known.trim_start_matches("*.").trim_end_matches('.').to_ascii_lowercase();
    host.strip_suffix(known.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Gets pages of the web.
pub struct Web {
    client: Client,
    policy: Arc<PagePolicy>,
}

impl Web {
    /// A client that asks for pages in these languages.
    pub fn new(policy: PagePolicy, languages: &str) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let followed = policy.clone();
        let redirects = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS_MAX {
                return attempt.error("too many redirects");
            }
            match followed.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(why) => attempt.error(why),
            }
        });
        let headers = [(header::ACCEPT_LANGUAGE, HeaderValue::from_str(languages)?)];
        let client = Client::builder()
            .user_agent(concat!("Ganglion/", env!("CARGO_PKG_VERSION"), " (bot; URL previews)"))
            .default_headers(headers.into_iter().collect())
            .connect_timeout(CONNECT_TIMEOUT)
            // A proxy would resolve names behind the guard's back.
            .no_proxy()
            .referer(false)
            .redirect(redirects)
            .dns_resolver(GuardedDns::new(policy.guard))
            .build()?;
        Ok(Self { client, policy })
    }

    async fn page(&self, url: &Url, accept: &'static str) -> Result<Page, PageError> {
        self.policy.check(url).map_err(|why| PageError::Refused(why.to_owned()))?;
        let sent = self.client.get(url.clone()).header(header::ACCEPT, accept).send();
        let sent = tokio::time::timeout(HEAD_TIMEOUT, sent).await;
        let response = sent.map_err(|_| PageError::Failed("its server does not answer".to_owned()))?;
        let response = response.map_err(|error| failure(&error))?;
        if !response.status().is_success() {
            return Err(PageError::Failed(format!("its server answers {}", response.status())));
        }
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let url = response.url().clone();
        let body = response.bytes_stream().map(|chunk| chunk.map_err(std::io::Error::other));
        Ok(Page { url, content_type, body: body.boxed() })
    }
}

impl PageClient for Web {
    fn get<'a>(&'a self, url: &'a Url, accept: &'static str) -> BoxFuture<'a, Result<Page, PageError>> {
        Box::pin(self.page(url, accept))
    }
}

fn failure(error: &reqwest::Error) -> PageError {
    let text = innermost(error);
    if [REFUSED, UNWANTED].iter().any(|refused| text.contains(refused)) {
        PageError::Refused(text)
    } else {
        PageError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_hosts_that_are_wanted_are_asked() {
        let policy = |allow: &[&str], deny: &[&str]| PagePolicy {
            guard: Guard { allow_private: false },
            allow: allow.iter().map(ToString::to_string).collect(),
            deny: deny.iter().map(ToString::to_string).collect(),
        };
        let allows = |policy: &PagePolicy, url: &str| policy.check(&url.parse().unwrap()).is_ok();
        let everywhere = policy(&[], &["Bad.org", "*.worse.org"]);
        for (url, expected) in [
            ("https://example.org/", true),
            ("https://bad.org/", false),
            ("https://www.BAD.org./", false),
            ("https://notbad.org/", true),
            ("https://a.worse.org/", false),
            ("http://127.0.0.1/", false),
            // Other spellings of the same address.
            ("http://2130706433/", false),
            ("http://0x7f.1/", false),
            ("http://[::ffff:127.0.0.1]/", false),
            ("http://169.254.169.254/latest/meta-data", false),
            ("http://8.8.8.8/", true),
        ] {
            assert_eq!(allows(&everywhere, url), expected, "{url}");
        }
        let few = policy(&["example.org"], &["secret.example.org"]);
        assert!(allows(&few, "https://www.example.org/") && !allows(&few, "https://other.org/"));
        assert!(!allows(&few, "https://a.secret.example.org/"));
    }
}
