//! Logging in and out.
//!
//! Spec: client-server API, "Login", "Logout", "Refreshing access tokens".

use actors::{
    appservice::Service,
    session::{Login, Requester, SessionError, SessionHandle},
};
use axum::extract::State;
use ruma::{
    OwnedUserId,
    api::client::{
        account::whoami,
        session::{
            get_login_token,
            get_login_types::{self, v3::LoginType},
            login::{self, v3::LoginInfo},
            logout, logout_all, refresh_token,
        },
        uiaa::UserIdentifier,
    },
};

use super::account;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, OfService, Open, Typed, device_of},
    uia::{self, Refusal},
};

/// `GET /_matrix/client/v3/login`
pub async fn login_types(
    State(app): State<App>,
    Open(_): Open<get_login_types::v3::Request>,
) -> ApiResult<Matrix<get_login_types::v3::Response>> {
    let mut token = get_login_types::v3::TokenLoginType::new();
    token.get_login_token = true;
    let password = get_login_types::v3::PasswordLoginType::new();
    let mut flows = vec![LoginType::Password(password), LoginType::Token(token)];
    if !app.homeserver().services().is_empty() {
        flows.push(LoginType::ApplicationService(get_login_types::v3::ApplicationServiceLoginType::new()));
    }
    Ok(Matrix(get_login_types::v3::Response::new(flows)))
}

/// `POST /_matrix/client/v3/login`
pub async fn login(
    State(app): State<App>,
    OfService(service): OfService,
    Typed(request): Typed<login::v3::Request>,
) -> ApiResult<Matrix<login::v3::Response>> {
    let session = match request.login_info {
        LoginInfo::Password(given) => by_password(&app, given).await?,
        LoginInfo::Token(given) => by_token(&app, &given.token).await?,
        LoginInfo::ApplicationService(given) => by_service(&app, &*service?, given).await?,
        _ => return Err(ApiError::bad_request("M_UNKNOWN", "this way to log in is not supported")),
    };
    let user_id = session.user_id().to_owned();
    let login = Login {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        wants_refresh_token: request.refresh_token,
    };
    let logged_in = session.log_in(login).await?;
    let mut response = login::v3::Response::new(user_id, logged_in.access_token, logged_in.device_id);
    response.refresh_token = logged_in.refresh_token;
    response.expires_in = logged_in.expires_in;
    response.well_known = app.settings().well_known.discovery();
    Ok(Matrix(response))
}

async fn by_password(app: &App, given: login::v3::Password) -> ApiResult<SessionHandle> {
    #[expect(deprecated, reason = "bots of before r0.4.0 name the user like this")]
    let user_id = user(app, given.identifier, given.user)?;
    app.rate_limits().check_password(&user_id)?;
    let session = match app.homeserver().session(&user_id).await {
        Ok(session) => Some(session),
        Err(SessionError::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    // A deactivated account has no password that it could be told by.
    if session.as_ref().is_some_and(|session| session.data().account().is_deactivated) {
        return Err(SessionError::Deactivated.into());
    }
    let hash = session.as_ref().and_then(|session| session.data().account().password_hash.clone());
    let matches = app.passwords().verify(given.password, hash).await?;
    session.filter(|_| matches).ok_or_else(|| ApiError::forbidden("the user or password is wrong"))
}

/// Spec: application service API, "Server admin style permissions".
async fn by_service(
    app: &App,
    service: &Service,
    given: login::v3::ApplicationService,
) -> ApiResult<SessionHandle> {
    #[expect(deprecated, reason = "services of before r0.4.0 name the user like this")]
    let user_id = user(app, given.identifier, given.user)?;
    if !service.has_user(&user_id) {
        return Err(ApiError::exclusive("the user is in no namespace of this application service"));
    }
    match app.homeserver().session(&user_id).await {
        Err(SessionError::NotFound) => Err(ApiError::forbidden("the user is not registered")),
        session => Ok(session?),
    }
}

async fn by_token(app: &App, token: &str) -> ApiResult<SessionHandle> {
    let session = app.homeserver().redeem_login_token(token).await?;
    session.ok_or_else(|| ApiError::forbidden("the token is unknown, used or has expired"))
}

/// `POST /_matrix/client/v1/login/get_token`
pub async fn login_token(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_login_token::v1::Request>,
) -> Result<Matrix<get_login_token::v1::Response>, Refusal> {
    let session = app.homeserver().session(&requester.user_id).await?;
    if session.data().account().password_hash.is_none() {
        let message = "this account has no password to prove that it is you";
        return Err(ApiError::bad_request("M_UNKNOWN", message).into());
    }
    account::require_password(&app, &requester, request.auth.as_ref(), "login token").await?;
    let token = session.login_token().await?;
    Ok(Matrix(get_login_token::v1::Response::new(token.expires_in, token.token)))
}

fn user(app: &App, identifier: Option<UserIdentifier>, name: Option<String>) -> ApiResult<OwnedUserId> {
    let name = match (identifier, name) {
        (Some(UserIdentifier::Matrix(identifier)), _) => identifier.user,
        (None, Some(name)) => name,
        // No account here has such an identifier; users who try it have to read that they mistyped their name.
        (Some(UserIdentifier::Email(_) | UserIdentifier::Msisdn(_) | UserIdentifier::PhoneNumber(_)), _) => {
            return Err(ApiError::forbidden("no account here has this e-mail address or phone number"));
        }
        _ => return Err(ApiError::bad_request("M_UNKNOWN", "users are identified by their user ID here")),
    };
    // An ID that cannot exist is answered like one that does not.
    let named = uia::named_user(&name, app.homeserver().server_name());
    named.ok_or_else(|| ApiError::forbidden("the user or password is wrong"))
}

/// `POST /_matrix/client/v3/refresh`
pub async fn refresh(
    State(app): State<App>,
    Open(request): Open<refresh_token::v3::Request>,
) -> ApiResult<Matrix<refresh_token::v3::Response>> {
    let logged_in = app.homeserver().refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(logged_in.access_token);
    response.refresh_token = logged_in.refresh_token;
    response.expires_in_ms = logged_in.expires_in;
    Ok(Matrix(response))
}

/// `POST /_matrix/client/v3/logout`
pub async fn logout(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<logout::v3::Request>,
) -> ApiResult<Matrix<logout::v3::Response>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_devices(vec![device_of(&requester)?]).await?;
    Ok(Matrix(logout::v3::Response::new()))
}

/// `POST /_matrix/client/v3/logout/all`
pub async fn logout_all(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<logout_all::v3::Request>,
) -> ApiResult<Matrix<logout_all::v3::Response>> {
    app.homeserver().session(&requester.user_id).await?.delete_all_devices().await?;
    Ok(Matrix(logout_all::v3::Response::new()))
}

/// `GET /_matrix/client/v3/account/whoami`
pub async fn whoami(
    Authenticated { requester, .. }: Authenticated<whoami::v3::Request>,
) -> ApiResult<Matrix<whoami::v3::Response>> {
    let Requester { user_id, device_id, is_guest, .. } = requester;
    let mut response = whoami::v3::Response::new(user_id, is_guest);
    response.device_id = device_id;
    Ok(Matrix(response))
}
