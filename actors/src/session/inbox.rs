//! To-device messages: a device's inbox, and the transactions that a device has sent.
//!
//! Spec: client-server API, "Send-to-Device messaging".

use engine::id::Position;
use ruma::{DeviceId, OwnedDeviceId, OwnedServerName, OwnedUserId, TransactionId};
use sha2::{Digest, Sha256};
use storage::{Direction, KeyRange, schema};

use super::{SessionChange, SessionError, SessionHandle, SessionMessage, change::Draft, data::shared_json};

/// Messages that wait for one device, at most: a device that never syncs must not fill the disk. The oldest go.
const INBOX_MAX: usize = 10_000;

/// Messages in one `/sync` response.
pub const PAGE: usize = 100;

/// Bytes of messages in one `/sync` response, unless one alone has more: phones read it whole, and the rest comes with the next.
const PAGE_BYTES: usize = 1 << 20;

/// Transactions that are remembered per device.
const TXNS_MAX: usize = 128;

const TXNS: &str = "txns";

/// By what messages are known if they come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedId {
    /// The server that they come from, which may be this one.
    pub origin: OwnedServerName,
    /// Its ID for them.
    pub message_id: String,
}

/// What waits for a device.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The messages, oldest first.
    pub messages: Vec<Box<serde_json::value::RawValue>>,
    /// The last message's position, if further ones wait.
    pub more_after: Option<Position>,
}

impl SessionChange {
    /// How many positions the change takes. A device that is sent a message by its name and another one as one of all gets both,
    /// although the specification has no more than one for each device: so these are told apart.
    pub(super) fn positions(&self) -> u64 {
        let Self::Deliver(messages, _) = self else { return 1 };
        let is_to = |all: bool| messages.iter().any(|(device_id, _)| device_id.is_none() == all);
        if is_to(true) && is_to(false) { 2 } else { 1 }
    }
}

impl Draft {
    /// Puts messages into inboxes: of one device each, or of all devices if none is named.
    pub(super) fn deliver(
        &mut self,
        messages: Vec<(Option<OwnedDeviceId>, String)>,
        ReceivedId { origin, message_id }: ReceivedId,
    ) {
        let row = (origin, message_id, self.user_id().clone());
        self.batch.put(&schema::RECEIVED_MESSAGES, &row, &u64::from(self.now.get()));
        for (device_id, json) in messages {
            let (devices, position) = match device_id {
                // Spec: messages to devices that do not exist are dropped.
                Some(device_id) if !self.data.devices.contains_key(&device_id) => continue,
                Some(device_id) => (vec![device_id], self.ticket.last()),
                None => (self.device_ids(), self.ticket.first()),
            };
            for device_id in devices {
                let row = (self.user_id().clone(), device_id.clone(), position);
                self.batch.put(&schema::TO_DEVICE, &row, &json);
                self.is_news = true;
                let mut inbox = self.data.keys.inbox.get(&device_id).cloned().unwrap_or_default();
                inbox.insert(position);
                if inbox.len() > INBOX_MAX
                    && let Some(oldest) = inbox.remove_min()
                {
                    self.batch.delete(&schema::TO_DEVICE, &(row.0, row.1, oldest));
                }
                self.data.keys.inbox.insert(device_id, inbox);
            }
        }
    }

    /// Forgets the messages that a device has.
    pub(super) fn acknowledge(&mut self, device_id: &DeviceId, upto: Position) {
        let Some(inbox) = self.data.keys.inbox.get(device_id) else { return };
        let (done, left): (Vec<_>, Vec<_>) = inbox.iter().copied().partition(|position| *position <= upto);
        for position in done {
            let row = (self.user_id().clone(), device_id.to_owned(), position);
            self.batch.delete(&schema::TO_DEVICE, &row);
        }
        if left.is_empty() {
            self.data.keys.inbox.remove(device_id);
        } else {
            self.data.keys.inbox.insert(device_id.to_owned(), left.into_iter().collect());
        }
    }

    pub(super) fn note_txn(&mut self, device_id: &DeviceId, hash: [u8; 8]) {
        if !self.data.devices.contains_key(device_id) {
            return;
        }
        self.push_ring(device_id, TXNS, hash, TXNS_MAX);
    }

    /// Lets go of what recipients noted of a transaction of this user's, which is done.
    pub(super) fn let_go_of_notes(&mut self, message_id: &str, recipients: Vec<OwnedUserId>) {
        let own = self.user_id().server_name().to_owned();
        for recipient in recipients {
            self.batch.delete(&schema::RECEIVED_MESSAGES, &(&*own, message_id, &*recipient));
        }
    }
}

fn txn_hash(kind: &str, txn_id: &TransactionId) -> [u8; 8] {
    let digest = Sha256::digest(format!("{kind}\0{txn_id}").as_bytes());
    let mut hash = [0; 8];
    hash.copy_from_slice(&digest[..8]);
    hash
}

/// How many of some messages are in one page.
fn fitting(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0_usize;
    let fits = |(number, size): (usize, usize)| {
        bytes = bytes.saturating_add(size);
        number == 0 || bytes <= PAGE_BYTES
    };
    sizes.enumerate().map(fits).take_while(|fits| *fits).count()
}

impl SessionHandle {
    /// Whether a device has sent this transaction already.
    pub fn has_sent(&self, device_id: &DeviceId, kind: &str, txn_id: &TransactionId) -> bool {
        let hash = txn_hash(kind, txn_id);
        self.data().keys().ring(device_id, TXNS).any(|known| known == hash)
    }

    /// Remembers that a device has sent a transaction, which local recipients know by an ID.
    pub(crate) async fn note_sent(
        &self,
        device_id: OwnedDeviceId,
        kind: &str,
        txn_id: &TransactionId,
        message_id: String,
        recipients: Vec<OwnedUserId>,
    ) -> Result<(), SessionError> {
        let hash = txn_hash(kind, txn_id);
        self.change(SessionChange::NoteTxn { device_id, hash, message_id, recipients }).await
    }

    /// The messages for a device after a position and up to another, a page at most in number and in bytes.
    pub async fn waiting(
        &self,
        device_id: &DeviceId,
        after: Position,
        upto: Position,
    ) -> Result<Waiting, SessionError> {
        let data = self.data();
        let Some(inbox) = data.keys().inbox(device_id) else { return Ok(Waiting::default()) };
        let mut positions = inbox.iter().copied().filter(|position| *position > after && *position <= upto);
        let page: Vec<_> = positions.by_ref().take(PAGE).collect();
        let more_after = positions.next().and(page.last().copied());
        let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(Waiting::default()) };
        let key = |position: &Position| (self.user_id().to_owned(), device_id.to_owned(), *position);
        let range = KeyRange::all().from(&key(first)).up_to(&key(last));
        let mut rows =
            self.shared.storage.range(&schema::TO_DEVICE, range, Direction::Ascending, PAGE).await?;
        let fitting = fitting(rows.iter().map(|(_, json)| json.len()));
        let cut =
            rows.get(fitting).and(rows.get(fitting.saturating_sub(1))).map(|((.., position), _)| *position);
        rows.truncate(fitting);
        let more_after = cut.or(more_after);
        let damaged = |error: serde_json::Error| SessionError::Damaged(error.to_string());
        let messages = rows.into_iter().map(|(_, json)| shared_json(json).map(|json| (*json).to_owned()));
        Ok(Waiting { messages: messages.collect::<Result<_, _>>().map_err(damaged)?, more_after })
    }

    /// Lets go of the messages that a device has acknowledged, without waiting for it.
    pub fn acknowledge(&self, device_id: &DeviceId, upto: Position) {
        let data = self.data();
        let oldest = data.keys().inbox(device_id).and_then(|inbox| inbox.get_min().copied());
        if oldest.is_some_and(|oldest| oldest <= upto) {
            self.cast(SessionMessage::Acknowledge { device_id: device_id.to_owned(), upto });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_one_message_at_least_and_a_mebibyte_at_most() {
        assert_eq!(fitting(std::iter::empty()), 0);
        assert_eq!(fitting([3 << 20, 1].into_iter()), 1);
        assert_eq!(fitting([1, 3 << 20, 1].into_iter()), 1);
        assert_eq!(fitting(std::iter::repeat_n(64 << 10, 100)), 16);
        assert_eq!(fitting(std::iter::repeat_n(100, 100)), 100);
    }
}
