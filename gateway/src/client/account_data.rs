//! Account data, and the tags of rooms, which are account data too.
//!
//! Spec: client-server API, "Client Config" and "Room Tagging".

use actors::session::SessionChange;
use axum::{Json, extract::State};
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Map, Value, value::RawValue};

use super::profile::own;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Requester},
};

type Object = Map<String, Value>;

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`
pub async fn get_global(
    State(app): State<App>,
    Path((user_id, kind)): Path<(String, String)>,
    requester: Requester,
) -> ApiResult<Json<Box<RawValue>>> {
    own(&user_id, &requester)?;
    get(&app, &requester, None, &kind).await
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`
pub async fn set_global(
    State(app): State<App>,
    Path((user_id, kind)): Path<(String, String)>,
    requester: Requester,
    JsonBody(content): JsonBody,
) -> ApiResult<Json<Object>> {
    own(&user_id, &requester)?;
    set(&app, &requester, None, kind, &content).await
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
pub async fn get_of_room(
    State(app): State<App>,
    Path((user_id, room_id, kind)): Path<(String, String, String)>,
    requester: Requester,
) -> ApiResult<Json<Box<RawValue>>> {
    own(&user_id, &requester)?;
    get(&app, &requester, Some(room(&room_id)?), &kind).await
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
pub async fn set_of_room(
    State(app): State<App>,
    Path((user_id, room_id, kind)): Path<(String, String, String)>,
    requester: Requester,
    JsonBody(content): JsonBody,
) -> ApiResult<Json<Object>> {
    own(&user_id, &requester)?;
    set(&app, &requester, Some(room(&room_id)?), kind, &content).await
}

async fn get(
    app: &App,
    requester: &Requester,
    room_id: Option<OwnedRoomId>,
    kind: &str,
) -> ApiResult<Json<Box<RawValue>>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let data = session.data();
    let content = data.account_data(room_id.as_deref(), kind);
    content
        .map(|content| Json(content.to_owned()))
        .ok_or_else(|| ApiError::not_found("there is no account data of this type"))
}

async fn set(
    app: &App,
    requester: &Requester,
    room_id: Option<OwnedRoomId>,
    kind: String,
    content: &Object,
) -> ApiResult<Json<Object>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let content = serde_json::value::to_raw_value(content).map_err(|error| ApiError::internal(&error))?;
    session.set_account_data(room_id, kind, content).await?;
    Ok(Json(Object::new()))
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`
pub async fn get_tags(
    State(app): State<App>,
    Path((user_id, room_id)): Path<(String, String)>,
    requester: Requester,
) -> ApiResult<Json<Object>> {
    own(&user_id, &requester)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let tags = session.tags(&room(&room_id)?);
    Ok(Json(Object::from_iter([("tags".to_owned(), Value::Object(tags))])))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
pub async fn set_tag(
    State(app): State<App>,
    Path((user_id, room_id, tag)): Path<(String, String, String)>,
    requester: Requester,
    JsonBody(info): JsonBody,
) -> ApiResult<Json<Object>> {
    own(&user_id, &requester)?;
    let in_range = |order: &Value| order.as_f64().is_some_and(|order| (0.0..=1.0).contains(&order));
    if info.get("order").is_some_and(|order| !in_range(order)) {
        return Err(ApiError::invalid_param("order must be a number between 0 and 1"));
    }
    let info = serde_json::value::to_raw_value(&info).map_err(|error| ApiError::internal(&error))?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.change(SessionChange::SetTag(room(&room_id)?, tag, info.into())).await?;
    Ok(Json(Object::new()))
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
pub async fn delete_tag(
    State(app): State<App>,
    Path((user_id, room_id, tag)): Path<(String, String, String)>,
    requester: Requester,
) -> ApiResult<Json<Object>> {
    own(&user_id, &requester)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.change(SessionChange::RemoveTag(room(&room_id)?, tag)).await?;
    Ok(Json(Object::new()))
}

fn room(room_id: &str) -> ApiResult<OwnedRoomId> {
    RoomId::parse(room_id).map_err(|_| ApiError::invalid_param("not a room ID"))
}
