//! Who is to be told when a room changes: the active sessions of its joined local users.
//!
//! A room tells them from the completion of its commit: first it marks the change in every view, and
//! only then wakes those who wait. The cost is per *active* local member; the others pay nothing.

use std::{collections::BTreeMap, sync::Arc};

use dashmap::DashMap;
use engine::id::{Position, ShortRoomId};
use ruma::{OwnedUserId, RoomId, UserId};

use crate::session::{RoomEntry, SessionView};

/// The active sessions, by user and by room.
#[derive(Default)]
pub struct Hub {
    sessions: DashMap<OwnedUserId, Arc<SessionView>>,
    rooms: DashMap<ShortRoomId, BTreeMap<OwnedUserId, Arc<SessionView>>>,
}

impl Hub {
    /// Makes a session known, before it reads what it missed from the store.
    pub fn add_session(&self, view: &Arc<SessionView>) {
        self.sessions.insert(view.user_id().to_owned(), view.clone());
    }

    /// Forgets a session and its subscriptions.
    pub fn remove_session(&self, view: &Arc<SessionView>) {
        self.sessions.remove_if(view.user_id(), |_, known| Arc::ptr_eq(known, view));
        for (_, entry) in view.rooms() {
            self.unsubscribe(entry.room, view.user_id());
        }
    }

    /// The view of a user whose session is active.
    pub fn session(&self, user_id: &UserId) -> Option<Arc<SessionView>> {
        self.sessions.get(user_id).map(|view| view.clone())
    }

    /// Tells a session of the changes of a room from now on.
    pub fn subscribe(&self, room: ShortRoomId, view: &Arc<SessionView>) {
        self.rooms.entry(room).or_default().insert(view.user_id().to_owned(), view.clone());
    }

    /// Tells a session of the changes of a room no more.
    pub fn unsubscribe(&self, room: ShortRoomId, user_id: &UserId) {
        if let Some(mut subscribers) = self.rooms.get_mut(&room) {
            subscribers.remove(user_id);
        }
        self.rooms.remove_if(&room, |_, subscribers| subscribers.is_empty());
    }

    /// The sessions that hear of a room's changes.
    pub fn subscribers(&self, room: ShortRoomId) -> Vec<Arc<SessionView>> {
        self.rooms.get(&room).map_or_else(Vec::new, |subscribers| subscribers.values().cloned().collect())
    }

    /// The active sessions that share a joined room with a session, its own included.
    pub fn neighbors(&self, view: &SessionView) -> Vec<Arc<SessionView>> {
        let mut neighbors = BTreeMap::new();
        for (_, entry) in view.rooms().iter().filter(|(_, entry)| entry.is_joined()) {
            if let Some(subscribers) = self.rooms.get(&entry.room) {
                neighbors.extend(subscribers.iter().map(|(user, view)| (user.clone(), view.clone())));
            }
        }
        neighbors.into_values().collect()
    }

    /// Sets a local user's relation to a room, if the user's session is active.
    pub fn set_membership(&self, user_id: &UserId, room_id: &RoomId, entry: RoomEntry) {
        let Some(view) = self.session(user_id) else { return };
        let room = entry.room;
        let joined = entry.is_joined();
        view.set_room(room_id, entry);
        if joined {
            self.subscribe(room, &view);
        } else {
            self.unsubscribe(room, user_id);
        }
        view.wake();
    }

    /// Marks a new event of a room in the views of its subscribers and wakes them.
    pub fn room_has_event(&self, room: ShortRoomId, room_id: &RoomId, position: Position) {
        if let Some(subscribers) = self.rooms.get(&room) {
            for view in subscribers.values() {
                view.mark_event(room_id, position);
                view.wake();
            }
        }
    }

    /// Marks a change of a room's state in the views of its subscribers, before `room_changed`.
    pub fn state_changed(&self, room: ShortRoomId, room_id: &RoomId, position: Position) {
        if let Some(subscribers) = self.rooms.get(&room) {
            for view in subscribers.values() {
                view.mark_state(room_id, position);
            }
        }
    }

    /// Marks a change of a room in the views of its subscribers and wakes them.
    pub fn room_changed(&self, room: ShortRoomId, room_id: &RoomId, position: Position) {
        if let Some(subscribers) = self.rooms.get(&room) {
            for view in subscribers.values() {
                view.mark_room(room_id, position);
                view.wake();
            }
        }
    }
}
