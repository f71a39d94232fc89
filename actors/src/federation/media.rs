//! Media of other servers.
//!
//! Spec: server-server API, "Content Repository".

use std::{fmt::Write, io, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use ruma::{ServerName, http_headers::ContentDisposition};

use super::{FederationClient, FederationError, FederationRequest, FederationStream, remote::encode};
use crate::media::{self, Meta, Reader, RemoteContent, RemoteError, RemoteMedia, Wanted};

/// How long a server may take to begin its answer, beside the time that it may wait for an upload.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What an answer may have beside the media: the first part, and the headers.
const AROUND_MAX: usize = 128 << 10;

/// The longest content type or name of a file that is believed, in bytes.
const META_MAX: usize = 1024;

/// Gets media from the servers that have them.
pub struct FederatedMedia {
    client: Arc<dyn FederationClient>,
    size_max: u64,
}

impl FederatedMedia {
    /// Gets media of at most `size_max` bytes.
    pub fn new(client: Arc<dyn FederationClient>, size_max: u64) -> Self {
        Self { client, size_max }
    }

    async fn get(
        &self,
        server: &ServerName,
        media_id: &str,
        wanted: Option<Wanted>,
        timeout: Duration,
    ) -> Result<RemoteContent, RemoteError> {
        let what = if wanted.is_some() { "thumbnail" } else { "download" };
        let query = query(wanted, timeout);
        let path = format!("/_matrix/federation/v1/media/{what}/{}?{query}", encode(media_id));
        let answer = match self.ask(server, path, timeout).await {
            Err(error) if is_unrecognized(&error) => {
                let (server_name, media_id) = (encode(server.as_str()), encode(media_id));
                let query = format!("{query}&allow_remote=false");
                let path = format!("/_matrix/media/v3/{what}/{server_name}/{media_id}?{query}");
                let old = self.ask(server, path, timeout).await.map_err(failure)?;
                return Ok(content(&old.headers, reader(old.body)));
            }
            answer => answer.map_err(failure)?,
        };
        let content_type = text(&answer.headers, &header::CONTENT_TYPE).unwrap_or_default();
        let parts = media::second_part(&content_type, reader(answer.body)).await;
        let (headers, body) = parts?;
        let Some(location) = text(&headers, &header::LOCATION) else { return Ok(content(&headers, body)) };
        let elsewhere = self.client.fetch(&location, TIMEOUT, self.response_max()).await;
        let elsewhere = elsewhere.map_err(|error| match failure(error) {
            // The media's server is there.
            RemoteError::Unreachable(why) => RemoteError::BadAnswer(why),
            error => error,
        })?;
        Ok(content(&elsewhere.headers, reader(elsewhere.body)))
    }

    async fn ask(
        &self,
        server: &ServerName,
        path_and_query: String,
        timeout: Duration,
    ) -> Result<FederationStream, FederationError> {
        let request = FederationRequest {
            method: Method::GET,
            path_and_query,
            body: None,
            timeout: TIMEOUT + timeout,
            max_response: self.response_max(),
        };
        self.client.stream(server, request).await
    }

    fn response_max(&self) -> usize {
        usize::try_from(self.size_max).unwrap_or(usize::MAX).saturating_add(AROUND_MAX)
    }
}

impl RemoteMedia for FederatedMedia {
    fn fetch<'a>(
        &'a self,
        server_name: &'a ServerName,
        media_id: &'a str,
        wanted: Option<Wanted>,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<RemoteContent, RemoteError>> {
        Box::pin(self.get(server_name, media_id, wanted, timeout))
    }
}

fn query(wanted: Option<Wanted>, timeout: Duration) -> String {
    let mut query = format!("timeout_ms={}", timeout.as_millis());
    if let Some(Wanted { width, height, method, animated }) = wanted {
        let _ = write!(query, "&width={width}&height={height}&method={method}&animated={animated}");
    }
    query
}

/// Whether a server does not know the endpoint, and so the older one is to be asked.
fn is_unrecognized(error: &FederationError) -> bool {
    matches!(
        error,
        FederationError::Status { status: StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, errcode, .. }
            if errcode == "M_UNRECOGNIZED"
    )
}

fn failure(error: FederationError) -> RemoteError {
    match error {
        FederationError::Status { errcode, .. } if errcode == "M_NOT_YET_UPLOADED" => {
            RemoteError::NotYetUploaded
        }
        FederationError::Status { errcode, .. } if errcode == "M_TOO_LARGE" => RemoteError::TooLarge,
        FederationError::TooLarge { .. } => RemoteError::TooLarge,
        FederationError::Status { status: StatusCode::NOT_FOUND, .. } | FederationError::Disabled => {
            RemoteError::NotFound
        }
        FederationError::Status { status, .. } if status.is_client_error() => {
            RemoteError::Refused(error.to_string())
        }
        error if error.concerns_request() => RemoteError::BadAnswer(error.to_string()),
        error => RemoteError::Unreachable(error.to_string()),
    }
}

fn reader(body: futures_util::stream::BoxStream<'static, Result<bytes::Bytes, FederationError>>) -> Reader {
    body.map(|chunk| {
        chunk.map_err(|error| match error {
            FederationError::TooLarge { .. } => io::Error::new(io::ErrorKind::FileTooLarge, error),
            error => io::Error::other(error),
        })
    })
    .boxed()
}

fn content(headers: &HeaderMap, body: Reader) -> RemoteContent {
    let disposition = headers.get(header::CONTENT_DISPOSITION);
    let disposition = disposition.and_then(|value| ContentDisposition::try_from(value.as_bytes()).ok());
    let filename = disposition.and_then(|disposition| disposition.filename);
    let short = |text: &String| text.len() <= META_MAX;
    let meta = Meta {
        content_type: text(headers, &header::CONTENT_TYPE).filter(short),
        filename: filename.filter(short),
    };
    RemoteContent { meta, body }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests;
