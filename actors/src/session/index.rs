//! Which rooms a user is in and when each last changed: what `/sync` asks first.
//!
//! Rooms mark changes here *before* the watermark passes them, from the storage writer's completion.
//! A mailbox could not promise that order, hence a lock; it is per user, and held for a map operation.

use std::{collections::BTreeMap, sync::Arc};

use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use storage::schema::MembershipRecord;
use tokio::sync::watch;

/// A user's relation to one room.
#[derive(Clone, Debug)]
pub struct RoomEntry {
    /// The room's local number.
    pub room: ShortRoomId,
    /// `join`, `invite`, `knock`, `leave` or `ban`.
    pub membership: String,
    /// The membership event.
    pub event: ShortEventId,
    /// Where the current membership began in the timeline.
    pub since: TimelineIndex,
    /// The last time the user stopped being joined, if ever.
    pub left: Option<TimelineIndex>,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
    /// The last change that concerns this user in the room.
    pub latest: Position,
    /// The last event of the room, or of the membership of a user who is not in it.
    pub activity: Position,
}

impl RoomEntry {
    /// The entry of a stored membership, last changed at `latest`.
    pub fn new(record: MembershipRecord, latest: Position) -> Self {
        let MembershipRecord { room, membership, event, since, left, forgotten } = record;
        let activity = since.into();
        Self { room, membership, event, since, left, forgotten, latest, activity }
    }

    /// Whether the user is joined.
    pub fn is_joined(&self) -> bool {
        self.membership == "join"
    }
}

#[derive(Default)]
struct Index {
    rooms: BTreeMap<OwnedRoomId, RoomEntry>,
    by_latest: BTreeMap<(Position, ShortRoomId), OwnedRoomId>,
    /// Changes outside rooms: account data, devices, presence of others.
    own_latest: Position,
    /// When the devices of others last changed, since `complete_from`.
    device_lists: BTreeMap<OwnedUserId, Position>,
    /// When a joined room's state last changed, since `complete_from`.
    states: BTreeMap<OwnedRoomId, Position>,
    /// From here on the view knows of all changes of devices and states.
    complete_from: Position,
    /// When the presence of others last changed.
    presence: BTreeMap<OwnedUserId, Position>,
}

impl Index {
    fn mark(&mut self, room_id: &RoomId, position: Position) {
        if let Some(entry) = self.rooms.get_mut(room_id)
            && entry.latest < position
        {
            let before = entry.latest;
            entry.latest = position;
            self.by_latest.remove(&(before, entry.room));
            self.by_latest.insert((position, entry.room), room_id.to_owned());
        }
    }

    fn set(&mut self, room_id: &RoomId, mut entry: RoomEntry) {
        if let Some(old) = self.rooms.get(room_id) {
            self.by_latest.remove(&(old.latest, old.room));
            entry.latest = entry.latest.max(old.latest);
            entry.activity = entry.activity.max(old.activity);
        }
        self.by_latest.insert((entry.latest, entry.room), room_id.to_owned());
        self.rooms.insert(room_id.to_owned(), entry);
    }
}

/// The read side of a session: its room index, and a signal for those who wait in `/sync`.
pub struct SessionView {
    user_id: OwnedUserId,
    index: Mutex<Index>,
    changed: watch::Sender<()>,
}

impl SessionView {
    /// An empty view of a user.
    pub fn new(user_id: OwnedUserId) -> Arc<Self> {
        Arc::new(Self { user_id, index: Mutex::default(), changed: watch::Sender::new(()) })
    }

    /// Whose view it is.
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// A receiver that is woken by every change.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Wakes those who wait for a change.
    pub fn wake(&self) {
        self.changed.send_replace(());
    }

    /// Notes that a room changed at `position`.
    pub fn mark_room(&self, room_id: &RoomId, position: Position) {
        self.index.lock().mark(room_id, position);
    }

    /// Notes that a room has a new event at `position`.
    pub fn mark_event(&self, room_id: &RoomId, position: Position) {
        let mut index = self.index.lock();
        index.mark(room_id, position);
        if let Some(entry) = index.rooms.get_mut(room_id) {
            entry.activity = entry.activity.max(position);
        }
    }

    /// Notes that something outside the rooms changed at `position`.
    pub fn mark_own(&self, position: Position) {
        let mut index = self.index.lock();
        index.own_latest = index.own_latest.max(position);
    }

    /// Notes that the view hears of all changes after `position`; of those before, clients are told from the store.
    pub fn complete_from(&self, position: Position) {
        let mut index = self.index.lock();
        index.complete_from = position;
        index.own_latest = index.own_latest.max(position);
    }

    /// Notes that the devices of a user who shares a room, or the user's own, changed at `position`.
    pub fn mark_device_list(&self, user_id: &UserId, position: Position) {
        let mut index = self.index.lock();
        index.own_latest = index.own_latest.max(position);
        index.device_lists.insert(user_id.to_owned(), position);
    }

    /// Notes that a room's state changed at `position`.
    pub fn mark_state(&self, room_id: &RoomId, position: Position) {
        self.index.lock().states.insert(room_id.to_owned(), position);
    }

    /// The users whose devices changed after `since`; none if the view does not reach back so far.
    pub fn device_lists_changed(&self, since: Position) -> Option<Vec<OwnedUserId>> {
        let index = self.index.lock();
        let changed = index.device_lists.iter().filter(|(_, position)| **position > since);
        (since >= index.complete_from).then(|| changed.map(|(user_id, _)| user_id.clone()).collect())
    }

    /// Whether a room's state may have changed after `since`.
    pub fn state_changed(&self, room_id: &RoomId, since: Position) -> bool {
        let index = self.index.lock();
        since < index.complete_from || index.states.get(room_id).is_some_and(|position| *position > since)
    }

    /// Notes that the presence of a user who shares a room changed at `position`.
    pub fn mark_presence(&self, user_id: &UserId, position: Position) {
        let mut index = self.index.lock();
        index.own_latest = index.own_latest.max(position);
        index.presence.insert(user_id.to_owned(), position);
    }

    /// The users whose presence changed after `since`.
    pub fn presence_changed(&self, since: Position) -> Vec<OwnedUserId> {
        let index = self.index.lock();
        let changed = index.presence.iter().filter(|(_, position)| **position > since);
        changed.map(|(user_id, _)| user_id.clone()).collect()
    }

    /// Sets the user's relation to a room; an older entry than the present one is ignored.
    pub fn set_room(&self, room_id: &RoomId, entry: RoomEntry) {
        let mut index = self.index.lock();
        let known = index.rooms.get(room_id);
        let is_newer = |known: &RoomEntry| (known.event, known.forgotten) <= (entry.event, entry.forgotten);
        if known.is_none_or(is_newer) {
            index.set(room_id, entry);
        }
    }

    /// The user's relation to a room.
    pub fn room(&self, room_id: &RoomId) -> Option<RoomEntry> {
        self.index.lock().rooms.get(room_id).cloned()
    }

    /// All rooms, in the order of their IDs.
    pub fn rooms(&self) -> Vec<(OwnedRoomId, RoomEntry)> {
        self.index.lock().rooms.iter().map(|(id, entry)| (id.clone(), entry.clone())).collect()
    }

    /// The rooms that changed after `since`, oldest change first.
    pub fn rooms_changed(&self, since: Position) -> Vec<(OwnedRoomId, RoomEntry)> {
        let index = self.index.lock();
        let from = (Position(since.0 + 1), ShortRoomId(0));
        index
            .by_latest
            .range(from..)
            .filter_map(|(_, id)| Some((id.clone(), index.rooms.get(id)?.clone())))
            .collect()
    }

    /// The newest change of any kind that concerns the user.
    pub fn latest(&self) -> Position {
        let index = self.index.lock();
        let rooms = index.by_latest.last_key_value().map_or(Position(0), |((position, _), _)| *position);
        rooms.max(index.own_latest)
    }
}
