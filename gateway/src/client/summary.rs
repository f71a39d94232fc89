//! What a room is, for those who may know of it.
//!
//! Spec: client-server API, "Room Summaries", `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.

use axum::extract::State;
use ruma::api::client::room::get_summary;

use crate::{
    app::App,
    error::ApiResult,
    extract::{Authenticated, Matrix},
};

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
pub async fn room_summary(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_summary::v1::Request>,
) -> ApiResult<Matrix<get_summary::v1::Response>> {
    let (room_id, mut servers) = super::membership::resolve(&app, request.room_id_or_alias).await?;
    servers.splice(0..0, request.via);
    let (summary, membership) = app.homeserver().room_summary(&requester.user_id, &room_id, &servers).await?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = Some(membership.into());
    Ok(Matrix(response))
}
