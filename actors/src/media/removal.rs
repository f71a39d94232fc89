//! Media that go: what names them first, then their bytes, when nothing else needs these.

use futures_util::StreamExt;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use storage::{
    Batch, CommitError, Direction, KeyRange,
    schema::{self, ContentHash, MediaRecord},
};

use super::{MediaError, MediaRepository, remote::remote_thumbnail_use, thumbnail::thumbnail_use};

/// Rows that are read at a time.
pub(super) const PAGE: usize = 500;

/// Times that a removal is tried while others use what is removed.
const TRIES_MAX: usize = 8;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many media.
    pub files: u64,
    /// How many bytes they had.
    pub bytes: u64,
}

impl Removed {
    pub(super) fn count(&mut self, record: &MediaRecord) {
        self.files += 1;
        self.bytes += record.content.map_or(0, |content| content.size);
    }
}

impl MediaRepository {
    /// Removes what a URI names, and its bytes if nothing else needs them; none if there is nothing.
    pub async fn remove(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<MediaRecord>, MediaError> {
        for _ in 0..TRIES_MAX {
            let Some(record) = self.record(server_name, media_id).await? else { return Ok(None) };
            match self.remove_record(server_name, media_id, &record).await {
                Err(MediaError::Commit(CommitError::Refused(_)) | MediaError::AlreadyUploaded) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    if let Some(content) = record.content {
                        self.collect(content.hash).await?;
                    }
                    return Ok(Some(record));
                }
            }
        }
        Err(MediaError::Files(format!("{media_id} changes all the time")))
    }

    async fn remove_record(
        &self,
        server_name: &ServerName,
        media_id: &str,
        record: &MediaRecord,
    ) -> Result<(), MediaError> {
        let key = (server_name, media_id);
        let mut batch = Batch::new();
        batch.expect(&schema::MEDIA, &key, record).delete(&schema::MEDIA, &key);
        if let Some(content) = record.content {
            let uri = format!("mxc://{server_name}/{media_id}");
            batch.delete(&schema::CONTENT_USES, &(content.hash, uri.as_str()));
        }
        let Some(uploader) = &record.uploader else { return Ok(self.0.storage.commit(batch).await?) };
        self.commit_with_uploader(uploader, batch, |uploads| {
            if let Some(content) = record.content {
                uploads.bytes = uploads.bytes.saturating_sub(content.size);
                uploads.files = uploads.files.saturating_sub(1);
            }
            uploads.pending.remove(media_id);
            Ok(())
        })
        .await
    }

    /// Removes a thumbnail that another server made.
    pub(super) async fn remove_remote_thumbnail(
        &self,
        key: &(OwnedServerName, String, String),
        hash: ContentHash,
    ) -> Result<(), MediaError> {
        let mut batch = Batch::new();
        batch.delete(&schema::REMOTE_THUMBNAILS, key);
        batch.delete(&schema::CONTENT_USES, &(hash, remote_thumbnail_use(key).as_str()));
        self.0.storage.commit(batch).await?;
        self.collect(hash).await
    }

    /// Removes bytes that nothing needs any more, with the thumbnails that were made of them.
    pub(super) async fn collect(&self, hash: ContentHash) -> Result<(), MediaError> {
        // Nobody puts the same bytes into their place meanwhile.
        let _placing = self.0.contents.placing.write().await;
        let mut unused = vec![hash];
        while let Some(hash) = unused.pop() {
            if self.is_used(&hash).await? {
                continue;
            }
            let thumbnails = KeyRange::prefix(&(hash,));
            // A set of sizes: there are never many.
            let rows =
                self.0.storage.range(&schema::THUMBNAILS, thumbnails, Direction::Ascending, PAGE).await?;
            let mut batch = Batch::new();
            for ((_, kind), record) in rows {
                batch.delete(&schema::THUMBNAILS, &(hash, kind.as_str()));
                if record.content.hash != hash {
                    let used = thumbnail_use(&hash, &kind);
                    batch.delete(&schema::CONTENT_USES, &(record.content.hash, used.as_str()));
                    unused.push(record.content.hash);
                }
            }
            if !batch.is_empty() {
                self.0.storage.commit(batch).await?;
            }
            self.0.contents.delete(&hash).await?;
        }
        Ok(())
    }

    /// Whether something needs these bytes.
    pub(super) async fn is_used(&self, hash: &ContentHash) -> Result<bool, MediaError> {
        let uses = KeyRange::prefix(&(*hash,));
        let first = self.0.storage.range(&schema::CONTENT_USES, uses, Direction::Ascending, 1).await?;
        Ok(!first.is_empty())
    }

    /// Removes files that nothing needs: those of removals that a crash cut short.
    pub(super) async fn collect_orphans(&self) -> Result<u64, MediaError> {
        let mut orphans = 0;
        let mut hashes = self.0.contents.hashes();
        while let Some(hash) = hashes.next().await.transpose()? {
            if !self.is_used(&hash).await? {
                self.collect(hash).await?;
                orphans += 1;
            }
        }
        Ok(orphans)
    }

    /// A page of the media of a server, in the order of their IDs.
    pub(super) async fn media_of(
        &self,
        server_name: &ServerName,
        after: Option<&str>,
    ) -> Result<Vec<(String, MediaRecord)>, MediaError> {
        let mut range = KeyRange::prefix(&(server_name.to_owned(),));
        if let Some(after) = after {
            range = range.after(&(server_name, after));
        }
        let rows = self.0.storage.range(&schema::MEDIA, range, Direction::Ascending, PAGE).await?;
        Ok(rows.into_iter().map(|((_, media_id), record)| (media_id, record)).collect())
    }

    /// All media that a local user uploaded; reads those of all local users.
    pub async fn uploaded_by(&self, user_id: &UserId) -> Result<Vec<(String, MediaRecord)>, MediaError> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.media_of(&self.0.server_name, after.as_deref()).await?;
            after = page.get(PAGE - 1).map(|(media_id, _)| media_id.clone());
            let is_theirs =
                |record: &MediaRecord| record.uploader.as_ref().map(OwnedUserId::as_ref) == Some(user_id);
            found.extend(page.into_iter().filter(|(_, record)| is_theirs(record)));
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// Has the bytes that a URI names served to nobody any more, whatever URI names them; or serves them again.
    ///
    /// The bytes stay, as evidence. None if there is no such media here.
    pub async fn set_quarantine(
        &self,
        server_name: &ServerName,
        media_id: &str,
        is_quarantined: bool,
    ) -> Result<Option<MediaRecord>, MediaError> {
        let record = self.record(server_name, media_id).await?;
        let Some(content) = record.as_ref().and_then(|record| record.content) else { return Ok(None) };
        let mut batch = Batch::new();
        if is_quarantined {
            batch.put(&schema::QUARANTINE, &content.hash, &self.0.env.clock.now_ms());
        } else {
            batch.delete(&schema::QUARANTINE, &content.hash);
        }
        self.0.storage.commit(batch).await?;
        Ok(record)
    }

    /// Whether bytes are served to nobody.
    pub async fn is_quarantined(&self, hash: &ContentHash) -> Result<bool, MediaError> {
        Ok(self.0.storage.get(&schema::QUARANTINE, hash).await?.is_some())
    }
}
