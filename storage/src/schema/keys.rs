//! Records of end-to-end encryption.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Record;

/// A key that may be given to more than one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackKeyRecord {
    /// Its ID, without the algorithm.
    pub key_id: String,
    /// The key, JSON.
    pub key: String,
    /// Whether it was given to somebody.
    pub is_used: bool,
}

/// A version of a key backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// How it is encrypted.
    pub algorithm: String,
    /// What the algorithm needs, JSON.
    pub auth_data: Bytes,
    /// Goes up with every change of its keys.
    pub etag: u64,
    /// The number of its keys.
    pub count: u64,
    /// Whether it was deleted.
    pub is_deleted: bool,
}

impl Record for FallbackKeyRecord {
    const VERSION: u8 = 1;
}

impl Record for BackupRecord {
    const VERSION: u8 = 1;
}
