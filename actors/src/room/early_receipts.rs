//! Receipts of other servers' users for events that have not come yet: they are kept for a moment, until the event is
//! there. Not durable: a receipt is outdone by the next one.
//!
//! Spec: server-server API, "Receipts".

use std::{sync::Arc, time::Duration};

use ractor::ActorRef;
use tokio::time::Instant;

use super::{ActiveRoom, Receipt, RoomError, RoomHandle, RoomMessage, StoredEvent, change::Change};

/// How long a receipt waits for its event; what is missing has long been fetched by then.
const WAIT: Duration = Duration::from_secs(300);

/// Receipts that wait in a room, at most; the oldest give way.
const WAITING_MAX: usize = 200;

/// Receipts of users of one server among them, at most.
const WAITING_OF_SERVER_MAX: usize = 50;

/// Receipts that wait for their events, oldest first.
#[derive(Default)]
pub(super) struct EarlyReceipts(Vec<(Instant, Receipt)>);

impl EarlyReceipts {
    /// Keeps a receipt in the place of the one that the user had for the same thread.
    fn keep(&mut self, receipt: Receipt, now: Instant) {
        self.0.retain(|(until, held)| {
            let is_same = held.user_id == receipt.user_id && held.thread == receipt.thread;
            *until > now && !is_same
        });
        let server = receipt.user_id.server_name();
        let of_server = |held: &Receipt| held.user_id.server_name() == server;
        if self.0.iter().filter(|(_, held)| of_server(held)).count() >= WAITING_OF_SERVER_MAX
            && let Some(oldest) = self.0.iter().position(|(_, held)| of_server(held))
        {
            self.0.remove(oldest);
        }
        if self.0.len() >= WAITING_MAX {
            self.0.remove(0);
        }
        self.0.push((now + WAIT, receipt));
    }

    /// Takes out those for some events, with the places of these.
    fn take(&mut self, events: &[Arc<StoredEvent>]) -> Vec<Receipt> {
        let mut due = Vec::new();
        self.0.retain(|(_, held)| {
            let event = events.iter().find(|event| *event.pdu.event_id() == held.event_id);
            let index = event.and_then(|event| event.index);
            due.extend(index.map(|index| Receipt { index, ..held.clone() }));
            index.is_none()
        });
        due
    }
}

impl ActiveRoom {
    /// Sets a receipt, as soon as its event is there.
    pub(super) async fn set_early_receipt(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        receipt: Receipt,
    ) -> Result<(), RoomError> {
        let event = self.known_event(&Change::new(self), &receipt.event_id).await?;
        match event.and_then(|event| event.index) {
            Some(index) => self.set_receipt(myself, Receipt { index, ..receipt }, |_| {}),
            None => self.early_receipts.keep(receipt, Instant::now()),
        }
        Ok(())
    }

    /// Sets the receipts that waited for events which are there now.
    pub(super) fn set_waiting_receipts(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        events: &[Arc<StoredEvent>],
    ) {
        if self.early_receipts.0.is_empty() {
            return;
        }
        for receipt in self.early_receipts.take(events) {
            self.set_receipt(myself, receipt, |_| {});
        }
    }
}

impl RoomHandle {
    /// Sets a public receipt for an event that may not have come yet.
    pub(crate) fn set_early_receipt(&self, receipt: Receipt) -> Result<(), RoomError> {
        Ok(self.actor.cast(|place| RoomMessage::EarlyReceipt(Box::new(receipt), place))?)
    }
}

#[cfg(test)]
mod tests {
    use engine::id::{Position, TimelineIndex};
    use ruma::{MilliSecondsSinceUnixEpoch, UInt, owned_event_id};

    use super::*;

    fn receipt(user: &str) -> Receipt {
        Receipt {
            user_id: user.try_into().unwrap(),
            thread: None,
            event_id: owned_event_id!("$event:b"),
            index: TimelineIndex(0),
            ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
            position: Position(0),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_wait_and_not_for_long() {
        let mut early = EarlyReceipts::default();
        let now = Instant::now();
        early.keep(receipt("@carol:c"), now);
        for number in 0..100 {
            early.keep(receipt(&format!("@user{number}:b")), now);
            early.keep(receipt(&format!("@user{number}:b")), now);
        }
        let users: Vec<_> = early.0.iter().map(|(_, held)| held.user_id.as_str()).collect();
        assert_eq!((users.len(), users[0], users[1]), (51, "@carol:c", "@user50:b"));
        for server in 0..10 {
            for number in 0..50 {
                early.keep(receipt(&format!("@user{number}:s{server}")), now);
            }
        }
        assert_eq!(early.0.len(), WAITING_MAX);
        early.keep(receipt("@dave:d"), now + WAIT);
        assert_eq!(early.0.len(), 1);
    }
}
