//! Which users with pushers are in which room.
//!
//! Rooms ask from the completion of their commits, so nothing here waits for anything. The cost of an event is per
//! user *with a pusher* in the room, and then only if the user's last news have been looked at meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use dashmap::DashMap;
use engine::id::ShortRoomId;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use tokio::sync::mpsc;

use crate::session::{PusherKey, RoomEntry};

/// What the dispatcher is told.
pub(super) enum News {
    /// Something may have happened that notifies the user.
    Happened(Arc<Watched>),
    /// The user's pushers are others.
    Changed(Arc<Watched>),
}

/// A user with pushers.
pub(super) struct Watched {
    pub(super) user_id: OwnedUserId,
    keys: Mutex<Vec<PusherKey>>,
    rooms: Mutex<BTreeSet<ShortRoomId>>,
    /// Whether the dispatcher has been told, and has not looked yet.
    told: AtomicBool,
}

impl Watched {
    /// Takes note that the dispatcher looks now; returns the user's pushers.
    pub(super) fn look(&self) -> Vec<PusherKey> {
        self.told.store(false, Ordering::SeqCst);
        self.keys.lock().clone()
    }
}

/// The users with pushers, and the rooms that they are in.
pub struct PushWatch {
    users: DashMap<OwnedUserId, Arc<Watched>>,
    rooms: DashMap<ShortRoomId, BTreeMap<OwnedUserId, Arc<Watched>>>,
    dispatcher: mpsc::UnboundedSender<News>,
    news: Mutex<Option<mpsc::UnboundedReceiver<News>>>,
}

impl Default for PushWatch {
    fn default() -> Self {
        let (dispatcher, news) = mpsc::unbounded_channel();
        Self { users: DashMap::new(), rooms: DashMap::new(), dispatcher, news: Mutex::new(Some(news)) }
    }
}

impl PushWatch {
    /// What the dispatcher is told; only one may have it.
    pub(super) fn take_news(&self) -> Option<mpsc::UnboundedReceiver<News>> {
        self.news.lock().take()
    }

    /// Sets a user's pushers, with the rooms that the user is joined to.
    pub fn set(&self, user_id: &UserId, keys: Vec<PusherKey>, rooms: impl IntoIterator<Item = ShortRoomId>) {
        if keys.is_empty() {
            return self.forget(user_id);
        }
        let watched = self.load(user_id, keys, rooms);
        let _ = self.dispatcher.send(News::Changed(watched)); // without a dispatcher nothing is pushed
    }

    /// The same when the server starts, without a word to the dispatcher.
    pub(super) fn load(
        &self,
        user_id: &UserId,
        keys: Vec<PusherKey>,
        rooms: impl IntoIterator<Item = ShortRoomId>,
    ) -> Arc<Watched> {
        let new = || {
            Arc::new(Watched {
                user_id: user_id.to_owned(),
                keys: Mutex::default(),
                rooms: Mutex::default(),
                told: AtomicBool::new(false),
            })
        };
        let watched = self.users.entry(user_id.to_owned()).or_insert_with(new).clone();
        *watched.keys.lock() = keys;
        for room in rooms {
            self.subscribe(room, &watched);
        }
        watched
    }

    fn forget(&self, user_id: &UserId) {
        let Some((_, watched)) = self.users.remove(user_id) else { return };
        watched.keys.lock().clear();
        let rooms = std::mem::take(&mut *watched.rooms.lock());
        for room in rooms {
            self.unsubscribe(room, &watched);
        }
        let _ = self.dispatcher.send(News::Changed(watched));
    }

    fn subscribe(&self, room: ShortRoomId, watched: &Arc<Watched>) {
        watched.rooms.lock().insert(room);
        self.rooms.entry(room).or_default().insert(watched.user_id.clone(), watched.clone());
    }

    fn unsubscribe(&self, room: ShortRoomId, watched: &Watched) {
        watched.rooms.lock().remove(&room);
        if let Some(mut users) = self.rooms.get_mut(&room) {
            users.remove(&watched.user_id);
        }
        self.rooms.remove_if(&room, |_, users| users.is_empty());
    }

    /// A local user's relation to a room changed.
    pub fn set_membership(&self, user_id: &UserId, entry: &RoomEntry) {
        let Some(watched) = self.users.get(user_id).map(|watched| watched.clone()) else { return };
        if entry.is_joined() {
            self.subscribe(entry.room, &watched);
        } else {
            self.unsubscribe(entry.room, &watched);
        }
        self.tell(&watched);
    }

    /// A room has a new event.
    pub fn room_has_event(&self, room: ShortRoomId) {
        if let Some(users) = self.rooms.get(&room) {
            for watched in users.values() {
                self.tell(watched);
            }
        }
    }

    /// What a user has not read may be less.
    pub fn nudge(&self, user_id: &UserId) {
        if let Some(watched) = self.users.get(user_id) {
            self.tell(&watched);
        }
    }

    fn tell(&self, watched: &Arc<Watched>) {
        if !watched.told.swap(true, Ordering::SeqCst) {
            let _ = self.dispatcher.send(News::Happened(watched.clone()));
        }
    }
}
