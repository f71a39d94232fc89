//! Requests to application services, which the operator names: mostly on this machine, so that no address is refused.
//!
//! Spec: application service API, "Homeserver -> Application Service API".

use actors::appservice::{Service, ServiceAnswer, ServiceClient, ServiceError, ServiceRequest};
use futures_util::future::BoxFuture;
use http::header;
use reqwest::{Client, redirect::Policy};

use super::{CONNECT_TIMEOUT, IDLE_TIMEOUT, Unread, innermost, read};

/// The largest answer that is read: lists of third-party users and locations are the large ones.
const ANSWER_MAX: usize = 4 << 20;

/// Calls application services with HTTP.
pub struct ServiceHttp(Client);

impl ServiceHttp {
    /// A client for all services; it takes no proxy of the environment.
    pub fn new() -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("Ganglion/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self(client))
    }

    async fn call(&self, service: &Service, request: ServiceRequest) -> Result<ServiceAnswer, ServiceError> {
        let url = service.url.as_ref().ok_or(ServiceError::NoUrl)?;
        let mut call = self
            .0
            .request(request.method, format!("{url}{}", request.path))
            .bearer_auth(&service.hs_token)
            .timeout(request.timeout);
        if let Some(body) = request.body {
            call = call.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        let response = call.send().await.map_err(|error| failure(&error))?;
        let status = response.status();
        let body = read(response, ANSWER_MAX).await.map_err(|unread| match unread {
            Unread::TooLarge { .. } => ServiceError::TooLarge,
            Unread::Cut(error) => failure(&error),
        })?;
        Ok(ServiceAnswer { status, body })
    }
}

impl ServiceClient for ServiceHttp {
    fn ask<'a>(
        &'a self,
        service: &'a Service,
        request: ServiceRequest,
    ) -> BoxFuture<'a, Result<ServiceAnswer, ServiceError>> {
        Box::pin(self.call(service, request))
    }
}

fn failure(error: &reqwest::Error) -> ServiceError {
    if error.is_timeout() {
        return ServiceError::Timeout;
    }
    ServiceError::Unreachable(innermost(error))
}
