//! What readers see of a room: published after each durable commit, never changed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use engine::{
    id::{Position, ShortRoomId, TimelineIndex},
    room::census::Census,
    room_version::RoomVersion,
    state::{Salt, StateRoot},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName, UserId,
};

use storage::schema::GapRecord;

use super::{Lacks, RelatedCache, StoredEvent, heroes::HeroesCache};

/// How many events of the timeline an active room keeps in memory.
pub const RECENT_MAX: usize = 64;

/// The part of a room that changes with every event. Cloning shares all of it.
#[derive(Clone)]
pub struct RoomHead {
    /// The room's current state.
    pub root: StateRoot,
    /// Forward extremities, in ascending order.
    pub tips: Vec<Arc<StoredEvent>>,
    /// The newest place in the timeline.
    pub latest: TimelineIndex,
    /// How many members there are, and of which servers.
    pub census: Census,
    /// Holes in the known timeline, by the place after each.
    pub gaps: imbl::OrdMap<TimelineIndex, GapRecord>,
    /// The newest events of the timeline, oldest first.
    pub recent: imbl::Vector<Arc<StoredEvent>>,
    /// Whether `recent` starts with the room's first event.
    pub recent_is_all: bool,
    /// Whether the state lacks members, since the room was joined without them.
    pub lacks_members: bool,
    /// When the members came that it lacked, if it ever did.
    pub completed: Position,
    /// What states here lack, since it could not be checked.
    pub lacks: Lacks,
    /// Whether events were judged otherwise then, so that clients were told what did not stand.
    pub corrected: bool,
}

impl RoomHead {
    /// Whether a server has joined members here.
    pub fn has_server(&self, server: &ServerName) -> bool {
        self.census.has_server(server)
    }

    /// Adds an accepted event to the recent timeline.
    pub fn push_recent(&mut self, event: Arc<StoredEvent>) {
        self.recent.push_back(event);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
            self.recent_is_all = false;
        }
    }

    /// Puts a changed (redacted) event in the place of its former self.
    pub fn replace_recent(&mut self, event: &Arc<StoredEvent>) {
        if let Some(place) = self.recent.iter().position(|known| known.short == event.short) {
            self.recent.set(place, event.clone());
        }
    }

    /// Lets go of recent events.
    ///
    /// `Vector::retain` mixes elements up, and reads past them, in `imbl` up to 7.0.2.
    pub fn keep_recent(&mut self, keep: impl Fn(&StoredEvent) -> bool) {
        self.recent = self.recent.iter().filter(|event| keep(event)).cloned().collect();
    }

    /// About how much memory the recent events take, in bytes.
    pub fn weight(&self) -> u64 {
        self.recent.iter().map(|event| event.weight()).sum()
    }
}

/// An immutable view of a room as of its last durable commit.
#[derive(Clone)]
pub struct RoomSnapshot {
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The room's local number.
    pub room: ShortRoomId,
    /// The room's version.
    pub version: RoomVersionId,
    /// The rules of that version.
    pub rules: &'static RoomVersion,
    /// Decides the shape of the state tree.
    pub salt: Salt,
    /// The part that changes with every event.
    pub head: RoomHead,
}

/// A receipt as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Who read.
    pub user_id: OwnedUserId,
    /// The thread that it is about: a root event's ID, `main`, or none for the whole room.
    pub thread: Option<String>,
    /// The event that is read.
    pub event_id: OwnedEventId,
    /// Its place in the timeline.
    pub index: TimelineIndex,
    /// When it was read, in milliseconds since the epoch.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// When the server learned of it.
    pub position: Position,
}

/// The public receipts of a room. Each has a position of its own.
#[derive(Clone, Default)]
pub struct Receipts {
    by_reader: imbl::OrdMap<Reader, Receipt>,
    by_position: imbl::OrdMap<Position, Reader>,
}

type Reader = (OwnedUserId, Option<String>);

impl Receipts {
    /// The receipt of a user for a thread.
    pub fn of(&self, user_id: &UserId, thread: Option<&str>) -> Option<&Receipt> {
        self.by_reader.get(&(user_id.to_owned(), thread.map(ToOwned::to_owned)))
    }

    /// The receipts of a user, for the room and its threads.
    pub fn by_user(&self, user_id: &UserId) -> impl Iterator<Item = &Receipt> {
        let from = (user_id.to_owned(), None);
        let all = self.by_reader.range(from..);
        all.take_while(move |((reader, _), _)| reader == user_id).map(|(_, receipt)| receipt)
    }

    /// The receipts that are newer than `since`, oldest first.
    pub fn since(&self, since: Position) -> impl Iterator<Item = &Receipt> {
        let after = (std::ops::Bound::Excluded(since), std::ops::Bound::Unbounded);
        self.by_position.range(after).filter_map(|(_, reader)| self.by_reader.get(reader))
    }

    /// Sets a receipt.
    pub fn set(&mut self, receipt: Receipt) {
        let reader = (receipt.user_id.clone(), receipt.thread.clone());
        self.by_position.insert(receipt.position, reader.clone());
        if let Some(old) = self.by_reader.insert(reader, receipt) {
            self.by_position.remove(&old.position);
        }
    }

    /// Forgets the receipt of a user for a thread.
    pub fn remove(&mut self, user_id: &UserId, thread: String) {
        if let Some(old) = self.by_reader.remove(&(user_id.to_owned(), Some(thread))) {
            self.by_position.remove(&old.position);
        }
    }
}

/// Who is typing.
#[derive(Clone, Debug, Default)]
pub struct Typing {
    /// The users, in order.
    pub users: Vec<OwnedUserId>,
    /// When the list last changed.
    pub position: Position,
    /// Who last began or ended, and when, oldest first.
    pub changes: Vec<(Position, OwnedUserId)>,
}

/// Changes of who is typing that a room remembers: more than there are between two syncs of a client.
const TYPING_CHANGES_MAX: usize = 32;

impl Typing {
    /// The list that follows this one, where some users have just begun or ended.
    #[must_use]
    pub fn next(
        &self,
        users: Vec<OwnedUserId>,
        moved: impl Iterator<Item = OwnedUserId>,
        position: Position,
    ) -> Self {
        let mut changes = self.changes.clone();
        changes.extend(moved.map(|user| (position, user)));
        let surplus = changes.len().saturating_sub(TYPING_CHANGES_MAX);
        changes.drain(..surplus);
        Self { users, position, changes }
    }

    /// Whether one of the users whom `counts` lets through has begun or ended since a position.
    pub fn changed_since(&self, since: Position, counts: impl Fn(&UserId) -> bool) -> bool {
        if self.position <= since {
            return false;
        }
        // Who came before the oldest that is remembered is not known any more.
        let is_known = self.changes.len() < TYPING_CHANGES_MAX
            || self.changes.first().is_some_and(|(oldest, _)| *oldest <= since);
        !is_known || self.changes.iter().any(|(position, user)| *position > since && counts(user))
    }
}

/// Where a room publishes its views.
pub struct Published {
    /// The durable part.
    pub snapshot: ArcSwap<RoomSnapshot>,
    /// Public receipts.
    pub receipts: ArcSwap<Receipts>,
    /// Who is typing.
    pub typing: ArcSwap<Typing>,
    /// What relates to the events that were lately looked at.
    pub related: RelatedCache,
    /// The members that the room is named after if it has no name.
    pub heroes: HeroesCache,
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, user_id};

    use super::*;

    #[test]
    fn a_typing_list_tells_whose_change_it_is() {
        let (alice, mallory) = (owned_user_id!("@alice:one"), owned_user_id!("@mallory:one"));
        let begin = |typing: &Typing, user: &OwnedUserId, at| {
            typing.next(vec![user.clone()], std::iter::once(user.clone()), Position(at))
        };
        let not_mallory = |user: &UserId| user != user_id!("@mallory:one");
        let mut typing = begin(&Typing::default(), &mallory, 5);
        assert!(typing.changed_since(Position(4), |_| true));
        assert!(!typing.changed_since(Position(4), not_mallory));
        typing = begin(&typing, &alice, 7);
        assert!(typing.changed_since(Position(5), not_mallory));
        assert!(!typing.changed_since(Position(7), |_| true));
        for at in 8..8 + TYPING_CHANGES_MAX as u64 {
            typing = begin(&typing, &mallory, at);
        }
        assert_eq!(typing.changes.len(), TYPING_CHANGES_MAX);
        assert!(!typing.changed_since(Position(8), not_mallory));
        assert!(typing.changed_since(Position(6), not_mallory), "what is not known any more counts");
    }
}
