//! Smaller versions of images: made once, on a bounded pool of blocking threads, then kept.
//!
//! Spec: client-server API, "Thumbnails".

mod animation;
mod picture;
mod size;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use quick_cache::sync::Cache;
use storage::{
    Batch,
    schema::{self, ContentHash, ContentRecord, ThumbnailRecord},
};
use tokio::sync::Semaphore;

use self::picture::Thumbnail;
pub(super) use self::picture::{Facts, Source};
pub use self::{
    picture::ThumbnailError,
    size::{Method, Wanted},
};
use super::{Lookup, MediaError, MediaFile, MediaRepository, RemoteError, hex};
use crate::flights::Flights;

/// Images that are decoded at a time: one core stays for everybody else, and memory is bounded.
const CONCURRENT: usize = 2;

/// Images that may wait for that.
const WAITING_MAX: usize = 64;

/// The largest file that a thumbnail is made of, in bytes.
const SOURCE_MAX: u64 = 64 << 20;

/// Images that are known to have no thumbnails, so that nobody is made to look twice.
const REFUSED_MAX: usize = 4096;

/// What makes thumbnails.
pub(super) struct Thumbnails {
    flights: Flights,
    permits: Semaphore,
    waiting: AtomicUsize,
    refused: Cache<ContentHash, ThumbnailError>,
}

impl Default for Thumbnails {
    fn default() -> Self {
        Self {
            flights: Flights::default(),
            permits: Semaphore::new(CONCURRENT),
            waiting: AtomicUsize::new(0),
            refused: Cache::new(REFUSED_MAX),
        }
    }
}

impl Thumbnails {
    /// Makes sure that bytes are an image, and one that moves only if it may; gives it with its type.
    pub(super) async fn inspect(
        &self,
        bytes: Vec<u8>,
        animated: bool,
    ) -> Result<(Vec<u8>, &'static str), ThumbnailError> {
        self.blocking(move || {
            let mut source = std::io::Cursor::new(bytes);
            match picture::make(&mut source, None, animated)? {
                Thumbnail::Original(content_type) => Ok((source.into_inner(), content_type)),
                Thumbnail::Made { bytes, content_type } => Ok((bytes, content_type)),
            }
        })
        .await
    }

    /// Does something with an image on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ThumbnailError> + Send + 'static,
    ) -> Result<T, ThumbnailError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ThumbnailError::Busy);
        }
        let _leaving = Leaving(&self.waiting);
        let _permit = self.permits.acquire().await.map_err(|_| ThumbnailError::Busy)?;
        #[expect(clippy::disallowed_methods, reason = "the bounded pool that may block")]
        let done = tokio::task::spawn_blocking(work);
        done.await.map_err(|_| ThumbnailError::Undecodable("its decoder fails".to_owned()))?
    }
}

/// Counts one less who waits, also if they give up.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MediaRepository {
    /// Finds a smaller version of an image, here or at its server.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`.
    pub async fn thumbnail(&self, lookup: &Lookup, wanted: &Wanted) -> Result<MediaFile, MediaError> {
        let found = match self.find(lookup).await {
            Ok(file) => self.thumbnail_of(file, wanted).await,
            Err(error) => Err(error),
        };
        match found {
            // What is too much for this server, or nothing that it reads, need not be so for the image's own.
            Err(
                error @ (MediaError::Remote(RemoteError::TooLarge)
                | MediaError::Thumbnail {
                    error: ThumbnailError::TooLarge | ThumbnailError::Undecodable(_),
                    is_remote: true,
                }),
            ) => self.remote_thumbnail(lookup, wanted).await.map_err(|_| error),
            found => found,
        }
    }

    /// A smaller version of an image whose bytes are here.
    pub async fn thumbnail_of(&self, file: MediaFile, wanted: &Wanted) -> Result<MediaFile, MediaError> {
        let is_remote = file.is_remote;
        if let Some(thumbnail) = self.stored_thumbnail(file.content, wanted).await? {
            return Ok(thumbnail_file(thumbnail, is_remote));
        }
        let (repository, wanted) = (self.clone(), *wanted);
        // Whoever asked may hang up: the next one finds it.
        let made = tokio::spawn(async move { repository.make_thumbnail(file.content, wanted).await }).await;
        let thumbnail =
            made.map_err(|error| MediaError::Files(error.to_string()))?.map_err(|error| match error {
                MediaError::Thumbnail { error, .. } => MediaError::Thumbnail { error, is_remote },
                error => error,
            })?;
        Ok(thumbnail_file(thumbnail, is_remote))
    }

    async fn stored_thumbnail(
        &self,
        image: ContentRecord,
        wanted: &Wanted,
    ) -> Result<Option<ThumbnailRecord>, MediaError> {
        let stored = self.0.storage.get(&schema::THUMBNAILS, &(image.hash, kind(wanted).as_str())).await?;
        match stored {
            // If its bytes are gone, it is made again.
            Some(record) if self.0.contents.has(&record.content.hash).await? => Ok(Some(record)),
            _ => Ok(None),
        }
    }

    async fn make_thumbnail(
        &self,
        image: ContentRecord,
        wanted: Wanted,
    ) -> Result<ThumbnailRecord, MediaError> {
        let kind = kind(&wanted);
        let thumbnails = &self.0.thumbnails;
        let _flight = thumbnails.flights.board(format!("{} {kind}", hex(&image.hash))).await;
        // Whoever was first has made it.
        if let Some(made) = self.stored_thumbnail(image, &wanted).await? {
            return Ok(made);
        }
        if let Some(error) = thumbnails.refused.get(&image.hash) {
            return Err(MediaError::Thumbnail { error, is_remote: false });
        }
        let made = self.decode(image, move |source| picture::make(source, wanted.size(), wanted.animated));
        match made.await? {
            Thumbnail::Original(content_type) => {
                let record = ThumbnailRecord { content: image, content_type: content_type.to_owned() };
                let mut batch = Batch::new();
                batch.put(&schema::THUMBNAILS, &(image.hash, kind.as_str()), &record);
                self.0.storage.commit(batch).await?;
                Ok(record)
            }
            Thumbnail::Made { bytes, content_type } => {
                self.keep_thumbnail(image, &kind, &bytes, content_type).await
            }
        }
    }

    /// What an image is; an error if it is none.
    pub(super) async fn image_facts(&self, image: ContentRecord) -> Result<Facts, MediaError> {
        self.decode(image, picture::facts).await
    }

    async fn decode<T: Send + 'static>(
        &self,
        image: ContentRecord,
        work: impl FnOnce(&mut dyn Source) -> Result<T, ThumbnailError> + Send + 'static,
    ) -> Result<T, MediaError> {
        let refuse = |error| MediaError::Thumbnail { error, is_remote: false };
        if image.size > SOURCE_MAX {
            return Err(refuse(ThumbnailError::TooLarge));
        }
        let mut source = self.0.contents.open(&image).await?;
        let done = self.0.thumbnails.blocking(move || work(&mut *source)).await;
        done.map_err(|error| {
            if error != ThumbnailError::Busy {
                self.0.thumbnails.refused.insert(image.hash, error.clone());
            }
            refuse(error)
        })
    }

    async fn keep_thumbnail(
        &self,
        image: ContentRecord,
        kind: &str,
        bytes: &[u8],
        content_type: &'static str,
    ) -> Result<ThumbnailRecord, MediaError> {
        let mut staged = self.0.contents.stage().await?;
        staged.write(bytes).await?;
        let _placing = self.0.contents.placing.read().await;
        // The image may have gone meanwhile, and its thumbnails with it.
        if !self.is_used(&image.hash).await? {
            return Err(MediaError::NotFound);
        }
        let content = self.0.contents.place(staged).await?;
        let record = ThumbnailRecord { content, content_type: content_type.to_owned() };
        let mut batch = Batch::new();
        batch.put(&schema::THUMBNAILS, &(image.hash, kind), &record);
        batch.put(&schema::CONTENT_USES, &(content.hash, thumbnail_use(&image.hash, kind).as_str()), &());
        self.0.storage.commit(batch).await?;
        Ok(record)
    }
}

/// A thumbnail as it is sent.
pub(super) fn thumbnail_file(thumbnail: ThumbnailRecord, is_remote: bool) -> MediaFile {
    let extension = thumbnail.content_type.strip_prefix("image/").unwrap_or("png");
    MediaFile {
        content: thumbnail.content,
        filename: Some(format!("thumbnail.{extension}")),
        content_type: Some(thumbnail.content_type),
        is_remote,
    }
}

/// What a thumbnail is called in `THUMBNAILS`.
pub(super) fn kind(wanted: &Wanted) -> String {
    let animated = if wanted.animated { "-animated" } else { "" };
    match wanted.size() {
        None => format!("whole{animated}"),
        Some(size) => format!("{}x{}-{}{animated}", size.width, size.height, size.method),
    }
}

/// How a thumbnail is named among those who use its bytes.
pub(super) fn thumbnail_use(image: &ContentHash, kind: &str) -> String {
    format!("thumbnail of {} {kind}", hex(image))
}
