//! Media of other servers: fetched once, then kept here.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture};
use ruma::ServerName;
use storage::schema::MediaRecord;

use super::{MediaError, MediaRepository, Meta, Reader, flights::Flights};

/// How long another server may say nothing while it sends.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Gets media from their server; implemented by federation.
pub trait RemoteMedia: Send + Sync + 'static {
    /// Gets the media of this URI; waits at most `timeout` for bytes that were not uploaded yet.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/media/download/{mediaId}`.
    fn fetch<'a>(
        &'a self,
        server_name: &'a ServerName,
        media_id: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<RemoteContent, RemoteError>>;
}

/// Media as their server sends them.
pub struct RemoteContent {
    /// What it says of them.
    pub meta: Meta,
    /// Their bytes; what exceeds the limits is cut off by who reads.
    pub body: Reader,
}

/// Why another server's media are not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Their server has no such media, or this one asks nobody.
    #[error("the media's server does not have them")]
    NotFound,
    /// Their server waits for the bytes itself.
    #[error("the content has not yet been uploaded")]
    NotYetUploaded,
    /// They are larger than this server serves.
    #[error("the content is too large to serve")]
    TooLarge,
    /// Their server could not be reached, or broke off.
    #[error("the media's server did not answer: {0}")]
    Unreachable(String),
}

/// Who gets media of other servers, and what is being got.
#[derive(Default)]
pub(super) struct Remotes {
    client: std::sync::OnceLock<Arc<dyn RemoteMedia>>,
    /// What is being fetched.
    flights: Flights,
}

impl MediaRepository {
    /// Sets who gets the media of other servers; the first one stays.
    pub fn set_remote(&self, client: Arc<dyn RemoteMedia>) {
        if self.0.remotes.client.set(client).is_err() {
            tracing::warn!("media of other servers had a client already");
        }
    }

    /// Gets media from their server and keeps them.
    pub(super) async fn fetch_remote(
        &self,
        server_name: &ServerName,
        media_id: &str,
        timeout: Duration,
    ) -> Result<MediaRecord, MediaError> {
        let client = self.0.remotes.client.get().ok_or(RemoteError::NotFound)?.clone();
        let uri = format!("mxc://{server_name}/{media_id}");
        let flight = self.0.remotes.flights.board(uri).await;
        let (repository, server_name, media_id) = (self.clone(), server_name.to_owned(), media_id.to_owned());
        // Whoever asked may hang up: the next one finds it.
        let fetched = tokio::spawn(async move {
            let _flight = flight;
            // Whoever was first may have got them.
            match repository.record(&server_name, &media_id).await? {
                Some(record) => Ok(record),
                None => repository.fetch(&*client, &server_name, &media_id, timeout).await,
            }
        });
        fetched.await.map_err(|error| MediaError::Files(error.to_string()))?
    }

    async fn fetch(
        &self,
        client: &dyn RemoteMedia,
        server_name: &ServerName,
        media_id: &str,
        timeout: Duration,
    ) -> Result<MediaRecord, MediaError> {
        let RemoteContent { meta, mut body } = client.fetch(server_name, media_id, timeout).await?;
        let mut staged = self.0.contents.stage().await?;
        let broken = |why: String| RemoteError::Unreachable(why);
        loop {
            let chunk = tokio::time::timeout(SILENCE_MAX, body.next()).await;
            let chunk = chunk.map_err(|_| broken("nothing came for a minute".to_owned()))?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|error| broken(error.to_string()))?;
            if staged.size() + chunk.len() as u64 > self.0.config.upload_size_max {
                return Err(RemoteError::TooLarge.into());
            }
            staged.write(&chunk).await?;
        }
        let record = self.new_record(meta, None);
        let content = self.keep_staged(server_name, media_id, record.clone(), staged).await?;
        Ok(MediaRecord { content: Some(content), ..record })
    }
}
