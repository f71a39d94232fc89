//! What a room is, for those who may know of it.
//!
//! Spec: client-server API, "Room Summaries", `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.

use axum::{Json, extract::State};
use ruma::api::{OutgoingResponseExt, client::room::get_summary};
use serde_json::Value;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix},
};

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
pub async fn room_summary(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Matrix<get_summary::v1::Response>> {
    let (room_id, mut servers) = super::membership::resolve(&app, request.room_id_or_alias).await?;
    servers.splice(0..0, request.via);
    let (summary, membership) = app.homeserver().room_summary(&requester.user_id, &room_id, &servers).await?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = Some(membership.into());
    Ok(Matrix(response))
}

/// `GET /_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}`, which matrix-js-sdk asks for
///
/// Spec: MSC3266, "Unstable prefix".
pub async fn unstable_room_summary(
    state: State<App>,
    request: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Json<Value>> {
    let Matrix(response) = room_summary(state, request).await?;
    let response =
        response.try_into_http_response::<Vec<u8>>().map_err(|error| ApiError::internal(&error))?;
    let mut summary: Value =
        serde_json::from_slice(response.body()).map_err(|error| ApiError::internal(&error))?;
    for name in ["encryption", "room_version"] {
        if let Some(value) = summary.get(name).cloned() {
            summary[format!("im.nheko.summary.{name}")] = value;
        }
    }
    Ok(Json(summary))
}
