//! From rooms to destinations: every event of ours that others are to have is in `OUTBOX` until each destination has it,
//! or has noted durably that it is missing there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use dashmap::{DashMap, DashSet};
use engine::id::Position;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::value::RawValue;
use storage::{
    Batch, Direction, KeyRange, Storage, StoreError,
    schema::{self, DestinationRecord},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{Ephemeral, Outgoing, transaction::Outcome};
use crate::room::{RoomStore, StoredEvent};

/// Rows that are read at a time when the server starts.
const PAGE: usize = 500;

/// A destination is told again after this long what it was not told of.
const MISSED_PAUSE: Duration = Duration::from_secs(2);

/// Something for destinations.
pub enum Announcement {
    /// An event.
    Pdu(Outgoing, Vec<OwnedServerName>),
    /// An EDU that may be lost.
    Edu(Ephemeral, Vec<OwnedServerName>),
    /// New rows in `EDU_QUEUE`.
    Queued(Vec<OwnedServerName>),
    /// A sign of life.
    Alive(OwnedServerName),
    /// A server is to be tried again, and when.
    Retry(OwnedServerName, Instant),
    /// How a transaction ended whose actor is gone.
    Orphan(OwnedServerName, Box<Outcome>),
}

/// Says that a transaction is on its way to a server, for as long as it is there.
pub(super) struct UnderWay {
    server: OwnedServerName,
    all: Arc<DashSet<OwnedServerName>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.remove(&self.server);
    }
}

/// What others are to be told of presence.
#[derive(Default)]
pub(crate) struct PresenceNews {
    /// Local users whose presence is another one.
    pub(crate) users: BTreeSet<OwnedUserId>,
    /// Servers that are new in a room, and know nothing of the users there.
    pub(crate) newcomers: BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>,
}

impl PresenceNews {
    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.newcomers.is_empty()
    }
}

/// Where rooms leave what is to be sent.
pub struct Outbox {
    own: OwnedServerName,
    storage: Storage,
    dispatcher: Option<mpsc::UnboundedSender<Announcement>>,
    /// How many destinations have yet to take note of each event.
    open: Mutex<BTreeMap<Position, usize>>,
    /// Events of which destinations were not told, by room and position; their rows in `OUTBOX` are still there.
    missed: Mutex<BTreeMap<OwnedServerName, Vec<(OwnedRoomId, Position)>>>,
    /// Servers that did not take the last transaction.
    backing_off: DashMap<OwnedServerName, DestinationRecord>,
    /// Servers with a transaction on its way, or of which nobody has taken note yet how it ended.
    under_way: Arc<DashSet<OwnedServerName>>,
    /// The newest note in `DEVICE_LIST_OUTBOX`.
    noted_lists: watch::Sender<Position>,
    presence: Mutex<PresenceNews>,
    presence_changed: Notify,
}

impl Outbox {
    /// An outbox, and what comes out of it; nothing comes out of one without federation.
    pub fn new(
        own: OwnedServerName,
        storage: Storage,
        federates: bool,
    ) -> (Arc<Self>, Option<mpsc::UnboundedReceiver<Announcement>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let dispatcher = federates.then_some(sender);
        let receiver = federates.then_some(receiver);
        (
            Arc::new(Self {
                own,
                storage,
                dispatcher,
                open: Mutex::default(),
                missed: Mutex::default(),
                backing_off: DashMap::new(),
                under_way: Arc::default(),
                noted_lists: watch::Sender::new(Position(0)),
                presence: Mutex::default(),
                presence_changed: Notify::new(),
            }),
            receiver,
        )
    }

    /// A note was put into `DEVICE_LIST_OUTBOX`.
    pub fn note_list(&self, position: Position) {
        self.noted_lists.send_if_modified(|newest| {
            let is_newer = *newest < position;
            *newest = position.max(*newest);
            is_newer
        });
    }

    /// Tells of the newest note in `DEVICE_LIST_OUTBOX`.
    pub(crate) fn noted_lists(&self) -> watch::Receiver<Position> {
        self.noted_lists.subscribe()
    }

    /// Whether anything is sent at all.
    pub fn is_open(&self) -> bool {
        self.dispatcher.is_some()
    }

    /// Of some servers, those that are to be sent something.
    pub fn others<'a>(&self, servers: impl Iterator<Item = &'a OwnedServerName>) -> Vec<OwnedServerName> {
        servers.filter(|server| **server != self.own).cloned().collect()
    }

    /// Sends a durable event, whose row in `OUTBOX` was stored with it.
    pub fn announce(&self, outgoing: Outgoing, servers: Vec<OwnedServerName>) {
        if servers.is_empty() {
            return self.remove(&[outgoing.position]);
        }
        self.open.lock().insert(outgoing.position, servers.len());
        self.dispatch(Announcement::Pdu(outgoing, servers));
    }

    /// Sends something that replaces what is older with its key.
    pub fn send_ephemeral(&self, ephemeral: Ephemeral, servers: Vec<OwnedServerName>) {
        if !servers.is_empty() {
            self.dispatch(Announcement::Edu(ephemeral, servers));
        }
    }

    /// Notes that a local user's presence is another one.
    pub(crate) fn note_presence(&self, user_id: &UserId) {
        if self.is_open() {
            self.presence.lock().users.insert(user_id.to_owned());
            self.presence_changed.notify_one();
        }
    }

    /// Notes that servers came to a room.
    pub(crate) fn note_newcomers(
        &self,
        room_id: &RoomId,
        servers: impl IntoIterator<Item = OwnedServerName>,
    ) {
        if self.is_open() {
            self.presence.lock().newcomers.entry(room_id.to_owned()).or_default().extend(servers);
            self.presence_changed.notify_one();
        }
    }

    /// Waits for something to tell of presence; nothing comes without federation.
    pub(crate) async fn changed_presence(&self) -> PresenceNews {
        loop {
            let changed = std::mem::take(&mut *self.presence.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.presence_changed.notified().await;
        }
    }

    /// The rows of an EDU that must not be lost; the destinations are nudged with [`Self::nudge`] once they are durable.
    pub fn enqueue(&self, batch: &mut Batch, edu: &RawValue, servers: &[OwnedServerName]) {
        for server in servers.iter().filter(|server| **server != self.own) {
            let ticket = self.storage.reserve(1);
            let edu = bytes::Bytes::copy_from_slice(edu.get().as_bytes());
            batch.put(&schema::EDU_QUEUE, &(server.clone(), ticket.last()), &edu);
        }
    }

    /// Makes destinations look for new rows in `EDU_QUEUE`.
    pub fn nudge(&self, servers: Vec<OwnedServerName>) {
        self.dispatch(Announcement::Queued(servers));
    }

    /// A server gave a sign of life.
    pub fn alive(&self, server: &ServerName) {
        if self.backing_off.remove(server).is_some() {
            self.dispatch(Announcement::Alive(server.to_owned()));
        }
    }

    /// Whether a server did not take the last transaction.
    pub(crate) fn is_backing_off(&self, server: &ServerName) -> bool {
        self.backing_off.contains_key(server)
    }

    /// A server did not take a transaction.
    pub(super) fn backs_off(&self, server: &ServerName, back_off: DestinationRecord) {
        self.backing_off.insert(server.to_owned(), back_off);
    }

    /// The back-off of a server, which is not in the store if the disk is full.
    pub(super) fn back_off(&self, server: &ServerName) -> Option<DestinationRecord> {
        self.backing_off.get(server).map(|back_off| back_off.clone())
    }

    /// A server took a transaction after some that it did not take.
    pub(super) fn takes_again(&self, server: &ServerName) {
        self.backing_off.remove(server);
    }

    /// A transaction is on its way to a server, until what is returned is dropped.
    pub(super) fn under_way(&self, server: &ServerName) -> UnderWay {
        self.under_way.insert(server.to_owned());
        UnderWay { server: server.to_owned(), all: self.under_way.clone() }
    }

    /// Whether a transaction is on its way to a server, be it of an earlier actor.
    pub(super) fn is_under_way(&self, server: &ServerName) -> bool {
        self.under_way.contains(server)
    }

    /// Has a server tried again after a while.
    pub(super) fn retry_after(&self, server: &ServerName, wait: Duration) {
        self.dispatch(Announcement::Retry(server.to_owned(), Instant::now() + wait));
    }

    /// A transaction ended whose actor had been passivated meanwhile.
    pub(super) fn orphaned(&self, server: OwnedServerName, outcome: Box<Outcome>) {
        self.dispatch(Announcement::Orphan(server, outcome));
    }

    /// Notes that a destination was not told of events. It is told soon, or when it next starts.
    pub(super) fn note_missed(
        &self,
        server: &ServerName,
        news: impl IntoIterator<Item = (OwnedRoomId, Position)>,
    ) {
        let mut news = news.into_iter().peekable();
        if news.peek().is_some() {
            self.missed.lock().entry(server.to_owned()).or_default().extend(news);
            self.retry_after(server, MISSED_PAUSE);
        }
    }

    /// The events of which a destination was not told; it takes note of them now.
    pub(super) fn take_missed(&self, server: &ServerName) -> Vec<(OwnedRoomId, Position)> {
        self.missed.lock().remove(server).unwrap_or_default()
    }

    fn dispatch(&self, announcement: Announcement) {
        if let Some(dispatcher) = &self.dispatcher {
            // Without a dispatcher the server is shutting down; what is durable is sent after the restart.
            let _ = dispatcher.send(announcement);
        }
    }

    /// A destination has these events, or has noted durably that it lacks them.
    pub(super) fn acknowledge(&self, positions: &[Position]) {
        let mut done = Vec::new();
        let mut open = self.open.lock();
        for position in positions {
            if let Some(left) = open.get_mut(position) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    open.remove(position);
                    done.push(*position);
                }
            }
        }
        drop(open);
        self.remove(&done);
    }

    fn remove(&self, positions: &[Position]) {
        if positions.is_empty() {
            return;
        }
        let mut batch = Batch::default();
        for position in positions {
            batch.delete(&schema::OUTBOX, position);
        }
        self.storage.submit(batch, None, |_| {});
    }

    /// Sends again what was not acknowledged before the server stopped.
    pub async fn resume(&self, store: &RoomStore) -> Result<(), crate::room::ReadError> {
        let mut range = KeyRange::all();
        loop {
            let rows = self.storage.range(&schema::OUTBOX, range, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            range = KeyRange::all().after(last);
            for (position, record) in rows {
                let event: Arc<StoredEvent> = match store.event(record.event).await {
                    Ok(event) => event,
                    // It cannot be sent, and must not keep the others from being sent.
                    Err(error) if error.is_damage() => {
                        tracing::error!(room.id = %record.room_id, %error, "an event is not sent to other servers");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let residents = self.residents(event.room).await?;
                let mut servers = self.others(residents.iter());
                servers.extend(record.also);
                servers.sort();
                servers.dedup();
                self.announce(Outgoing { position, room_id: record.room_id, event }, servers);
            }
        }
    }

    async fn residents(&self, room: engine::id::ShortRoomId) -> Result<Vec<OwnedServerName>, StoreError> {
        let all = KeyRange::prefix(&(room,));
        let rows = self.storage.range(&schema::ROOM_SERVERS, all, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, server), _)| server).collect())
    }

    /// The servers that something is left to be sent to.
    pub async fn unfinished(&self) -> Result<Vec<OwnedServerName>, StoreError> {
        let mut servers = Vec::new();
        let mut from = KeyRange::all();
        loop {
            let rows = self.storage.range(&schema::CATCH_UP, from, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            from = KeyRange::all().after(last);
            servers.extend(rows.into_iter().map(|((server, _), _)| server));
        }
        let mut from = KeyRange::all();
        loop {
            let rows = self.storage.range(&schema::EDU_QUEUE, from, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            from = KeyRange::all().after(last);
            servers.extend(rows.into_iter().map(|((server, _), _)| server));
        }
        servers.sort();
        servers.dedup();
        Ok(servers)
    }
}
