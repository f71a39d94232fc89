//! Records of end-to-end encryption.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::id::Position;
use ruma::{OwnedDeviceId, OwnedRoomId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// A key that is given to one only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneTimeKeyRecord {
    /// The key, JSON.
    pub key: String,
    /// When it came: the oldest is given away first.
    pub uploaded: Position,
}

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

/// The devices of another server's user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteDeviceListRecord {
    /// The `stream_id` of the list, if its server told it.
    pub stream_id: Option<i64>,
    /// Whether an update was missed.
    pub is_stale: bool,
    /// The devices' keys as clients get them, JSON.
    pub devices: BTreeMap<OwnedDeviceId, String>,
    /// The master key, JSON.
    pub master: Option<String>,
    /// The self-signing key, JSON.
    pub self_signing: Option<String>,
}

/// What changed of a local user's devices, or why others are to be told of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceListOutboxRecord {
    /// The devices that changed.
    pub devices: Vec<OwnedDeviceId>,
    /// Whether the cross-signing keys changed.
    pub signing_keys: bool,
    /// The user joined this room: its other servers are to know all devices.
    pub joined: Option<OwnedRoomId>,
}

impl Record for OneTimeKeyRecord {
    const VERSION: u8 = 1;
}

impl Record for RemoteDeviceListRecord {
    const VERSION: u8 = 1;
}

impl Record for DeviceListOutboxRecord {
    const VERSION: u8 = 1;
}

impl Record for FallbackKeyRecord {
    const VERSION: u8 = 1;
}

impl Record for BackupRecord {
    const VERSION: u8 = 1;
}
