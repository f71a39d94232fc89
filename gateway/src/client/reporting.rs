//! Reporting content to the server's administrators.
//!
//! Spec: client-server API, "Reporting Content".

use actors::reports::Reported;
use axum::{Json, extract::State};
use ruma::{OwnedRoomId, RoomId, UserId, api::client::room::report_content};
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, JsonBody, Matrix, Path, Requester},
};

/// `POST /_matrix/client/v3/rooms/{roomId}/report`
pub async fn report_room(
    State(app): State<App>,
    requester: Requester,
    Path(room): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let room_id: OwnedRoomId =
        RoomId::parse(room).map_err(|_| ApiError::invalid_param("the path names no room ID"))?;
    let reason = reason(&body)?;
    app.homeserver().report(&requester.user_id, Reported::Room(room_id), reason).await?;
    Ok(Json(json!({})))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`
pub async fn report_event(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<report_content::v3::Request>,
) -> ApiResult<Matrix<report_content::v3::Response>> {
    let reported = Reported::Event(request.room_id, request.event_id);
    app.homeserver().report(&requester.user_id, reported, request.reason.unwrap_or_default()).await?;
    Ok(Matrix(report_content::v3::Response::new()))
}

/// `POST /_matrix/client/v3/users/{userId}/report`
pub async fn report_user(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let user_id = UserId::parse(user).map_err(|_| ApiError::invalid_param("the path names no user ID"))?;
    let reason = reason(&body)?;
    app.homeserver().report(&requester.user_id, Reported::User(user_id), reason).await?;
    Ok(Json(json!({})))
}

/// The reason, which may be blank but has to be there.
fn reason(body: &Map<String, Value>) -> ApiResult<String> {
    match body.get("reason") {
        Some(Value::String(reason)) => Ok(reason.clone()),
        Some(_) => Err(ApiError::bad_json("reason is not a string")),
        None => Err(ApiError::missing_param("reason is missing")),
    }
}
