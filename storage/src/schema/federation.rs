//! Records of the traffic with other servers.

use engine::id::ShortEventId;
use ruma::{OwnedRoomId, OwnedServerName};
use serde::{Deserialize, Serialize};

use crate::Record;

/// An event that other servers are to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxRecord {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event.
    pub event: ShortEventId,
    /// Servers beside those in the room: that of a member whom the event removed.
    pub also: Vec<OwnedServerName>,
}

/// A server that did not take the last transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRecord {
    /// How often it did not, one after the other.
    pub failures: u32,
    /// When to try again, in milliseconds since the epoch.
    pub retry_at_ms: u64,
}

/// A key of another server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKeyRecord {
    /// The public key, base64 without padding.
    pub key: String,
    /// Until when what it signs is to be believed, in milliseconds since the epoch.
    pub valid_until_ms: u64,
}

impl Record for ServerKeyRecord {
    const VERSION: u8 = 1;
}

impl Record for OutboxRecord {
    const VERSION: u8 = 1;
}

impl Record for DestinationRecord {
    const VERSION: u8 = 1;
}
