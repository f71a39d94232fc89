//! Receipts and typing notices of a room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ractor::ActorRef;
use ruma::{OwnedUserId, UserId};
use serde_json::{json, value::RawValue};
use storage::{
    Batch,
    schema::{self, ReceiptRecord},
};
use tokio::time::Instant;

use super::{ActiveRoom, Receipt, RoomError, RoomMessage};
use crate::{
    appservice::EphemeralNews,
    destination::{Ephemeral, EphemeralContent},
    hub::Changed,
};

/// Who is typing, and until when.
#[derive(Default)]
pub(super) struct Typists(BTreeMap<OwnedUserId, Typist>);

struct Typist {
    until: Instant,
    /// When other servers were last told.
    told: Instant,
}

/// Other servers believe a notice for a minute or so; of one that goes on they are told again.
const TELL_AGAIN: Duration = Duration::from_secs(20);

/// Threads of a room in which one user of another server may have receipts: their server can name any number of threads, and all
/// members are sent the receipts. The oldest give way.
const THREADS_MAX: usize = 200;

/// Clients ask for up to 30 s at a time; a longer notice would outlive a client that vanished.
const TYPING_MAX: Duration = Duration::from_secs(120);

impl ActiveRoom {
    /// Starts, prolongs or ends a user's typing notice.
    pub(super) fn set_typing(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        user: &UserId,
        timeout: Option<Duration>,
    ) {
        let now = Instant::now();
        let Some(timeout) = timeout else {
            if self.typists.0.remove(user).is_some() {
                self.publish_typing(std::iter::once(user.to_owned()));
                self.send_typing(user, false);
            }
            return;
        };
        let timeout = timeout.min(TYPING_MAX);
        myself.send_after(timeout, || RoomMessage::TypingDue);
        let before = self.typists.0.get(user).map(|typist| typist.told);
        let told = before.filter(|told| now.duration_since(*told) < TELL_AGAIN);
        let typist = Typist { until: now + timeout, told: told.unwrap_or(now) };
        self.typists.0.insert(user.to_owned(), typist);
        if before.is_none() {
            self.publish_typing(std::iter::once(user.to_owned()));
        }
        if told.is_none() {
            self.send_typing(user, true);
        }
    }

    /// Tells other servers of a local user's typing.
    ///
    /// Spec: server-server API, "Typing Notifications".
    fn send_typing(&self, user: &UserId, typing: bool) {
        let content = json!({ "room_id": self.room_id, "user_id": user, "typing": typing });
        self.send_ephemeral(user, &format!("typing {} {user}", self.room_id), &content, |content| {
            EphemeralContent::Typing(content)
        });
    }

    /// Tells other servers of a local user's receipt.
    ///
    /// Spec: server-server API, "Receipts".
    fn send_receipt(&self, receipt: &Receipt) {
        let user = &receipt.user_id;
        let mut data = json!({ "ts": receipt.ts });
        if let Some(thread) = &receipt.thread {
            data["thread_id"] = thread.as_str().into();
        }
        let content = json!({ "data": data, "event_ids": [receipt.event_id] });
        let thread = receipt.thread.as_deref().unwrap_or_default();
        self.send_ephemeral(
            user,
            &format!("receipt {} {user} {thread}", self.room_id),
            &content,
            |receipt| EphemeralContent::Receipt {
                room_id: self.room_id.clone(),
                user_id: user.clone(),
                receipt,
            },
        );
    }

    fn send_ephemeral(
        &self,
        user: &UserId,
        key: &str,
        content: &serde_json::Value,
        kind: impl FnOnce(Arc<RawValue>) -> EphemeralContent,
    ) {
        if user.server_name() != self.shared.server_name || !self.shared.outbox.is_open() {
            return;
        }
        let servers = self.shared.outbox.others(self.head.census.servers.keys());
        if let Ok(content) = serde_json::value::to_raw_value(content) {
            let ephemeral = Ephemeral { key: key.to_owned(), content: kind(content.into()) };
            self.shared.outbox.send_ephemeral(ephemeral, servers);
        }
    }

    /// Ends the notices that have run out.
    pub(super) fn typing_due(&mut self) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.typists.0);
        let (left, over): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, typist)| typist.until > now);
        self.typists.0 = left;
        if !over.is_empty() {
            self.publish_typing(over.keys().cloned());
        }
        for user in over.keys() {
            self.send_typing(user, false);
        }
    }

    /// Ends the notices of local users who are not in the room any more; other servers see that by themselves.
    pub(super) fn stop_typing(&mut self, users: Vec<OwnedUserId>) {
        let moved: Vec<_> = users.into_iter().filter(|user| self.typists.0.remove(user).is_some()).collect();
        if !moved.is_empty() {
            self.publish_typing(moved.into_iter());
        }
    }

    /// Publishes the list of who is typing, which some users have just come to or gone from.
    fn publish_typing(&self, moved: impl Iterator<Item = OwnedUserId>) {
        // Not durable: the position only orders the notice among what sync clients have seen.
        let ticket = self.shared.store.storage().reserve(1);
        let users: Vec<_> = self.typists.0.keys().cloned().collect();
        self.shared
            .hub
            .services
            .tell(|| EphemeralNews::Typing(self.room, self.room_id.clone(), users.iter().cloned().collect()));
        let typing = self.published.typing.load().next(users, moved, ticket.last());
        self.published.typing.store(Arc::new(typing));
        self.shared.hub.room_changed(self.room, Changed::default(), ticket.last());
    }

    /// Sets a public receipt; an older one than the present is ignored.
    pub(super) fn set_receipt(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        mut receipt: Receipt,
        done: impl FnOnce(Result<(), RoomError>) + std::marker::Send + 'static,
    ) {
        let held = self.receipts.of(&receipt.user_id, receipt.thread.as_deref());
        if held.is_some_and(|held| held.index >= receipt.index) {
            return done(Ok(()));
        }
        let is_new = held.is_none();
        let storage = self.shared.store.storage();
        let ticket = storage.reserve(1);
        receipt.position = ticket.last();
        let mut batch = Batch::default();
        let thread = receipt.thread.clone().unwrap_or_default();
        let record = ReceiptRecord {
            event_id: receipt.event_id.clone(),
            index: receipt.index,
            ts: receipt.ts,
            position: receipt.position,
        };
        batch.put(&schema::RECEIPTS, &(self.room, receipt.user_id.clone(), thread), &record);
        if is_new && let Some(surplus) = self.surplus_thread(&receipt) {
            batch.delete(&schema::RECEIPTS, &(self.room, receipt.user_id.clone(), surplus.clone()));
            self.receipts.remove(&receipt.user_id, surplus);
        }
        batch.put(&schema::ROOMS, &self.room, &self.record(receipt.position));
        let position = receipt.position;
        let reader = receipt.user_id.clone();
        self.send_receipt(&receipt);
        let told = self.shared.hub.services.is_on().then(|| Arc::new(receipt.clone()));
        self.receipts.set(receipt);
        let receipts = Arc::new(self.receipts.clone());
        let (shared, published) = (self.shared.clone(), self.published.clone());
        let (room, room_id, myself) = (self.room, self.room_id.clone(), myself.clone());
        storage.submit(batch, Some(ticket), move |result| {
            match &result {
                Ok(()) => {
                    published.receipts.store(receipts);
                    shared.hub.room_changed(room, Changed::default(), position);
                    shared.hub.push.nudge(&reader);
                    if let Some(receipt) = told {
                        shared.hub.services.tell(|| EphemeralNews::Receipt(room, room_id, receipt));
                    }
                }
                Err(error) => drop(myself.cast(RoomMessage::CommitFailed(error.clone()))),
            }
            done(result.map_err(RoomError::Commit));
        });
    }

    /// The thread whose receipt gives way to one of a thread that is new to its reader.
    fn surplus_thread(&self, receipt: &Receipt) -> Option<String> {
        if receipt.thread.is_none() || receipt.user_id.server_name() == self.shared.server_name {
            return None;
        }
        let is_one = |held: &&Receipt| held.thread.as_deref().is_some_and(|thread| thread != "main");
        let threads: Vec<_> = self.receipts.by_user(&receipt.user_id).filter(is_one).collect();
        let oldest = threads.iter().min_by_key(|held| held.index)?;
        if threads.len() < THREADS_MAX { None } else { oldest.thread.clone() }
    }
}
