//! Letting users of other servers into rooms and out of them, and invites from other servers.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms".

use actors::{
    federation::{
        Omit,
        remote::{Invite, RawEvents},
    },
    room::{RoomHandle, StoredEvent},
};
use axum::{Json, extract::State};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{authentication::Signed, events::raw};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Path,
};

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`
pub async fn make_join(
    State(app): State<App>,
    Path((room_id, user)): Path<(OwnedRoomId, OwnedUserId)>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    make(&app, &signed, room_id, user, "join").await
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
pub async fn make_leave(
    State(app): State<App>,
    Path((room_id, user)): Path<(OwnedRoomId, OwnedUserId)>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    make(&app, &signed, room_id, user, "leave").await
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
pub async fn make_knock(
    State(app): State<App>,
    Path((room_id, user)): Path<(OwnedRoomId, OwnedUserId)>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    // Unlike for joins, there is no version that a server has in mind that names none.
    signed.required::<String>("ver")?;
    make(&app, &signed, room_id, user, "knock").await
}

async fn make(
    app: &App,
    signed: &Signed,
    room_id: OwnedRoomId,
    user: OwnedUserId,
    membership: &str,
) -> ApiResult<Json<Value>> {
    let homeserver = app.homeserver();
    let room = homeserver.shared_room(&signed.origin, &room_id).await?;
    if membership != "leave" {
        supports(signed, &room.snapshot().version)?;
    }
    let (version, event) =
        homeserver.membership_template(&signed.origin, &room_id, &user, membership).await?;
    Ok(Json(json!({ "room_version": version, "event": event })))
}

/// Whether the asking server knows the room's version; one that names none knows version 1.
fn supports(signed: &Signed, version: &RoomVersionId) -> ApiResult<()> {
    let mut versions = signed.values("ver");
    if versions.is_empty() {
        versions.push("1".to_owned());
    }
    if versions.iter().any(|known| known == version.as_str()) {
        return Ok(());
    }
    let message = format!("the room has version {version}, which your server does not support");
    Err(ApiError::bad_request("M_INCOMPATIBLE_ROOM_VERSION", message).with("room_version", version.as_str()))
}

/// The answer to a join.
#[derive(Serialize)]
pub struct Joined {
    origin: String,
    state: RawEvents,
    auth_chain: RawEvents,
    event: Box<RawValue>,
    members_omitted: bool,
    servers_in_room: Vec<String>,
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
pub async fn send_join(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<Joined>> {
    let omit = if signed.value("omit_members")?.unwrap_or(false) { Omit::Members } else { Omit::Nothing };
    let (room, event) = take(&app, &signed, (room_id, event_id), "join").await?;
    joined(&app, &room, &event, omit).await.map(Json)
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`
pub async fn send_join_v1(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<(u16, Joined)>> {
    let (room, event) = take(&app, &signed, (room_id, event_id), "join").await?;
    Ok(Json((200, joined(&app, &room, &event, Omit::Nothing).await?)))
}

async fn joined(app: &App, room: &RoomHandle, event: &StoredEvent, omit: Omit) -> ApiResult<Joined> {
    let answer = room.join_answer(event, omit).await?;
    Ok(Joined {
        origin: app.homeserver().server_name().to_string(),
        state: answer.state.iter().map(|event| raw(event)).collect(),
        auth_chain: answer.auth_chain.iter().map(|event| raw(event)).collect(),
        event: raw(event),
        members_omitted: omit == Omit::Members,
        servers_in_room: answer.servers.iter().map(ToString::to_string).collect(),
    })
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
pub async fn send_leave(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    take(&app, &signed, (room_id, event_id), "leave").await?;
    Ok(Json(json!({})))
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`
pub async fn send_leave_v1(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    take(&app, &signed, (room_id, event_id), "leave").await?;
    Ok(Json(json!([200, {}])))
}

/// The answer to a knock.
#[derive(Serialize)]
pub struct Knocked {
    knock_room_state: RawEvents,
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
pub async fn send_knock(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<Knocked>> {
    let (room, event) = take(&app, &signed, (room_id, event_id), "knock").await?;
    Ok(Json(Knocked { knock_room_state: room.introduction(event.pdu.sender()).await? }))
}

async fn take(
    app: &App,
    signed: &Signed,
    (room_id, event_id): (OwnedRoomId, OwnedEventId),
    membership: &str,
) -> ApiResult<(RoomHandle, std::sync::Arc<StoredEvent>)> {
    let event: Box<RawValue> = signed.json()?;
    let homeserver = app.homeserver();
    Ok(homeserver.take_membership(&signed.origin, (&room_id, &event_id), membership, &event).await?)
}

/// The answer to an invite.
#[derive(Serialize)]
pub struct Invited {
    event: Box<RawValue>,
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
pub async fn invite(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<Invited>> {
    let invite: Invite = signed.json()?;
    invited(&app, &signed, (room_id, event_id), invite).await.map(Json)
}

/// The body of an invite of the first version: the event alone, with the stripped state among its unsigned data.
#[derive(Deserialize)]
struct InviteV1 {
    #[serde(default)]
    unsigned: UnsignedV1,
}

#[derive(Default, Deserialize)]
struct UnsignedV1 {
    #[serde(default)]
    invite_room_state: RawEvents,
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`
pub async fn invite_v1(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<(u16, Invited)>> {
    let body: InviteV1 = signed.json()?;
    let invite = Invite {
        room_version: RoomVersionId::V1,
        event: signed.json()?,
        invite_room_state: body.unsigned.invite_room_state,
        via: None,
    };
    Ok(Json((200, invited(&app, &signed, (room_id, event_id), invite).await?)))
}

async fn invited(
    app: &App,
    signed: &Signed,
    (room_id, event_id): (OwnedRoomId, OwnedEventId),
    invite: Invite,
) -> ApiResult<Invited> {
    let pdu = app.homeserver().take_invite(&signed.origin, (&room_id, &event_id), invite).await?;
    let event = serde_json::from_slice(pdu.raw()).map_err(|error| ApiError::internal(&error))?;
    Ok(Invited { event })
}
