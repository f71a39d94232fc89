//! Events that are sent later.
//!
//! Spec: MSC4140.

use std::time::Duration;

use actors::delayed::{Delayed, DelayedAction, DelayedEvent};
use axum::{Json, extract::State};
use engine::pdu::Draft;
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Map, Value, json, value::RawValue};
use storage::schema::DelayedStage;

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

/// `GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events`
pub async fn list(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let events = app.homeserver().delayed_events(&requester.user_id).await;
    let events = events.map_err(|error| ApiError::internal(&error))?;
    let (open, over): (Vec<_>, Vec<_>) = events
        .into_iter()
        .partition(|(_, record)| matches!(record.stage, DelayedStage::Scheduled | DelayedStage::Sending));
    let open: Vec<_> = open.iter().map(show).collect();
    let over: Vec<_> = over.iter().map(show).collect();
    Ok(Json(json!({ "delayed_events": open, "scheduled": open, "finalised": over })))
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

fn show((id, record): &DelayedEvent) -> Value {
    let content = std::str::from_utf8(&record.content).unwrap_or("{}").to_owned();
    let content = RawValue::from_string(content).ok();
    let mut shown = json!({
        "delay_id": id,
        "room_id": record.room_id,
        "type": record.kind,
        "content": content,
        "delay": record.delay_ms,
        "running_since": record.since_ms,
    });
    if let Some(state_key) = &record.state_key {
        shown["state_key"] = state_key.as_str().into();
    }
    match &record.stage {
        DelayedStage::Scheduled | DelayedStage::Sending => {}
        DelayedStage::Sent { event_id, at_ms } => {
            shown["event_id"] = event_id.as_str().into();
            shown["finalised_ts"] = (*at_ms).into();
        }
        DelayedStage::Cancelled { at_ms, reason } => {
            shown["finalised_ts"] = (*at_ms).into();
            if let Some(reason) = reason {
                shown["error"] = json!({ "errcode": "M_FORBIDDEN", "error": reason });
            }
        }
    }
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
