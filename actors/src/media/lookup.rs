//! Media on their way out.

use std::time::Duration;

use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use storage::{
    Batch, CommitError,
    schema::{self, ContentRecord, MediaRecord},
};

use super::{MediaError, MediaRepository};

/// The longest that anybody waits for bytes that have not come.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How exactly it is known when media of other servers were last used: a write a day is cheap.
const LAST_USED_STEP_MS: u64 = 24 * 3600 * 1000;

/// What someone wants.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The server of the URI.
    pub server_name: OwnedServerName,
    /// The media ID of the URI.
    pub media_id: String,
    /// How long they wait for bytes that have not come.
    pub timeout: Duration,
    /// Whether another server may be asked.
    pub allow_remote: bool,
    /// Whether they may have only what is open to everybody.
    pub only_open: bool,
}

/// Media whose bytes are here.
#[derive(Clone, Debug)]
pub struct MediaFile {
    /// The bytes, for [`Contents::read`](super::Contents::read).
    pub content: ContentRecord,
    /// The `Content-Type`, as it was uploaded.
    pub content_type: Option<String>,
    /// The name of the file.
    pub filename: Option<String>,
    /// Whether it is another server's.
    pub is_remote: bool,
}

impl MediaRepository {
    /// Finds media, here or at their server.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`.
    pub async fn find(&self, lookup: &Lookup) -> Result<MediaFile, MediaError> {
        if !super::is_media_id(&lookup.media_id) {
            return Err(MediaError::NotFound);
        }
        if self.is_local(&lookup.server_name) {
            return self.find_local(&lookup.media_id, lookup.timeout, lookup.only_open).await;
        }
        let record = match self.kept_copy(&lookup.server_name, &lookup.media_id).await? {
            Some(record) => record,
            // Whatever comes from there now is not open, unless what arrives is.
            None if !lookup.allow_remote || (lookup.only_open && !self.0.config.is_open) => {
                return Err(MediaError::NotFound);
            }
            None => self.fetch_remote(&lookup.server_name, &lookup.media_id, lookup.timeout).await?,
        };
        let file = self.media(record.clone(), lookup.only_open, true).await?;
        self.note_use(&lookup.server_name, &lookup.media_id, &record).await;
        Ok(file)
    }

    /// What is kept of another server's media. A copy whose bytes are gone is none, and is let go of: they can be fetched again.
    async fn kept_copy(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<MediaRecord>, MediaError> {
        let Some(record) = self.record(server_name, media_id).await? else { return Ok(None) };
        let Some(content) = &record.content else { return Ok(Some(record)) };
        if self.0.contents.has(&content.hash).await? {
            return Ok(Some(record));
        }
        tracing::warn!(server.name = %server_name, media_id, "the bytes of a copy are gone");
        self.remove(server_name, media_id).await?;
        Ok(None)
    }

    /// Finds media of this server, as other servers and its own users ask for them.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/media/download/{mediaId}`.
    pub async fn find_local(
        &self,
        media_id: &str,
        timeout: Duration,
        only_open: bool,
    ) -> Result<MediaFile, MediaError> {
        let mut record = self.record(&self.0.server_name, media_id).await?.ok_or(MediaError::NotFound)?;
        if record.content.is_none() {
            if only_open && !record.is_open {
                return Err(MediaError::NotFound);
            }
            record = self.wait(media_id, timeout.min(WAIT_MAX)).await?;
        }
        self.media(record, only_open, false).await
    }

    /// What may be served of a record.
    async fn media(
        &self,
        record: MediaRecord,
        only_open: bool,
        is_remote: bool,
    ) -> Result<MediaFile, MediaError> {
        let content = record.content.filter(|_| record.is_open || !only_open).ok_or(MediaError::NotFound)?;
        if self.is_quarantined(&content.hash).await? {
            return Err(MediaError::NotFound);
        }
        Ok(MediaFile { content, content_type: record.content_type, filename: record.filename, is_remote })
    }

    /// Waits until the bytes of a URI come.
    async fn wait(&self, media_id: &str, timeout: Duration) -> Result<MediaRecord, MediaError> {
        let mut arrival = self.0.waiting.subscribe(media_id);
        let mut stopping = self.0.stopping.watch();
        let waited = async {
            // Looked up again after the subscription: they may have come in between.
            let record = self.record(&self.0.server_name, media_id).await?.ok_or(MediaError::NotFound)?;
            if record.content.is_some() {
                return Ok(record);
            }
            if record.expires.is_some_and(|expires| expires <= self.0.env.clock.now()) {
                return Err(MediaError::NotFound);
            }
            tokio::select! {
                biased;
                _ = arrival.changed() => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = tokio::time::sleep(timeout) => {}
            }
            let record = self.record(&self.0.server_name, media_id).await?;
            record.filter(|record| record.content.is_some()).ok_or(MediaError::NotYetUploaded)
        }
        .await;
        self.0.waiting.leave(media_id, arrival);
        waited
    }

    pub(super) async fn record(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<MediaRecord>, MediaError> {
        Ok(self.0.storage.get(&schema::MEDIA, &(server_name, media_id)).await?)
    }

    /// Notes, to the day, when another server's media were last used; a failure costs a later fetch at most.
    async fn note_use(&self, server_name: &ServerName, media_id: &str, record: &MediaRecord) {
        let now: u64 = self.0.env.clock.now().get().into();
        let step = now - now % LAST_USED_STEP_MS;
        if u64::from(record.last_used.get()) >= step {
            return;
        }
        let last_used = MilliSecondsSinceUnixEpoch(js_int::UInt::new_saturating(step));
        let mut batch = Batch::new();
        let key = (server_name, media_id);
        batch.expect(&schema::MEDIA, &key, record);
        batch.put(&schema::MEDIA, &key, &MediaRecord { last_used, ..record.clone() });
        match self.0.storage.commit(batch).await {
            // Someone else noted it.
            Ok(()) | Err(CommitError::Refused(_)) => {}
            Err(error) => tracing::warn!(%error, "the use of media is not noted"),
        }
    }
}
