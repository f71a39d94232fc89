//! To-device messages between servers.
//!
//! Ours wait in the durable queues of their destinations until these have taken them. Theirs are delivered once each,
//! by their ID, however often they are sent.
//!
//! Spec: server-server API, "Send-to-device messaging".

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ruma::{OwnedServerName, OwnedUserId, ServerName, TransactionId};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use storage::{Batch, Direction, KeyRange, schema};

use crate::{
    encryption::{Messages, is_deliverable},
    homeserver::Homeserver,
    session::{ReceivedId, Requester, SessionError},
};

/// Bytes of messages in one EDU, about: small enough for those who limit EDUs as they limit events.
const EDU_SIZE: usize = 48 << 10;

/// Characters of a message ID, at most, by the specification; others send longer ones, but no books.
const MESSAGE_ID_MAX: usize = 255;

/// A sender who tries again does so within a week; after that, messages need not be known any more.
const REMEMBERED_MS: u64 = 8 * 24 * 3600 * 1000;

/// Rows that the sweep reads at a time.
const PAGE: usize = 500;

/// An `m.direct_to_device`.
#[derive(Debug, Deserialize)]
pub(super) struct DirectToDevice {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: String,
    message_id: String,
    messages: Messages,
}

impl Homeserver {
    /// Queues messages for the devices of other servers' users; returns when the queues are durable.
    ///
    /// The same transaction makes the same IDs, by which their servers know what they have already.
    pub(crate) async fn send_to_remote_devices(
        &self,
        requester: &Requester,
        kind: &str,
        txn_id: &str,
        messages: Messages,
    ) -> Result<(), SessionError> {
        if !self.federates() || messages.is_empty() {
            return Ok(());
        }
        let mut by_server = BTreeMap::<OwnedServerName, Messages>::new();
        for (user_id, devices) in messages {
            by_server.entry(user_id.server_name().to_owned()).or_default().insert(user_id, devices);
        }
        let device_id = requester.device_key();
        let mut batch = Batch::default();
        let servers: Vec<_> = by_server.keys().cloned().collect();
        for (server, messages) in by_server {
            for (number, part) in parts(messages).into_iter().enumerate() {
                let seed =
                    format!("{}\0{}\0{kind}\0{txn_id}\0{server}\0{number}", requester.user_id, device_id);
                let content = json!({
                    "sender": requester.user_id,
                    "type": kind,
                    "message_id": message_id(&seed),
                    "messages": part,
                });
                let to = std::slice::from_ref(&server);
                self.enqueue_edu(&mut batch, "m.direct_to_device", &content, to);
            }
        }
        self.storage().commit(batch).await.map_err(SessionError::Commit)?;
        self.outbox().nudge(servers);
        Ok(())
    }

    /// By what a transaction of a local device is known to the inboxes of this server.
    pub(crate) fn own_id(&self, requester: &Requester, kind: &str, txn_id: &TransactionId) -> ReceivedId {
        let seed = format!("{}\0{}\0{kind}\0{txn_id}", requester.user_id, requester.device_key());
        ReceivedId { origin: self.server_name().to_owned(), message_id: message_id(&seed) }
    }

    /// Puts messages of another server into the inboxes of their devices.
    pub(super) async fn receive_to_device(
        &self,
        origin: &ServerName,
        edu: DirectToDevice,
    ) -> Result<(), SessionError> {
        let DirectToDevice { sender, kind, message_id, mut messages } = edu;
        if sender.server_name() != origin || message_id.len() > MESSAGE_ID_MAX || kind.len() > MESSAGE_ID_MAX
        {
            return Ok(());
        }
        let own = self.server_name();
        messages.retain(|user_id, _| user_id.server_name() == own);
        for devices in messages.values_mut() {
            devices.retain(|_, content| is_deliverable(content));
        }
        let received = ReceivedId { origin: origin.to_owned(), message_id };
        let messages = self.undelivered(messages, &received).await?;
        self.deliver_to_device(&sender, &kind, messages, &received).await
    }

    /// Forgets the IDs of messages that nobody sends again.
    pub(super) async fn forget_received_messages(&self) -> Result<(), SessionError> {
        let now_ms = self.env().clock.now_ms();
        let mut range = KeyRange::all();
        loop {
            let rows =
                self.storage().range(&schema::RECEIVED_MESSAGES, range, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            range = KeyRange::all().after(last);
            let mut batch = Batch::default();
            for (key, received_ms) in rows {
                if received_ms + REMEMBERED_MS < now_ms {
                    batch.delete(&schema::RECEIVED_MESSAGES, &key);
                }
            }
            self.storage().commit(batch).await.map_err(SessionError::Commit)?;
        }
    }
}

/// An ID of 32 characters.
fn message_id(seed: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(seed.as_bytes())[..24])
}

/// Messages in parts that fit into one EDU each; a single message that does not is a part of its own.
fn parts(messages: Messages) -> Vec<Messages> {
    let mut parts = Vec::new();
    let (mut part, mut size) = (Messages::new(), 0);
    for (user_id, devices) in messages {
        for (device_id, content) in devices {
            let adds = user_id.as_str().len() + device_id.len() + content.to_string().len() + 16;
            if size > 0 && size + adds > EDU_SIZE {
                parts.push(std::mem::take(&mut part));
                size = 0;
            }
            size += adds;
            part.entry(user_id.clone()).or_default().insert(device_id, content);
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;

    #[test]
    fn messages_are_cut_between_devices() {
        let content = json!({ "body": "x".repeat(20 << 10) });
        let devices: BTreeMap<_, _> = (0..5).map(|n| (format!("D{n}"), content.clone())).collect();
        let messages =
            Messages::from([(owned_user_id!("@a:b"), devices.clone()), (owned_user_id!("@c:b"), devices)]);
        let cut = parts(messages.clone());
        assert_eq!(cut.len(), 5);
        assert!(cut.iter().all(|part| json!(part).to_string().len() < 64 << 10));
        let mut joined = Messages::new();
        for part in cut {
            for (user_id, devices) in part {
                joined.entry(user_id).or_default().extend(devices);
            }
        }
        assert_eq!(joined, messages);
        assert_eq!(message_id("x").len(), 32);
    }
}
