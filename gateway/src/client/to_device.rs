//! Messages from device to device, and dehydrated devices, which get them while nobody is there.
//!
//! Spec: client-server API, "Send-to-Device messaging"; MSC3814.

use actors::{
    encryption::Messages,
    session::{INBOX_PAGE, SessionChange, SessionHandle},
    token::Token,
};
use axum::{Json, extract::State};
use engine::id::Position;
use ruma::{DeviceId, OwnedDeviceId, OwnedTransactionId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    keys::{KeysBody, parse},
    sync::parse_since,
};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Query, Requester},
};

/// Bytes of an event type, as in rooms.
const KIND_MAX: usize = 255;

#[derive(Deserialize)]
struct Body {
    messages: Messages,
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`
pub async fn send(
    State(app): State<App>,
    Path((kind, txn_id)): Path<(String, OwnedTransactionId)>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let Body { messages } = parse(body)?;
    if kind.len() > KIND_MAX {
        return Err(ApiError::invalid_param(format!("an event type has at most {KIND_MAX} bytes")));
    }
    if !messages.values().flat_map(|by_device| by_device.values()).all(Value::is_object) {
        return Err(ApiError::bad_json("a message's content is an object"));
    }
    app.homeserver().send_to_device(&requester, &kind, &txn_id, messages).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct DehydrateBody {
    device_id: OwnedDeviceId,
    device_data: Value,
    initial_device_display_name: Option<String>,
    #[serde(flatten)]
    keys: KeysBody,
}

/// `PUT /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
pub async fn dehydrate(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let body: DehydrateBody = parse(body)?;
    if !body.device_data["algorithm"].is_string() {
        return Err(ApiError::bad_json("device_data lacks an algorithm"));
    }
    let upload = body.keys.of(body.device_id.clone());
    if upload.device_keys.is_none() {
        return Err(ApiError::missing_param("device_keys is missing"));
    }
    let session = app.homeserver().session(&requester.user_id).await?;
    let change =
        SessionChange::Dehydrate(body.initial_device_display_name, body.device_data, Box::new(upload));
    session.change(change).await?;
    Ok(Json(json!({ "device_id": body.device_id })))
}

/// `GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
pub async fn dehydrated(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let (device_id, device_data) = data.keys().dehydrated().ok_or_else(no_device)?;
    let device_data: Value =
        serde_json::from_slice(device_data).map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({ "device_id": device_id, "device_data": device_data })))
}

fn no_device() -> ApiError {
    ApiError::not_found("there is no dehydrated device")
}

/// `DELETE /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
pub async fn delete_dehydrated(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    Ok(Json(json!({ "device_id": session.delete_dehydrated().await? })))
}

/// The session of a user whose dehydrated device this is.
async fn dehydrated_session(
    app: &App,
    requester: &Requester,
    device_id: &DeviceId,
) -> ApiResult<SessionHandle> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let is_known = session.data().keys().dehydrated().is_some_and(|(known, _)| known == device_id);
    is_known.then_some(session).ok_or_else(|| ApiError::forbidden("this is not the dehydrated device"))
}

/// Which page of a dehydrated device's messages is read.
#[derive(Deserialize)]
pub struct EventsQuery {
    from: Option<String>,
    limit: Option<usize>,
}

/// `GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events`
///
/// Clients read until there is no `next_batch`. Nothing is let go of meanwhile: that happens with the device.
pub async fn get_dehydrated_events(
    State(app): State<App>,
    Path(device_id): Path<OwnedDeviceId>,
    requester: Requester,
    Query(EventsQuery { from, limit }): Query<EventsQuery>,
) -> ApiResult<Json<Value>> {
    if limit == Some(0) {
        return Err(ApiError::invalid_param("limit must be greater than zero"));
    }
    let from = from.as_deref().filter(|from| !from.is_empty());
    let after = from.map(parse_since).transpose()?.map_or(Position(0), |(after, _)| after);
    let session = dehydrated_session(&app, &requester, &device_id).await?;
    let data = session.data();
    let inbox = data.keys().inbox(&device_id);
    let later = inbox.into_iter().flatten().copied().filter(|position| *position > after);
    let upto = later.take(limit.unwrap_or(INBOX_PAGE)).last().unwrap_or(after);
    let waiting = session.waiting(&device_id, after, upto).await?;
    let end = waiting.more_after.unwrap_or(upto);
    let mut page = json!({ "events": waiting.messages });
    if inbox.and_then(|inbox| inbox.get_max()).is_some_and(|last| *last > end) {
        page["next_batch"] = Token::Sync(end).to_string().into();
    }
    Ok(Json(page))
}

#[derive(Deserialize)]
struct EventsBody {
    next_batch: Option<String>,
}

/// `POST /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events`
pub async fn dehydrated_events(
    State(app): State<App>,
    Path(device_id): Path<OwnedDeviceId>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let EventsBody { next_batch } = parse(body)?;
    let after = next_batch.as_deref().map(parse_since).transpose()?.map_or(Position(0), |(after, _)| after);
    let session = dehydrated_session(&app, &requester, &device_id).await?;
    let data = session.data();
    let last = data.keys().inbox(&device_id).and_then(|inbox| inbox.get_max().copied()).unwrap_or(after);
    let waiting = session.waiting(&device_id, after, last).await?;
    let next = Token::Sync(waiting.more_after.unwrap_or(last));
    Ok(Json(json!({ "events": waiting.messages, "next_batch": next.to_string() })))
}
