//! The user directory: who can be found by whom.
//!
//! A task follows the rooms' states behind their writers and keeps the words that members are found by. It compares
//! the state that it knows of a room with the present one, so that it costs the rooms nothing, starts where it
//! stopped, and is right however a room came by its state.
//!
//! Spec: client-server API, "User Directory" and "Mutual Rooms".

mod find;
mod words;

use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::Duration};

use engine::{
    id::{ShortEventId, ShortRoomId},
    state::{self, StateRoot},
    visibility::HistoryVisibility,
};
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use storage::{
    Batch, Direction, KeyRange, Signal,
    schema::{self, DirectoryRoomRecord},
};
use tokio::sync::Notify;

pub use self::find::{FindError, FoundUser};
pub(crate) use self::words::name_words;
use self::words::words;
use crate::{
    background::outlive_panics,
    room::{RoomError, RoomShared, content_string, join_rule, membership_of},
};

/// Members that are taken in with one batch.
const BATCH: usize = 500;

/// Rooms whose heads are read at a time when the server starts.
const ROOMS_PAGE: usize = 500;

/// How long a search waits for changes that the directory has not taken in.
const SETTLE: Duration = Duration::from_secs(1);

/// The rooms whose members have changed.
#[derive(Default)]
pub struct ChangedRooms {
    marks: Mutex<Marks>,
    work: Notify,
}

#[derive(Default)]
struct Marks {
    count: u64,
    rooms: BTreeSet<ShortRoomId>,
    stopping: bool,
}

impl ChangedRooms {
    /// Notes that the state of a room is another one.
    pub fn mark(&self, room: ShortRoomId) {
        let mut marks = self.marks.lock();
        marks.count += 1;
        marks.rooms.insert(room);
        self.work.notify_one();
    }

    fn count(&self) -> u64 {
        self.marks.lock().count
    }

    fn stop(&self) {
        self.marks.lock().stopping = true;
        self.work.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.marks.lock().stopping
    }

    fn take(&self) -> (u64, BTreeSet<ShortRoomId>) {
        let mut marks = self.marks.lock();
        (marks.count, std::mem::take(&mut marks.rooms))
    }
}

/// The task that keeps the directory.
pub(crate) struct UserDirectory {
    shared: Arc<RoomShared>,
    taken_in: Signal<u64>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl UserDirectory {
    /// Starts the task.
    pub(crate) fn start(shared: &Arc<RoomShared>) -> Arc<Self> {
        let directory =
            Arc::new(Self { shared: shared.clone(), taken_in: Signal::new(0), task: Mutex::default() });
        let own = directory.clone();
        *directory.task.lock() = Some(tokio::spawn(async move {
            outlive_panics("the user directory", || own.run()).await;
        }));
        directory
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        self.shared.changed_rooms.stop();
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the user directory ended badly");
        }
    }

    async fn run(&self) {
        if let Err(error) = self.catch_up().await {
            tracing::error!(%error, "the user directory could not catch up");
        }
        let changed = &self.shared.changed_rooms;
        while !changed.is_stopping() {
            let (count, rooms) = changed.take();
            for room in rooms {
                if let Err(error) = self.take_in(room).await {
                    tracing::error!(%error, "the user directory could not take a room in");
                }
            }
            self.taken_in.set(count);
            changed.work.notified().await;
        }
    }

    /// Takes in what changed while the server was down.
    async fn catch_up(&self) -> Result<(), RoomError> {
        let storage = self.shared.store.storage();
        let mut range = KeyRange::all();
        loop {
            let rows = storage.range(&schema::ROOMS, range.clone(), Direction::Ascending, ROOMS_PAGE).await?;
            for (room, _) in &rows {
                if self.shared.changed_rooms.is_stopping() {
                    return Ok(());
                }
                match self.take_in(*room).await {
                    // One room must not keep the others out.
                    Err(RoomError::Read(error)) if error.is_damage() => {
                        tracing::error!(room = room.0, %error, "the user directory lacks a room that cannot be read");
                    }
                    result => result?,
                }
            }
            match rows.last() {
                Some((room, _)) if rows.len() == ROOMS_PAGE => range = range.after(room),
                _ => return Ok(()),
            }
        }
    }

    /// Takes in the members of a room as they are now.
    async fn take_in(&self, room: ShortRoomId) -> Result<(), RoomError> {
        let store = &self.shared.store;
        let Some(head) = store.storage().get(&schema::ROOMS, &room).await? else { return Ok(()) };
        let known = store.storage().get(&schema::DIRECTORY_ROOMS, &room).await?.unwrap_or_default();
        if known.root == head.root {
            return Ok(());
        }
        let changes = self.changes(known.root, head.root).await?;
        let mut batch = Batch::default();
        for (number, change) in changes.iter().enumerate() {
            self.take_in_member(&mut batch, room, change).await?;
            if number % BATCH == BATCH - 1 {
                store.storage().commit(std::mem::take(&mut batch)).await.map_err(RoomError::Commit)?;
                if self.shared.changed_rooms.is_stopping() {
                    return Ok(());
                }
            }
        }
        self.note_own_departure(&mut batch, room, &changes, head.root).await?;
        let rules = store.state_event(head.root, "m.room.join_rules", "").await?;
        let visibility = store.state_event(head.root, "m.room.history_visibility", "").await?;
        let visibility = HistoryVisibility::of(visibility.as_ref().map(|event| &*event.pdu));
        let is_open = join_rule(rules.as_ref().map(|event| &*event.pdu)) == "public"
            || visibility == HistoryVisibility::WorldReadable;
        batch.put(&schema::DIRECTORY_ROOMS, &room, &DirectoryRoomRecord { root: head.root, is_open });
        store.storage().commit(batch).await.map_err(RoomError::Commit)
    }

    /// The members who differ between two states.
    async fn changes(&self, from: StateRoot, to: StateRoot) -> Result<Vec<state::Change>, RoomError> {
        const MEMBER: &str = "m.room.member";
        let store = &self.shared.store;
        if !from.is_empty() {
            let mut changes = store.with_nodes(|nodes| state::diff(nodes, from, to)).await?;
            changes.retain(|change| change.kind == MEMBER);
            return Ok(changes);
        }
        let mut changes: Vec<state::Change> = Vec::new();
        loop {
            let page = store
                .with_nodes(|nodes| {
                    let after = changes.last().map_or(Bound::Unbounded, |last| {
                        Bound::Excluded((last.kind.as_str(), last.state_key.as_str()))
                    });
                    state::range(nodes, to, after, Some(MEMBER), BATCH)
                })
                .await?;
            let is_last = page.len() < BATCH;
            changes.extend(page.into_iter().map(|entry| {
                let state::Entry { kind, state_key, event } = entry;
                state::Change { kind, state_key, before: None, after: Some(event) }
            }));
            if is_last {
                return Ok(changes);
            }
        }
    }

    async fn take_in_member(
        &self,
        batch: &mut Batch,
        room: ShortRoomId,
        change: &state::Change,
    ) -> Result<(), RoomError> {
        let Ok(user_id) = UserId::parse(&change.state_key) else { return Ok(()) };
        if let Some(before) = change.before {
            for word in self.words_at(&user_id, before).await?.unwrap_or_default() {
                batch.delete(&schema::USER_WORDS, &(word, user_id.to_string(), room));
            }
        }
        let after = match change.after {
            Some(after) => self.words_at(&user_id, after).await?.map(|words| (after, words)),
            None => None,
        };
        let key = (user_id.clone(), room);
        let Some((event, words)) = after else {
            batch.delete(&schema::USER_ROOMS, &key);
            return self.note_departure(batch, &user_id, room).await;
        };
        for word in words {
            batch.put(&schema::USER_WORDS, &(word, user_id.to_string(), room), &());
        }
        batch.put(&schema::USER_ROOMS, &key, &event);
        Ok(())
    }

    /// If this server is out of a room, notes that its members are.
    async fn note_own_departure(
        &self,
        batch: &mut Batch,
        room: ShortRoomId,
        changes: &[state::Change],
        root: StateRoot,
    ) -> Result<(), RoomError> {
        let own = &self.shared.server_name;
        let is_own = |change: &state::Change| {
            UserId::parse(&change.state_key).is_ok_and(|user_id| user_id.server_name() == *own)
        };
        let storage = self.shared.store.storage();
        if !changes.iter().any(is_own)
            || storage.get(&schema::ROOM_SERVERS, &(room, own.clone())).await?.is_some()
        {
            return Ok(());
        }
        for member in self.changes(StateRoot::default(), root).await? {
            if let Ok(user_id) = UserId::parse(&member.state_key) {
                self.note_departure(batch, &user_id, room).await?;
            }
        }
        Ok(())
    }

    /// Notes that nothing is heard of the devices of another server's user, if this was the last room that was shared.
    async fn note_departure(
        &self,
        batch: &mut Batch,
        user_id: &OwnedUserId,
        room: ShortRoomId,
    ) -> Result<(), RoomError> {
        let own = &self.shared.server_name;
        let storage = self.shared.store.storage();
        if user_id.server_name() == *own
            || storage.get(&schema::REMOTE_DEVICE_LISTS, user_id).await?.is_none()
        {
            return Ok(());
        }
        let all = KeyRange::prefix(&(user_id.clone(),));
        let rows = storage.range(&schema::USER_ROOMS, all, Direction::Ascending, usize::MAX).await?;
        let others = rows.into_iter().filter(|((_, other), _)| *other != room);
        let keys = others.map(|((_, other), _)| (other, own.clone()));
        if storage.get_many(&schema::ROOM_SERVERS, keys).await?.iter().all(Option::is_none) {
            batch.put(&schema::DEPARTED_USERS, user_id, &());
        }
        Ok(())
    }

    /// The words of a membership event, if it is that of a joined member.
    async fn words_at(
        &self,
        user_id: &UserId,
        event: ShortEventId,
    ) -> Result<Option<BTreeSet<String>>, RoomError> {
        let event = self.shared.store.event(event).await?;
        if membership_of(&event.pdu) != "join" {
            return Ok(None);
        }
        Ok(Some(words(user_id, content_string(&event.pdu, "displayname").as_deref())))
    }

    /// Waits until what has changed so far is taken in, but not for long.
    pub(crate) async fn settle(&self) {
        let wanted = self.shared.changed_rooms.count();
        let mut taken_in = self.taken_in.watch();
        let settled = taken_in.wait_for(|count| *count >= wanted);
        // Who cannot wait finds what is known.
        let _ = tokio::time::timeout(SETTLE, settled).await;
    }
}
