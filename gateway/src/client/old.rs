//! Endpoints that were superseded by `/sync`, which bots and peeking clients still call.
//!
//! They are views of `/sync` and of `/messages`; nothing is computed for them alone.
//! Spec: client-server API, `GET /events`, `GET /events/{eventId}`, `GET /initialSync`, `GET /rooms/{roomId}/initialSync`.

use std::{sync::Arc, time::Duration};

use actors::{
    room::{PageDirection, PageQuery},
    sync::SyncRequest,
    token::Token,
};
use axum::{Json, extract::State};
use engine::{
    id::{Position, TimelineIndex},
    pdu::client::RoomIdField,
};
use js_int::UInt;
use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::filter::{FilterDefinition, RoomEventFilter},
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::events::{event_not_found, room_of, viewer};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Path, Query, Requester},
};

/// The longest wait for an event.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Events of each room that an initial sync holds if the client names no limit, and at most.
const LIMIT_DEFAULT: u32 = 10;
const LIMIT_MAX: u32 = 100;

/// The query of `/initialSync` and `/rooms/{roomId}/initialSync`.
#[derive(Deserialize)]
pub struct InitialQuery {
    limit: Option<u32>,
    #[serde(default)]
    archived: bool,
}

impl InitialQuery {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX)
    }
}

/// `GET /_matrix/client/v3/initialSync`
pub async fn initial_sync(
    State(app): State<App>,
    requester: Requester,
    Query(query): Query<InitialQuery>,
) -> ApiResult<Json<Value>> {
    let mut filter = FilterDefinition::default();
    filter.room.include_leave = query.archived;
    filter.room.timeline.limit = Some(UInt::from(query.limit()));
    let sync = sync(&app, &requester, None, filter, Duration::ZERO).await?;
    let mut rooms = Vec::new();
    for (section, membership) in [("join", "join"), ("invite", "invite"), ("leave", "leave")] {
        for (room_id, room) in sync["rooms"][section].as_object().into_iter().flatten() {
            let mut info = room_info(&app, room_id, membership, room, &sync["next_batch"]).await?;
            if membership == "invite" {
                info["invite"] = own_membership(&app, &requester, room_id).await?.unwrap_or_default();
            }
            if membership == "leave" && is_banned(&app, &requester, room_id).await? {
                info["membership"] = "ban".into();
            }
            rooms.push(info);
        }
    }
    Ok(Json(json!({
        "end": sync["next_batch"],
        "presence": list(&sync["presence"]["events"]),
        "account_data": list(&sync["account_data"]["events"]),
        "rooms": rooms,
    })))
}

/// Whether a user who is not in a room any more was banned from it.
async fn is_banned(app: &App, requester: &Requester, room_id: &str) -> ApiResult<bool> {
    let room_id = OwnedRoomId::try_from(room_id).map_err(|error| ApiError::internal(&error))?;
    let record = app.homeserver().room(&room_id).await?.membership_record(&requester.user_id).await?;
    Ok(record.is_some_and(|record| record.membership == "ban"))
}

async fn room_info(
    app: &App,
    room_id: &str,
    membership: &str,
    room: &Value,
    end: &Value,
) -> ApiResult<Value> {
    let id = OwnedRoomId::try_from(room_id).map_err(|error| ApiError::internal(&error))?;
    let visibility = if app.homeserver().is_public(&id).await? { "public" } else { "private" };
    let mut info = json!({ "room_id": room_id, "membership": membership, "visibility": visibility });
    if membership == "invite" {
        return Ok(info);
    }
    info["messages"] = json!({
        "start": room["timeline"]["prev_batch"],
        "end": end,
        "chunk": in_room(&room["timeline"]["events"], room_id),
    });
    info["state"] = in_room(&room["state_after"]["events"], room_id);
    info["account_data"] = list(&room["account_data"]["events"]).into();
    Ok(info)
}

/// The query of `/events`.
#[derive(Deserialize)]
pub struct EventsQuery {
    from: Option<String>,
    timeout: Option<u64>,
    room_id: Option<OwnedRoomId>,
}

/// `GET /_matrix/client/v3/events`
pub async fn events(
    State(app): State<App>,
    requester: Requester,
    Query(query): Query<EventsQuery>,
) -> ApiResult<Json<Value>> {
    let invalid = |_| ApiError::invalid_param("from is not a token of this server");
    let from: Option<Token> = query.from.as_deref().map(str::parse).transpose().map_err(invalid)?;
    let timeout = Duration::from_millis(query.timeout.unwrap_or(30_000)).min(TIMEOUT_MAX);
    if let Some(room_id) = &query.room_id {
        return peek(&app, requester, room_id, from, timeout).await;
    }
    let since = match from {
        Some(Token::Sync(position) | Token::SyncInbox { position, .. }) => position,
        Some(Token::Timeline(_)) => return Err(ApiError::invalid_param("from is not a token of /events")),
        // What happens from now on.
        None => app.homeserver().session(&requester.user_id).await?.view().latest(),
    };
    let sync = sync(&app, &requester, Some(since), FilterDefinition::default(), timeout).await?;
    let mut chunk = list(&sync["presence"]["events"]);
    for section in ["join", "leave"] {
        for (room_id, room) in sync["rooms"][section].as_object().into_iter().flatten() {
            for part in ["timeline", "ephemeral"] {
                chunk.extend(list(&in_room(&room[part]["events"], room_id)));
            }
        }
    }
    for section in ["invite", "knock"] {
        for (room_id, _) in sync["rooms"][section].as_object().into_iter().flatten() {
            chunk.extend(own_membership(&app, &requester, room_id).await?);
        }
    }
    let start = query.from.unwrap_or_else(|| Token::Sync(since).to_string());
    Ok(Json(json!({ "start": start, "end": sync["next_batch"], "chunk": chunk })))
}

/// The event by which a user is invited to a room, or knocks.
async fn own_membership(app: &App, requester: &Requester, room_id: &str) -> ApiResult<Option<Value>> {
    let room_id = OwnedRoomId::try_from(room_id).map_err(|error| ApiError::internal(&error))?;
    let room = app.homeserver().room(&room_id).await?;
    let event = room.membership_event(&requester.user_id).await?;
    let rendered = room.render(event.as_slice(), &viewer(requester.clone()), RoomIdField::Present).await?;
    let event = rendered.first().map(|event| serde_json::from_str(event.get()));
    event.transpose().map_err(|error| ApiError::internal(&error))
}

/// `GET /_matrix/client/v3/events/{eventId}`
pub async fn event(
    State(app): State<App>,
    requester: Requester,
    Path(event_id): Path<OwnedEventId>,
) -> ApiResult<Json<Box<RawValue>>> {
    let room_id = app.homeserver().room_of_event(&event_id).await?.ok_or_else(event_not_found)?;
    let room = room_of(&app, &room_id).await?;
    let event = room.event(&event_id).await?.ok_or_else(event_not_found)?;
    if !room.may_see(&requester.user_id, &event).await? {
        return Err(event_not_found());
    }
    let rendered = room.render(&[event], &viewer(requester), RoomIdField::Present).await?;
    rendered.into_iter().next().map(Json).ok_or_else(event_not_found)
}

/// New events of one room, which the user need not be in if everyone may read it.
async fn peek(
    app: &App,
    requester: Requester,
    room_id: &OwnedRoomId,
    from: Option<Token>,
    timeout: Duration,
) -> ApiResult<Json<Value>> {
    let room = room_of(app, room_id).await?;
    room.readable_root(&requester.user_id).await?;
    let start = from.map_or_else(|| room.snapshot().head.latest, Token::boundary);
    app.homeserver().wait_for_event(&room, start, timeout).await;
    let query = PageQuery {
        user_id: &requester.user_id,
        from: start,
        to: None,
        direction: PageDirection::Forward,
        limit: LIMIT_MAX as usize,
        filter: &RoomEventFilter::default(),
    };
    let events = room.page(&query).await?.events;
    let end = events.last().and_then(|event| event.index).unwrap_or(start);
    let chunk = room.render(&events, &viewer(requester), RoomIdField::Present).await?;
    let (start, end) = (Token::Timeline(start).to_string(), Token::Timeline(end).to_string());
    Ok(Json(json!({ "start": start, "end": end, "chunk": chunk })))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/initialSync`
pub async fn room_initial_sync(
    State(app): State<App>,
    requester: Requester,
    Path(room_id): Path<OwnedRoomId>,
    Query(query): Query<InitialQuery>,
) -> ApiResult<Json<Value>> {
    let room = room_of(&app, &room_id).await?;
    let root = room.readable_root(&requester.user_id).await?;
    let end = room.snapshot().head.latest;
    let page = PageQuery {
        user_id: &requester.user_id,
        from: end,
        to: None,
        direction: PageDirection::Backward,
        limit: query.limit() as usize,
        filter: &RoomEventFilter::default(),
    };
    let mut page = room.page(&page).await?;
    page.events.reverse();
    let start = page.events.first().and_then(|event| event.index).unwrap_or(end);
    let state = room.state(root, None).await?;
    let record = room.membership_record(&requester.user_id).await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let data = session.data();
    let account_data: Vec<_> = data
        .account_data_since(Some(&room_id), Position(0))
        .map(|(kind, content)| json!({ "type": kind, "content": content }))
        .collect();
    let is_public = app.homeserver().is_public(&room_id).await?;
    let viewer = viewer(requester);
    let messages = json!({
        "start": Token::Timeline(TimelineIndex(start.0 - 1)).to_string(),
        "end": Token::Timeline(end).to_string(),
        "chunk": room.render(&page.events, &viewer, RoomIdField::Present).await?,
    });
    let mut info = json!({
        "room_id": room_id,
        "messages": messages,
        "state": room.render(&state, &viewer, RoomIdField::Present).await?,
        "visibility": if is_public { "public" } else { "private" },
        "account_data": account_data,
    });
    if let Some(record) = record {
        info["membership"] = record.membership.into();
    }
    Ok(Json(info))
}

async fn sync(
    app: &App,
    requester: &Requester,
    since: Option<Position>,
    filter: FilterDefinition,
    timeout: Duration,
) -> ApiResult<Value> {
    let request = SyncRequest {
        user_id: requester.user_id.clone(),
        device_id: requester.device_key(),
        since,
        inbox_since: None,
        // None of these endpoints has a place for them.
        takes_messages: false,
        filter: Arc::new(filter),
        full_state: false,
        use_state_after: true,
        timeout,
    };
    let response = app.homeserver().sync(&request).await?;
    serde_json::to_value(&response).map_err(|error| ApiError::internal(&error))
}

fn list(events: &Value) -> Vec<Value> {
    events.as_array().cloned().unwrap_or_default()
}

/// Where an event's `unsigned` part holds other events.
const NESTED: [&str; 3] =
    ["/redacted_because", "/m.relations/m.replace", "/m.relations/m.thread/latest_event"];

/// Events of a `/sync` response, with the room's ID that they lack there.
fn in_room(events: &Value, room_id: &str) -> Value {
    let mut events = list(events);
    for event in &mut events {
        add_room_id(event, room_id);
    }
    events.into()
}

fn add_room_id(event: &mut Value, room_id: &str) {
    let Some(fields) = event.as_object_mut() else { return };
    fields.insert("room_id".to_owned(), room_id.into());
    let Some(unsigned) = fields.get_mut("unsigned") else { return };
    for path in NESTED {
        if let Some(nested) = unsigned.pointer_mut(path) {
            add_room_id(nested, room_id);
        }
    }
}
