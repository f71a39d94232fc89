//! Letting go of old messages.
//!
//! What is left of one is its place in the graph: it is redacted, so that its content is gone from the store, and taken
//! out of the timeline, so that no client reads it. State events stay, and so do the tips of the graph.
//!
//! Spec: MSC1763, "Server behaviour".

use std::sync::Arc;

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu,
};
use storage::{Direction, KeyRange, schema};

use super::{ActiveRoom, RoomError, RoomHandle, RoomMessage, StoredEvent, change::Change};

/// Events that are looked at with one message; other work of the room goes on in between.
const PAGE: usize = 200;

/// Where a purge goes on: when an event says that it was sent, and the event.
pub type PurgeCursor = (u64, ShortEventId);

/// What became of one page of a purge.
#[derive(Clone, Copy, Debug)]
pub struct Purged {
    /// Events that were let go of.
    pub purged: usize,
    /// Where to go on; none at the end.
    pub next: Option<PurgeCursor>,
}

impl RoomHandle {
    /// Lets go of messages that were sent before a time, a page of them.
    pub async fn purge(&self, before_ms: u64, from: Option<PurgeCursor>) -> Result<Purged, RoomError> {
        self.actor.call(|reply| RoomMessage::Purge(before_ms, from, reply)).await?
    }
}

impl ActiveRoom {
    /// Lets go of messages that were sent before a time, a page of them from a place on.
    pub(super) async fn purge(
        &self,
        change: &mut Change,
        before_ms: u64,
        from: Option<PurgeCursor>,
    ) -> Result<Purged, RoomError> {
        let all = KeyRange::prefix(&(self.room,)).before(&(self.room, before_ms, ShortEventId(0)));
        let range = match from {
            Some((sent_ms, event)) => all.after(&(self.room, sent_ms, event)),
            None => all,
        };
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::EVENTS_BY_TIME, range, Direction::Ascending, PAGE).await?;
        let last = rows.last().map(|((_, sent_ms, event), ())| (*sent_ms, *event));
        let next = last.filter(|_| rows.len() == PAGE);
        let mut purged = 0;
        for ((_, sent_ms, short), ()) in rows {
            let event = self.event(change, short).await?;
            let is_tip = change.head.tips.iter().any(|tip| tip.short == short);
            let Some(index) = event.index.filter(|_| !is_tip && event.pdu.state_key().is_none()) else {
                continue;
            };
            self.let_go(change, &event, (index, sent_ms)).await?;
            purged += 1;
        }
        Ok(Purged { purged, next })
    }

    async fn let_go(
        &self,
        change: &mut Change,
        event: &Arc<StoredEvent>,
        (index, sent_ms): (TimelineIndex, u64),
    ) -> Result<(), RoomError> {
        self.unrelate(change, event).await?;
        let stripped = Arc::new(StoredEvent {
            pdu: Arc::new(pdu::redact(&event.pdu, self.rules)?),
            index: None,
            sent_by: event.sent_by.clone(),
            ..**event
        });
        change.replace(&stripped);
        change.head.keep_recent(|known| known.short != event.short);
        change.batch.delete(&schema::TIMELINE, &(self.room, index));
        change.batch.delete(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short));
        if event.pdu.kind() == "m.room.message" {
            change.batch.put(&schema::PURGED_TEXTS, &event.short, &());
        }
        Ok(())
    }
}
