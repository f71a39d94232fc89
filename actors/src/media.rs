//! The content repository: bytes in an object store under their hash, what is known of them in the store.
//!
//! Spec: client-server API, "Content repository".

mod content;
mod lookup;
mod multipart;
mod origins;
mod preview;
mod quota;
mod remote;
mod removal;
mod retention;
mod thumbnail;
mod upload;
mod waiting;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use object_store::ObjectStore;
use ruma::{OwnedServerName, ServerName};
use storage::{CommitError, Signal, Storage, StoreError};
use tokio::sync::Notify;

pub(crate) use self::multipart::second_part;
pub use self::{
    content::{Contents, Reader, hex},
    lookup::{Lookup, MediaFile},
    preview::{Page, PageClient, PageError, Pages, PreviewError},
    remote::{RemoteContent, RemoteError, RemoteMedia},
    removal::Removed,
    thumbnail::{Method, ThumbnailError, Wanted},
    upload::{Created, Meta},
};
use self::{preview::Previews, remote::Remotes, thumbnail::Thumbnails, waiting::Waiting};
use crate::env::Env;

/// What the content repository needs to know.
#[derive(Clone)]
pub struct MediaConfig {
    /// Where the bytes are kept.
    pub objects: Arc<dyn ObjectStore>,
    /// The largest upload.
    pub upload_size_max: u64,
    /// Bytes that one local user may upload, if that is limited.
    pub user_quota: Option<u64>,
    /// How long a URI waits for its bytes.
    pub pending_expiry: Duration,
    /// URIs of one user that may wait for their bytes.
    pub pending_max: usize,
    /// Whether media that arrive from now on may be had without authentication.
    pub is_open: bool,
    /// How long other servers' media are kept that nobody asks for, if not for ever.
    pub remote_age_max: Option<Duration>,
    /// Bytes of other servers' media that are kept, if that is limited; those that nobody asked for longest go first.
    pub remote_size_max: Option<u64>,
    /// Who gets pages for previews; none if there are no previews.
    pub pages: Option<Pages>,
    /// How long what a page says of itself is believed.
    pub preview_expiry: Duration,
}

impl Default for MediaConfig {
    /// A repository in memory.
    fn default() -> Self {
        Self {
            objects: Arc::new(object_store::memory::InMemory::new()),
            upload_size_max: 100 << 20,
            user_quota: None,
            pending_expiry: Duration::from_secs(24 * 3600),
            pending_max: 32,
            is_open: false,
            remote_age_max: None,
            remote_size_max: None,
            pages: None,
            preview_expiry: Duration::from_secs(24 * 3600),
        }
    }
}

/// Why the content repository did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// There is no such media, or not for those who ask.
    #[error("there is no such media")]
    NotFound,
    /// The bytes have not come yet.
    #[error("the content has not yet been uploaded")]
    NotYetUploaded,
    /// The bytes are there.
    #[error("the content has been uploaded already")]
    AlreadyUploaded,
    /// The URI is someone else's.
    #[error("the media ID was made by someone else")]
    NotOwner,
    /// The user has uploaded what they may.
    #[error("you have uploaded as much as you may: {max} bytes")]
    QuotaReached {
        /// What they may upload.
        max: u64,
    },
    /// The user waits for too many uploads.
    #[error("too many media IDs wait for their content")]
    TooManyPending {
        /// When the first of them expires.
        retry_after: Duration,
    },
    /// The upload is too large.
    #[error("uploads have at most {max} bytes")]
    TooLarge {
        /// How large it may be.
        max: u64,
    },
    /// The body of an upload broke off.
    #[error("the upload broke off: {0}")]
    Interrupted(String),
    /// The other server did not give its media.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There is no smaller version of this.
    #[error("{error}")]
    Thumbnail {
        /// Why.
        error: ThumbnailError,
        /// Whether the image is another server's.
        is_remote: bool,
    },
    /// There is no preview of a page.
    #[error(transparent)]
    Preview(#[from] PreviewError),
    /// There is no room left for files.
    #[error("the server has no room for more media")]
    NoSpace,
    /// The files failed.
    #[error("the media files failed: {0}")]
    Files(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store did not take a change.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<object_store::Error> for MediaError {
    fn from(error: object_store::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if kind.is_some_and(|kind| [StorageFull, QuotaExceeded].contains(&kind)) {
                return Self::NoSpace;
            }
            cause = error.source();
        }
        Self::Files(error.to_string())
    }
}

/// The content repository. Cloning shares it.
#[derive(Clone)]
pub struct MediaRepository(Arc<Inner>);

struct Inner {
    server_name: OwnedServerName,
    config: MediaConfig,
    env: Env,
    storage: Storage,
    contents: Contents,
    waiting: Waiting,
    remotes: Remotes,
    thumbnails: Thumbnails,
    previews: Previews,
    /// Bytes that came from other servers since the last sweep was asked for.
    fetched: AtomicU64,
    /// So much came that there is something to sweep.
    fetched_much: Notify,
    stopping: Signal<bool>,
}

impl MediaRepository {
    /// The content repository of a server.
    pub fn new(server_name: OwnedServerName, config: MediaConfig, env: Env, storage: Storage) -> Self {
        let contents = Contents::new(config.objects.clone(), env.entropy.clone());
        Self(Arc::new(Inner {
            server_name,
            config,
            env,
            storage,
            contents,
            waiting: Waiting::default(),
            remotes: Remotes::default(),
            thumbnails: Thumbnails::default(),
            previews: Previews::default(),
            fetched: AtomicU64::new(0),
            fetched_much: Notify::new(),
            stopping: Signal::new(false),
        }))
    }

    /// What it was configured with.
    pub fn config(&self) -> &MediaConfig {
        &self.0.config
    }

    /// Where the bytes are.
    pub fn contents(&self) -> &Contents {
        &self.0.contents
    }

    /// Ends long polls.
    pub(crate) fn stop_waiting(&self) {
        self.0.stopping.set(true);
    }

    fn is_local(&self, server_name: &ServerName) -> bool {
        self.0.server_name == *server_name
    }
}

/// Whether text may be a media ID.
///
/// Spec: client-server API, "Matrix Content (`mxc://`) URIs".
pub fn is_media_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !text.is_empty() && text.len() <= MEDIA_ID_MAX && text.bytes().all(is_allowed)
}

/// The specification has no limit; what is longer does not come from a server that means well.
const MEDIA_ID_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// As the object store wraps what the system says.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot copy data to a file")]
    struct CannotCopy {
        source: io::Error,
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let failed = |kind: io::ErrorKind| {
            let source = Box::new(CannotCopy { source: kind.into() });
            MediaError::from(object_store::Error::Generic { store: "LocalFileSystem", source })
        };
        assert!(matches!(failed(io::ErrorKind::StorageFull), MediaError::NoSpace));
        assert!(matches!(failed(io::ErrorKind::QuotaExceeded), MediaError::NoSpace));
        assert!(matches!(failed(io::ErrorKind::PermissionDenied), MediaError::Files(_)));
    }
}
