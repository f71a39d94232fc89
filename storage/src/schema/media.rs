//! Records of the content repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// The SHA-256 of bytes: where they are kept.
pub type ContentHash = [u8; 32];

/// Bytes of the content repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRecord {
    /// Where they are.
    pub hash: ContentHash,
    /// How many they are.
    pub size: u64,
}

/// What an `mxc://` URI names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaRecord {
    /// Its bytes; none until they are uploaded.
    pub content: Option<ContentRecord>,
    /// Its `Content-Type`, as it was uploaded.
    pub content_type: Option<String>,
    /// The name of the file.
    pub filename: Option<String>,
    /// The local user who uploaded it; none for media of other servers, and those that this server made.
    pub uploader: Option<OwnedUserId>,
    /// When the URI, or the copy of another server's media, was made.
    pub created: MilliSecondsSinceUnixEpoch,
    /// Until when its bytes have to come.
    pub expires: Option<MilliSecondsSinceUnixEpoch>,
    /// When it was last asked for, to the day; kept for media of other servers.
    pub last_used: MilliSecondsSinceUnixEpoch,
    /// It may be had without authentication, as it was uploaded before the freeze.
    pub is_open: bool,
}

/// What a local user has uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploaderRecord {
    /// Bytes of all their media.
    pub bytes: u64,
    /// Number of all their media.
    pub files: u64,
    /// URIs that wait for their bytes, and until when.
    pub pending: BTreeMap<String, MilliSecondsSinceUnixEpoch>,
}

/// A smaller version of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThumbnailRecord {
    /// Its bytes.
    pub content: ContentRecord,
    /// Its `Content-Type`.
    pub content_type: String,
}

/// A smaller version of an image that another server made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteThumbnailRecord {
    /// The image.
    pub thumbnail: ThumbnailRecord,
    /// When it was fetched.
    pub created: MilliSecondsSinceUnixEpoch,
    /// It may be had without authentication.
    pub is_open: bool,
}

/// What a page says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlPreviewRecord {
    /// The response, JSON; none if the page could not be had.
    pub json: Option<Bytes>,
    /// When it was had.
    pub fetched: MilliSecondsSinceUnixEpoch,
}

impl Record for MediaRecord {
    const VERSION: u8 = 1;
}

impl Record for UploaderRecord {
    const VERSION: u8 = 1;
}

impl Record for ThumbnailRecord {
    const VERSION: u8 = 1;
}

impl Record for RemoteThumbnailRecord {
    const VERSION: u8 = 1;
}

impl Record for UrlPreviewRecord {
    const VERSION: u8 = 1;
}
