//! Threads that users subscribe to.
//!
//! Spec: MSC4306, MSC4308.

use std::sync::Arc;

use actors::{
    room::{RoomHandle, StoredEvent},
    session::{SessionHandle, ThreadWish},
    sliding_sync::threads::{LIMIT_MAX, ThreadSubscriptions},
    token::Token,
};
use axum::{Json, extract::State};
use engine::id::Position;
use http::StatusCode;
use ruma::{
    EventId, RoomId,
    api::client::threads::{get_thread_subscription, subscribe_thread, unsubscribe_thread},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::events::{event_not_found, room_of};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, Query, Requester},
};

/// `PUT /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`
pub async fn subscribe(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<subscribe_thread::unstable::Request>,
) -> ApiResult<Matrix<subscribe_thread::unstable::Response>> {
    let session = session(&app, &requester).await?;
    let room = room_with(&app, &requester, &request.room_id, &request.thread_root).await?;
    let wish = match &request.automatic {
        None => ThreadWish::Subscribe,
        Some(cause) => {
            let cause = visible(&room, &requester, cause).await?.ok_or_else(not_in_thread)?;
            if room.thread_root(&cause).await?.as_ref() != Some(&request.thread_root) {
                return Err(not_in_thread());
            }
            ThreadWish::SubscribeBecauseOf(cause.index.map_or_else(Default::default, Into::into))
        }
    };
    session.change_thread(request.room_id, request.thread_root, wish).await?;
    Ok(Matrix(subscribe_thread::unstable::Response::new()))
}

/// `DELETE /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`
pub async fn unsubscribe(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<unsubscribe_thread::unstable::Request>,
) -> ApiResult<Matrix<unsubscribe_thread::unstable::Response>> {
    let session = session(&app, &requester).await?;
    room_with(&app, &requester, &request.room_id, &request.thread_root).await?;
    session.change_thread(request.room_id, request.thread_root, ThreadWish::Unsubscribe).await?;
    Ok(Matrix(unsubscribe_thread::unstable::Response::new()))
}

/// `GET /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`
pub async fn subscription(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_thread_subscription::unstable::Request>,
) -> ApiResult<Matrix<get_thread_subscription::unstable::Response>> {
    let session = session(&app, &requester).await?;
    room_with(&app, &requester, &request.room_id, &request.thread_root).await?;
    let automatic = session.data().threads().subscription(&request.room_id, &request.thread_root);
    let automatic = automatic.ok_or_else(|| ApiError::not_found("you are not subscribed to this thread"))?;
    Ok(Matrix(get_thread_subscription::unstable::Response::new(automatic)))
}

/// The query of [`changes`].
#[derive(Deserialize)]
pub struct ChangesQuery {
    dir: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u64>,
}

/// `GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions`
pub async fn changes(
    State(app): State<App>,
    requester: Requester,
    Query(query): Query<ChangesQuery>,
) -> ApiResult<Json<Value>> {
    let session = session(&app, &requester).await?;
    match query.dir.as_deref() {
        Some("b") => {}
        Some(_) => return Err(ApiError::invalid_param("dir must be b")),
        None => return Err(ApiError::missing_param("dir is missing")),
    }
    let limit = query.limit.map_or(LIMIT_MAX, |limit| usize::try_from(limit).unwrap_or(LIMIT_MAX));
    if limit == 0 {
        return Err(ApiError::invalid_param("limit must be greater than 0"));
    }
    let newest = position(query.from.as_deref())?.unwrap_or(Position(u64::MAX));
    let known = position(query.to.as_deref())?.unwrap_or_default();
    let found = session.data().threads().changes(known, newest, limit.min(LIMIT_MAX));
    let ThreadSubscriptions { subscribed, unsubscribed, prev_batch } = found.into();
    // matrix-sdk takes no answer that lacks one of the two.
    let mut answer = json!({ "subscribed": subscribed, "unsubscribed": unsubscribed });
    if let Some(end) = prev_batch {
        answer["end"] = end.into();
    }
    Ok(Json(answer))
}

/// The moment of a token: of this endpoint, or a sliding sync's `pos` or `prev_batch`.
fn position(token: Option<&str>) -> ApiResult<Option<Position>> {
    match token.map(str::parse).transpose() {
        Ok(None) => Ok(None),
        Ok(Some(Token::Sync(position))) => Ok(Some(position)),
        _ => Err(ApiError::invalid_param("from and to are tokens of sliding sync")),
    }
}

/// The asker's session, unless this server has no such endpoints.
async fn session(app: &App, requester: &Requester) -> ApiResult<SessionHandle> {
    if !app.homeserver().has_thread_subscriptions() {
        let message = "threads cannot be subscribed to here";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", message));
    }
    Ok(app.homeserver().session(&requester.user_id).await?)
}

/// A room, if the asker may see an event of it that is the root of a thread, or may become one.
async fn room_with(
    app: &App,
    requester: &Requester,
    room_id: &RoomId,
    root: &EventId,
) -> ApiResult<RoomHandle> {
    // Whether a room exists is nobody's business who cannot see into it.
    let room = room_of(app, room_id).await.map_err(|error| match error.errcode() {
        "M_FORBIDDEN" => event_not_found(),
        _ => error,
    })?;
    visible(&room, requester, root).await?.ok_or_else(event_not_found)?;
    Ok(room)
}

async fn visible(
    room: &RoomHandle,
    requester: &Requester,
    id: &EventId,
) -> ApiResult<Option<Arc<StoredEvent>>> {
    let Some(event) = room.event(id).await? else { return Ok(None) };
    Ok(room.may_see(&requester.user_id, &event).await?.then_some(event))
}

fn not_in_thread() -> ApiError {
    ApiError::bad_request("IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "the event is not one of this thread")
}
