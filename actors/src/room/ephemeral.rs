//! Receipts and typing notices of a room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ractor::{ActorRef, RpcReplyPort};
use ruma::{OwnedUserId, UserId};
use serde_json::json;
use storage::{
    Batch,
    schema::{self, ReceiptRecord},
};
use tokio::time::Instant;

use super::{ActiveRoom, Receipt, RoomError, RoomMessage, Typing};
use crate::hub::Changed;

/// Who is typing, and until when.
#[derive(Default)]
pub(super) struct Typists(BTreeMap<OwnedUserId, Instant>);

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
        let is_typing = timeout.is_some();
        let changed = match timeout {
            Some(timeout) => {
                let timeout = timeout.min(TYPING_MAX);
                myself.send_after(timeout, || RoomMessage::TypingDue);
                self.typists.0.insert(user.to_owned(), Instant::now() + timeout).is_none()
            }
            None => self.typists.0.remove(user).is_some(),
        };
        if changed {
            self.publish_typing();
            self.send_typing(user, is_typing);
        }
    }

    /// Tells other servers of a local user's typing.
    ///
    /// Spec: server-server API, "Typing Notifications".
    fn send_typing(&self, user: &UserId, typing: bool) {
        let content = json!({ "room_id": self.room_id, "user_id": user, "typing": typing });
        self.send_edu(user, format!("typing {} {user}", self.room_id), "m.typing", &content);
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
        let read = json!({ user.as_str(): { "data": data, "event_ids": [receipt.event_id] } });
        let content = json!({ self.room_id.as_str(): { "m.read": read } });
        let thread = receipt.thread.as_deref().unwrap_or_default();
        self.send_edu(user, format!("receipt {} {user} {thread}", self.room_id), "m.receipt", &content);
    }

    fn send_edu(&self, user: &UserId, key: String, edu_type: &str, content: &serde_json::Value) {
        if user.server_name() != self.shared.server_name || !self.shared.outbox.is_open() {
            return;
        }
        let servers = self.shared.outbox.others(self.head.servers.keys());
        let edu = json!({ "edu_type": edu_type, "content": content });
        if let Ok(edu) = serde_json::value::to_raw_value(&edu) {
            self.shared.outbox.send_ephemeral(key, edu, servers);
        }
    }

    /// Ends the notices that have run out.
    pub(super) fn typing_due(&mut self) {
        let now = Instant::now();
        let before = self.typists.0.len();
        self.typists.0.retain(|_, until| *until > now);
        if self.typists.0.len() != before {
            self.publish_typing();
        }
    }

    fn publish_typing(&self) {
        // Not durable: the position only orders the notice among what sync clients have seen.
        let ticket = self.shared.store.storage().reserve(1);
        let typing = Typing { users: self.typists.0.keys().cloned().collect(), position: ticket.last() };
        self.published.typing.store(Arc::new(typing));
        self.shared.hub.room_changed(self.room, Changed::default(), ticket.last());
    }

    /// Sets a public receipt; an older one than the present is ignored.
    pub(super) fn set_receipt(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        mut receipt: Receipt,
        reply: RpcReplyPort<Result<(), RoomError>>,
    ) {
        let held = self.receipts.of(&receipt.user_id, receipt.thread.as_deref());
        if held.is_some_and(|held| held.index >= receipt.index) {
            return drop(reply.send(Ok(())));
        }
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
        batch.put(&schema::ROOMS, &self.room, &self.record(receipt.position));
        let position = receipt.position;
        let reader = receipt.user_id.clone();
        self.send_receipt(&receipt);
        self.receipts.set(receipt);
        let receipts = Arc::new(self.receipts.clone());
        let (shared, published) = (self.shared.clone(), self.published.clone());
        let (room, myself) = (self.room, myself.clone());
        storage.submit(batch, Some(ticket), move |result| {
            match &result {
                Ok(()) => {
                    published.receipts.store(receipts);
                    shared.hub.room_changed(room, Changed::default(), position);
                    shared.hub.push.nudge(&reader);
                }
                Err(error) => drop(myself.cast(RoomMessage::CommitFailed(error.clone()))),
            }
            let _ = reply.send(result.map_err(RoomError::Commit));
        });
    }
}
