//! Media of local users on their way in.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedMxcUri, ServerName, UserId};
use storage::{
    Batch,
    schema::{self, ContentRecord, MediaRecord},
};

use super::{MediaError, MediaRepository, content::Staged};

/// What is known of media beside their bytes.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// The `Content-Type`.
    pub content_type: Option<String>,
    /// The name of the file.
    pub filename: Option<String>,
}

/// A URI that waits for its bytes.
#[derive(Clone, Debug)]
pub struct Created {
    /// The URI.
    pub uri: OwnedMxcUri,
    /// Until when it waits.
    pub expires: MilliSecondsSinceUnixEpoch,
}

impl MediaRepository {
    /// Stores media under a new URI; it is durable when this returns.
    ///
    /// `length` is what the sender says that the body has.
    ///
    /// Spec: client-server API, `POST /_matrix/media/v3/upload`.
    pub async fn upload<E: std::fmt::Display>(
        &self,
        user_id: &UserId,
        meta: Meta,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri, MediaError> {
        let staged = self.receive(user_id, length, body).await?;
        let media_id = self.0.env.entropy.token(24);
        let (uri, record) = (self.uri(&media_id), self.new_record(meta, Some(user_id)));
        self.finish(user_id, media_id, None, record, staged).await?;
        Ok(uri)
    }

    /// Makes a URI for bytes that come later.
    ///
    /// Spec: client-server API, `POST /_matrix/media/v1/create`.
    pub async fn create(&self, user_id: &UserId) -> Result<Created, MediaError> {
        let media_id = self.0.env.entropy.token(24);
        let now = self.0.env.clock.now();
        let expiry = u64::try_from(self.0.config.pending_expiry.as_millis()).unwrap_or(u64::MAX);
        let expires = u64::from(now.get()).saturating_add(expiry);
        let expires = MilliSecondsSinceUnixEpoch(js_int::UInt::new_saturating(expires));
        let mut record = self.new_record(Meta::default(), Some(user_id));
        record.expires = Some(expires);
        let mut batch = Batch::new();
        let key = (&*self.0.server_name, media_id.as_str());
        batch.expect_absent(&schema::MEDIA, &key);
        batch.put(&schema::MEDIA, &key, &record);
        self.commit_with_uploader(user_id, batch, |uploader| {
            self.check_pending(uploader, now)?;
            uploader.pending.insert(media_id.clone(), expires);
            Ok(())
        })
        .await?;
        Ok(Created { uri: self.uri(&media_id), expires })
    }

    /// Stores the bytes of a URI that was made earlier.
    ///
    /// Spec: client-server API, `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`.
    pub async fn upload_to<E: std::fmt::Display>(
        &self,
        user_id: &UserId,
        server_name: &ServerName,
        media_id: &str,
        meta: Meta,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), MediaError> {
        if !self.is_local(server_name) {
            return Err(MediaError::NotFound);
        }
        let old = self.0.storage.get(&schema::MEDIA, &(server_name, media_id)).await?;
        let old = old.ok_or(MediaError::NotFound)?;
        if old.uploader.as_deref() != Some(user_id) {
            return Err(MediaError::NotOwner);
        }
        if old.content.is_some() {
            return Err(MediaError::AlreadyUploaded);
        }
        if old.expires.is_some_and(|expires| expires <= self.0.env.clock.now()) {
            return Err(MediaError::NotFound);
        }
        let staged = self.receive(user_id, length, body).await?;
        let record = MediaRecord { created: old.created, ..self.new_record(meta, Some(user_id)) };
        self.finish(user_id, media_id.to_owned(), Some(old), record, staged).await
    }

    /// Takes in a body within the limits.
    async fn receive<E: std::fmt::Display>(
        &self,
        user_id: &UserId,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Staged, MediaError> {
        let max = self.0.config.upload_size_max;
        let uploader = self.uploads_of(user_id).await?;
        let length = length.unwrap_or_default();
        if length > max {
            return Err(MediaError::TooLarge { max });
        }
        self.check_quota(&uploader, length)?;
        let mut body = std::pin::pin!(body);
        let mut staged = self.0.contents.stage().await?;
        loop {
            let Some(chunk) = body.next().await else { return Ok(staged) };
            let chunk = chunk.map_err(|error| MediaError::Interrupted(error.to_string()))?;
            let size = staged.size() + chunk.len() as u64;
            if size > max {
                return Err(MediaError::TooLarge { max });
            }
            self.check_quota(&uploader, size)?;
            staged.write(&chunk).await?;
        }
    }

    /// Makes received bytes durable, and then what is known of them.
    async fn finish(
        &self,
        user_id: &UserId,
        media_id: String,
        old: Option<MediaRecord>,
        record: MediaRecord,
        staged: Staged,
    ) -> Result<(), MediaError> {
        let (repository, user_id) = (self.clone(), user_id.to_owned());
        // A client that hangs up now does not stop it half-way.
        let done = tokio::spawn(async move {
            let _placing = repository.0.contents.placing.read().await;
            let content = repository.0.contents.place(staged).await?;
            let record = MediaRecord { content: Some(content), ..record };
            let key = (&*repository.0.server_name, media_id.as_str());
            let mut batch = Batch::new();
            match &old {
                Some(old) => batch.expect(&schema::MEDIA, &key, old),
                None => batch.expect_absent(&schema::MEDIA, &key),
            };
            batch.put(&schema::MEDIA, &key, &record);
            batch.put(&schema::CONTENT_USES, &(content.hash, repository.uri(&media_id).as_str()), &());
            let uploaded = repository
                .commit_with_uploader(&user_id, batch, |uploader| {
                    repository.check_quota(uploader, content.size)?;
                    uploader.bytes += content.size;
                    uploader.files += 1;
                    uploader.pending.remove(&media_id);
                    Ok(())
                })
                .await;
            repository.0.waiting.arrived(&media_id);
            uploaded
        });
        done.await.map_err(|error| MediaError::Files(error.to_string()))?
    }

    /// Stores bytes that no local user uploaded.
    pub(super) async fn keep_staged(
        &self,
        server_name: &ServerName,
        media_id: &str,
        record: MediaRecord,
        staged: Staged,
    ) -> Result<ContentRecord, MediaError> {
        let _placing = self.0.contents.placing.read().await;
        let content = self.0.contents.place(staged).await?;
        let mut batch = Batch::new();
        let uri = format!("mxc://{server_name}/{media_id}");
        batch.put(
            &schema::MEDIA,
            &(server_name, media_id),
            &MediaRecord { content: Some(content), ..record },
        );
        batch.put(&schema::CONTENT_USES, &(content.hash, uri.as_str()), &());
        self.0.storage.commit(batch).await?;
        Ok(content)
    }

    pub(super) fn new_record(&self, meta: Meta, uploader: Option<&UserId>) -> MediaRecord {
        let now = self.0.env.clock.now();
        MediaRecord {
            content: None,
            content_type: meta.content_type,
            filename: meta.filename,
            uploader: uploader.map(ToOwned::to_owned),
            created: now,
            expires: None,
            last_used: now,
            is_open: self.0.config.is_open,
        }
    }

    pub(super) fn uri(&self, media_id: &str) -> OwnedMxcUri {
        format!("mxc://{}/{media_id}", self.0.server_name).into()
    }
}
