//! Who is to be told when a room changes: the active sessions of its joined local users.
//!
//! A room tells them from the completion of its commit: first it marks the change for every view, and only then
//! wakes those who wait. The cost is per view that was read since the last change; see [`news`].

mod news;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use dashmap::DashMap;
use engine::id::{Position, ShortRoomId};
use ruma::{OwnedUserId, RoomId, UserId};

pub use self::news::Changed;
pub(crate) use self::news::{Latest, RoomNews};
use crate::{
    appservice::ServiceWatch,
    push::PushWatch,
    session::{RoomEntry, SessionView},
};

/// Views that are woken before others get their turn: each one builds a response, and whoever asks for something
/// else meanwhile waits for no more than these.
const WAKES_AT_A_TIME: usize = 4;

/// The local members of a room whose sessions are active.
struct Members {
    views: BTreeMap<OwnedUserId, Arc<SessionView>>,
    news: Arc<RoomNews>,
}

/// The active sessions, by user and by room.
#[derive(Default)]
pub struct Hub {
    sessions: DashMap<OwnedUserId, Arc<SessionView>>,
    rooms: DashMap<ShortRoomId, Members>,
    /// The users with pushers, active or not.
    pub push: PushWatch,
    /// What application services are told of beside events.
    pub services: ServiceWatch,
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
    pub fn subscribe(&self, room: ShortRoomId, room_id: &RoomId, view: &Arc<SessionView>) {
        let new = || Members { views: BTreeMap::new(), news: RoomNews::new(room, room_id) };
        let mut members = self.rooms.entry(room).or_insert_with(new);
        members.views.insert(view.user_id().to_owned(), view.clone());
        view.follow(&members.news);
    }

    /// Tells a session of the changes of a room no more.
    pub fn unsubscribe(&self, room: ShortRoomId, user_id: &UserId) {
        if let Some(mut members) = self.rooms.get_mut(&room)
            && let Some(view) = members.views.remove(user_id)
        {
            view.unfollow(room);
        }
        self.rooms.remove_if(&room, |_, members| members.views.is_empty());
    }

    /// The active sessions that share a joined room with a session, its own included.
    pub fn neighbors(&self, view: &SessionView) -> Vec<Arc<SessionView>> {
        let rooms = view.rooms().into_iter().filter(|(_, entry)| entry.is_joined());
        self.members_of(rooms.map(|(_, entry)| entry.room))
    }

    /// The active sessions that are joined to one of these rooms.
    pub fn members_of(&self, rooms: impl IntoIterator<Item = ShortRoomId>) -> Vec<Arc<SessionView>> {
        let mut found = BTreeMap::new();
        for room in rooms {
            if let Some(members) = self.rooms.get(&room) {
                found.extend(members.views.iter().map(|(user, view)| (user.clone(), view.clone())));
            }
        }
        found.into_values().collect()
    }

    /// Sets a local user's relation to a room, if the user's session is active.
    pub fn set_membership(&self, user_id: &UserId, room_id: &RoomId, entry: &RoomEntry) {
        let Some(view) = self.session(user_id) else { return self.push.set_membership(user_id, entry) };
        let room = entry.room;
        let joined = entry.is_joined();
        view.set_room(room_id, entry.clone());
        if joined {
            self.subscribe(room, room_id, &view);
        } else {
            self.unsubscribe(room, user_id);
        }
        view.wake();
        self.push.set_membership(user_id, entry);
    }

    /// Marks a change of a room in the views of its members, and wakes those who wait.
    ///
    /// The marks are there on return; the wakes of a large room follow.
    pub fn room_changed(&self, room: ShortRoomId, changed: Changed, position: Position) {
        let told = match self.rooms.get(&room) {
            Some(members) => members.news.change(changed, position),
            None => return,
        };
        let waiting: Vec<_> = told.into_iter().filter(|view| view.has_waiting()).collect();
        if waiting.len() <= WAKES_AT_A_TIME {
            for view in &waiting {
                view.wake();
            }
        } else {
            tokio::spawn(wake_by_and_by(waiting));
        }
    }
}

/// Wakes some at a time. It ends by itself, whatever becomes of those who wait.
async fn wake_by_and_by(waiting: Vec<Arc<SessionView>>) {
    for some in waiting.chunks(WAKES_AT_A_TIME) {
        for view in some {
            view.wake();
        }
        tokio::task::yield_now().await;
    }
}
