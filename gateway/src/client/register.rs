//! Registering accounts.
//!
//! Spec: client-server API, "Account registration".

use actors::session::{Login, NewAccount, SessionChange, SessionHandle};
use axum::{Json, extract::State};
use ruma::{
    OwnedUserId, UserId,
    api::client::account::{
        check_registration_token_validity, get_username_availability,
        register::{self, RegistrationKind},
    },
};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Matrix, Open},
    uia::{self, Challenge, Refusal, Stage},
};

/// The longest password; a longer one would only cost time to hash.
const PASSWORD_MAX: usize = 512;

/// `POST /_matrix/client/v3/register`
pub async fn register(
    State(app): State<App>,
    Open(request): Open<register::v3::Request>,
) -> Result<Json<Value>, Refusal> {
    let is_guest = match request.kind {
        RegistrationKind::Guest => true,
        RegistrationKind::User => false,
        _ => return Err(ApiError::invalid_param("kind is user or guest").into()),
    };
    let request = if is_guest { of_guest(request) } else { request };
    let user_id = match request.username.as_deref() {
        Some(name) => chosen_id(&app, name)?,
        None => generated_id(&app)?,
    };
    let guest = match request.guest_access_token.as_deref() {
        Some(token) => Some(guest(&app, token, &user_id).await?),
        None => None,
    };
    let homeserver = app.homeserver();
    if guest.is_none() {
        homeserver.check_free(&user_id).await?;
    }
    check_allowed(&app, is_guest, request.auth.as_ref()).await?;
    let password_hash = match request.password {
        Some(password) => Some(hash(&app, password).await?),
        None => None,
    };
    let session = if let Some(guest) = guest {
        guest.change(SessionChange::UpgradeGuest { password_hash }).await?;
        guest
    } else {
        homeserver.register(NewAccount { user_id, password_hash, is_guest, is_admin: false }).await?
    };
    // Not ruma's type, which has a `device_id` of `null` where nobody is logged in.
    let mut response = json!({ "user_id": session.user_id() });
    if !request.inhibit_login {
        let login = Login {
            device_id: request.device_id,
            display_name: request.initial_device_display_name,
            wants_refresh_token: request.refresh_token,
        };
        let logged_in = session.log_in(login).await?;
        response["access_token"] = logged_in.access_token.into();
        response["device_id"] = logged_in.device_id.as_str().into();
        if let Some(token) = logged_in.refresh_token {
            response["refresh_token"] = token.into();
        }
        if let Some(lifetime) = logged_in.expires_in {
            response["expires_in_ms"] = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).into();
        }
    }
    Ok(Json(response))
}

/// A request without what has to be ignored of guests.
///
/// Spec: client-server API, `POST /_matrix/client/v3/register`.
fn of_guest(request: register::v3::Request) -> register::v3::Request {
    let mut kept = register::v3::Request::new();
    kept.kind = request.kind;
    kept.initial_device_display_name = request.initial_device_display_name;
    kept
}

/// The guest of an access token, whose account is to become an ordinary one under the same name.
///
/// Spec: client-server API, "Guest Access".
async fn guest(app: &App, token: &str, user_id: &UserId) -> ApiResult<SessionHandle> {
    let requester = app.authenticate(token, None).await?;
    if !requester.is_guest || requester.user_id != *user_id {
        return Err(ApiError::forbidden("the guest access token is not that of a guest of this name"));
    }
    Ok(app.homeserver().session(user_id).await?)
}

async fn check_allowed(
    app: &App,
    is_guest: bool,
    auth: Option<&ruma::api::client::uiaa::AuthData>,
) -> Result<(), Refusal> {
    let registration = &app.settings().registration;
    if is_guest {
        return if registration.guests { Ok(()) } else { Err(ApiError::guests_may_not().into()) };
    }
    let flows: &[&[Stage]] = match (registration.enabled, registration.tokens.is_empty()) {
        (true, _) => &[&[Stage::Dummy]],
        (false, false) => &[&[Stage::RegistrationToken]],
        (false, true) => return Err(ApiError::forbidden("registration is closed").into()),
    };
    uia::pass(app, auth, &Challenge { endpoint: "register", flows, user_id: None }).await
}

fn chosen_id(app: &App, name: &str) -> ApiResult<OwnedUserId> {
    let invalid =
        || ApiError::bad_request("M_INVALID_USERNAME", "the user name has characters that are not allowed");
    // Without these, a whole user ID, of another server even, would pass for a local part.
    if name.contains(['@', ':']) {
        return Err(invalid());
    }
    UserId::parse_with_server_name(name.to_lowercase(), app.homeserver().server_name()).map_err(|_| invalid())
}

fn generated_id(app: &App) -> ApiResult<OwnedUserId> {
    let name = app.homeserver().env().entropy.token(16).to_lowercase();
    chosen_id(app, &name)
}

/// The hash of a new password.
pub async fn hash(app: &App, password: String) -> ApiResult<String> {
    if password.is_empty() {
        return Err(ApiError::bad_request("M_WEAK_PASSWORD", "the password is empty"));
    }
    if password.len() > PASSWORD_MAX {
        return Err(ApiError::invalid_param(format!("a password has at most {PASSWORD_MAX} bytes")));
    }
    Ok(app.passwords().hash(password).await?)
}

/// `GET /_matrix/client/v3/register/available`
pub async fn available(
    State(app): State<App>,
    Open(request): Open<get_username_availability::v3::Request>,
) -> ApiResult<Matrix<get_username_availability::v3::Response>> {
    let user_id = chosen_id(&app, &request.username)?;
    app.homeserver().check_username(&user_id)?;
    app.homeserver().check_free(&user_id).await?;
    Ok(Matrix(get_username_availability::v3::Response::new(true)))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
pub async fn token_validity(
    State(app): State<App>,
    Open(request): Open<check_registration_token_validity::v1::Request>,
) -> ApiResult<Matrix<check_registration_token_validity::v1::Response>> {
    let registration = &app.settings().registration;
    if !registration.enabled && registration.tokens.is_empty() {
        return Err(ApiError::forbidden("registration is closed"));
    }
    let is_valid = uia::is_registration_token(&app, &request.token);
    Ok(Matrix(check_registration_token_validity::v1::Response::new(is_valid)))
}
