//! Profiles of local users.
//!
//! Spec: client-server API, "Profiles".

use std::sync::Arc;

use actors::session::{Profile, SessionError};
use axum::{Json, extract::State};
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Anybody, JsonBody, Path, Requester},
};

/// A JSON object.
type Object = Map<String, Value>;

/// `GET /_matrix/client/v3/profile/{userId}`
pub async fn get_profile(
    State(app): State<App>,
    Path(user_id): Path<String>,
    _: Anybody,
) -> ApiResult<Json<Object>> {
    let user_id = parse(&user_id)?;
    if let Some(profile) = remote(&app, &user_id).await? {
        return Ok(Json((*profile).clone()));
    }
    public_fields(&app, &user_id).await.map(Json)
}

/// The profile of a local user, as everyone may see it.
pub async fn public_fields(app: &App, user_id: &UserId) -> ApiResult<Object> {
    let profile = profile(app, user_id).await?;
    Ok(profile.fields().filter_map(|(name, _)| Some((name.to_owned(), value(&profile, name)?))).collect())
}

/// The profile of another server's user; none for users of this one.
async fn remote(app: &App, user_id: &UserId) -> ApiResult<Option<Arc<Object>>> {
    let homeserver = app.homeserver();
    if user_id.server_name() == homeserver.server_name() || !homeserver.federates() {
        return Ok(None);
    }
    let profile = homeserver.remote_profile(user_id).await?;
    profile.map(Some).ok_or_else(|| ApiError::not_found("the user is not known"))
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`
pub async fn get_field(
    State(app): State<App>,
    Path((user_id, name)): Path<(String, String)>,
    _: Anybody,
) -> ApiResult<Json<Object>> {
    let user_id = parse(&user_id)?;
    if let Some(profile) = remote(&app, &user_id).await? {
        let value = profile.get(&name).cloned();
        let value = value.ok_or_else(|| ApiError::not_found("the profile has no such field"))?;
        return Ok(Json(Object::from_iter([(name, value)])));
    }
    let profile = profile(&app, &user_id).await?;
    let value = value(&profile, &name).ok_or_else(|| ApiError::not_found("the profile has no such field"))?;
    Ok(Json(Object::from_iter([(name, value)])))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`
pub async fn set_field(
    State(app): State<App>,
    Path((user_id, name)): Path<(String, String)>,
    requester: Requester,
    JsonBody(mut body): JsonBody,
) -> ApiResult<Json<Object>> {
    let user_id = own(&user_id, &requester)?;
    check_guest(&requester, &name)?;
    let value = body.remove(&name).ok_or_else(|| ApiError::missing_param(format!("{name} is missing")))?;
    // Null is a value like any other, where a field may have it: it does not remove.
    let is_removal = is_builtin(&name) && value == "";
    let json = serde_json::value::to_raw_value(&value).map_err(|error| ApiError::internal(&error))?;
    app.homeserver().set_profile_field(&user_id, &name, (!is_removal).then_some(json)).await?;
    Ok(Json(Object::new()))
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`
pub async fn delete_field(
    State(app): State<App>,
    Path((user_id, name)): Path<(String, String)>,
    requester: Requester,
) -> ApiResult<Json<Object>> {
    let user_id = own(&user_id, &requester)?;
    check_guest(&requester, &name)?;
    app.homeserver().set_profile_field(&user_id, &name, None).await?;
    Ok(Json(Object::new()))
}

/// Of their profile, guests may change the display name only.
fn check_guest(requester: &Requester, name: &str) -> ApiResult<()> {
    if requester.is_guest && name != "displayname" { Err(ApiError::guests_may_not()) } else { Ok(()) }
}

/// The fields that clients clear with an empty string, since there was nothing else for it before v1.16.
fn is_builtin(name: &str) -> bool {
    ["displayname", "avatar_url"].contains(&name)
}

fn value(profile: &Profile, name: &str) -> Option<Value> {
    serde_json::from_str(profile.get(name)?.get()).ok()
}

async fn profile(app: &App, user_id: &UserId) -> ApiResult<Profile> {
    if user_id.server_name() != app.homeserver().server_name() {
        return Err(ApiError::not_found("the user is not known here"));
    }
    match app.homeserver().profile(user_id).await {
        Err(SessionError::NotFound) => Err(ApiError::not_found("the user is not known here")),
        profile => Ok(profile?),
    }
}

/// The user of the path, who must be the one who asks.
pub(super) fn own(user_id: &str, requester: &Requester) -> ApiResult<OwnedUserId> {
    let user_id = parse(user_id)?;
    if user_id != requester.user_id {
        return Err(ApiError::forbidden("this belongs to another user"));
    }
    Ok(user_id)
}

fn parse(user_id: &str) -> ApiResult<OwnedUserId> {
    UserId::parse(user_id).map_err(|_| ApiError::invalid_param("not a user ID"))
}
