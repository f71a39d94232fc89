//! Media of other servers: fetched once, then kept here.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture};
use quick_cache::sync::Cache;
use ruma::ServerName;
use storage::{
    Batch,
    schema::{self, MediaRecord, RemoteThumbnailRecord, ThumbnailRecord},
};
use tokio::sync::Semaphore;

use super::{
    Lookup, MediaError, MediaFile, MediaRepository, Meta, Reader,
    content::Staged,
    origins::Origins,
    thumbnail::{ThumbnailError, Wanted, kind, thumbnail_file},
};
use crate::{env::has_come, flights::Flights};

/// How long another server may say nothing while it sends.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long it may take to get media: a server that sends a few bytes a minute does not hold a place for ever.
const FETCH_MAX: Duration = Duration::from_secs(30 * 60);

/// Media that are fetched at a time.
const FETCHES_MAX: usize = 32;

/// The largest thumbnail of another server, in bytes.
const THUMBNAIL_MAX: usize = 8 << 20;

/// URIs that are known not to be had.
const MISSING_MAX: usize = 4096;

/// How long that is believed.
const MISSING_MS: u64 = 30_000;

/// Gets media from their server; implemented by federation.
pub trait RemoteMedia: Send + Sync + 'static {
    /// Gets the media of this URI, or a thumbnail of them; waits at most `timeout` for bytes that were not uploaded yet.
    ///
    /// Spec: server-server API, "Content Repository".
    fn fetch<'a>(
        &'a self,
        server_name: &'a ServerName,
        media_id: &'a str,
        wanted: Option<Wanted>,
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
    /// Their server refuses to give them.
    #[error("the media's server refused: {0}")]
    Refused(String),
    /// Their server works, and has no usable answer to this one request.
    #[error("the media's server has no good answer: {0}")]
    BadAnswer(String),
    /// Their server could not be reached, or broke off.
    #[error("the media's server did not answer: {0}")]
    Unreachable(String),
}

/// Who gets media of other servers, and what is known of those.
pub(super) struct Remotes {
    client: std::sync::OnceLock<Arc<dyn RemoteMedia>>,
    flights: Flights,
    fetches: Semaphore,
    pub(super) origins: Origins,
    /// URIs that are not to be had, and until when that is believed.
    missing: Cache<String, (RemoteError, u64)>,
}

impl Default for Remotes {
    fn default() -> Self {
        Self {
            client: std::sync::OnceLock::new(),
            flights: Flights::default(),
            fetches: Semaphore::new(FETCHES_MAX),
            origins: Origins::default(),
            missing: Cache::new(MISSING_MAX),
        }
    }
}

impl MediaRepository {
    /// Sets who gets the media of other servers; the first one stays.
    pub fn set_remote(&self, client: Arc<dyn RemoteMedia>) {
        if self.0.remotes.client.set(client).is_err() {
            tracing::warn!("media of other servers had a client already");
        }
    }

    /// Another server gave a sign of life: it is asked again, if it was not any more.
    pub(crate) fn server_is_alive(&self, server_name: &ServerName) {
        self.0.remotes.origins.answered(server_name);
    }

    /// Gets media from their server and keeps them.
    pub(super) async fn fetch_remote(
        &self,
        server_name: &ServerName,
        media_id: &str,
        timeout: Duration,
    ) -> Result<MediaRecord, MediaError> {
        let uri = format!("mxc://{server_name}/{media_id}");
        let flight = self.0.remotes.flights.board(uri.clone()).await;
        let (repository, server_name, media_id) = (self.clone(), server_name.to_owned(), media_id.to_owned());
        // Whoever asked may hang up: the next one finds it.
        let fetched = tokio::spawn(async move {
            let _flight = flight;
            // Whoever was first may have got them.
            if let Some(record) = repository.record(&server_name, &media_id).await? {
                return Ok(record);
            }
            let keep = async |content| repository.keep_remote(&server_name, &media_id, content).await;
            repository.fetch(&uri, &server_name, &media_id, None, timeout, keep).await
        });
        fetched.await.map_err(|error| MediaError::Files(error.to_string()))?
    }

    /// Asks another server, unless it is known to be in vain, and deals with what comes.
    async fn fetch<T>(
        &self,
        key: &str,
        server_name: &ServerName,
        media_id: &str,
        wanted: Option<Wanted>,
        timeout: Duration,
        keep: impl AsyncFnOnce(RemoteContent) -> Result<T, MediaError>,
    ) -> Result<T, MediaError> {
        let remotes = &self.0.remotes;
        let client = remotes.client.get().ok_or(RemoteError::NotFound)?;
        let now_ms = self.0.env.clock.now_ms();
        if let Some((error, until_ms)) = remotes.missing.get(key)
            && !has_come(until_ms, now_ms, MISSING_MS)
        {
            return Err(error.into());
        }
        let _turn = remotes.origins.turn(server_name, now_ms).await?;
        let closed = |_| RemoteError::Unreachable("this server is stopping".to_owned());
        let _permit = remotes.fetches.acquire().await.map_err(closed)?;
        let fetched = tokio::time::timeout(FETCH_MAX, async {
            keep(client.fetch(server_name, media_id, wanted, timeout).await?).await
        });
        let late = |_| RemoteError::Unreachable("it took too long".to_owned());
        let fetched = fetched.await.map_err(late)?;
        match &fetched {
            Err(MediaError::Remote(error @ RemoteError::Unreachable(_))) => {
                let now_ms = self.0.env.clock.now_ms();
                tracing::info!(server.name = %server_name, %error, "cannot get media");
                remotes.origins.failed(server_name, now_ms);
            }
            Err(MediaError::Remote(
                error @ (RemoteError::NotFound | RemoteError::TooLarge | RemoteError::BadAnswer(_)),
            )) => {
                remotes.origins.answered(server_name);
                remotes.missing.insert(key.to_owned(), (error.clone(), now_ms + MISSING_MS));
            }
            _ => remotes.origins.answered(server_name),
        }
        fetched
    }

    async fn keep_remote(
        &self,
        server_name: &ServerName,
        media_id: &str,
        RemoteContent { meta, mut body }: RemoteContent,
    ) -> Result<MediaRecord, MediaError> {
        let mut staged = self.0.contents.stage().await?;
        let size_max = self.0.config.upload_size_max;
        while let Some(chunk) = next(&mut body).await? {
            if staged.size() + chunk.len() as u64 > size_max {
                return Err(RemoteError::TooLarge.into());
            }
            staged.write(&chunk).await?;
        }
        let record = self.new_record(meta, None);
        let content = self.keep_staged(server_name, media_id, record.clone(), staged).await?;
        self.note_fetched(content.size);
        Ok(MediaRecord { content: Some(content), ..record })
    }

    /// Has old media go once a sixteenth of what may be kept has come.
    fn note_fetched(&self, size: u64) {
        let Some(max) = self.0.config.remote_size_max else { return };
        let before = self.0.fetched.fetch_add(size, Ordering::Relaxed);
        if before + size > max / 16 {
            self.0.fetched.store(0, Ordering::Relaxed);
            self.0.fetched_much.notify_one();
        }
    }

    /// A thumbnail that another server made, of an image that this one does not get or cannot read.
    pub(super) async fn remote_thumbnail(
        &self,
        lookup: &Lookup,
        wanted: &Wanted,
    ) -> Result<MediaFile, MediaError> {
        let wanted = wanted.of_the_set();
        let (server_name, media_id) = (lookup.server_name.clone(), lookup.media_id.clone());
        let kind = kind(&wanted);
        let key = (server_name.clone(), media_id.clone(), kind.clone());
        if let Some(record) = self.kept_thumbnail(&key).await? {
            return open_thumbnail(record, lookup.only_open);
        }
        if !lookup.allow_remote || (lookup.only_open && !self.0.config.is_open) {
            return Err(MediaError::NotFound);
        }
        let name = format!("mxc://{server_name}/{media_id} {kind}");
        let flight = self.0.remotes.flights.board(name.clone()).await;
        let (repository, timeout) = (self.clone(), lookup.timeout);
        let fetched = tokio::spawn(async move {
            let _flight = flight;
            if let Some(record) = repository.kept_thumbnail(&key).await? {
                return Ok(record);
            }
            let keep = async |content| repository.keep_remote_thumbnail(&key, wanted, content).await;
            repository.fetch(&name, &key.0, &key.1, Some(wanted), timeout, keep).await
        });
        let record = fetched.await.map_err(|error| MediaError::Files(error.to_string()))??;
        open_thumbnail(record, lookup.only_open)
    }

    /// What is kept of another server's thumbnail, if its bytes are there.
    async fn kept_thumbnail(
        &self,
        key: &(ruma::OwnedServerName, String, String),
    ) -> Result<Option<RemoteThumbnailRecord>, MediaError> {
        match self.0.storage.get(&schema::REMOTE_THUMBNAILS, key).await? {
            Some(record) if self.0.contents.has(&record.thumbnail.content.hash).await? => Ok(Some(record)),
            _ => Ok(None),
        }
    }

    async fn keep_remote_thumbnail(
        &self,
        key: &(ruma::OwnedServerName, String, String),
        wanted: Wanted,
        RemoteContent { mut body, .. }: RemoteContent,
    ) -> Result<RemoteThumbnailRecord, MediaError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = next(&mut body).await? {
            if bytes.len() + chunk.len() > THUMBNAIL_MAX {
                return Err(RemoteError::TooLarge.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        let (bytes, content_type) = match self.0.thumbnails.inspect(bytes, wanted.animated).await {
            Ok(inspected) => inspected,
            Err(ThumbnailError::TooLarge) => return Err(RemoteError::TooLarge.into()),
            Err(error) => return Err(MediaError::Thumbnail { error, is_remote: true }),
        };
        let mut staged: Staged = self.0.contents.stage().await?;
        staged.write(&bytes).await?;
        let _placing = self.0.contents.placing.read().await;
        let content = self.0.contents.place(staged).await?;
        let record = RemoteThumbnailRecord {
            thumbnail: ThumbnailRecord { content, content_type: content_type.to_owned() },
            created: self.0.env.clock.now(),
            is_open: self.0.config.is_open,
        };
        let mut batch = Batch::new();
        batch.put(&schema::REMOTE_THUMBNAILS, key, &record);
        batch.put(&schema::CONTENT_USES, &(content.hash, remote_thumbnail_use(key).as_str()), &());
        self.0.storage.commit(batch).await?;
        Ok(record)
    }
}

/// How a thumbnail that another server made is named among those who use its bytes.
pub(super) fn remote_thumbnail_use(
    (server_name, media_id, kind): &(ruma::OwnedServerName, String, String),
) -> String {
    format!("thumbnail of mxc://{server_name}/{media_id} {kind}")
}

fn open_thumbnail(record: RemoteThumbnailRecord, only_open: bool) -> Result<MediaFile, MediaError> {
    if only_open && !record.is_open {
        return Err(MediaError::NotFound);
    }
    Ok(thumbnail_file(record.thumbnail, true))
}

/// The next bytes of a body.
async fn next(body: &mut Reader) -> Result<Option<bytes::Bytes>, RemoteError> {
    let chunk = tokio::time::timeout(SILENCE_MAX, body.next()).await;
    let chunk = chunk.map_err(|_| RemoteError::Unreachable("nothing came for a minute".to_owned()))?;
    chunk.transpose().map_err(RemoteError::from)
}

impl From<io::Error> for RemoteError {
    /// Why a body cannot be read: what its server sends is not in order, or it broke off.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::FileTooLarge => Self::TooLarge,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::BadAnswer(error.to_string()),
            _ => Self::Unreachable(error.to_string()),
        }
    }
}
