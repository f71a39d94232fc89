//! What a user does with the account itself, and what the server can do.
//!
//! Spec: client-server API, "Account management", "Capabilities negotiation".

use actors::session::LogOut;
use axum::{Json, extract::State};
use engine::room_version;
use ruma::api::client::{
    account::{ThirdPartyIdRemovalStatus, change_password, deactivate},
    uiaa::AuthData,
};
use serde_json::{Map, Value, json};

use super::register;
use crate::{
    app::App,
    error::ApiResult,
    extract::{Authenticated, Matrix, Requester},
    uia::{self, Challenge, Refusal, Stage},
};

/// `POST /_matrix/client/v3/account/password`
pub async fn change_password(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<change_password::v3::Request>,
) -> Result<Matrix<change_password::v3::Response>, Refusal> {
    require_password(&app, &requester, request.auth.as_ref(), "password").await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let hash = register::hash(&app, request.new_password).await?;
    let log_out = if request.logout_devices { LogOut::Others(requester.device_id) } else { LogOut::Nobody };
    session.set_password(hash, log_out).await?;
    Ok(Matrix(change_password::v3::Response::new()))
}

/// `POST /_matrix/client/v3/account/deactivate`
pub async fn deactivate(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<deactivate::v3::Request>,
) -> Result<Matrix<deactivate::v3::Response>, Refusal> {
    require_password(&app, &requester, request.auth.as_ref(), "deactivate").await?;
    app.homeserver().deactivate(&requester.user_id, request.erase).await?;
    // Accounts have no third-party identifiers here, and none to unbind is success.
    Ok(Matrix(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success)))
}

/// Has the user prove to know the password, for what a stolen access token must not do.
///
/// An application service has full control of its users, who have no password.
/// Spec: application service API, "Server admin style permissions", "Deleting devices", "Cross-signing".
pub(super) async fn require_password(
    app: &App,
    requester: &Requester,
    auth: Option<&AuthData>,
    endpoint: &'static str,
) -> Result<(), Refusal> {
    if requester.service.is_some() {
        return Ok(());
    }
    let user_id = &requester.user_id;
    let challenge = Challenge { endpoint, flows: &[&[Stage::Password]], user_id: Some(user_id) };
    uia::pass(app, auth, &challenge).await.map(drop)
}

/// `GET /_matrix/client/v3/capabilities`
pub async fn capabilities(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let has_password = session.data().account().password_hash.is_some();
    let versions: Map<String, Value> =
        room_version::SUPPORTED.iter().map(|version| (version.to_string(), "stable".into())).collect();
    let mut capabilities = json!({
        "m.change_password": { "enabled": has_password },
        "m.room_versions": { "default": app.homeserver().default_room_version(), "available": versions },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": has_password },
    });
    if session.data().account().is_admin {
        capabilities["m.account_moderation"] = json!({ "lock": true, "suspend": true });
    }
    Ok(Json(json!({ "capabilities": capabilities })))
}
