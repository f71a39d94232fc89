//! What a server has missed, or was not told of: rooms with news for it, noted durably, without the events themselves.
//!
//! Events that cannot be sent now end here. Those that an actor has are noted in `CATCH_UP` at once; those that do not reach it, or that it
//! has when it crashes, are noted in the outbox until it takes them up. Their rows in `OUTBOX` stay until they are in `CATCH_UP`.

use std::sync::Arc;

use engine::id::Position;
use ruma::{OwnedRoomId, OwnedServerName};
use storage::{Batch, schema};
use tokio::sync::oneshot;

use super::{Destination, Outgoing, outbox::Outbox, transaction::Transaction};

impl Outgoing {
    /// Where there is news for a server, without the event itself.
    pub(super) fn news(self) -> (OwnedRoomId, Position) {
        (self.room_id, self.position)
    }
}

/// An event on its way to a destination's actor. One that does not arrive is noted as missed when this is dropped.
pub struct Handed {
    outgoing: Outgoing,
    /// Where it is noted; nowhere once it has arrived.
    way: Option<(Arc<Outbox>, OwnedServerName)>,
}

impl Handed {
    pub(super) fn new(outgoing: Outgoing, outbox: Arc<Outbox>, server: OwnedServerName) -> Self {
        Self { outgoing, way: Some((outbox, server)) }
    }

    /// It has arrived.
    pub(super) fn take(mut self) -> Outgoing {
        self.way = None;
        self.outgoing.clone()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some((outbox, server)) = self.way.take() {
            outbox.note_missed(&server, [self.outgoing.clone().news()]);
        }
    }
}

impl Destination {
    /// Notes what the server was not told of: its actor did not start, was overwhelmed, or crashed.
    pub(super) fn take_up_missed(&mut self) {
        let missed = self.shared.outbox.take_missed(&self.server);
        drop(self.note_missed(missed));
    }

    /// Notes durably that rooms have news for the server, and lets go of the events themselves.
    ///
    /// Answers, if there was anything to note, with what resolves once it is durable.
    pub(super) fn leave_to_catch_up(
        &mut self,
        events: impl IntoIterator<Item = Outgoing>,
    ) -> Option<oneshot::Receiver<()>> {
        self.note_missed(events.into_iter().map(Outgoing::news))
    }

    /// The same of everything that waits in memory.
    pub(super) fn leave_all_to_catch_up(&mut self) -> Option<oneshot::Receiver<()>> {
        let waiting = std::mem::take(&mut self.pdus);
        self.leave_to_catch_up(waiting)
    }

    /// Takes back what was in a transaction that is not sent again as it was: its events are left to the catch-up, and
    /// its EDUs that are in no table wait again.
    pub(super) fn put_back(&mut self, transaction: Transaction) {
        drop(self.leave_to_catch_up(transaction.pdus));
        self.ephemeral.restore(transaction.ephemeral);
    }

    fn note_missed(
        &mut self,
        news: impl IntoIterator<Item = (OwnedRoomId, Position)>,
    ) -> Option<oneshot::Receiver<()>> {
        let mut batch = Batch::default();
        let mut positions = Vec::new();
        for (room_id, position) in news {
            let from = self.catch_up.get(&room_id).map_or(position, |from| position.min(*from));
            batch.put(&schema::CATCH_UP, &(self.server.clone(), room_id.clone()), &from);
            self.catching.remove(&room_id);
            self.extend(&room_id, position);
            self.catch_up.insert(room_id, from);
            positions.push(position);
        }
        if positions.is_empty() {
            return None;
        }
        let outbox = self.shared.outbox.clone();
        let (done, noted) = oneshot::channel();
        self.shared.storage.submit(batch, None, move |result| {
            if result.is_ok() {
                outbox.acknowledge(&positions);
                let _ = done.send(()); // nobody waits for it but an actor that ends
            }
        });
        Some(noted)
    }
}

impl Drop for Destination {
    /// After a crash there is something left: the server's next actor has it.
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut self.pdus);
        self.shared.outbox.note_missed(&self.server, waiting.into_iter().map(Outgoing::news));
    }
}
