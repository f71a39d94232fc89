//! What administrators do with accounts, through the client-server API.
//!
//! Spec: client-server API, "Server Administration".

use actors::session::{Restriction, SessionError};
use axum::{Json, extract::State};
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Requester},
};

/// `GET /_matrix/client/v1/admin/lock/{userId}`
pub async fn get_lock(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
) -> ApiResult<Json<Value>> {
    get(&app, &requester, &user, Restriction::Lock).await
}

/// `PUT /_matrix/client/v1/admin/lock/{userId}`
pub async fn set_lock(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    set(&app, &requester, &user, Restriction::Lock, &body).await
}

/// `GET /_matrix/client/v1/admin/suspend/{userId}`
pub async fn get_suspension(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
) -> ApiResult<Json<Value>> {
    get(&app, &requester, &user, Restriction::Suspension).await
}

/// `PUT /_matrix/client/v1/admin/suspend/{userId}`
pub async fn set_suspension(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    set(&app, &requester, &user, Restriction::Suspension, &body).await
}

async fn get(
    app: &App,
    requester: &Requester,
    user: &str,
    restriction: Restriction,
) -> ApiResult<Json<Value>> {
    let user = parse(app, requester, user).await?;
    let is_on = app.homeserver().is_restricted(&requester.user_id, &user, restriction).await?;
    Ok(Json(json!({ (field(restriction)): is_on })))
}

async fn set(
    app: &App,
    requester: &Requester,
    user: &str,
    restriction: Restriction,
    body: &Map<String, Value>,
) -> ApiResult<Json<Value>> {
    let user = parse(app, requester, user).await?;
    let field = field(restriction);
    let is_on = match body.get(field) {
        Some(Value::Bool(is_on)) => *is_on,
        Some(_) => return Err(ApiError::bad_json(format!("{field} must be true or false"))),
        None => return Err(ApiError::missing_param(format!("{field} is missing"))),
    };
    app.homeserver().restrict(&requester.user_id, &user, restriction, is_on).await?;
    Ok(Json(json!({ (field): is_on })))
}

fn field(restriction: Restriction) -> &'static str {
    match restriction {
        Restriction::Lock => "locked",
        Restriction::Suspension => "suspended",
    }
}

/// The user of the path; those who may not ask learn nothing of it.
async fn parse(app: &App, requester: &Requester, user: &str) -> ApiResult<OwnedUserId> {
    if !app.homeserver().is_admin(&requester.user_id).await? {
        return Err(ApiError::forbidden("only administrators of this server may do this"));
    }
    UserId::parse(user).map_err(|_| ApiError::invalid_param("not a user ID"))
}

/// `GET /_matrix/client/v3/admin/whois/{userId}`
///
/// For the user and for administrators.
pub async fn whois(
    State(app): State<App>,
    requester: Requester,
    Path(user): Path<String>,
) -> ApiResult<Json<Value>> {
    let user = if user == requester.user_id.as_str() {
        requester.user_id
    } else {
        parse(&app, &requester, &user).await?
    };
    if user.server_name() != app.homeserver().server_name() {
        return Err(ApiError::invalid_param("the user belongs to another server"));
    }
    let session = match app.homeserver().session(&user).await {
        Err(SessionError::NotFound) => return Err(ApiError::not_found("there is no such user")),
        session => session?,
    };
    let data = session.data();
    let devices: Map<String, Value> = data
        .devices()
        .map(|(device_id, device)| {
            let connection = json!({ "ip": device.last_seen_ip, "last_seen": device.last_seen });
            let connections = if device.last_seen_ip.is_some() { vec![connection] } else { Vec::new() };
            (device_id.to_string(), json!({ "sessions": [{ "connections": connections }] }))
        })
        .collect();
    Ok(Json(json!({ "user_id": user, "devices": devices })))
}
