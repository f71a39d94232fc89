//! How many messages a user has not read, in all rooms: counted on from where the last count stopped.

use std::collections::BTreeMap;

use engine::id::Position;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use storage::{
    Batch, Direction, KeyRange,
    schema::{self, PushUnreadRecord},
};

use super::delivery::RunError;
use crate::{homeserver::Homeserver, room::RoomError, session::SessionHandle};

/// Positions that a count may be behind before it is stored although nothing in it has changed.
const BEHIND_MAX: u64 = 1000;

/// What a user has not read, by room.
pub(super) struct Badge {
    user_id: OwnedUserId,
    /// As of when.
    counted: Position,
    /// As of when the store has it.
    stored: Position,
    rooms: BTreeMap<OwnedRoomId, PushUnreadRecord>,
}

impl Badge {
    /// The last count.
    pub(super) async fn load(homeserver: &Homeserver, user_id: &UserId) -> Result<Self, RunError> {
        let storage = homeserver.storage();
        let all = KeyRange::prefix(&(user_id,));
        let rows = storage.range(&schema::PUSH_UNREAD, all, Direction::Ascending, usize::MAX).await?;
        let counted = storage.get(&schema::PUSH_COUNTED, user_id).await?.unwrap_or_default();
        let rooms = rows.into_iter().map(|((_, room_id), record)| (room_id, record)).collect();
        Ok(Self { user_id: user_id.to_owned(), counted, stored: counted, rooms })
    }

    /// Counts the rooms that have changed since the last count, and adds up.
    pub(super) async fn count(
        &mut self,
        homeserver: &Homeserver,
        session: &SessionHandle,
    ) -> Result<PushUnreadRecord, RunError> {
        let upto = homeserver.storage().watermark();
        let mut batch = Batch::default();
        for (room_id, entry) in session.view().rooms_changed(self.counted) {
            let record = if entry.is_joined() {
                unread(homeserver, session, &room_id).await?
            } else {
                PushUnreadRecord::default()
            };
            let known = self.rooms.get(&room_id).copied().unwrap_or_default();
            if known == record {
                continue;
            }
            let key = (self.user_id.clone(), room_id.clone());
            if record == PushUnreadRecord::default() {
                batch.delete(&schema::PUSH_UNREAD, &key);
                self.rooms.remove(&room_id);
            } else {
                batch.put(&schema::PUSH_UNREAD, &key, &record);
                self.rooms.insert(room_id, record);
            }
        }
        self.counted = self.counted.max(upto);
        if !batch.is_empty() || self.counted.0 > self.stored.0 + BEHIND_MAX {
            batch.put(&schema::PUSH_COUNTED, &self.user_id, &self.counted);
            homeserver.storage().commit(batch).await?;
            self.stored = self.counted;
        }
        Ok(self.sum())
    }

    fn sum(&self) -> PushUnreadRecord {
        let mut sum = PushUnreadRecord::default();
        for room in self.rooms.values() {
            sum.unread += room.unread;
            sum.missed_calls += room.missed_calls;
        }
        sum
    }
}

async fn unread(
    homeserver: &Homeserver,
    session: &SessionHandle,
    room_id: &ruma::RoomId,
) -> Result<PushUnreadRecord, RoomError> {
    let unread = session.unread(&homeserver.room(room_id).await?).await?;
    Ok(PushUnreadRecord { unread: unread.total().notification_count, missed_calls: unread.missed_calls() })
}
