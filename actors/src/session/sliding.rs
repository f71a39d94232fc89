//! Sliding-sync connections: what each has sent is kept with the account, and some of it in memory only.
//!
//! What is in memory only saves repetition: a client that is told of it twice is none the worse.

use std::{collections::BTreeMap, sync::Arc};

use engine::id::{Position, ShortEventId, ShortRoomId};
use parking_lot::Mutex;
use ruma::{DeviceId, OwnedDeviceId};
use storage::schema::{self, SlidingConnectionRecord};

use super::{RoomEntry, SessionData, SessionError, UnreadCounts, change::Draft};

/// A device's connection: its ID is the client's.
pub type ConnectionKey = (OwnedDeviceId, String);

pub(super) type Connections = imbl::OrdMap<ConnectionKey, Arc<SlidingConnectionRecord>>;

/// Connections that a device may have; the one that was used longest ago makes way for another.
const CONNECTIONS_MAX: usize = 10;

/// Members that a connection remembers to have sent.
const MEMBERS_MAX: usize = 2000;

/// What a connection has told its client besides rooms.
#[derive(Clone, Default)]
pub struct Told {
    /// Unread counts.
    pub unread: imbl::OrdMap<ShortRoomId, UnreadCounts>,
    /// Members that were sent because they sent something.
    pub members: imbl::OrdSet<(ShortRoomId, String)>,
}

/// What the filters of lists ask about a room.
#[derive(Clone, Debug)]
pub struct RoomFacts {
    /// The room.
    pub room: ShortRoomId,
    /// The user's membership that it is about.
    pub event: ShortEventId,
    /// The room's last event then.
    pub as_of: Position,
    /// The type that the create event states.
    pub room_type: Option<String>,
    /// Whether the room is encrypted.
    pub is_encrypted: bool,
    /// Whether somebody else ended the user's membership.
    pub is_expelled: bool,
}

/// The state of a connection after its last responses, by their `pos`.
type Remembered = Vec<(String, Told)>;

/// What is kept of connections in memory only.
#[derive(Default)]
pub(super) struct SlidingMemory {
    told: Mutex<BTreeMap<ConnectionKey, Remembered>>,
    facts: Mutex<BTreeMap<ShortRoomId, RoomFacts>>,
}

impl SlidingMemory {
    pub(super) fn told(&self, key: &ConnectionKey, pos: &str) -> Told {
        let told = self.told.lock();
        let remembered = told.get(key).and_then(|all| all.iter().find(|(known, _)| known == pos));
        remembered.map(|(_, told)| told.clone()).unwrap_or_default()
    }

    pub(super) fn set_told(
        &self,
        data: &SessionData,
        key: &ConnectionKey,
        before: Option<&str>,
        after: &str,
        mut told: Told,
    ) {
        if told.members.len() > MEMBERS_MAX {
            told.members.clear();
        }
        let mut all = self.told.lock();
        all.retain(|known, _| data.sliding.contains_key(known));
        let remembered = all.entry(key.clone()).or_default();
        remembered.retain(|(pos, _)| Some(pos.as_str()) == before && pos != after);
        remembered.push((after.to_owned(), told));
    }

    /// Facts that still hold.
    pub(super) fn facts(&self, entries: &[RoomEntry]) -> Vec<Option<RoomFacts>> {
        let facts = self.facts.lock();
        let known = entries.iter().map(|entry| {
            let known = facts.get(&entry.room).filter(|known| known.event == entry.event)?;
            // A room's type stays, and so does encryption but for accidents.
            let holds = known.is_encrypted || !entry.is_joined() || known.as_of >= entry.activity;
            holds.then(|| known.clone())
        });
        known.collect()
    }

    pub(super) fn set_facts(&self, found: impl IntoIterator<Item = RoomFacts>) {
        self.facts.lock().extend(found.into_iter().map(|facts| (facts.room, facts)));
    }
}

/// About how much memory a connection takes, in bytes, with what is remembered of it besides.
pub(super) fn weight(record: &SlidingConnectionRecord) -> u64 {
    let rooms = record.generations.iter().map(|generation| 256 * generation.rooms.len() as u64).sum::<u64>();
    let required = record.generations.iter().flat_map(|generation| generation.required.iter().flatten());
    let required = required.map(|(kind, key)| (64 + kind.len() + key.len()) as u64).sum::<u64>();
    16_384 + rooms + required
}

impl Draft {
    pub(super) fn set_sliding_connection(
        &mut self,
        key: &ConnectionKey,
        record: Arc<SlidingConnectionRecord>,
    ) -> Result<(), SessionError> {
        if !self.data.devices.contains_key(&key.0) {
            return Err(SessionError::DeviceNotFound);
        }
        let row = (self.data.user_id.clone(), key.0.clone(), key.1.clone());
        self.batch.put(&schema::SLIDING_CONNECTIONS, &row, &record);
        self.data.sliding.insert(key.clone(), record);
        let of_device: Vec<_> = self.connections_of(&key.0).collect();
        if of_device.len() > CONNECTIONS_MAX {
            let oldest = of_device.into_iter().filter(|known| known != key);
            let oldest = oldest.min_by_key(|known| self.data.sliding.get(known).map(|record| record.touched));
            if let Some(oldest) = oldest {
                self.end_sliding_connection(oldest);
            }
        }
        Ok(())
    }

    pub(super) fn end_sliding_connections(&mut self, device_id: &DeviceId) {
        let keys: Vec<_> = self.connections_of(device_id).collect();
        for key in keys {
            self.end_sliding_connection(key);
        }
    }

    fn end_sliding_connection(&mut self, key: ConnectionKey) {
        self.data.sliding.remove(&key);
        self.batch.delete(&schema::SLIDING_CONNECTIONS, &(self.data.user_id.clone(), key.0, key.1));
    }

    fn connections_of(&self, device_id: &DeviceId) -> impl Iterator<Item = ConnectionKey> {
        let from = (device_id.to_owned(), String::new());
        let device_id = device_id.to_owned();
        let all = self.data.sliding.range(from..).map(|(key, _)| key.clone());
        all.take_while(move |(device, _)| *device == device_id)
    }
}
