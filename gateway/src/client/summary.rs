//! What a room is, for those who may know of it.
//!
//! Spec: client-server API, "Room Summaries", `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.

use actors::room::RoomError;
use axum::extract::State;
use ruma::api::client::room::get_summary;

use crate::{
    app::App,
    error::ApiResult,
    extract::{Authenticated, Matrix},
};

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
pub async fn room_summary(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Matrix<get_summary::v1::Response>> {
    let (room_id, _) = super::membership::resolve(&app, request.room_id_or_alias).await?;
    let room = app.homeserver().room(&room_id).await?;
    let record = room.membership_record(&requester.user_id).await?;
    let membership = record.map_or_else(|| "leave".to_owned(), |record| record.membership);
    let summary = room.summary().await?;
    if !app.homeserver().may_know(&requester.user_id, &summary).await? {
        // As if it did not exist.
        return Err(RoomError::NotFound.into());
    }
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = Some(membership.into());
    Ok(Matrix(response))
}
