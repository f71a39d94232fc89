//! Registering accounts.
//!
//! Spec: client-server API, "Account registration".

use actors::{
    appservice::Service,
    session::{Login, NewAccount, SessionChange, SessionHandle},
};
use axum::{Json, extract::State};
use ruma::{
    OwnedUserId, UserId,
    api::client::{
        account::{
            check_registration_token_validity, get_username_availability,
            register::{self, LoginType, RegistrationKind},
        },
        uiaa::AuthData,
    },
};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Matrix, OfService, Open},
    uia::{self, Challenge, Refusal, Stage},
};

/// The longest password; a longer one would only cost time to hash.
const PASSWORD_MAX: usize = 512;

/// `POST /_matrix/client/v3/register`
pub async fn register(
    State(app): State<App>,
    OfService(service): OfService,
    Open(request): Open<register::v3::Request>,
) -> Result<Json<Value>, Refusal> {
    if request.login_type == Some(LoginType::ApplicationService) {
        return for_service(&app, &*service?, request).await;
    }
    let is_guest = match request.kind {
        RegistrationKind::Guest => true,
        RegistrationKind::User => false,
        _ => return Err(ApiError::invalid_param("kind is user or guest").into()),
    };
    let flows = flows(&app, is_guest)?;
    let mut request = if is_guest { of_guest(request) } else { request };
    if let Some(session) = registered(&app, &request).await? {
        return answer(&session, request).await;
    }
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
        check_reserved(&app, &user_id, None)?;
        homeserver.check_free(&user_id).await?;
    }
    let challenge = Challenge { endpoint: "register", flows, user_id: None };
    let passed =
        if is_guest { None } else { Some(uia::pass(&app, request.auth.as_ref(), &challenge).await?) };
    let password_hash = match request.password.take() {
        Some(password) => Some(hash(&app, password).await?),
        None => None,
    };
    let session = if let Some(guest) = guest {
        guest.change(SessionChange::UpgradeGuest { password_hash }).await?;
        guest
    } else {
        homeserver.register(NewAccount { user_id, password_hash, is_guest, is_admin: false }).await?
    };
    if let Some(passed) = passed {
        app.uia().note_registered(passed, session.user_id());
    }
    answer(&session, request).await
}

/// Registers a user of an application service, who needs no password and passes no stages.
///
/// Spec: application service API, "Server admin style permissions".
async fn for_service(
    app: &App,
    service: &Service,
    request: register::v3::Request,
) -> Result<Json<Value>, Refusal> {
    let name = request.username.as_deref().ok_or_else(|| ApiError::missing_param("username is missing"))?;
    let user_id = chosen_id(app, name)?;
    if !service.has_user(&user_id) {
        return Err(ApiError::exclusive("the user is in no namespace of this application service").into());
    }
    check_reserved(app, &user_id, Some(service))?;
    let homeserver = app.homeserver();
    homeserver.check_free(&user_id).await?;
    let new = NewAccount { user_id, password_hash: None, is_guest: false, is_admin: false };
    answer(&homeserver.register(new).await?, request).await
}

/// Refuses user IDs that an application service has for itself, unless it is the one that asks.
pub fn check_reserved(app: &App, user_id: &UserId, asker: Option<&Service>) -> ApiResult<()> {
    if app.homeserver().services().reserves_user(user_id, asker) {
        return Err(ApiError::exclusive("the user ID is reserved for an application service"));
    }
    Ok(())
}

/// The account that a client has registered with the same session, if it asks again since it may not have got the answer.
///
/// It has to know the password of the account: it is given no more than by logging in.
///
/// Spec: client-server API, "User-interactive API in the REST API".
async fn registered(app: &App, request: &register::v3::Request) -> ApiResult<Option<SessionHandle>> {
    let homeserver = app.homeserver();
    let id = request.auth.as_ref().and_then(AuthData::session);
    let Some(user_id) = id.and_then(|id| app.uia().registered(id, homeserver.env())) else { return Ok(None) };
    let is_same = match request.username.as_deref() {
        Some(name) => chosen_id(app, name)? == user_id,
        None => true,
    };
    let Some(password) = request.password.clone().filter(|_| is_same) else { return Ok(None) };
    if !uia::is_password_of(app, &user_id, password).await? {
        return Ok(None);
    }
    Ok(Some(homeserver.session(&user_id).await?))
}

/// Logs in, if that is wanted, and tells the client of its account.
async fn answer(session: &SessionHandle, request: register::v3::Request) -> Result<Json<Value>, Refusal> {
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

/// The ways to register an account, none for guests; an error if there are none at all.
///
/// It comes before anything that a request asks for: who cannot register need not learn which names are taken.
fn flows(app: &App, is_guest: bool) -> ApiResult<&'static [&'static [Stage]]> {
    let registration = &app.settings().registration;
    match (is_guest, registration.enabled, registration.tokens.is_empty()) {
        (true, ..) if registration.guests => Ok(&[]),
        (true, ..) => Err(ApiError::guests_may_not()),
        (false, true, _) => Ok(&[&[Stage::Dummy]]),
        (false, false, false) => Ok(&[&[Stage::RegistrationToken]]),
        (false, false, true) => Err(ApiError::forbidden("registration is closed")),
    }
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
    check_reserved(&app, &user_id, None)?;
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
