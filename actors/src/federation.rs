//! Talking to other servers: what the actors need of it. The gateway implements it with HTTP, the simulator with its network.

mod announce;
mod askers;
mod device_lists;
mod edus;
mod history;
mod inbound;
mod introduction;
mod keys;
mod lacking;
mod media;
mod membership;
mod mend;
mod missing;
mod outbound;
mod partial;
mod presence;
mod query;
pub mod remote;
mod remote_keys;
mod resident;
mod spaces;
mod staging;
mod third_party;
mod to_device;
mod unsent;
mod verify;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use ruma::{OwnedServerName, ServerName};
use serde_json::{Map, Value};

use crate::{destination::Outbox, metrics::Metrics};

pub use self::{
    inbound::Results,
    keys::{OldKey, WantedKeys},
    media::FederatedMedia,
    outbound::FederationConfig,
    query::PublicRoomsPage,
    remote_keys::OwnDevices,
    resident::{JoinAnswer, Omit, RoomState},
    third_party::{Bound, Exchange},
};
pub(crate) use self::{inbound::is_own_trouble, outbound::Federation, remote_keys::WantedDevices};

/// A request to another server; whoever sends it signs it.
#[derive(Clone, Debug)]
pub struct FederationRequest {
    /// The method.
    pub method: Method,
    /// Path and query, percent-encoded.
    pub path_and_query: String,
    /// The body, canonical JSON.
    pub body: Option<Bytes>,
    /// How long it may take altogether.
    pub timeout: Duration,
    /// The largest response body that is read, in bytes.
    pub max_response: usize,
}

/// What another server answered with success.
#[derive(Clone, Debug)]
pub struct FederationResponse {
    /// The status.
    pub status: StatusCode,
    /// The type of the body.
    pub content_type: Option<HeaderValue>,
    /// The body.
    pub body: Bytes,
}

/// What another server answers with success, its body on the way.
pub struct FederationStream {
    /// The headers.
    pub headers: HeaderMap,
    /// The body. It ends with an error where it is larger than it may be.
    pub body: BoxStream<'static, Result<Bytes, FederationError>>,
}

/// Why another server did not answer with success.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FederationError {
    /// It answered with an error.
    #[error("{status}: {error}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The Matrix error code.
        errcode: String,
        /// The text for people.
        error: String,
        /// When to try again.
        retry_after: Option<Duration>,
        /// The whole answer, if it is a JSON object.
        body: Map<String, Value>,
    },
    /// Its name cannot be resolved.
    #[error("cannot resolve the server's name: {0}")]
    Dns(String),
    /// It could not be reached.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Its certificate is not good, or it does not speak TLS.
    #[error("TLS fails: {0}")]
    Tls(String),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// Its answer is larger than it may be.
    #[error("the answer is larger than {max} bytes")]
    TooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// It passed on what is signed with keys that cannot be had now.
    #[error("the keys of {0} cannot be had now")]
    NoKeys(OwnedServerName),
    /// Its address is not public, and `federation.allow_private_addresses` is off.
    #[error("the server's address is not public")]
    PrivateAddress,
    /// Its answer is not what the specification says.
    #[error("unexpected answer: {0}")]
    BadBody(String),
    /// This server cannot sign the request, of which nothing was sent.
    #[error("the request cannot be signed: {0}")]
    Unsignable(String),
    /// This server does not federate.
    #[error("federation is off")]
    Disabled,
}

impl FederationError {
    /// Whether the server works, and only has no good answer to this one request.
    pub(crate) fn concerns_request(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                *status == StatusCode::INTERNAL_SERVER_ERROR
                    || (status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS)
            }
            Self::TooLarge { .. } | Self::BadBody(_) => true,
            _ => false,
        }
    }

    /// The kind of failure, for metrics.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Status { status, .. } if status.is_server_error() => "status_5xx",
            Self::Status { .. } => "status_4xx",
            Self::Dns(_) => "dns",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::TooLarge { .. } => "too_large",
            Self::NoKeys(_) => "no_keys",
            Self::PrivateAddress => "private_address",
            Self::BadBody(_) => "bad_body",
            Self::Unsignable(_) => "unsignable",
            Self::Disabled => "disabled",
        }
    }
}

/// A client that counts what goes through it, and takes every good answer for a sign of life.
pub(crate) struct Counted {
    pub(crate) inner: Arc<dyn FederationClient>,
    pub(crate) metrics: Metrics,
    pub(crate) outbox: Arc<Outbox>,
}

impl Counted {
    /// Sends a request one way or the other, and counts what became of it.
    async fn counted<T>(
        &self,
        request: FederationRequest,
        send: impl AsyncFnOnce(FederationRequest) -> Result<T, FederationError>,
    ) -> Result<T, FederationError> {
        let path = request.path_and_query.clone();
        let answer = send(request).await;
        self.metrics.asked(&path, answer.as_ref().err());
        answer
    }
}

impl FederationClient for Counted {
    fn request<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
        Box::pin(async move {
            // What became of a transaction is its destination's to judge.
            let is_transaction = request.path_and_query.starts_with("/_matrix/federation/v1/send/");
            let answer =
                self.counted(request, async |request| self.inner.request(destination, request).await).await;
            if answer.is_ok() && !is_transaction {
                self.outbox.alive(destination);
            }
            answer
        })
    }

    fn stream<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        Box::pin(self.counted(request, async |request| self.inner.stream(destination, request).await))
    }

    fn fetch<'a>(
        &'a self,
        url: &'a str,
        timeout: Duration,
        max: usize,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        self.inner.fetch(url, timeout, max)
    }
}

/// Sends requests to other servers.
pub trait FederationClient: Send + Sync + 'static {
    /// Sends one request.
    fn request<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>>;

    /// Sends one request and gives the answer's body as it comes; its `timeout` is for what comes before the body.
    ///
    /// A client whose answers are in memory anyway needs no other implementation than this one.
    fn stream<'a>(
        &'a self,
        destination: &'a ServerName,
        request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        Box::pin(async move {
            let response = self.request(destination, request).await?;
            let mut headers = HeaderMap::new();
            headers.extend(response.content_type.map(|value| (header::CONTENT_TYPE, value)));
            let body = futures_util::stream::iter([Ok(response.body)]).boxed();
            Ok(FederationStream { headers, body })
        })
    }

    /// Gets what a server keeps at another place, as it says in `Location`; the request is not signed.
    ///
    /// `timeout` is for what comes before the body, `max` bounds the body in bytes.
    fn fetch<'a>(
        &'a self,
        url: &'a str,
        timeout: Duration,
        max: usize,
    ) -> BoxFuture<'a, Result<FederationStream, FederationError>> {
        let _ = (timeout, max);
        let refused = FederationError::BadBody(format!("this server does not follow {url}"));
        Box::pin(std::future::ready(Err(refused)))
    }
}
