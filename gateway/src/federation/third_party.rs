//! Invites to third-party identifiers.
//!
//! Spec: server-server API, "Third-party invites".

use actors::federation::{Bound, Exchange};
use axum::{Json, extract::State};
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use super::authentication::Signed;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{OpenBody, Path},
};

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
pub async fn exchange(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    let exchange: Exchange = signed.json()?;
    app.homeserver().exchange_third_party_invite(&signed.origin, &room_id, exchange).await?;
    Ok(Json(json!({})))
}

/// `PUT /_matrix/federation/v1/3pid/onbind`
///
/// Identity servers do not sign requests: what counts is what they signed of each invite.
pub async fn bound(State(app): State<App>, OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    if !app.homeserver().federates() {
        return Err(ApiError::forbidden("federation is off"));
    }
    let bound: Bound =
        serde_json::from_value(Value::Object(body)).map_err(|error| ApiError::bad_json(error.to_string()))?;
    app.homeserver().third_party_id_bound(bound).await?;
    Ok(Json(json!({})))
}
