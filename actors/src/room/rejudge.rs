//! Judging anew what came while a room's state lacked members.
//!
//! What authorised an event was taken from the event's own auth events then, so that somebody who was banned long ago,
//! say, could go on. Once all members are there, each event goes through the checks again, in the order of the graph
//! and with the states that follow from the whole one. What does not stand leaves the timeline, and what was refused
//! because of it comes in. What clients were shown, and what a redaction took away, cannot be taken back.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU"; MSC3706.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::again::{Again, by_graph},
    state::StateRoot,
};
use ruma::OwnedEventId;
use storage::{Direction, KeyRange, schema};

use super::{ActiveRoom, ReadError, RoomError, StoredEvent, change::Change};

/// What judging anew came to.
#[derive(Default)]
pub(super) struct Rejudged {
    /// Events that were part of the room and are not any more.
    pub(super) out: usize,
    /// Events that were refused and are part of the room now.
    pub(super) came: Vec<ShortEventId>,
}

impl Rejudged {
    /// Whether anything was judged otherwise than before.
    pub(super) fn is_different(&self) -> bool {
        self.out > 0 || !self.came.is_empty()
    }
}

impl ActiveRoom {
    /// Remembers an event that is refused while the state lacks members.
    pub(super) fn note_refused(&self, change: &mut Change, event_id: &OwnedEventId) {
        if change.head.lacks_members
            && let Some(short) = change.hidden_ids.get(event_id)
        {
            let at = change.position();
            change.batch.put(&schema::PARTIAL_REFUSED, &(self.room, at), short);
        }
    }

    /// Forgets which events were refused while the state lacked members.
    pub(super) async fn forget_refused(&self, change: &mut Change) -> Result<(), RoomError> {
        let rows = KeyRange::prefix(&(self.room,));
        let storage = self.shared.store.storage();
        for (key, _) in
            storage.range(&schema::PARTIAL_REFUSED, rows, Direction::Ascending, usize::MAX).await?
        {
            change.batch.delete(&schema::PARTIAL_REFUSED, &key);
        }
        Ok(())
    }

    /// Judges everything since a join anew, from the whole state before it on; the room's extremities and current
    /// state are then what follows from it.
    pub(super) async fn judge_anew(
        &self,
        change: &mut Change,
        join: &StoredEvent,
        full: StateRoot,
    ) -> Result<Rejudged, RoomError> {
        let events = self.events_since_join(change, join).await?;
        let since: BTreeSet<_> = events.iter().map(|event| event.pdu.event_id().clone()).collect();
        change.head.tips = Vec::new();
        change.head.root = full;
        let mut rejudged = Rejudged::default();
        for event in events {
            let is_join = event.short == join.short;
            let pdu = Pdu::from_stored(event.pdu.event_id().clone(), event.pdu.raw().clone())?;
            let event = StoredEvent { pdu: Arc::new(pdu), ..(*event).clone() };
            let full = is_join.then_some(full);
            match self.decide(change, |room| room.judge_again(&event, &since, full)).await? {
                Again::Unknown => {}
                Again::Refused(_, reason) if is_join => return Err(RoomError::Forbidden(reason)),
                Again::Refused(refused, reason) => {
                    tracing::debug!(event_id = %event.pdu.event_id(), %reason, "refused an event after all");
                    rejudged.out += usize::from(event.index.is_some());
                    self.refuse(change, refused).await?;
                }
                Again::Stands(stands, tips) => {
                    if event.index.is_none() {
                        rejudged.came.push(event.short);
                    }
                    let stands = Arc::new(stands);
                    change.replace(&stands);
                    if let Some(mut tips) = tips {
                        change.head.root = stands.after;
                        tips.push(stands);
                        tips.sort_by_key(|tip| tip.short);
                        change.head.tips = tips;
                    }
                }
            }
        }
        self.place(change, &rejudged.came).await?;
        Ok(rejudged)
    }

    /// The events of the timeline since a join, and those that were refused since then, each after those that it
    /// follows.
    pub(super) async fn events_since_join(
        &self,
        change: &Change,
        join: &StoredEvent,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let storage = self.shared.store.storage();
        // What is under way is in the store then.
        storage.commit(storage::Batch::default()).await.map_err(RoomError::Commit)?;
        let from = join.index.ok_or_else(|| ReadError::Lost("the join of a room".to_owned()))?;
        let timeline = KeyRange::prefix(&(self.room,)).from(&(self.room, from));
        let timeline = storage.range(&schema::TIMELINE, timeline, Direction::Ascending, usize::MAX).await?;
        let refused = KeyRange::prefix(&(self.room,));
        let refused =
            storage.range(&schema::PARTIAL_REFUSED, refused, Direction::Ascending, usize::MAX).await?;
        let mut order = BTreeMap::<TimelineIndex, ShortEventId>::new();
        order.extend(timeline.into_iter().map(|((_, index), short)| (index, short)));
        order.extend(refused.into_iter().map(|((_, at), short)| (TimelineIndex::from(at), short)));
        let mut events = Vec::with_capacity(order.len());
        let mut seen = BTreeSet::new();
        for short in order.into_values().filter(|short| seen.insert(*short)) {
            events.push(self.event(change, short).await?);
        }
        Ok(by_graph(&events))
    }

    /// Takes an event out of the timeline, if it is there.
    async fn refuse(&self, change: &mut Change, mut event: StoredEvent) -> Result<(), RoomError> {
        if let Some(index) = event.index.take() {
            self.unrelate(change, &event).await?;
            let sent_ms = u64::from(event.pdu.origin_server_ts().get());
            change.batch.delete(&schema::TIMELINE, &(self.room, index));
            change.batch.delete(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short));
            change.head.keep_recent(|known| known.short != event.short);
        }
        event.after = event.before;
        event.replaces = None;
        change.replace(&Arc::new(event));
        Ok(())
    }

    /// Gives events that were refused a place at the end of the timeline.
    async fn place(&self, change: &mut Change, came: &[ShortEventId]) -> Result<(), RoomError> {
        for short in came {
            let judged = self.event(change, *short).await?;
            let event = self.show(change, &judged).await?;
            self.apply_redactions(change, &event).await?;
        }
        Ok(())
    }
}
