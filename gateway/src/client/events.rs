//! Sending events, and reading state.
//!
//! Spec: client-server API, "Sending events to a room" and "Getting events for a room".

use std::{sync::Arc, time::Duration};

use actors::{
    room::{RoomError, RoomHandle, Send, StoredEvent, Viewer, content_string},
    token::Token,
};
use axum::{
    Json,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use engine::pdu::{Draft, client::RoomIdField};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId,
    UInt,
    api::client::{
        membership::{get_member_events, joined_members},
        message::send_message_event,
        redact::redact_event,
        room::get_room_event,
        state::{get_state_event_for_key, get_state_events, send_state_event},
    },
    serde::Raw,
};
use serde_json::value::{RawValue, to_raw_value};
use storage::schema::SentBy;

use super::{content::content_of, delayed_events};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Requester, Restriction, form_value},
};

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
///
/// Idempotent per device and transaction ID. With a delay in the query it is sent later (MSC4140).
pub async fn send_message(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    Authenticated { requester, request }: Authenticated<send_message_event::v3::Request>,
) -> ApiResult<Response> {
    let kind = request.event_type.to_string();
    let content = content_of(&kind, request.body.into_json())?;
    let draft =
        Draft { dated: date(&requester, query.as_deref())?, ..Draft::new(kind.into(), None, content) };
    let txn_id = Some(request.txn_id.to_string());
    if let Some(delay) = delayed_events::of_query(query.as_deref())? {
        return scheduled(&app, requester, &request.room_id, draft, (txn_id, delay)).await;
    }
    let event_id = send(&app, requester, &request.room_id, draft, txn_id).await?;
    Ok(Matrix(send_message_event::v3::Response::new(event_id)).into_response())
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
pub async fn redact(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<redact_event::v3::Request>,
) -> ApiResult<Matrix<redact_event::v3::Response>> {
    let content = match &request.reason {
        Some(reason) => serde_json::json!({ "reason": reason }),
        None => serde_json::json!({}),
    };
    let draft = Draft {
        kind: "m.room.redaction".into(),
        state_key: None,
        content: to_raw_value(&content).map_err(|error| ApiError::internal(&error))?,
        redacts: Some(request.event_id),
        dated: None,
    };
    let txn_id = Some(request.txn_id.to_string());
    let event_id = send(&app, requester, &request.room_id, draft, txn_id).await?;
    Ok(Matrix(redact_event::v3::Response::new(event_id)))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
pub async fn send_state(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    Authenticated { requester, request }: Authenticated<send_state_event::v3::Request>,
) -> ApiResult<Response> {
    let kind = request.event_type.to_string();
    let content = content_of(&kind, request.body.into_json())?;
    if kind == "m.room.canonical_alias" {
        // Others learn nothing about aliases here.
        require_joined(&room_of(&app, &request.room_id).await?, &requester).await?;
        check_aliases(&app, &request.room_id, &content).await?;
    }
    let dated = date(&requester, query.as_deref())?;
    let draft = Draft { dated, ..Draft::new(kind.into(), Some(request.state_key), content) };
    if let Some(delay) = delayed_events::of_query(query.as_deref())? {
        return scheduled(&app, requester, &request.room_id, draft, (None, delay)).await;
    }
    let event_id = send(&app, requester, &request.room_id, draft, None).await?;
    Ok(Matrix(send_state_event::v3::Response::new(event_id)).into_response())
}

/// When an application service says that something happened.
///
/// Spec: application service API, "Timestamp massaging".
fn date(requester: &Requester, query: Option<&str>) -> ApiResult<Option<MilliSecondsSinceUnixEpoch>> {
    let Some(text) = form_value(query.unwrap_or_default(), "ts").filter(|_| requester.service.is_some())
    else {
        return Ok(None);
    };
    let ts: UInt = text.parse().map_err(|_| ApiError::invalid_param("ts is not a time in milliseconds"))?;
    Ok(Some(MilliSecondsSinceUnixEpoch(ts)))
}

async fn scheduled(
    app: &App,
    requester: Requester,
    room_id: &RoomId,
    draft: Draft,
    when: (Option<String>, Duration),
) -> ApiResult<Response> {
    let delay_id = delayed_events::schedule(app, requester, room_id, draft, when).await?;
    Ok(Json(serde_json::json!({ "delay_id": delay_id })).into_response())
}

async fn send(
    app: &App,
    requester: Requester,
    room_id: &OwnedRoomId,
    mut draft: Draft,
    txn_id: Option<String>,
) -> ApiResult<OwnedEventId> {
    let room = room_of(app, room_id).await?;
    let device_id = requester.device_key();
    let Requester { user_id, restriction, is_guest, .. } = requester;
    if restriction == Some(Restriction::Suspension) {
        room.check_suspended(&user_id, &draft).await?;
    }
    if is_guest {
        room.check_guest(&user_id, &draft).await?;
    }
    app.homeserver().fill_in_profile(&mut draft).await?;
    let sent_by = txn_id.map(|txn_id| SentBy { device_id, txn_id });
    app.homeserver().note_activity(&user_id);
    let send = Send { sender: user_id, draft, sent_by };
    match app.homeserver().foreign_invite(&send) {
        Some(invite) => Ok(app.homeserver().invite_remote(&room, invite).await?),
        None => Ok(room.send(send).await?),
    }
}

/// Aliases that one event may add: each may mean a request to another server.
const NEW_ALIASES_MAX: usize = 50;

/// New aliases of a room must lead to it.
///
/// Spec: client-server API, `PUT …/state/m.room.canonical_alias`, `M_BAD_ALIAS`.
async fn check_aliases(app: &App, room_id: &OwnedRoomId, content: &RawValue) -> ApiResult<()> {
    let held = app.homeserver().room(room_id).await?.current("m.room.canonical_alias", "").await?;
    let held = held.and_then(|event| parse_aliases(event.pdu.content()).ok()).unwrap_or_default();
    let new: Vec<_> = parse_aliases(content)?.into_iter().filter(|alias| !held.contains(alias)).collect();
    if new.len() > NEW_ALIASES_MAX {
        return Err(ApiError::invalid_param(format!("more than {NEW_ALIASES_MAX} new aliases at a time")));
    }
    for alias in parsed(new)? {
        if !leads_to(app, &alias, room_id).await? {
            return Err(bad_alias(&alias));
        }
    }
    Ok(())
}

/// The aliases that the content of an `m.room.canonical_alias` names.
pub(super) fn aliases_of(content: &RawValue) -> ApiResult<Vec<OwnedRoomAliasId>> {
    parsed(parse_aliases(content)?)
}

/// The error for an alias that does not lead to the room that is to go by it.
pub(super) fn bad_alias(alias: &RoomAliasId) -> ApiError {
    ApiError::bad_request("M_BAD_ALIAS", format!("{alias} does not lead to this room"))
}

fn parse_aliases(content: &RawValue) -> ApiResult<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Content {
        alias: Option<String>,
        #[serde(default)]
        alt_aliases: Vec<String>,
    }
    let Content { alias, alt_aliases } =
        serde_json::from_str(content.get()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    Ok(alias.into_iter().chain(alt_aliases).filter(|alias| !alias.is_empty()).collect())
}

fn parsed(aliases: Vec<String>) -> ApiResult<Vec<OwnedRoomAliasId>> {
    let parse = |alias: String| {
        RoomAliasId::parse(&alias)
            .map_err(|_| ApiError::invalid_param(format!("{alias} is not a room alias")))
    };
    aliases.into_iter().map(parse).collect()
}

/// Whether an alias, of this server or another one, leads to a room.
async fn leads_to(app: &App, alias: &RoomAliasId, room_id: &RoomId) -> ApiResult<bool> {
    match app.homeserver().find_alias(alias).await {
        Ok(found) => Ok(found.is_some_and(|(found, _)| found == room_id)),
        // Whoever does not answer does not say that it does.
        Err(RoomError::Remote(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`
pub async fn get_state(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_state_events::v3::Request>,
) -> ApiResult<Matrix<get_state_events::v3::Response>> {
    let room = whole_room(&app, &request.room_id).await?;
    let root = room.readable_root(&requester.user_id).await?;
    let events = room.state(root, None).await?;
    let events = room.render(&events, &viewer(requester), RoomIdField::Present).await?;
    Ok(Matrix(get_state_events::v3::Response::new(events.into_iter().map(Raw::from_json).collect())))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
pub async fn get_state_event(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_state_event_for_key::v3::Request>,
) -> ApiResult<Matrix<get_state_event_for_key::v3::Response>> {
    let kind = request.event_type.to_string();
    let is_of_another = kind == "m.room.member" && request.state_key != requester.user_id;
    let room = if is_of_another {
        whole_room(&app, &request.room_id).await?
    } else {
        room_of(&app, &request.room_id).await?
    };
    let root = room.readable_root(&requester.user_id).await?;
    let event = room.state_event(root, &kind, &request.state_key).await?;
    let event = event.ok_or_else(|| ApiError::not_found("the room has no such state"))?;
    let answer = match request.format {
        get_state_event_for_key::v3::StateEventFormat::Event => {
            let rendered = room.render(&[event], &viewer(requester), RoomIdField::Present).await?;
            rendered.into_iter().next().ok_or_else(|| ApiError::not_found("the room has no such state"))?
        }
        get_state_event_for_key::v3::StateEventFormat::Content => event.pdu.content().to_owned(),
        _ => return Err(ApiError::invalid_param("format is content or event")),
    };
    Ok(Matrix(get_state_event_for_key::v3::Response::new(answer)))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
pub async fn get_event(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_room_event::v3::Request>,
) -> ApiResult<Matrix<get_room_event::v3::Response>> {
    let (room, event) = visible_event(&app, &requester, (&request.room_id, &request.event_id)).await?;
    let rendered = room.render(&[event], &viewer(requester), RoomIdField::Present).await?;
    let event = rendered.into_iter().next().ok_or_else(event_not_found)?;
    Ok(Matrix(get_room_event::v3::Response::new(Raw::from_json(event))))
}

/// An event that the requester may see, with its room; others are answered like those that do not exist.
pub async fn visible_event(
    app: &App,
    requester: &Requester,
    (room_id, event_id): (&RoomId, &EventId),
) -> ApiResult<(RoomHandle, Arc<StoredEvent>)> {
    let room = match app.homeserver().room(room_id).await {
        Err(RoomError::NotFound) => return Err(event_not_found()),
        room => room?,
    };
    let event = room.event(event_id).await?.ok_or_else(event_not_found)?;
    if !room.may_see(&requester.user_id, &event).await? {
        return Err(event_not_found());
    }
    Ok((room, event))
}

/// A room for someone who may be in it: one that does not exist is answered like one that they are not in.
pub async fn room_of(app: &App, room_id: &RoomId) -> ApiResult<RoomHandle> {
    match app.homeserver().room(room_id).await {
        Err(RoomError::NotFound) => Err(RoomError::NotJoined.into()),
        result => Ok(result?),
    }
}

/// How long who asks for members waits for those of a room that was joined just now.
const MEMBERS_MAX: Duration = Duration::from_secs(60);

/// A room with all of its members: one that was joined a moment ago may lack them.
async fn whole_room(app: &App, room_id: &RoomId) -> ApiResult<RoomHandle> {
    let room = room_of(app, room_id).await?;
    room.wait_for_members(MEMBERS_MAX).await?;
    Ok(room)
}

/// The error for an event that is not there, or not for the asker.
pub fn event_not_found() -> ApiError {
    ApiError::not_found("event not found")
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`
pub async fn get_members(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_member_events::v3::Request>,
) -> ApiResult<Matrix<get_member_events::v3::Response>> {
    let room = whole_room(&app, &request.room_id).await?;
    let root = match &request.at {
        Some(at) => {
            let token: Token = at.parse().map_err(|_| ApiError::invalid_param("at is not a token"))?;
            room.readable_root_at(&requester.user_id, token.boundary()).await?
        }
        None => room.readable_root(&requester.user_id).await?,
    };
    let mut events = room.state(root, Some("m.room.member")).await?;
    let wanted = request.membership.map(|membership| membership.to_string());
    let unwanted = request.not_membership.map(|membership| membership.to_string());
    events.retain(|event| {
        let membership = actors::room::membership_of(&event.pdu);
        match (&wanted, &unwanted) {
            (None, None) => true,
            // Of two conditions either is enough.
            (wanted, unwanted) => {
                wanted.as_ref().is_some_and(|wanted| *wanted == membership)
                    || unwanted.as_ref().is_some_and(|unwanted| *unwanted != membership)
            }
        }
    });
    let events = room.render(&events, &viewer(requester), RoomIdField::Present).await?;
    Ok(Matrix(get_member_events::v3::Response::new(events.into_iter().map(Raw::from_json).collect())))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
pub async fn joined_members(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<joined_members::v3::Request>,
) -> ApiResult<Matrix<joined_members::v3::Response>> {
    let room = whole_room(&app, &request.room_id).await?;
    require_joined(&room, &requester).await?;
    let events = room.state(room.snapshot().head.root, Some("m.room.member")).await?;
    let joined = events.iter().filter(|event| actors::room::membership_of(&event.pdu) == "join");
    let members = joined.filter_map(|event| {
        let user_id = event.pdu.state_key()?.try_into().ok()?;
        let mut member = joined_members::v3::RoomMember::new();
        member.display_name = content_string(&event.pdu, "displayname");
        member.avatar_url = content_string(&event.pdu, "avatar_url").map(Into::into);
        Some((user_id, member))
    });
    Ok(Matrix(joined_members::v3::Response::new(members.collect())))
}

/// Refuses those who are not joined.
pub async fn require_joined(room: &RoomHandle, requester: &Requester) -> ApiResult<()> {
    match room.access(&requester.user_id).await?.joined_from {
        Some(_) => Ok(()),
        None => Err(ApiError::forbidden("you are not in this room")),
    }
}

/// The requester as a viewer of events.
pub fn viewer(requester: Requester) -> Viewer {
    Viewer { user_id: requester.user_id, device_id: requester.device_id }
}
