//! Requests of other servers: signed, and by whom.
//!
//! Spec: server-server API, "Request Authentication".

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    extract::{FromRequest, OriginalUri, Request},
};
use http::StatusCode;
use ruma::{OwnedServerName, api::federation::authentication::XMatrix};
use serde::de::DeserializeOwned;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// The largest body: a transaction has at most 50 events of 64 KiB and 100 EDUs.
const BODY_MAX: usize = 16 << 20;

/// A request that another server signed.
pub struct Signed {
    /// Whose signature it bears.
    pub origin: OwnedServerName,
    /// Its query string.
    pub query: String,
    /// Its body.
    pub body: Bytes,
}

impl Signed {
    /// The body as a type.
    pub fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::bad_json(error.to_string()))
    }

    /// The values of a key of the query.
    pub fn values(&self, key: &str) -> Vec<String> {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&self.query).unwrap_or_default();
        pairs.into_iter().filter(|(name, _)| name == key).map(|(_, value)| value).collect()
    }

    /// The first value of a key of the query as a type; none if it is missing.
    pub fn value<T: std::str::FromStr>(&self, key: &str) -> ApiResult<Option<T>> {
        let value = self.values(key).into_iter().next();
        value
            .map(|value| value.parse().map_err(|_| ApiError::invalid_param(format!("invalid {key}"))))
            .transpose()
    }

    /// The first value of a key of the query as a type.
    pub fn required<T: std::str::FromStr>(&self, key: &str) -> ApiResult<T> {
        self.value(key)?.ok_or_else(|| ApiError::missing_param(format!("{key} is missing")))
    }
}

impl FromRequest<App> for Signed {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let homeserver = app.homeserver();
        if !homeserver.federates() {
            return Err(ApiError::forbidden("federation is off"));
        }
        let (mut parts, body) = request.into_parts();
        // Routers nest: what was signed is the whole path.
        if let Some(OriginalUri(uri)) = parts.extensions.get::<OriginalUri>() {
            parts.uri = uri.clone();
        }
        let xmatrix = XMatrix::extract_from_http_headers(&parts.headers)
            .map_err(|error| unauthorized(format!("no usable X-Matrix authorization: {error}")))?;
        let too_large =
            |_| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", "the body is too large");
        let body = axum::body::to_bytes(body, BODY_MAX).await.map_err(too_large)?;
        let own = homeserver.server_name();
        if xmatrix.destination.as_ref().is_some_and(|destination| destination != own) {
            return Err(unauthorized(format!(
                "the request is signed for another destination than {own}: check the Host that a proxy passes on"
            )));
        }
        let now_ms = homeserver.env().clock.now_ms();
        let wanted =
            BTreeMap::from([(xmatrix.origin.clone(), BTreeMap::from([(xmatrix.key.to_string(), now_ms)]))]);
        let keys = homeserver.public_keys(wanted).await;
        let signed = http::Request::from_parts(parts, body);
        xmatrix.verify_http_request(&signed, own, &keys).map_err(|error| {
            tracing::warn!(
                origin = %xmatrix.origin, uri = %signed.uri(), %error,
                "the signature of a request does not hold; if all of a server's do, a proxy rewrites the URI or the body"
            );
            unauthorized(format!("the signature does not hold: {error}"))
        })?;
        homeserver.server_is_alive(&xmatrix.origin);
        let (parts, body) = signed.into_parts();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        Ok(Self { origin: xmatrix.origin, query, body })
    }
}

fn unauthorized(message: String) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", message)
}
