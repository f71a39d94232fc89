//! Requests to application services.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};

use super::Service;

/// A request to a service.
#[derive(Clone, Debug)]
pub struct ServiceRequest {
    /// What is to be done.
    pub method: Method,
    /// Path and query, below the service's URL.
    pub path: String,
    /// The body, JSON.
    pub body: Option<Bytes>,
    /// How long it may take.
    pub timeout: Duration,
}

/// What a service answered.
#[derive(Clone, Debug)]
pub struct ServiceAnswer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// Why a service gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its registration has no URL.
    #[error("the application service takes no requests")]
    NoUrl,
    /// It answered with an error where it should not.
    #[error("the application service answered {0}")]
    Status(StatusCode),
    /// It could not be reached.
    #[error("the application service cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the application service did not answer in time")]
    Timeout,
    /// Its answer is larger than it may be.
    #[error("the application service's answer is too large")]
    TooLarge,
}

impl ServiceError {
    /// All kinds of failure.
    pub(super) const CAUSES: [&str; 6] =
        ["connect", "no_url", "status_4xx", "status_5xx", "timeout", "too_large"];

    /// The kind of failure, for metrics.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::NoUrl => "no_url",
            Self::Status(status) if status.is_server_error() => "status_5xx",
            Self::Status(_) => "status_4xx",
            Self::Unreachable(_) => "connect",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
        }
    }
}

/// Calls application services. The gateway crate implements it with HTTP.
pub trait ServiceClient: Send + Sync + 'static {
    /// Sends a request, with the token that proves where it comes from.
    ///
    /// Spec: application service API, "Authorisation".
    fn ask<'a>(
        &'a self,
        service: &'a Service,
        request: ServiceRequest,
    ) -> BoxFuture<'a, Result<ServiceAnswer, ServiceError>>;
}

/// Reaches no service; for servers that are made without a network.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoServices;

impl ServiceClient for NoServices {
    fn ask<'a>(
        &'a self,
        _service: &'a Service,
        _request: ServiceRequest,
    ) -> BoxFuture<'a, Result<ServiceAnswer, ServiceError>> {
        Box::pin(async { Err(ServiceError::NoUrl) })
    }
}
