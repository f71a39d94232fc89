//! Presence.
//!
//! Spec: client-server API, "Presence".

use std::time::Duration;

use axum::extract::State;
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::profile::own;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix},
};

/// `PUT /_matrix/client/v3/presence/{userId}/status`
pub async fn set_presence(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<set_presence::v3::Request>,
) -> ApiResult<Matrix<set_presence::v3::Response>> {
    own(request.user_id.as_str(), &requester)?;
    check_state(&request.presence)?;
    if request.status_msg.as_ref().is_some_and(|text| text.len() > STATUS_MAX) {
        return Err(ApiError::invalid_param(format!("status_msg has at most {STATUS_MAX} bytes")));
    }
    let session = app.homeserver().session(&requester.user_id).await?;
    session.set_presence(request.presence, request.status_msg);
    Ok(Matrix(set_presence::v3::Response::new()))
}

/// Refuses a state of presence that the specification does not know.
pub(super) fn check_state(state: &PresenceState) -> ApiResult<()> {
    match state {
        PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline => Ok(()),
        _ => Err(ApiError::invalid_param("presence is online, unavailable or offline")),
    }
}

/// Bytes of a status message: it is sent to everyone who shares a room with the user.
const STATUS_MAX: usize = 4096;

/// `GET /_matrix/client/v3/presence/{userId}/status`
pub async fn get_presence(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_presence::v3::Request>,
) -> ApiResult<Matrix<get_presence::v3::Response>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let is_own = request.user_id == requester.user_id;
    if !is_own && !app.homeserver().shares_room(&session, &request.user_id).await? {
        return Err(ApiError::forbidden("you share no room with this user"));
    }
    let presence = app.homeserver().presence(&request.user_id);
    let mut response = get_presence::v3::Response::new(presence.state.clone());
    response.status_msg = presence.status_msg;
    response.last_active_ago = presence.last_active_ago.map(Duration::from_millis);
    response.currently_active =
        (presence.state == PresenceState::Online).then_some(presence.currently_active);
    Ok(Matrix(response))
}
