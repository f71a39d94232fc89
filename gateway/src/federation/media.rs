//! Media of this server, for other servers.
//!
//! Spec: server-server API, "Content Repository".

use std::time::Duration;

use actors::media::{MediaFile, is_media_id};
use axum::{body::Body, extract::State, response::Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, header};
use serde::Deserialize;

use super::authentication::Signed;
use crate::{
    app::App,
    client::media::{Disposition, DownloadQuery, ThumbnailQuery},
    error::{ApiError, ApiResult},
    extract::{Path, Query},
};

/// The query of a download.
#[derive(Debug, Deserialize)]
pub struct TimeoutQuery {
    #[serde(default = "DownloadQuery::timeout_ms")]
    timeout_ms: u64,
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
pub async fn download(
    State(app): State<App>,
    Path(media_id): Path<String>,
    query: Query<TimeoutQuery>,
    _: Signed,
) -> ApiResult<Response> {
    check(&media_id)?;
    let timeout = Duration::from_millis(query.0.timeout_ms);
    let file = app.homeserver().media().find_local(&media_id, timeout, false).await?;
    send(&app, file).await
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
pub async fn thumbnail(
    State(app): State<App>,
    Path(media_id): Path<String>,
    query: Query<ThumbnailQuery>,
    _: Signed,
) -> ApiResult<Response> {
    check(&media_id)?;
    let (wanted, timeout) = query.0.wanted()?;
    let media = app.homeserver().media();
    let file = media.find_local(&media_id, timeout, false).await?;
    send(&app, media.thumbnail_of(file, &wanted).await?).await
}

fn check(media_id: &str) -> ApiResult<()> {
    if is_media_id(media_id) {
        return Ok(());
    }
    Err(ApiError::invalid_param("a media ID has letters, digits, `_` and `-` only"))
}

/// Media as the second of two parts; the first, their metadata, has none yet.
async fn send(app: &App, file: MediaFile) -> ApiResult<Response> {
    let homeserver = app.homeserver();
    let boundary = homeserver.env().entropy.token(30);
    let Disposition { content_type, disposition } =
        Disposition::of(file.content_type.as_deref(), file.filename);
    let mut head = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n")
        .into_bytes();
    for (name, value) in [("Content-Type", content_type), ("Content-Disposition", disposition)] {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let tail = format!("\r\n--{boundary}--\r\n");
    let length = file.content.size + (head.len() + tail.len()) as u64;
    let bytes = homeserver.media().contents().read(&file.content, 0..file.content.size).await?;
    let one = |part: Bytes| futures_util::stream::iter([Ok(part)]);
    let body = one(head.into()).chain(bytes).chain(one(tail.into()));
    let mut response = Response::new(Body::from_stream(body));
    let content_type = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}"));
    let content_type = content_type.map_err(|error| ApiError::internal(&error))?;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}
