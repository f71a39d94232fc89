//! Which rooms a user is in and when each last changed: what `/sync` asks first.
//!
//! Rooms tell of changes *before* the watermark passes them, from the storage writer's completion. A mailbox
//! could not promise that order, hence locks; they are per user, and held for a few map operations. What rooms
//! tell is taken into the index when somebody reads it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};
use parking_lot::{Mutex, MutexGuard};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use storage::{Signal, Watcher, schema::MembershipRecord};

use super::Ignored;
use crate::hub::{Latest, RoomNews};

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

impl From<RoomEntry> for MembershipRecord {
    fn from(entry: RoomEntry) -> Self {
        let RoomEntry { room, membership, event, since, left, forgotten, .. } = entry;
        Self { room, membership, event, since, left, forgotten }
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
    /// The rooms whose changes the view is told of.
    followed: BTreeMap<ShortRoomId, Arc<RoomNews>>,
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

    /// Takes in what is new of a room, and has the view told of the next change.
    fn take_in(&mut self, news: &Arc<RoomNews>, view: &Weak<SessionView>) {
        let is_followed = self.followed.get(&news.room()).is_some_and(|known| Arc::ptr_eq(known, news));
        if !is_followed {
            return;
        }
        let Latest { any, event, state } = news.listen(view.clone());
        self.mark(news.room_id(), any);
        if let Some(entry) = self.rooms.get_mut(news.room_id()) {
            entry.activity = entry.activity.max(event);
        }
        if state > self.states.get(news.room_id()).copied().unwrap_or_default() {
            self.states.insert(news.room_id().to_owned(), state);
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
    /// Rooms that changed since the index was last looked at; each at most once.
    told: Mutex<Vec<Arc<RoomNews>>>,
    ignored: ArcSwap<Ignored>,
    changed: Signal<()>,
    this: Weak<Self>,
}

impl SessionView {
    /// An empty view of a user.
    pub fn new(user_id: OwnedUserId) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            user_id,
            index: Mutex::default(),
            told: Mutex::default(),
            ignored: ArcSwap::default(),
            changed: Signal::new(()),
            this: this.clone(),
        })
    }

    /// The index, with what rooms told.
    fn index(&self) -> MutexGuard<'_, Index> {
        let mut index = self.index.lock();
        let told = std::mem::take(&mut *self.told.lock());
        for news in &told {
            index.take_in(news, &self.this);
        }
        index
    }

    /// Has the view told of a room's changes from now on.
    pub(crate) fn follow(&self, news: &Arc<RoomNews>) {
        let mut index = self.index();
        let before = index.followed.insert(news.room(), news.clone());
        if before.is_none_or(|before| !Arc::ptr_eq(&before, news)) {
            index.take_in(news, &self.this);
        }
    }

    /// Ends [`Self::follow`].
    pub(crate) fn unfollow(&self, room: ShortRoomId) {
        self.index().followed.remove(&room);
    }

    /// A room has changed.
    pub(crate) fn tell(&self, news: &Arc<RoomNews>) {
        self.told.lock().push(news.clone());
    }

    /// Whether somebody waits for a change.
    pub(crate) fn has_waiting(&self) -> bool {
        self.changed.is_watched()
    }

    /// Whose view it is.
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// Users whom the user ignores.
    pub fn ignored(&self) -> Arc<Ignored> {
        self.ignored.load_full()
    }

    /// Sets whom the user ignores.
    pub fn set_ignored(&self, ignored: Arc<Ignored>) {
        self.ignored.store(ignored);
    }

    /// A watcher that is woken by every change.
    pub fn subscribe(&self) -> Watcher<()> {
        self.changed.watch()
    }

    /// Wakes those who wait for a change.
    pub fn wake(&self) {
        self.changed.set(());
    }

    /// Notes that a room changed at `position`.
    pub fn mark_room(&self, room_id: &RoomId, position: Position) {
        self.index().mark(room_id, position);
    }

    /// Notes that a room has a new event at `position`.
    pub fn mark_event(&self, room_id: &RoomId, position: Position) {
        let mut index = self.index();
        index.mark(room_id, position);
        if let Some(entry) = index.rooms.get_mut(room_id) {
            entry.activity = entry.activity.max(position);
        }
    }

    /// Notes that something outside the rooms changed at `position`.
    pub fn mark_own(&self, position: Position) {
        let mut index = self.index();
        index.own_latest = index.own_latest.max(position);
    }

    /// Notes that the view hears of all changes after `position`; of those before, clients are told from the store.
    pub fn complete_from(&self, position: Position) {
        let mut index = self.index();
        index.complete_from = position;
        index.own_latest = index.own_latest.max(position);
    }

    /// Notes that the devices of a user who shares a room, or the user's own, changed at `position`.
    pub fn mark_device_list(&self, user_id: &UserId, position: Position) {
        let mut index = self.index();
        index.own_latest = index.own_latest.max(position);
        index.device_lists.insert(user_id.to_owned(), position);
    }

    /// The users whose devices changed after `since`; none if the view does not reach back so far.
    pub fn device_lists_changed(&self, since: Position) -> Option<Vec<OwnedUserId>> {
        let index = self.index();
        let changed = index.device_lists.iter().filter(|(_, position)| **position > since);
        (since >= index.complete_from).then(|| changed.map(|(user_id, _)| user_id.clone()).collect())
    }

    /// Whether a room's state may have changed after `since`.
    pub fn state_changed(&self, room_id: &RoomId, since: Position) -> bool {
        let index = self.index();
        since < index.complete_from || index.states.get(room_id).is_some_and(|position| *position > since)
    }

    /// Notes that the presence of a user who shares a room changed at `position`.
    pub fn mark_presence(&self, user_id: &UserId, position: Position) {
        let mut index = self.index();
        index.own_latest = index.own_latest.max(position);
        index.presence.insert(user_id.to_owned(), position);
    }

    /// The users whose presence changed after `since`.
    pub fn presence_changed(&self, since: Position) -> Vec<OwnedUserId> {
        let index = self.index();
        let changed = index.presence.iter().filter(|(_, position)| **position > since);
        changed.map(|(user_id, _)| user_id.clone()).collect()
    }

    /// Sets the user's relation to a room, as the room tells it.
    ///
    /// Rooms tell in the order of their commits. The membership event may be an older one than before: state resolution
    /// can go back to it.
    pub fn set_room(&self, room_id: &RoomId, entry: RoomEntry) {
        self.index().set(room_id, entry);
    }

    /// Sets the user's relation to a room, as it was read from the store, unless the room has told of it meanwhile.
    pub(crate) fn load_room(&self, room_id: &RoomId, entry: RoomEntry) {
        let mut index = self.index();
        if !index.rooms.contains_key(room_id) {
            index.set(room_id, entry);
        }
    }

    /// The user's relation to a room.
    pub fn room(&self, room_id: &RoomId) -> Option<RoomEntry> {
        self.index().rooms.get(room_id).cloned()
    }

    /// All rooms, in the order of their IDs.
    pub fn rooms(&self) -> Vec<(OwnedRoomId, RoomEntry)> {
        self.index().rooms.iter().map(|(id, entry)| (id.clone(), entry.clone())).collect()
    }

    /// The rooms that changed after `since`, oldest change first.
    pub fn rooms_changed(&self, since: Position) -> Vec<(OwnedRoomId, RoomEntry)> {
        let index = self.index();
        let from = (Position(since.0 + 1), ShortRoomId(0));
        index
            .by_latest
            .range(from..)
            .filter_map(|(_, id)| Some((id.clone(), index.rooms.get(id)?.clone())))
            .collect()
    }

    /// The newest change of any kind that concerns the user.
    pub fn latest(&self) -> Position {
        let index = self.index();
        let rooms = index.by_latest.last_key_value().map_or(Position(0), |((position, _), _)| *position);
        rooms.max(index.own_latest)
    }
}
