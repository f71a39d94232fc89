//! Requests to other servers: finding them, signing, sending.
//!
//! Spec: server-server API, "Server discovery", "Request Authentication".

pub mod appservice;
pub mod guard;
pub mod pages;
pub mod push;
mod resolve;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use actors::{
    env::Clock,
    federation::{
        FederationClient, FederationError, FederationRequest, FederationResponse, FederationStream,
    },
};
use anyhow::Context;
use bytes::{Bytes, BytesMut};
use dashmap::DashMap;
use engine::{canonical::Json, pdu::SigningKey};
use futures_util::{StreamExt, future::BoxFuture};
use http::{HeaderValue, StatusCode, header};
use reqwest::{Certificate, Client};
use ruma::{OwnedServerName, ServerName};
use serde_json::{Map, Value};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use self::{
    guard::{Addresses, Guard},
    resolve::Resolver,
};
use crate::x_matrix::SignedRequest;

/// How long setting up a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer with an error that is read, in bytes.
const ERROR_MAX: usize = 64 << 10;

/// Idle connections are kept this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// What the outbound client is made of.
#[derive(Clone, Debug, Default)]
pub struct OutboundOptions {
    /// Additional trusted roots, PEM files.
    pub extra_ca: Vec<PathBuf>,
    /// Whether loopback and private addresses may be reached.
    pub allow_private_addresses: bool,
    /// Requests that may be under way at a time.
    pub max_concurrent_connects: usize,
}

/// Sends requests to other servers.
pub struct Outbound {
    own: OwnedServerName,
    key: Arc<SigningKey>,
    resolver: Resolver,
    /// For names that DNS resolves, with the guard on their addresses.
    direct: Client,
    /// For names whose addresses an SRV record gave.
    located: Client,
    /// For what servers keep elsewhere: follows redirects, with the guard on all of them.
    elsewhere: Client,
    addresses: Arc<Addresses>,
    guard: Guard,
    /// Connections that may be set up at a time.
    budget: Semaphore,
    /// Beside them, those for keys: whoever names a server causes one, and strangers may name many that do not answer.
    key_budget: Semaphore,
    /// When each server last answered: the way to it is likely open.
    answered: DashMap<OwnedServerName, Instant>,
}

/// Bytes of one answer, and of all answers on one connection, that may be on the way before they are read: what a file
/// takes in memory while it is fetched, and how fast it comes from far away.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Where servers have their keys.
const KEYS: &str = "/_matrix/key/";

/// Servers whose last answer is remembered.
const ANSWERED_MAX: usize = 20_000;

/// The certificates of these PEM files.
pub(crate) fn roots(paths: &[PathBuf]) -> anyhow::Result<Vec<Certificate>> {
    let mut roots = Vec::new();
    for path in paths {
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("{} holds no PEM certificates", path.display()))?;
        roots.extend(certificates);
    }
    Ok(roots)
}

impl Outbound {
    /// A client that signs with `key`.
    pub fn new(
        own: OwnedServerName,
        key: Arc<SigningKey>,
        options: &OutboundOptions,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let roots = roots(&options.extra_ca)?;
        let guard = Guard { allow_private: options.allow_private_addresses };
        let addresses = Arc::new(Addresses::default());
        let builder = || {
            Client::builder()
                .user_agent(concat!("Ganglion/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .tls_certs_merge(roots.clone())
        };
        let plain = || builder().redirect(reqwest::redirect::Policy::none());
        let direct = plain().dns_resolver(guard::GuardedDns::new(guard)).build()?;
        let located = plain().dns_resolver(guard::Located::new(guard, addresses.clone())).build()?;
        let following =
            || builder().redirect(guard::redirects(guard)).dns_resolver(guard::GuardedDns::new(guard));
        let well_known = following().build()?;
        let elsewhere = following().https_only(true).no_proxy().referer(false).build()?;
        Ok(Self {
            own,
            key,
            resolver: Resolver::new(well_known, guard, clock)?,
            direct,
            located,
            elsewhere,
            addresses,
            guard,
            budget: Semaphore::new(options.max_concurrent_connects.max(1)),
            key_budget: Semaphore::new((options.max_concurrent_connects / 4).max(1)),
            answered: DashMap::new(),
        })
    }

    /// Where a server is found, for people to read: a host and a port.
    pub(crate) async fn whereabouts(&self, server: &ServerName) -> Result<String, FederationError> {
        let place = self.resolver.resolve(server).await?;
        Ok(match &place.located {
            Some(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                format!("{} ({})", place.host, addresses.join(", "))
            }
            None => place.authority(),
        })
    }

    async fn send(
        &self,
        destination: &ServerName,
        request: FederationRequest,
    ) -> Result<FederationResponse, FederationError> {
        let budget = if request.path_and_query.starts_with(KEYS) { &self.key_budget } else { &self.budget };
        let permit = if self.is_warm(destination) {
            None
        } else {
            Some(budget.acquire().await.map_err(|_| FederationError::Disabled)?)
        };
        let (timeout, max) = (request.timeout, request.max_response);
        let outgoing = self.outgoing(destination, request).await?.timeout(timeout);
        let response = within_budget(outgoing.send(), permit).await.map_err(|error| failure(&error))?;
        self.note_answer(destination);
        let status = response.status();
        let content_type = response.headers().get(header::CONTENT_TYPE).cloned();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok().map(Duration::from_secs));
        let body = read(response, max).await?;
        if status.is_success() {
            return Ok(FederationResponse { status, content_type, body });
        }
        Err(refusal(status, retry_after, &body))
    }

    /// Takes no part of the budget: a server may let one wait for an upload, and others must not wait for that.
    async fn open(
        &self,
        destination: &ServerName,
        request: FederationRequest,
    ) -> Result<FederationStream, FederationError> {
        let (timeout, max) = (request.timeout, request.max_response);
        let sent = async {
            let outgoing = self.outgoing(destination, request).await?;
            outgoing.send().await.map_err(|error| failure(&error))
        };
        let response = tokio::time::timeout(timeout, sent).await.map_err(|_| FederationError::Timeout)??;
        stream(response, max).await
    }

    /// A request to where the destination is, signed.
    async fn outgoing(
        &self,
        destination: &ServerName,
        request: FederationRequest,
    ) -> Result<reqwest::RequestBuilder, FederationError> {
        let place = self.resolver.resolve(destination).await?;
        let client = match &place.located {
            Some(addresses) => {
                self.addresses.set(&place.host, addresses);
                &self.located
            }
            None => &self.direct,
        };
        let url = format!("https://{}{}", place.authority(), request.path_and_query);
        let authorization = authorization(&self.own, &self.key, destination, &request)?;
        let outgoing = client
            .request(request.method, url)
            .header(header::AUTHORIZATION, authorization)
            .header(header::HOST, place.host_header);
        Ok(match request.body {
            Some(body) => outgoing.header(header::CONTENT_TYPE, "application/json").body(body),
            None => outgoing,
        })
    }

    /// Gets what a server keeps elsewhere.
    async fn follow(
        &self,
        url: &str,
        timeout: Duration,
        max: usize,
    ) -> Result<FederationStream, FederationError> {
        let bad = |error: &dyn std::fmt::Display| FederationError::BadBody(format!("{url}: {error}"));
        let parsed = reqwest::Url::parse(url).map_err(|error| bad(&error))?;
        if !parsed.host_str().is_some_and(|host| self.guard.permits_host(host)) {
            return Err(FederationError::PrivateAddress);
        }
        let sent = self.elsewhere.get(parsed).send();
        let sent = tokio::time::timeout(timeout, sent).await.map_err(|_| FederationError::Timeout)?;
        stream(sent.map_err(|error| failure(&error))?, max).await
    }

    /// Whether there is likely a connection to a server already.
    fn is_warm(&self, server: &ServerName) -> bool {
        self.answered.get(server).is_some_and(|answered| answered.elapsed() < IDLE_TIMEOUT)
    }

    fn note_answer(&self, server: &ServerName) {
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.retain(|_, answered| answered.elapsed() < IDLE_TIMEOUT);
        }
        self.answered.insert(server.to_owned(), Instant::now());
    }
}

/// The `Authorization` header of a request from `own` to `destination`.
///
/// The body may hold numbers that canonical JSON forbids, in a to-device message for example.
pub fn authorization(
    own: &ServerName,
    key: &SigningKey,
    destination: &ServerName,
    request: &FederationRequest,
) -> Result<HeaderValue, FederationError> {
    let bad = |error: &dyn std::fmt::Display| FederationError::Unsignable(error.to_string());
    let content = request.body.as_deref().map(Json::parse).transpose().map_err(|error| bad(&error))?;
    let signed = SignedRequest {
        content: content.as_ref(),
        destination,
        method: request.method.as_str(),
        origin: own,
        uri: &request.path_and_query,
    };
    let header = signed.authorization(key).map_err(|error| bad(&error))?;
    HeaderValue::from_str(&header).map_err(|error| bad(&error))
}

impl FederationClient for Outbound {
    fn request<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
        Box::pin(self.send(destination, request))
    }

    fn stream<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        Box::pin(self.open(destination, request))
    }

    fn fetch<'a>(
        &'a self,
        url: &'a str,
        timeout: Duration,
        max: usize,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        Box::pin(self.follow(url, timeout, max))
    }
}

/// An answer with its body on the way, if it is a success.
async fn stream(response: reqwest::Response, max: usize) -> Result<FederationStream, FederationError> {
    let status = response.status();
    if !status.is_success() {
        let body = tokio::time::timeout(CONNECT_TIMEOUT, read(response, ERROR_MAX)).await;
        return Err(refusal(status, None, &body.map_err(|_| FederationError::Timeout)??));
    }
    if response.content_length().is_some_and(|length| length > max as u64) {
        return Err(FederationError::TooLarge { max });
    }
    let headers = response.headers().clone();
    let mut size = 0;
    let body = response.bytes_stream().map(move |chunk| {
        let chunk = chunk.map_err(|error| failure(&error))?;
        size += chunk.len();
        if size > max { Err(FederationError::TooLarge { max }) } else { Ok(chunk) }
    });
    Ok(FederationStream { headers, body: body.boxed() })
}

/// Sends a request; the permit to set up a connection for it is given back once there can be one, so that servers that
/// are slow to answer do not take it from others.
async fn within_budget<T>(sending: impl Future<Output = T>, permit: Option<SemaphorePermit<'_>>) -> T {
    let mut sending = std::pin::pin!(sending);
    let Some(permit) = permit else { return sending.await };
    tokio::select! {
        biased;
        response = &mut sending => return response,
        () = tokio::time::sleep(CONNECT_TIMEOUT) => drop(permit),
    }
    sending.await
}

/// Why a body was not read to its end.
pub(crate) enum Unread {
    /// It is larger than this many bytes.
    TooLarge { max: usize },
    /// The connection ended, or was too slow.
    Cut(reqwest::Error),
}

impl From<Unread> for FederationError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::TooLarge { max } => Self::TooLarge { max },
            Unread::Cut(error) => failure(&error),
        }
    }
}

/// Reads a body that may not be larger than `max` bytes.
pub(crate) async fn read(mut response: reqwest::Response, max: usize) -> Result<Bytes, Unread> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(Unread::Cut)? {
        if body.len() + chunk.len() > max {
            return Err(Unread::TooLarge { max });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The innermost cause of an error: it says most, and does not repeat the URL.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn failure(error: &reqwest::Error) -> FederationError {
    // The innermost cause says most.
    let mut cause: &dyn std::error::Error = error;
    let mut is_dns = false;
    while let Some(source) = cause.source() {
        cause = source;
        // What the system's resolver says does not name itself.
        is_dns |= cause.to_string() == "dns error";
    }
    let text = cause.to_string();
    if error.is_timeout() {
        FederationError::Timeout
    } else if text.contains(guard::REFUSED) {
        FederationError::PrivateAddress
    } else if ["certificate", "handshake", "corrupt message", "peer misbehaved"]
        .iter()
        .any(|part| text.contains(part))
    {
        FederationError::Tls(text)
    } else if is_dns {
        FederationError::Dns(text)
    } else if error.is_connect() {
        FederationError::Connect(text)
    } else if error.is_request() {
        FederationError::Connect(format!("the connection ended: {text}"))
    } else {
        FederationError::BadBody(text)
    }
}

/// What an answer that is no success says; `retry_after` is that of its headers.
pub fn refusal(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> FederationError {
    let body: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (errcode, error) = (text("errcode"), text("error"));
    let errcode = if errcode.is_empty() { "M_UNKNOWN".to_owned() } else { errcode };
    let retry_after_ms = body.get("retry_after_ms").and_then(Value::as_u64);
    let retry_after = retry_after.or(retry_after_ms.map(Duration::from_millis));
    FederationError::Status { status, errcode, error, retry_after, body }
}
