//! Receipts, read markers and typing notices.
//!
//! Spec: client-server API, "Receipts", "Fully read markers", "Typing notifications".

use std::time::Duration;

use actors::room::{Receipt, RoomHandle};
use axum::{Json, extract::State};
use engine::id::Position;
use ruma::{
    EventId, OwnedRoomId, OwnedUserId,
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
    },
    events::receipt::ReceiptThread,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    events::{event_not_found, require_joined, room_of},
    keys::parse,
};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, JsonBody, Matrix, Path, Requester},
};

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`
pub async fn create_receipt(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<create_receipt::v3::Request>,
) -> ApiResult<Matrix<create_receipt::v3::Response>> {
    let room = room_of(&app, &request.room_id).await?;
    require_joined(&room, &requester).await?;
    let thread = match request.thread {
        ReceiptThread::Unthreaded => None,
        ReceiptThread::Main => Some("main".to_owned()),
        ReceiptThread::Thread(root) => Some(root.to_string()),
        _ => return Err(ApiError::invalid_param("thread_id is neither `main` nor an event ID")),
    };
    match request.receipt_type {
        ReceiptType::Read => set_public(&app, &room, &requester, &request.event_id, thread).await?,
        ReceiptType::ReadPrivate => {
            set_private(&app, &room, &requester, &request.event_id, thread).await?;
        }
        ReceiptType::FullyRead if thread.is_none() => {
            set_fully_read(&app, &room, &requester, &request.event_id).await?;
        }
        ReceiptType::FullyRead => return Err(ApiError::invalid_param("m.fully_read has no threads")),
        _ => return Err(ApiError::invalid_param("unknown receipt type")),
    }
    Ok(Matrix(create_receipt::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`
pub async fn set_read_marker(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<set_read_marker::v3::Request>,
) -> ApiResult<Matrix<set_read_marker::v3::Response>> {
    let room = room_of(&app, &request.room_id).await?;
    require_joined(&room, &requester).await?;
    if let Some(event_id) = &request.fully_read {
        set_fully_read(&app, &room, &requester, event_id).await?;
    }
    if let Some(event_id) = &request.read_receipt {
        set_public(&app, &room, &requester, event_id, None).await?;
    }
    if let Some(event_id) = &request.private_read_receipt {
        set_private(&app, &room, &requester, event_id, None).await?;
    }
    Ok(Matrix(set_read_marker::v3::Response::new()))
}

async fn set_public(
    app: &App,
    room: &RoomHandle,
    requester: &Requester,
    event_id: &EventId,
    thread: Option<String>,
) -> ApiResult<()> {
    Ok(room.set_receipt(receipt(app, room, requester, event_id, thread).await?).await?)
}

async fn set_private(
    app: &App,
    room: &RoomHandle,
    requester: &Requester,
    event_id: &EventId,
    thread: Option<String>,
) -> ApiResult<()> {
    let receipt = receipt(app, room, requester, event_id, thread).await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    Ok(session.set_private_receipt(room.snapshot().room_id.clone(), receipt).await?)
}

async fn set_fully_read(
    app: &App,
    room: &RoomHandle,
    requester: &Requester,
    event_id: &EventId,
) -> ApiResult<()> {
    let event = room.event(event_id).await?.ok_or_else(event_not_found)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let room_id = room.snapshot().room_id.clone();
    let present = session.fully_read(&room_id);
    if let Some(present) = present
        && let Some(present) = room.event(&present).await?
        && event.index < present.index
    {
        // As receipts: of a device that is behind, or a request that comes late.
        return Ok(());
    }
    Ok(session.set_fully_read(room_id, event_id).await?)
}

async fn receipt(
    app: &App,
    room: &RoomHandle,
    requester: &Requester,
    event_id: &EventId,
    thread: Option<String>,
) -> ApiResult<Receipt> {
    let event = room.event(event_id).await?.ok_or_else(event_not_found)?;
    if let Some(thread) = &thread
        && !room.is_in_thread(&event, thread).await?
    {
        return Err(ApiError::invalid_param("the event is not in the thread of thread_id"));
    }
    Ok(Receipt {
        user_id: requester.user_id.clone(),
        thread,
        event_id: event_id.to_owned(),
        index: event.index.unwrap_or_default(),
        ts: app.homeserver().env().clock.now(),
        // Set by whoever stores the receipt.
        position: Position(0),
    })
}

/// How long a typing notice holds that does not say how long.
const TYPING_MS: u64 = 30_000;

#[derive(Deserialize)]
struct Typing {
    typing: bool,
    timeout: Option<u64>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
pub async fn set_typing(
    State(app): State<App>,
    Path((room_id, user_id)): Path<(OwnedRoomId, OwnedUserId)>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let Typing { typing, timeout } = parse(body)?;
    if user_id != requester.user_id {
        return Err(ApiError::forbidden("you cannot type for someone else"));
    }
    let room = room_of(&app, &room_id).await?;
    require_joined(&room, &requester).await?;
    let timeout = typing.then(|| Duration::from_millis(timeout.unwrap_or(TYPING_MS)));
    app.homeserver().note_activity(&requester.user_id);
    room.set_typing(requester.user_id, timeout).await?;
    Ok(Json(json!({})))
}
