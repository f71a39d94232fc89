//! Reading a room's timeline.
//!
//! Spec: client-server API, "Getting events for a room" and "Event context".

use std::{collections::BTreeSet, sync::Arc};

use actors::{
    filter,
    room::{Page, PageDirection, PageQuery, RoomError, RoomHandle, StoredEvent},
    token::Token,
};
use axum::{Json, extract::State};
use engine::{id::TimelineIndex, pdu::client::RoomIdField, state::StateRoot};
use ruma::{
    UInt,
    api::{
        Direction,
        client::{
            context::get_context, filter::RoomEventFilter, message::get_message_events,
            room::get_event_by_timestamp,
        },
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::events::{event_not_found, room_of, viewer, visible_event};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester},
};

/// Events that one page holds at most.
const PAGE_MAX: usize = 1000;

/// Holes that are filled for one page, at most.
const FILLS_MAX: usize = 3;

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
pub async fn get_messages(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_message_events::v3::Request>,
) -> ApiResult<Matrix<get_message_events::v3::Response>> {
    let room = room_of(&app, &request.room_id).await?;
    // Those who never were in the room may page only through what everyone may read.
    room.readable_root(&requester.user_id).await?;
    let direction = page_direction(request.dir);
    let from = match request.from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) => parse_token(from, "from")?,
        None if direction == PageDirection::Backward => room.snapshot().head.latest,
        None => TimelineIndex(i64::MIN),
    };
    let to = request.to.as_deref().filter(|to| !to.is_empty()).map(|to| parse_token(to, "to")).transpose()?;
    if !actors::filter::applies_to_room(&request.filter, &request.room_id) {
        let mut response = get_message_events::v3::Response::new();
        response.start = Token::Timeline(from).to_string();
        return Ok(Matrix(response));
    }
    let limit = request.filter.limit.map_or(request.limit, |limit| limit.min(request.limit));
    let query = PageQuery {
        user_id: &requester.user_id,
        from,
        to,
        direction,
        limit: page_limit(limit),
        filter: &request.filter,
    };
    let page = fill_and_page(&app, &room, &query).await?;
    let state = lazy_members(&room, &request.filter, &page.events).await?;
    let viewer = viewer(requester);
    let mut response = get_message_events::v3::Response::new();
    response.start = Token::Timeline(from).to_string();
    response.end = page.end.map(|end| Token::Timeline(end).to_string());
    response.chunk = raw(room.render(&page.events, &viewer, RoomIdField::Present).await?);
    response.state = raw(room.render(&state, &viewer, RoomIdField::Present).await?);
    Ok(Matrix(response))
}

/// A page, after the holes of the timeline in it were filled from other servers as far as they can be.
async fn fill_and_page(app: &App, room: &RoomHandle, query: &PageQuery<'_>) -> ApiResult<Page> {
    let homeserver = app.homeserver();
    for _ in 0..FILLS_MAX {
        let mut page = room.page(query).await?;
        if query.direction == PageDirection::Forward {
            return Ok(page);
        }
        let oldest = page.end.unwrap_or(TimelineIndex(i64::MIN));
        let until = TimelineIndex(query.from.0.saturating_add(1));
        let Some(gap) = room.newest_gap(oldest, until) else { return Ok(page) };
        if !homeserver.fill_gap(room, oldest, until).await? {
            // What lies before the hole may come later.
            page.events.retain(|event| event.index >= Some(gap));
            page.end = homeserver
                .federates()
                .then_some(TimelineIndex(gap.0 - 1))
                .filter(|_| !page.events.is_empty());
            return Ok(page);
        }
    }
    Ok(room.page(query).await?)
}

fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}

/// The boundary that a token in a parameter of this name stands for.
pub(super) fn parse_token(text: &str, name: &str) -> ApiResult<TimelineIndex> {
    let token: Token = text.parse().map_err(|_| ApiError::invalid_param(format!("{name} is not a token")))?;
    Ok(token.boundary())
}

/// The direction of a page.
pub(super) fn page_direction(direction: Direction) -> PageDirection {
    match direction {
        Direction::Backward => PageDirection::Backward,
        Direction::Forward => PageDirection::Forward,
    }
}

fn page_limit(limit: UInt) -> usize {
    usize::try_from(u64::from(limit)).unwrap_or(PAGE_MAX).min(PAGE_MAX)
}

/// With lazy loading, the members who sent the events of a page.
async fn lazy_members(
    room: &RoomHandle,
    filter: &RoomEventFilter,
    events: &[Arc<StoredEvent>],
) -> ApiResult<Vec<Arc<StoredEvent>>> {
    let Some(newest) = events.iter().max_by_key(|event| event.index) else { return Ok(Vec::new()) };
    if filter.lazy_load_options.is_disabled() {
        return Ok(Vec::new());
    }
    senders(room, newest.after, events).await
}

/// The members of a state who sent some events.
async fn senders(
    room: &RoomHandle,
    root: StateRoot,
    events: &[Arc<StoredEvent>],
) -> ApiResult<Vec<Arc<StoredEvent>>> {
    let senders: BTreeSet<_> = events.iter().map(|event| event.pdu.sender()).collect();
    let mut members = Vec::with_capacity(senders.len());
    for sender in senders {
        members.extend(room.state_event(root, "m.room.member", sender.as_str()).await?);
    }
    Ok(members)
}

/// An event and what happened around it.
///
/// Not ruma's type, which leaves out what is empty: matrix-js-sdk takes all the lists for granted.
#[derive(Serialize)]
pub struct Context {
    start: String,
    end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Box<RawValue>>,
    events_before: Vec<Box<RawValue>>,
    events_after: Vec<Box<RawValue>>,
    state: Vec<Box<RawValue>>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
pub async fn get_context(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_context::v3::Request>,
) -> ApiResult<Json<Context>> {
    let (room, event) = visible_event(&app, &requester, (&request.room_id, &request.event_id)).await?;
    let index = event.index.ok_or_else(event_not_found)?;
    let limit = page_limit(request.limit);
    let filter = &request.filter;
    let page = async |direction, from, limit| {
        let user_id = &requester.user_id;
        room.page(&PageQuery { user_id, from, to: None, direction, limit, filter }).await
    };
    let before = page(PageDirection::Backward, TimelineIndex(index.0 - 1), limit / 2).await?;
    let after = page(PageDirection::Forward, index, limit - limit / 2).await?;
    let newest = after.events.last().unwrap_or(&event);
    let oldest = before.events.last().unwrap_or(&event);
    let boundary = |event: &StoredEvent| event.index.unwrap_or_default();
    let mut shown: Vec<_> = before.events.clone();
    shown.push(event.clone());
    shown.extend(after.events.iter().cloned());
    // Whoever is invited, say, sees the invite, but not the room's state.
    let state = match room.readable_root_at(&requester.user_id, boundary(newest)).await {
        Ok(root) => context_state(&room, root, filter, &shown).await?,
        Err(RoomError::NotJoined) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let viewer = viewer(requester.clone());
    let render = async |events| room.render(events, &viewer, RoomIdField::Present).await;
    Ok(Json(Context {
        start: Token::Timeline(TimelineIndex(boundary(oldest).0 - 1)).to_string(),
        end: Token::Timeline(boundary(newest)).to_string(),
        event: render(std::slice::from_ref(&event)).await?.into_iter().next(),
        events_before: render(&before.events).await?,
        events_after: render(&after.events).await?,
        state: render(&state).await?,
    }))
}

/// The part of a state that goes with some events.
async fn context_state(
    room: &RoomHandle,
    root: StateRoot,
    filter: &RoomEventFilter,
    shown: &[Arc<StoredEvent>],
) -> ApiResult<Vec<Arc<StoredEvent>>> {
    let mut state = if filter.lazy_load_options.is_disabled() {
        room.state(root, None).await?
    } else {
        let mut state = room.state_without_members(root).await?;
        state.extend(senders(room, root, shown).await?);
        state
    };
    state.retain(|event| filter::passes(filter, &event.pdu));
    Ok(state)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
pub async fn timestamp_to_event(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_event_by_timestamp::v1::Request>,
) -> ApiResult<Matrix<get_event_by_timestamp::v1::Response>> {
    let room = room_of(&app, &request.room_id).await?;
    readable_by(&room, &requester).await?;
    let direction = page_direction(request.dir);
    let user_id = &requester.user_id;
    let mut found = room.event_near(user_id, request.ts, direction).await?;
    let homeserver = app.homeserver();
    let missed = homeserver.missed_event_near(&room, request.ts, direction, found.as_deref()).await?;
    if let Some(missed) = missed
        && room.may_see(user_id, &missed).await?
    {
        found = Some(missed);
    }
    let event = found.ok_or_else(|| ApiError::not_found("no event in that direction"))?;
    let pdu = &event.pdu;
    Ok(Matrix(get_event_by_timestamp::v1::Response::new(pdu.event_id().clone(), pdu.origin_server_ts())))
}

async fn readable_by(room: &RoomHandle, requester: &Requester) -> ApiResult<()> {
    room.readable_root(&requester.user_id).await?;
    Ok(())
}
