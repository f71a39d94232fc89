//! Requests that name a room version.

use axum::extract::{FromRequest, Request};
use ruma::{RoomVersionId, api::IncomingRequest};
use serde_json::{Map, Value};

use super::{Authenticated, BODY_MAX, authenticate, parse_read, read_object};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// A request that names a room version.
pub trait NamesVersion: IncomingRequest {
    /// Where in the body.
    const FIELD: &'static str;
}

/// As [`Authenticated`], for a request that names a room version: what cannot be the name of one is no malformed request,
/// as it is for ruma, but a version that is not supported.
///
/// Spec: client-server API, `POST /_matrix/client/v3/createRoom`, `M_UNSUPPORTED_ROOM_VERSION`.
pub struct Versioned<R>(pub Authenticated<R>);

impl<R: NamesVersion + Send> FromRequest<App> for Versioned<R> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let (mut parts, body) = request.into_parts();
        let requester = authenticate(&parts, app).await?;
        let body = read_object(&parts.method, body, BODY_MAX).await?;
        check_version(R::FIELD, &body)?;
        let request = parse_read(&mut parts, body, app).await?;
        Ok(Self(Authenticated { requester, request }))
    }
}

fn check_version(field: &str, body: &[u8]) -> ApiResult<()> {
    // What is no object is refused by what reads it.
    let body: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    match body.get(field).and_then(Value::as_str) {
        Some(version) if RoomVersionId::try_from(version).is_err() => {
            let message = format!("room version {version} is not supported");
            Err(ApiError::bad_request("M_UNSUPPORTED_ROOM_VERSION", message))
        }
        _ => Ok(()),
    }
}
