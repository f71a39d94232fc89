//! What a room is, for those who may know of it.
//!
//! Spec: client-server API, "Room Summaries", `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.

use actors::{
    aliases::PublicRoom,
    room::{RoomError, RoomHandle, allowed_rooms, content_string},
};
use axum::extract::State;
use ruma::{
    OwnedRoomId, UInt, UserId,
    api::client::room::get_summary,
    room::{JoinRuleSummary, RestrictedSummary, RoomSummary, RoomType},
};

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
    let room_id = super::membership::resolve(&app, request.room_id_or_alias).await?;
    let room = app.homeserver().room(&room_id).await?;
    let record = room.membership_record(&requester.user_id).await?;
    let membership = record.map_or_else(|| "leave".to_owned(), |record| record.membership);
    let face = room.public_face().await?;
    let knows = matches!(membership.as_str(), "join" | "invite" | "knock");
    if !knows && !is_open_to(&app, &requester.user_id, &face).await? {
        // As if it did not exist.
        return Err(RoomError::NotFound.into());
    }
    let mut response = get_summary::v1::Response::new(summary(&room, face).await?);
    response.membership = Some(membership.into());
    Ok(Matrix(response))
}

/// Whether someone who is not in a room may know what it is: they may read it, or ask to be let in.
async fn is_open_to(app: &App, user_id: &UserId, face: &PublicRoom) -> ApiResult<bool> {
    Ok(match face.join_rule.as_str() {
        _ if face.world_readable => true,
        "public" | "knock" | "knock_restricted" => true,
        "restricted" => app.homeserver().meets_allow_rule(user_id, &face.room_id).await?,
        _ => false,
    })
}

async fn summary(room: &RoomHandle, face: PublicRoom) -> ApiResult<RoomSummary> {
    let allowed: Vec<OwnedRoomId> = room
        .current("m.room.join_rules", "")
        .await?
        .map(|event| allowed_rooms(&event.pdu))
        .unwrap_or_default();
    let join_rule = match face.join_rule.as_str() {
        "restricted" => JoinRuleSummary::Restricted(RestrictedSummary::new(allowed)),
        "knock_restricted" => JoinRuleSummary::KnockRestricted(RestrictedSummary::new(allowed)),
        "public" => JoinRuleSummary::Public,
        "knock" => JoinRuleSummary::Knock,
        "private" => JoinRuleSummary::Private,
        // An unknown rule lets nobody in without an invite.
        _ => JoinRuleSummary::Invite,
    };
    let joined = UInt::new_saturating(face.joined);
    let mut summary =
        RoomSummary::new(face.room_id, join_rule, face.guest_can_join, joined, face.world_readable);
    summary.canonical_alias = face.canonical_alias;
    summary.name = face.name;
    summary.topic = face.topic;
    summary.avatar_url = face.avatar_url.map(Into::into);
    summary.room_type = face.room_type.map(RoomType::from);
    let encryption = room.current("m.room.encryption", "").await?;
    let algorithm = encryption.and_then(|event| content_string(&event.pdu, "algorithm"));
    summary.encryption = algorithm.map(Into::into);
    summary.room_version = Some(room.snapshot().version.clone());
    Ok(summary)
}
