//! Spaces, for servers whose users may see them.
//!
//! Spec: server-server API, "Spaces".

use axum::{Json, extract::State};
use ruma::{OwnedRoomId, room::RoomSummary};
use serde::Serialize;

use super::authentication::Signed;
use crate::{
    app::App,
    error::ApiResult,
    extract::Path,
    told::{Told, ToldSpace},
};

/// A space and the rooms in it.
#[derive(Serialize)]
pub struct Hierarchy {
    room: ToldSpace,
    children: Vec<Told<RoomSummary>>,
    inaccessible_children: Vec<OwnedRoomId>,
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`
pub async fn hierarchy(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Hierarchy>> {
    let suggested_only = signed.value("suggested_only")?.unwrap_or(false);
    let space = app.homeserver().space_for_server(&signed.origin, &room_id, suggested_only).await?;
    Ok(Json(Hierarchy {
        room: space.room.into(),
        children: space.children.into_iter().map(Told::from).collect(),
        inaccessible_children: space.inaccessible_children,
    }))
}
