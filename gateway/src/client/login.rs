//! Logging in and out.
//!
//! Spec: client-server API, "Login", "Logout", "Refreshing access tokens".

use actors::session::{Login, Requester};
use axum::extract::State;
use ruma::{
    OwnedUserId, UserId,
    api::client::{
        account::whoami,
        session::{
            get_login_types::{self, v3::LoginType},
            login::{self, v3::LoginInfo},
            logout, logout_all, refresh_token,
        },
        uiaa::UserIdentifier,
    },
};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Open, Typed},
};

/// `GET /_matrix/client/v3/login`
pub async fn login_types(
    Open(_): Open<get_login_types::v3::Request>,
) -> ApiResult<Matrix<get_login_types::v3::Response>> {
    let flows = vec![LoginType::Password(get_login_types::v3::PasswordLoginType::new())];
    Ok(Matrix(get_login_types::v3::Response::new(flows)))
}

/// `POST /_matrix/client/v3/login`
pub async fn login(
    State(app): State<App>,
    Typed(request): Typed<login::v3::Request>,
) -> ApiResult<Matrix<login::v3::Response>> {
    let LoginInfo::Password(given) = request.login_info else {
        return Err(ApiError::bad_request("M_UNKNOWN", "this way to log in is not supported"));
    };
    #[expect(deprecated, reason = "bots of before r0.4.0 name the user like this")]
    let user_id = user(&app, given.identifier, given.user)?;
    let session = match app.homeserver().session(&user_id).await {
        Ok(session) => Some(session),
        Err(actors::session::SessionError::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    let hash = session.as_ref().and_then(|session| session.data().account().password_hash.clone());
    let matches = app.passwords().verify(given.password, hash).await?;
    let Some(session) = session.filter(|_| matches) else {
        return Err(ApiError::forbidden("the user or password is wrong"));
    };
    let login = Login {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        wants_refresh_token: request.refresh_token,
    };
    let logged_in = session.log_in(login).await?;
    let mut response = login::v3::Response::new(user_id, logged_in.access_token, logged_in.device_id);
    response.refresh_token = logged_in.refresh_token;
    response.expires_in = logged_in.expires_in;
    Ok(Matrix(response))
}

fn user(app: &App, identifier: Option<UserIdentifier>, name: Option<String>) -> ApiResult<OwnedUserId> {
    let name = match (identifier, name) {
        (Some(UserIdentifier::Matrix(identifier)), _) => identifier.user,
        (None, Some(name)) => name,
        _ => return Err(ApiError::bad_request("M_UNKNOWN", "users are identified by their user ID here")),
    };
    let parsed = if name.starts_with('@') {
        UserId::parse(&name)
    } else {
        UserId::parse_with_server_name(name.to_lowercase(), app.homeserver().server_name())
    };
    // An ID that cannot exist is answered like one that does not.
    parsed.map_err(|_| ApiError::forbidden("the user or password is wrong"))
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
    session.delete_devices(vec![requester.device_id]).await?;
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
    response.device_id = Some(device_id);
    Ok(Matrix(response))
}
