//! What a server has missed, or was not told of: rooms with news for it, noted durably, without the events themselves.

use engine::id::Position;
use ruma::OwnedRoomId;
use storage::{Batch, schema};
use tokio::sync::oneshot;

use super::{Destination, Outgoing};

impl Outgoing {
    /// Where there is news for a server, without the event itself.
    pub(super) fn news(self) -> (OwnedRoomId, Position) {
        (self.room_id, self.position)
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
