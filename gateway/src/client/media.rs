//! The content repository.
//!
//! Spec: client-server API, "Content repository".

mod serve;

use std::time::Duration;

use actors::media::{Lookup, MediaFile, Meta, Method, Wanted, is_media_id};
use axum::{Json, body::Body, extract::State, response::Response};
use http::{HeaderMap, HeaderValue, header};
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
        Self { allow_remote: true, timeout_ms: Self::timeout_ms() }
    }
}

impl DownloadQuery {
    /// How long one waits who does not say how long.
    pub(crate) fn timeout_ms() -> u64 {
        20_000
    }
}

/// The query of a thumbnail.
#[derive(Debug, Deserialize)]
pub struct ThumbnailQuery {
    width: u32,
    height: u32,
    #[serde(default)]
    method: ThumbnailMethod,
    #[serde(default)]
    animated: bool,
    #[serde(default = "ThumbnailQuery::allow_remote")]
    allow_remote: bool,
    #[serde(default = "DownloadQuery::timeout_ms")]
    timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ThumbnailMethod {
    Crop,
    #[default]
    Scale,
}

impl ThumbnailQuery {
    fn allow_remote() -> bool {
        DownloadQuery::default().allow_remote
    }

    /// What is wanted, and how it is looked up.
    fn split(&self) -> ApiResult<(Wanted, DownloadQuery)> {
        if self.width == 0 || self.height == 0 {
            return Err(ApiError::invalid_param("a thumbnail has a width and a height"));
        }
        let method = match self.method {
            ThumbnailMethod::Crop => Method::Crop,
            ThumbnailMethod::Scale => Method::Scale,
        };
        let wanted = Wanted { width: self.width, height: self.height, method, animated: self.animated };
        Ok((wanted, DownloadQuery { allow_remote: self.allow_remote, timeout_ms: self.timeout_ms }))
    }

    /// What is wanted, and how long one waits for it.
    pub fn wanted(&self) -> ApiResult<(Wanted, Duration)> {
        Ok((self.split()?.0, Duration::from_millis(self.timeout_ms)))
    }
}

/// `GET /_matrix/client/v1/media/config`, and `GET /_matrix/media/v3/config`
pub async fn config(State(app): State<App>, _: Requester) -> Json<Value> {
    Json(json!({ "m.upload.size": app.homeserver().media().config().upload_size_max }))
}

/// The query of a preview; of which time it is makes no difference: only the newest is kept.
#[derive(Debug, Deserialize)]
pub struct PreviewQuery {
    url: String,
    #[serde(rename = "ts")]
    _ts: Option<i64>,
}

/// `GET /_matrix/client/v1/media/preview_url`, and `GET /_matrix/media/v3/preview_url`
pub async fn preview_url(
    State(app): State<App>,
    _: Requester,
    query: ApiQuery<PreviewQuery>,
) -> ApiResult<Response> {
    let json = app.homeserver().media().preview(&query.0.url).await?;
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
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

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
pub async fn thumbnail(
    State(app): State<App>,
    _: Requester,
    ApiPath((server, media_id)): ApiPath<(String, String)>,
    query: ApiQuery<ThumbnailQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send_thumbnail(&app, &server, media_id, &query.0, &headers, false).await
}

/// `GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}`
pub async fn old_thumbnail(
    State(app): State<App>,
    ApiPath((server, media_id)): ApiPath<(String, String)>,
    query: ApiQuery<ThumbnailQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    send_thumbnail(&app, &server, media_id, &query.0, &headers, true).await
}

async fn send_thumbnail(
    app: &App,
    server: &str,
    media_id: String,
    query: &ThumbnailQuery,
    headers: &HeaderMap,
    only_open: bool,
) -> ApiResult<Response> {
    let (wanted, query) = query.split()?;
    let lookup = lookup(server, media_id, &query, only_open)?;
    let file = app.homeserver().media().thumbnail(&lookup, &wanted).await?;
    present(app, &lookup, file, headers, None).await
}

async fn send(app: &App, lookup: Lookup, headers: &HeaderMap, name: Option<String>) -> ApiResult<Response> {
    let file = app.homeserver().media().find(&lookup).await?;
    present(app, &lookup, file, headers, name).await
}

async fn present(
    app: &App,
    lookup: &Lookup,
    file: MediaFile,
    headers: &HeaderMap,
    name: Option<String>,
) -> ApiResult<Response> {
    let media = app.homeserver().media();
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
