//! Events, states and histories of rooms, for servers that are in them.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events", "Retrieving events".

use std::{sync::Arc, time::Duration};

use actors::{
    federation::remote::{MissingEventsQuery, RawEvents},
    room::{RoomHandle, StoredEvent},
};
use axum::{Json, extract::State};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, ServerName, UInt};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::authentication::Signed;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Path,
};

/// Events that one answer holds at most.
const PAGE_MAX: usize = 100;

/// How long another server waits for the state of a room that this one joined just now.
const MEMBERS_MAX: Duration = Duration::from_secs(10);

/// Missing events that one answer holds at most.
const MISSING_MAX: usize = 20;

/// An event as it is stored.
pub fn raw(event: &StoredEvent) -> Box<RawValue> {
    serde_json::from_slice(event.pdu.raw()).unwrap_or_default()
}

/// Events in the envelope of a transaction.
#[derive(Serialize)]
pub struct Envelope {
    origin: String,
    origin_server_ts: u64,
    pdus: RawEvents,
}

fn pdus(app: &App, events: &[Arc<StoredEvent>]) -> Json<Envelope> {
    Json(Envelope {
        origin: app.homeserver().server_name().to_string(),
        origin_server_ts: app.homeserver().env().clock.now_ms(),
        pdus: events.iter().map(|event| raw(event)).collect(),
    })
}

/// `GET /_matrix/federation/v1/event/{eventId}`
pub async fn event(
    State(app): State<App>,
    Path(event_id): Path<OwnedEventId>,
    signed: Signed,
) -> ApiResult<Json<Envelope>> {
    let homeserver = app.homeserver();
    let room_id = homeserver.room_of_event(&event_id).await?.ok_or_else(not_found)?;
    let room = member_room(&app, &signed.origin, &room_id).await?;
    let event = known(&room, &event_id).await?;
    let events = room.for_server(&signed.origin, vec![event]).await?;
    Ok(pdus(&app, &events))
}

/// The room, if the asking server is in it.
async fn member_room(app: &App, origin: &ServerName, room_id: &ruma::RoomId) -> ApiResult<RoomHandle> {
    let room = app.homeserver().known_room(origin, room_id).await?;
    if !room.snapshot().head.has_server(origin) && !room.is_world_readable().await? {
        return Err(ApiError::forbidden("your server is not in the room"));
    }
    Ok(room)
}

async fn known(room: &RoomHandle, event_id: &EventId) -> ApiResult<Arc<StoredEvent>> {
    room.any_event(event_id).await?.ok_or_else(not_found)
}

/// An event whose state is known: that of one outside the graph would be taken for an empty one, and one that lacks
/// members for a whole one.
async fn placed(room: &RoomHandle, event_id: &EventId) -> ApiResult<Arc<StoredEvent>> {
    Some(known(room, event_id).await?).filter(|event| event.has_state()).ok_or_else(not_found)
}

fn not_found() -> ApiError {
    ApiError::not_found("event not found")
}

/// A state and its auth chain.
#[derive(Serialize)]
pub struct StateEvents {
    pdus: RawEvents,
    auth_chain: RawEvents,
}

/// `GET /_matrix/federation/v1/state/{roomId}`
pub async fn state(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<StateEvents>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    room.wait_for_members(MEMBERS_MAX).await?;
    let event = placed(&room, &signed.required::<OwnedEventId>("event_id")?).await?;
    let state = room.state_at(&event).await?;
    Ok(Json(StateEvents {
        pdus: state.state.iter().map(|event| raw(event)).collect(),
        auth_chain: state.auth_chain.iter().map(|event| raw(event)).collect(),
    }))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`
pub async fn state_ids(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    room.wait_for_members(MEMBERS_MAX).await?;
    let event = placed(&room, &signed.required::<OwnedEventId>("event_id")?).await?;
    let state = room.state_at(&event).await?;
    let ids = |events: &[Arc<StoredEvent>]| -> Vec<OwnedEventId> {
        events.iter().map(|event| event.pdu.event_id().clone()).collect()
    };
    Ok(Json(json!({ "pdu_ids": ids(&state.state), "auth_chain_ids": ids(&state.auth_chain) })))
}

/// An auth chain.
#[derive(Serialize)]
pub struct AuthChain {
    auth_chain: RawEvents,
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
pub async fn event_auth(
    State(app): State<App>,
    Path((room_id, event_id)): Path<(OwnedRoomId, OwnedEventId)>,
    signed: Signed,
) -> ApiResult<Json<AuthChain>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    let event = known(&room, &event_id).await?;
    let chain = room.auth_chain(event.pdu.auth_events().iter().cloned()).await?;
    Ok(Json(AuthChain { auth_chain: chain.iter().map(|event| raw(event)).collect() }))
}

/// `GET /_matrix/federation/v1/backfill/{roomId}`
pub async fn backfill(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Envelope>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    let from: Vec<OwnedEventId> =
        signed.values("v").into_iter().filter_map(|id| OwnedEventId::try_from(id).ok()).collect();
    if from.is_empty() {
        return Err(ApiError::missing_param("v is missing"));
    }
    let limit = signed.required::<usize>("limit")?.min(PAGE_MAX);
    let events = room.events_before(&from, limit).await?;
    let events = room.for_server(&signed.origin, events).await?;
    Ok(pdus(&app, &events))
}

/// Missing events.
#[derive(Serialize)]
pub struct Missing {
    events: RawEvents,
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`
pub async fn missing_events(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Missing>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    let query: MissingEventsQuery = signed.json()?;
    let limit = usize::try_from(query.limit).unwrap_or(MISSING_MAX).min(MISSING_MAX);
    let events =
        room.events_between(&query.earliest_events, &query.latest_events, limit, query.min_depth).await?;
    let events = room.for_server(&signed.origin, events).await?;
    Ok(Json(Missing { events: events.iter().map(|event| raw(event)).collect() }))
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
pub async fn timestamp_to_event(
    State(app): State<App>,
    Path(room_id): Path<OwnedRoomId>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    let room = member_room(&app, &signed.origin, &room_id).await?;
    let ts = MilliSecondsSinceUnixEpoch(signed.required::<UInt>("ts")?);
    let direction = match signed.required::<String>("dir")?.as_str() {
        "f" => actors::room::PageDirection::Forward,
        "b" => actors::room::PageDirection::Backward,
        _ => return Err(ApiError::invalid_param("dir is f or b")),
    };
    let event = room.any_event_near(ts, direction).await?.ok_or_else(not_found)?;
    let (event_id, ts) = (event.pdu.event_id(), event.pdu.origin_server_ts());
    Ok(Json(json!({ "event_id": event_id, "origin_server_ts": ts })))
}
