//! The content repository.
//!
//! Spec: client-server API, "Content repository".

mod serve;

use std::time::Duration;

use actors::media::{Lookup, Meta, is_media_id};
use axum::{Json, body::Body, extract::State, response::Response};
use http::{HeaderMap, header};
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::{Value, json};

pub use self::serve::Disposition;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Path as ApiPath, Query as ApiQuery, Requester},
};

/// What names of files, and content types, have at most: they go into headers.
const META_MAX: usize = 1024;

/// The query of an upload.
#[derive(Debug, Default, Deserialize)]
pub struct UploadQuery {
    filename: Option<String>,
}

/// The query of a download.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct DownloadQuery {
    allow_remote: bool,
    timeout_ms: u64,
}

impl Default for DownloadQuery {
    fn default() -> Self {
        Self { allow_remote: true, timeout_ms: 20_000 }
    }
}

/// `GET /_matrix/client/v1/media/config`, and `GET /_matrix/media/v3/config`
pub async fn config(State(app): State<App>, _: Requester) -> Json<Value> {
    Json(json!({ "m.upload.size": app.homeserver().media().config().upload_size_max }))
}

/// `POST /_matrix/media/v3/upload`
pub async fn upload(
    State(app): State<App>,
    requester: Requester,
    query: ApiQuery<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<Value>> {
    let (meta, length) = meta(query, &headers)?;
    let media = app.homeserver().media();
    let uri = media.upload(&requester.user_id, meta, length, body.into_data_stream()).await?;
    Ok(Json(json!({ "content_uri": uri })))
}

/// `POST /_matrix/media/v1/create`
pub async fn create(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let created = app.homeserver().media().create(&requester.user_id).await?;
    Ok(Json(json!({ "content_uri": created.uri, "unused_expires_at": created.expires })))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
pub async fn upload_to(
    State(app): State<App>,
    requester: Requester,
    ApiPath((server, media_id)): ApiPath<(String, String)>,
    query: ApiQuery<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<Value>> {
    let (server, (meta, length)) = (server_name(&server)?, meta(query, &headers)?);
    let media = app.homeserver().media();
    let body = body.into_data_stream();
    media.upload_to(&requester.user_id, &server, &media_id, meta, length, body).await?;
    Ok(Json(json!({})))
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`
pub async fn download(
    State(app): State<App>,
    _: Requester,
    ApiPath((server, media_id)): ApiPath<(String, String)>,
    query: ApiQuery<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send(&app, lookup(&server, media_id, &query.0, false)?, &headers, None).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`
pub async fn download_as(
    State(app): State<App>,
    _: Requester,
    ApiPath((server, media_id, name)): ApiPath<(String, String, String)>,
    query: ApiQuery<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send(&app, lookup(&server, media_id, &query.0, false)?, &headers, Some(name)).await
}

/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}`
pub async fn old_download(
    State(app): State<App>,
    ApiPath((server, media_id)): ApiPath<(String, String)>,
    query: ApiQuery<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send(&app, lookup(&server, media_id, &query.0, true)?, &headers, None).await
}

/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}`
pub async fn old_download_as(
    State(app): State<App>,
    ApiPath((server, media_id, name)): ApiPath<(String, String, String)>,
    query: ApiQuery<DownloadQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send(&app, lookup(&server, media_id, &query.0, true)?, &headers, Some(name)).await
}

async fn send(app: &App, lookup: Lookup, headers: &HeaderMap, name: Option<String>) -> ApiResult<Response> {
    let media = app.homeserver().media();
    let file = media.find(&lookup).await?;
    let audience = if lookup.only_open { serve::Audience::Everybody } else { serve::Audience::Users };
    let disposition = Disposition::of(file.content_type.as_deref(), name.or_else(|| file.filename.clone()));
    serve::serve(media, &file.content, &disposition, headers, audience).await
}

fn lookup(server: &str, media_id: String, query: &DownloadQuery, only_open: bool) -> ApiResult<Lookup> {
    if !is_media_id(&media_id) {
        return Err(ApiError::invalid_param("a media ID has letters, digits, `_` and `-` only"));
    }
    Ok(Lookup {
        server_name: server_name(server)?,
        media_id,
        timeout: Duration::from_millis(query.timeout_ms),
        allow_remote: query.allow_remote,
        only_open,
    })
}

fn server_name(text: &str) -> ApiResult<OwnedServerName> {
    let name = <&ServerName>::try_from(text).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    Ok(name.to_owned())
}

/// What an upload says of itself, and how long it says that it is.
fn meta(ApiQuery(query): ApiQuery<UploadQuery>, headers: &HeaderMap) -> ApiResult<(Meta, Option<u64>)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let content_type = text(header::CONTENT_TYPE).map(ToOwned::to_owned);
    if [&content_type, &query.filename].into_iter().flatten().any(|text| text.len() > META_MAX) {
        return Err(ApiError::invalid_param("the content type or the file name is too long"));
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    Ok((Meta { content_type, filename: query.filename }, length))
}
