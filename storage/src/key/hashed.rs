//! Identifiers that are keys by their hashes.

use ruma::{EventId, OwnedEventId};
use sha2::{Digest, Sha256};

use super::{AsKey, Key, KeyError, take_array};

/// The first half of the SHA-256 of an event ID: the key where events are looked up by ID and never listed.
///
/// IDs fall anywhere in their table, so each event touches another part of it: what that costs depends on the length of its rows,
/// and IDs are long. No two IDs with the same hash can be found with less than about 2^64 attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIdHash([u8; 16]);

impl From<&EventId> for EventIdHash {
    fn from(event_id: &EventId) -> Self {
        let hash: [u8; 32] = Sha256::digest(event_id.as_str()).into();
        Self(hash.first_chunk().copied().unwrap_or_default())
    }
}

impl AsKey<EventIdHash> for EventIdHash {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl AsKey<EventIdHash> for EventId {
    fn encode(&self, out: &mut Vec<u8>) {
        EventIdHash::from(self).encode(out);
    }
}

impl AsKey<EventIdHash> for OwnedEventId {
    fn encode(&self, out: &mut Vec<u8>) {
        EventIdHash::from(&**self).encode(out);
    }
}

impl Key for EventIdHash {
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(Self(take_array(input)?))
    }
}
