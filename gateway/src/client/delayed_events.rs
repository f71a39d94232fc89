//! Events that are sent later.
//!
//! Spec: MSC4140.

use std::time::Duration;

use actors::delayed::{Delayed, DelayedAction, DelayedEvent};
use axum::{
    Json,
    extract::{RawQuery, State},
};
use engine::pdu::Draft;
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Map, Value, json, value::RawValue};
use storage::schema::{DelayedEventRecord, DelayedStage};

use super::{content::content_of, events::room_of};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Requester, Restriction, form_value},
};

/// The delay that a query asks for, as `/send` and `/state` take it.
pub(super) fn of_query(query: Option<&str>) -> ApiResult<Option<Duration>> {
    let delay = form_value(query.unwrap_or_default(), "org.matrix.msc4140.delay");
    let parse = |text: String| text.parse::<u64>().map(Duration::from_millis);
    let wrong = |_| ApiError::invalid_param("a delay is a number of milliseconds");
    delay.map(parse).transpose().map_err(wrong)
}

/// Schedules an event instead of sending it.
pub(super) async fn schedule(
    app: &App,
    requester: Requester,
    room_id: &RoomId,
    draft: Draft,
    (txn_id, delay): (Option<String>, Duration),
) -> ApiResult<String> {
    let room = room_of(app, room_id).await?;
    if requester.restriction == Some(Restriction::Suspension) {
        room.check_suspended(&requester.user_id, &draft).await?;
    }
    let device_id = requester.device_key();
    let user_id = requester.user_id;
    let delayed = Delayed { user_id, device_id, txn_id, room_id: room_id.to_owned(), draft, delay };
    Ok(app.homeserver().delay(delayed).await?)
}

/// `PUT /_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}`
pub async fn put(
    State(app): State<App>,
    requester: Requester,
    Path((room_id, kind, txn_id)): Path<(OwnedRoomId, String, String)>,
    JsonBody(mut body): JsonBody,
) -> ApiResult<Json<Value>> {
    let delay = body.get("delay").ok_or_else(|| ApiError::missing_param("delay is missing"))?;
    let delay = delay.as_u64().ok_or_else(|| ApiError::bad_json("delay is a number of milliseconds"))?;
    let state_key = match body.remove("state_key") {
        None | Some(Value::Null) => None,
        Some(Value::String(key)) => Some(key),
        Some(_) => return Err(ApiError::bad_json("state_key must be a string")),
    };
    let content = body.remove("content").ok_or_else(|| ApiError::missing_param("content is missing"))?;
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let content = content_of(&kind, content)?;
    let draft = Draft::new(kind.into(), state_key, content);
    let txn = (Some(txn_id), Duration::from_millis(delay));
    let delay_id = schedule(&app, requester, &room_id, draft, txn).await?;
    Ok(Json(json!({ "delay_id": delay_id })))
}

/// Which of a user's delayed events are listed.
enum Wanted {
    All,
    Scheduled,
    Finalised,
}

impl Wanted {
    fn of(query: Option<&str>) -> ApiResult<Self> {
        match form_value(query.unwrap_or_default(), "status").as_deref() {
            None => Ok(Self::All),
            Some("scheduled") => Ok(Self::Scheduled),
            Some("finalised") => Ok(Self::Finalised),
            Some(_) => Err(ApiError::invalid_param("a status is scheduled or finalised")),
        }
    }
}

/// `GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events`
///
/// Clients look for those that wait under two names: `delayed_events` in the first drafts, then `scheduled`.
pub async fn list(
    State(app): State<App>,
    requester: Requester,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<Value>> {
    let wanted = Wanted::of(query.as_deref())?;
    let events = app.homeserver().delayed_events(&requester.user_id).await;
    let events = events.map_err(|error| ApiError::internal(&error))?;
    let (over, open): (Vec<_>, Vec<_>) = events.iter().partition(|(_, record)| is_over(record));
    let mut list = json!({});
    if !matches!(wanted, Wanted::Finalised) {
        let open: Vec<_> = open.into_iter().map(show).collect();
        list["delayed_events"] = json!(open);
        list["scheduled"] = open.into();
    }
    if !matches!(wanted, Wanted::Scheduled) {
        list["finalised"] = over.into_iter().map(show_finalised).collect();
    }
    Ok(Json(list))
}

/// `GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}`
pub async fn get(
    State(app): State<App>,
    requester: Requester,
    Path(delay_id): Path<String>,
) -> ApiResult<Json<Value>> {
    let events = app.homeserver().delayed_events(&requester.user_id).await;
    let events = events.map_err(|error| ApiError::internal(&error))?;
    let event = events.iter().find(|(id, _)| *id == delay_id);
    let event = event.ok_or_else(|| ApiError::not_found("there is no such delayed event"))?;
    Ok(Json(show(event)))
}

fn is_over(record: &DelayedEventRecord) -> bool {
    !matches!(record.stage, DelayedStage::Scheduled | DelayedStage::Sending)
}

/// A delayed event by the names of all drafts: `delay_ms`, `delayed_since_ts` and `finalised` are those of today.
fn show((id, record): &DelayedEvent) -> Value {
    let content = std::str::from_utf8(&record.content).unwrap_or("{}").to_owned();
    let content = RawValue::from_string(content).ok();
    let mut shown = json!({
        "delay_id": id,
        "room_id": record.room_id,
        "type": record.kind,
        "content": content,
        "delay": record.delay_ms,
        "delay_ms": record.delay_ms,
        "running_since": record.since_ms,
        "delayed_since_ts": record.since_ms,
    });
    if let Some(state_key) = &record.state_key {
        shown["state_key"] = state_key.as_str().into();
    }
    if let Some(end) = end_of(record) {
        for (name, value) in &end {
            shown[name] = value.clone();
        }
        shown["finalised"] = end.into();
    }
    shown
}

/// How it ended with a delayed event, if it has.
fn end_of(record: &DelayedEventRecord) -> Option<Map<String, Value>> {
    let mut end = Map::new();
    let at_ms = match &record.stage {
        DelayedStage::Scheduled | DelayedStage::Sending => return None,
        DelayedStage::Sent { event_id, at_ms } => {
            end.insert("event_id".to_owned(), event_id.as_str().into());
            at_ms
        }
        DelayedStage::Cancelled { at_ms, reason } => {
            if let Some(reason) = reason {
                end.insert("error".to_owned(), json!({ "errcode": "M_FORBIDDEN", "error": reason }));
            }
            at_ms
        }
    };
    end.insert("finalised_ts".to_owned(), (*at_ms).into());
    Some(end)
}

/// A delayed event that is over, as lists have it.
fn show_finalised(event: &DelayedEvent) -> Value {
    let record = &event.1;
    let mut shown = Value::Object(end_of(record).unwrap_or_default());
    let (outcome, reason) = match &record.stage {
        DelayedStage::Sent { at_ms, .. } => {
            shown["origin_server_ts"] = (*at_ms).into();
            let is_due = record.since_ms.saturating_add(record.delay_ms) <= *at_ms;
            ("send", if is_due { "delay" } else { "action" })
        }
        DelayedStage::Cancelled { reason: Some(_), .. } => ("cancel", "error"),
        _ => ("cancel", "action"),
    };
    shown["outcome"] = outcome.into();
    shown["reason"] = reason.into();
    shown["delayed_event"] = show(event);
    shown
}

/// `POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}`
///
/// Whoever knows the ID may do this, such as a media server that notices that a caller is gone.
pub async fn manage(
    State(app): State<App>,
    Path(delay_id): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Map<String, Value>>> {
    let action = body.get("action").ok_or_else(|| ApiError::missing_param("action is missing"))?;
    let action = action.as_str().ok_or_else(|| ApiError::bad_json("action must be a string"))?;
    act(&app, &delay_id, action).await
}

/// `POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}/{action}`
pub async fn manage_by_path(
    State(app): State<App>,
    Path((delay_id, action)): Path<(String, String)>,
) -> ApiResult<Json<Map<String, Value>>> {
    act(&app, &delay_id, &action).await
}

async fn act(app: &App, delay_id: &str, action: &str) -> ApiResult<Json<Map<String, Value>>> {
    let action = match action {
        "cancel" => DelayedAction::Cancel,
        "restart" => DelayedAction::Restart,
        "send" => DelayedAction::Send,
        _ => return Err(ApiError::invalid_param("an action is cancel, restart or send")),
    };
    app.homeserver().manage_delayed(delay_id, action).await?;
    Ok(Json(Map::new()))
}
