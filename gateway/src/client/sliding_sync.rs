//! Simplified sliding sync, in the form that clients began with and in the accepted one.
//!
//! Spec: MSC4186.

use std::time::Duration;

use actors::sliding_sync::{
    SlidingError, SlidingRequest, SlidingResponse,
    request::Body,
    stable::{StableBody, StableResponse},
};
use axum::{Json, extract::State};
use http::StatusCode;
use ruma::presence::PresenceState;
use serde::Deserialize;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Query, Requester},
};

/// The longest wait: proxies give up on silent connections not much later.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// The query of a request.
#[derive(Deserialize)]
pub struct SyncQuery {
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
}

/// `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`
pub async fn sliding_sync(
    State(app): State<App>,
    requester: Requester,
    Query(query): Query<SyncQuery>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<SlidingResponse>> {
    let body: Body =
        serde_json::from_value(body.into()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    body.check().map_err(ApiError::invalid_param)?;
    answer(&app, requester, query, body).await.map(Json)
}

/// `POST /_matrix/client/v4/sync`
pub async fn stable_sync(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<StableResponse>> {
    let mut body: StableBody =
        serde_json::from_value(body.into()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let query = SyncQuery {
        pos: body.pos.take(),
        timeout: body.timeout.take(),
        set_presence: body.set_presence.take(),
    };
    let body = body.into_body().map_err(ApiError::invalid_param)?;
    answer(&app, requester, query, body).await.map(|response| Json(response.into()))
}

async fn answer(app: &App, requester: Requester, query: SyncQuery, body: Body) -> ApiResult<SlidingResponse> {
    let presence = match query.set_presence.as_deref() {
        None | Some("online") => PresenceState::Online,
        Some("offline") => PresenceState::Offline,
        Some("unavailable") => PresenceState::Unavailable,
        Some(_) => return Err(ApiError::invalid_param("set_presence is not a presence state")),
    };
    let session = app.homeserver().session(&requester.user_id).await?;
    // While the request waits, the user counts as online (or as what the client says).
    let _connected = session.connect(&presence);
    let request = SlidingRequest {
        device_id: requester.device_key(),
        user_id: requester.user_id,
        pos: query.pos.filter(|pos| !pos.is_empty()),
        timeout: Duration::from_millis(query.timeout.unwrap_or_default()).min(TIMEOUT_MAX),
        body,
    };
    Ok(app.homeserver().sliding_sync(&request).await?)
}

impl From<SlidingError> for ApiError {
    fn from(error: SlidingError) -> Self {
        match error {
            SlidingError::UnknownPos => {
                Self::new(StatusCode::BAD_REQUEST, "M_UNKNOWN_POS", "the connection has expired; start over")
            }
            SlidingError::InvalidSince => Self::invalid_param(error.to_string()),
            SlidingError::Session(error) => error.into(),
            SlidingError::Room(error) => error.into(),
            SlidingError::Late => Self::late(error.to_string()),
        }
    }
}
