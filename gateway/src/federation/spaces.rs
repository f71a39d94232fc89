//! Spaces, for servers whose users may see them.
//!
//! Spec: server-server API, "Spaces".

use axum::{Json, extract::State};
use ruma::{OwnedRoomId, room::RoomSummary};
use serde::Serialize;
use serde_json::value::RawValue;

use super::authentication::Signed;
use crate::{app::App, error::ApiResult, extract::Path};

/// A space and the rooms in it.
#[derive(Serialize)]
pub struct Hierarchy {
    room: Parent,
    children: Vec<RoomSummary>,
    inaccessible_children: Vec<OwnedRoomId>,
}

#[derive(Serialize)]
struct Parent {
    #[serde(flatten)]
    summary: RoomSummary,
    children_state: Vec<Box<RawValue>>,
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`
pub async fn hierarchy(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Hierarchy>> {
    let suggested_only = signed.value("suggested_only")?.unwrap_or(false);
    let space = app.homeserver().space_for_server(&signed.origin, &room_id, suggested_only).await?;
    let children_state = space.room.children.into_iter().map(|child| child.event).collect();
    Ok(Json(Hierarchy {
        room: Parent { summary: space.room.summary, children_state },
        children: space.children,
        inaccessible_children: space.inaccessible_children,
    }))
}
