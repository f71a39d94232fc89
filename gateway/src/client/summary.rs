//! What a room is, for those who may know of it.
//!
//! Spec: client-server API, "Room Summaries", `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.

use axum::{Json, extract::State};
use ruma::{api::client::room::get_summary, room::RoomSummary};
use serde::Serialize;
use serde_json::Value;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Authenticated,
    told::Told,
};

/// What a room is, and what the one who asks is there.
#[derive(Serialize)]
pub struct Summary {
    #[serde(flatten)]
    room: Told<RoomSummary>,
    membership: String,
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
pub async fn room_summary(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Json<Summary>> {
    let (room_id, mut servers) = super::membership::resolve(&app, request.room_id_or_alias).await?;
    servers.splice(0..0, request.via);
    let (room, membership) = app.homeserver().room_summary(&requester.user_id, &room_id, &servers).await?;
    Ok(Json(Summary { room: room.into(), membership }))
}

/// `GET /_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}`, which matrix-js-sdk asks for
///
/// Spec: MSC3266, "Unstable prefix".
pub async fn unstable_room_summary(
    state: State<App>,
    request: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Json<Value>> {
    let Json(summary) = room_summary(state, request).await?;
    let mut summary = serde_json::to_value(summary).map_err(|error| ApiError::internal(&error))?;
    for name in ["encryption", "room_version"] {
        if let Some(value) = summary.get(name).cloned() {
            summary[format!("im.nheko.summary.{name}")] = value;
        }
    }
    Ok(Json(summary))
}
