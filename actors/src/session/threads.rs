//! Which threads a user wants to hear of.
//!
//! Spec: MSC4306, MSC4308.

use std::ops::Bound;

use engine::id::Position;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use storage::schema::{self, ThreadStatus, ThreadSubscriptionRecord};

use super::{SessionChange, SessionError, SessionHandle, change::Draft};
use crate::homeserver::Homeserver;

/// Threads that one user may have said something of.
const THREADS_MAX: usize = 50_000;

/// What a user asks for a thread.
#[derive(Clone, Debug)]
pub struct ThreadChange {
    /// The thread's room.
    pub room_id: OwnedRoomId,
    /// The thread's root.
    pub root: OwnedEventId,
    /// What they ask for.
    pub wish: ThreadWish,
}

/// What a user, or a client on its own, may ask for a thread.
#[derive(Clone, Copy, Debug)]
pub enum ThreadWish {
    /// To subscribe.
    Subscribe,
    /// To subscribe because of an event that arrived at this position, unless the user has unsubscribed since.
    SubscribeBecauseOf(Position),
    /// To unsubscribe.
    Unsubscribe,
}

/// The threads of a user. Cloning shares them.
#[derive(Clone, Default)]
pub struct Threads {
    rooms: imbl::OrdMap<OwnedRoomId, RoomThreads>,
    /// Each thread by its last change; no two changes share a position.
    by_position: imbl::OrdMap<Position, (OwnedRoomId, OwnedEventId)>,
}

#[derive(Clone, Default)]
struct RoomThreads {
    /// When any of them last changed.
    changed: Position,
    by_root: imbl::OrdMap<OwnedEventId, ThreadSubscriptionRecord>,
}

/// Some of the changes of a stretch, newest first.
#[derive(Clone, Debug, Default)]
pub struct ThreadChanges {
    /// Room, root and what there is now.
    pub changes: Vec<(OwnedRoomId, OwnedEventId, ThreadSubscriptionRecord)>,
    /// The rest of the stretch ends here, if there is any.
    pub rest: Option<Position>,
}

impl Threads {
    fn get(&self, room_id: &RoomId, root: &EventId) -> Option<&ThreadSubscriptionRecord> {
        self.rooms.get(room_id)?.by_root.get(root)
    }

    /// How the user is subscribed to a thread, if they are: whether a client did that on its own.
    pub fn subscription(&self, room_id: &RoomId, root: &EventId) -> Option<bool> {
        match self.get(room_id, root)?.status {
            ThreadStatus::Manual => Some(false),
            ThreadStatus::Automatic => Some(true),
            ThreadStatus::Unsubscribed(_) => None,
        }
    }

    /// What changed after `from` and not after `upto`: the newest changes, at most `limit`.
    pub fn changes(&self, from: Position, upto: Position, limit: usize) -> ThreadChanges {
        let mut found = ThreadChanges::default();
        if from >= upto {
            return found;
        }
        let stretch = (Bound::Excluded(from), Bound::Included(upto));
        for (position, (room_id, root)) in self.by_position.range(stretch).rev() {
            if found.changes.len() == limit {
                found.rest = Some(*position);
                break;
            }
            if let Some(record) = self.get(room_id, root) {
                found.changes.push((room_id.clone(), root.clone(), *record));
            }
        }
        found
    }

    pub(super) fn insert(
        &mut self,
        room_id: OwnedRoomId,
        root: OwnedEventId,
        record: ThreadSubscriptionRecord,
    ) {
        let threads = self.rooms.entry(room_id.clone()).or_default();
        threads.changed = threads.changed.max(record.position);
        if let Some(old) = threads.by_root.insert(root.clone(), record) {
            self.by_position.remove(&old.position);
        }
        self.by_position.insert(record.position, (room_id, root));
    }

    /// When any thread of a room last changed.
    pub(super) fn changed(&self, room_id: &RoomId) -> Position {
        self.rooms.get(room_id).map_or_else(Position::default, |threads| threads.changed)
    }

    /// When the threads of each room last changed.
    pub(super) fn marks(&self) -> impl Iterator<Item = (&OwnedRoomId, Position)> {
        self.rooms.iter().map(|(room_id, threads)| (room_id, threads.changed))
    }

    /// About how much memory they take, in bytes.
    pub(super) fn weight(&self) -> u64 {
        512 * self.by_position.len() as u64
    }
}

impl Draft {
    /// Does what the user, or a client on its own, asks for a thread.
    ///
    /// Spec: MSC4306, "New Endpoints", "Server-side automatic subscription ordering".
    pub(super) fn change_thread(&mut self, change: ThreadChange) -> Result<(), SessionError> {
        let ThreadChange { room_id, root, wish } = change;
        let known = self.data.threads.get(&room_id, &root).copied();
        let now = self.position();
        let changed = |status| ThreadSubscriptionRecord { position: now, status };
        let record = match (wish, known.map(|known| known.status)) {
            (ThreadWish::Subscribe, Some(ThreadStatus::Manual))
            | (ThreadWish::SubscribeBecauseOf(_), Some(ThreadStatus::Manual | ThreadStatus::Automatic)) => {
                return Ok(());
            }
            (ThreadWish::Subscribe, _) => changed(ThreadStatus::Manual),
            (ThreadWish::SubscribeBecauseOf(arrived), Some(ThreadStatus::Unsubscribed(since)))
                if arrived <= since =>
            {
                return Err(SessionError::UnsubscribedSince);
            }
            (ThreadWish::SubscribeBecauseOf(_), _) => changed(ThreadStatus::Automatic),
            (ThreadWish::Unsubscribe, Some(ThreadStatus::Unsubscribed(_))) => {
                // No news, but what arrived until now is settled, too.
                let position = known.map_or(now, |known| known.position);
                ThreadSubscriptionRecord { position, status: ThreadStatus::Unsubscribed(now) }
            }
            (ThreadWish::Unsubscribe, _) => changed(ThreadStatus::Unsubscribed(now)),
        };
        if known.is_none() && self.data.threads.by_position.len() >= THREADS_MAX {
            return Err(SessionError::TooMany("threads subscribed to or unsubscribed from"));
        }
        self.batch.put(
            &schema::THREAD_SUBSCRIPTIONS,
            &(self.user_id().clone(), room_id.clone(), root.clone()),
            &record,
        );
        if record.position == now {
            self.is_news = true;
            // What is unread there may change.
            self.rooms.push(room_id.clone());
        }
        self.data.threads.insert(room_id, root, record);
        Ok(())
    }

    /// Forgets all of the user's threads.
    pub(super) fn forget_threads(&mut self) {
        let user_id: OwnedUserId = self.user_id().clone();
        let threads = std::mem::take(&mut self.data.threads);
        for (room_id, root) in threads.by_position.values().cloned() {
            self.batch.delete(&schema::THREAD_SUBSCRIPTIONS, &(user_id.clone(), room_id, root));
        }
    }
}

impl Homeserver {
    /// Whether users can subscribe to threads here.
    pub fn has_thread_subscriptions(&self) -> bool {
        self.conversation().thread_subscriptions
    }
}

impl SessionHandle {
    /// Subscribes the user to a thread, or unsubscribes them.
    pub async fn change_thread(
        &self,
        room_id: OwnedRoomId,
        root: OwnedEventId,
        wish: ThreadWish,
    ) -> Result<(), SessionError> {
        self.change(SessionChange::Thread(ThreadChange { room_id, root, wish })).await
    }
}
