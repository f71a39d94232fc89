//! When a room last changed, and who is to be told when it changes next.
//!
//! A session's view asks to be told once: it puts itself down here, and the next change takes it off the list,
//! puts the room on the view's own list and wakes whoever waits. Only when somebody reads the view is it put
//! down again. So a change costs work for the views that were read since the last change, and nothing for those
//! of members who are not there: a busy room with a thousand idle members is as cheap as one with ten.
//!
//! Nothing is missed: a change first moves the room's positions and then takes the list; a view first puts
//! itself down and then reads the positions.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use engine::id::{Position, ShortRoomId};
use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};

use crate::session::SessionView;

/// What changed in a room.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changed {
    /// Whether there is a new event.
    pub event: bool,
    /// Whether the state is another one.
    pub state: bool,
}

/// The positions of a room's last changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Latest {
    /// Of any kind.
    pub(crate) any: Position,
    /// An event.
    pub(crate) event: Position,
    /// Of the state.
    pub(crate) state: Position,
}

/// So few listeners are not worth a look at whether they are still there.
const LISTENERS_MIN: usize = 16;

/// A room as the views of its members follow it.
pub(crate) struct RoomNews {
    room: ShortRoomId,
    room_id: OwnedRoomId,
    any: AtomicU64,
    event: AtomicU64,
    state: AtomicU64,
    /// The views that are to be told of the next change.
    listeners: Mutex<Listeners>,
}

/// Views that wait for the next change.
#[derive(Default)]
struct Listeners {
    views: Vec<Weak<SessionView>>,
    /// Those that are gone are let go of once there are so many.
    tidy_at: usize,
}

impl Listeners {
    fn add(&mut self, view: Weak<SessionView>) {
        // Sessions come and go in a room in which nothing happens.
        if self.views.len() >= self.tidy_at {
            self.views.retain(|view| view.strong_count() > 0);
            self.tidy_at = LISTENERS_MIN.max(2 * self.views.len());
        }
        self.views.push(view);
    }
}

impl RoomNews {
    /// A room of which nothing is known yet.
    pub(crate) fn new(room: ShortRoomId, room_id: &RoomId) -> Arc<Self> {
        Arc::new(Self {
            room,
            room_id: room_id.to_owned(),
            any: AtomicU64::new(0),
            event: AtomicU64::new(0),
            state: AtomicU64::new(0),
            listeners: Mutex::default(),
        })
    }

    /// The room's local number.
    pub(crate) fn room(&self) -> ShortRoomId {
        self.room
    }

    /// The room's ID.
    pub(crate) fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Notes a change; answers the views that are told of it. They are to be woken, too.
    pub(super) fn change(self: &Arc<Self>, changed: Changed, position: Position) -> Vec<Arc<SessionView>> {
        self.any.fetch_max(position.0, Ordering::Relaxed);
        if changed.event {
            self.event.fetch_max(position.0, Ordering::Relaxed);
        }
        if changed.state {
            self.state.fetch_max(position.0, Ordering::Relaxed);
        }
        // The lock orders the positions before the list.
        let listeners = std::mem::take(&mut *self.listeners.lock()).views;
        let told: Vec<_> = listeners.iter().filter_map(Weak::upgrade).collect();
        for view in &told {
            view.tell(self);
        }
        told
    }

    /// Puts a view down to be told of the next change; only once until then. The answer is what it has to know.
    pub(crate) fn listen(&self, view: Weak<SessionView>) -> Latest {
        self.listeners.lock().add(view);
        let position = |of: &AtomicU64| Position(of.load(Ordering::Relaxed));
        Latest { any: position(&self.any), event: position(&self.event), state: position(&self.state) }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, room_id};

    use super::*;

    #[test]
    fn listeners_that_are_gone_do_not_pile_up() {
        let news = RoomNews::new(ShortRoomId(1), room_id!("!quiet:a.example"));
        let views: Vec<_> = (0..20).map(|_| SessionView::new(owned_user_id!("@alice:a.example"))).collect();
        for view in &views {
            news.listen(Arc::downgrade(view));
        }
        for _ in 0..1000 {
            news.listen(Arc::downgrade(&SessionView::new(owned_user_id!("@bob:a.example"))));
        }
        assert!(news.listeners.lock().views.len() <= 64);
        let everything = Changed { event: true, state: true };
        assert_eq!(news.change(everything, Position(1)).len(), views.len());
    }
}
