//! Judging anew what came while a room's state lacked members.
//!
//! What authorised an event was taken from the event's own auth events then, so that somebody who was banned long ago,
//! say, could go on. Once all members are there, each event goes through the checks again, in the order of the graph
//! and with the states that follow from the whole one. What does not stand leaves the timeline, and what was refused
//! because of it comes in; what a redaction took away that does not stand is there again. What clients were shown cannot
//! be taken back.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU"; MSC3706.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::{Position, ShortEventId, ShortRoomId, TimelineIndex},
    pdu::Pdu,
    room::{
        again::{Again, by_graph},
        event::Standing,
    },
    state::StateRoot,
};
use ruma::OwnedEventId;
use storage::{Direction, KeyRange, Table, schema};

use super::{ActiveRoom, ReadError, RoomError, StoredEvent, change::Change};

/// Where events are noted that came while the state lacked members.
type NotedTable = Table<(ShortRoomId, Position), ShortEventId>;

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

/// What came since a join.
pub(super) struct Since {
    /// The events of the timeline and those beside it, each after those that it follows.
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Those that are part of the graph and not to be shown, whatever the members are.
    hidden: BTreeSet<ShortEventId>,
}

impl ActiveRoom {
    /// Remembers an event that is refused while the state lacks members.
    pub(super) fn note_refused(&self, change: &mut Change, event_id: &OwnedEventId) {
        self.note(change, &schema::PARTIAL_REFUSED, event_id);
    }

    /// Remembers an event that is not shown for another reason, while the state lacks members: what follows it in the
    /// graph goes on from the states there.
    pub(super) fn note_hidden(&self, change: &mut Change, event_id: &OwnedEventId) {
        self.note(change, &schema::PARTIAL_HIDDEN, event_id);
    }

    fn note(&self, change: &mut Change, table: &'static NotedTable, event_id: &OwnedEventId) {
        if change.head.lacks_members
            && let Some(short) = change.hidden_ids.get(event_id)
        {
            let at = change.position();
            change.batch.put(table, &(self.room, at), short);
        }
    }

    /// What was noted, in the order in which it came.
    async fn noted(&self, table: &'static NotedTable) -> Result<Vec<(Position, ShortEventId)>, RoomError> {
        let rows = KeyRange::prefix(&(self.room,));
        let rows = self.shared.store.storage().range(table, rows, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, at), short)| (at, short)).collect())
    }

    /// Forgets what was noted of events while the state lacked members.
    pub(super) async fn forget_noted(&self, change: &mut Change) -> Result<(), RoomError> {
        for table in [&schema::PARTIAL_REFUSED, &schema::PARTIAL_HIDDEN] {
            for (at, _) in self.noted(table).await? {
                change.batch.delete(table, &(self.room, at));
            }
        }
        for tip in self.noted_tips().await? {
            change.batch.delete(&schema::PARTIAL_TIPS, &(self.room, tip));
        }
        for (target, _) in self.redacted_meanwhile().await? {
            change.batch.delete(&schema::PARTIAL_REDACTED, &(self.room, target));
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
        let Since { events, hidden } = self.events_since_join(change, join).await?;
        let since: BTreeSet<_> = events.iter().map(|event| event.pdu.event_id().clone()).collect();
        let former = self.events(change, self.noted_tips().await?).await?;
        change.head.tips = self.decide(change, |room| room.unknown_there(&former, full)).await?;
        change.head.root = full;
        let mut rejudged = Rejudged::default();
        for event in &events {
            let is_join = event.short == join.short;
            let pdu = Pdu::from_stored(event.pdu.event_id().clone(), event.pdu.raw().clone())?;
            let event = StoredEvent { pdu: Arc::new(pdu), ..StoredEvent::clone(event) };
            let (full, is_accepted) = (is_join.then_some(full), event.standing == Standing::Accepted);
            match self.decide(change, |room| room.judge_again(&event, &since, full)).await? {
                Again::Unknown => {}
                Again::Refused(_, reason) if is_join => return Err(RoomError::Forbidden(reason)),
                Again::Refused(refused, reason) => {
                    tracing::debug!(event_id = %event.pdu.event_id(), %reason, "refused an event after all");
                    rejudged.out += usize::from(event.index.is_some());
                    self.refuse(change, refused).await?;
                }
                Again::Stands(stands, _) if hidden.contains(&event.short) && !is_accepted => {
                    let advised_against = StoredEvent { standing: Standing::SoftFailed, ..stands };
                    self.refuse(change, advised_against).await?;
                }
                Again::Stands(stands, tips) => {
                    // A redaction without a target waits for that.
                    if event.index.is_none() && !is_accepted {
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
        self.undo_redactions(change, &events).await?;
        Ok(rejudged)
    }

    /// The events of the timeline since a join, and those that came since then and are not in there.
    pub(super) async fn events_since_join(
        &self,
        change: &Change,
        join: &StoredEvent,
    ) -> Result<Since, RoomError> {
        let storage = self.shared.store.storage();
        // What is under way is in the store then.
        storage.commit(storage::Batch::default()).await.map_err(RoomError::Commit)?;
        let from = join.index.ok_or_else(|| ReadError::Lost("the join of a room".to_owned()))?;
        let timeline = KeyRange::prefix(&(self.room,)).from(&(self.room, from));
        let timeline = storage.range(&schema::TIMELINE, timeline, Direction::Ascending, usize::MAX).await?;
        let (refused, hidden) =
            (self.noted(&schema::PARTIAL_REFUSED).await?, self.noted(&schema::PARTIAL_HIDDEN).await?);
        let mut order = BTreeMap::<TimelineIndex, ShortEventId>::new();
        order.extend(timeline.into_iter().map(|((_, index), short)| (index, short)));
        order.extend(refused.iter().chain(&hidden).map(|(at, short)| (TimelineIndex::from(*at), *short)));
        let mut events = Vec::with_capacity(order.len());
        let mut seen = BTreeSet::new();
        for short in order.into_values().filter(|short| seen.insert(*short)) {
            events.push(self.event(change, short).await?);
        }
        let hidden = hidden.into_iter().map(|(_, short)| short).collect();
        Ok(Since { events: by_graph(&events), hidden })
    }

    /// Takes an event out of the timeline, if it is there.
    pub(super) async fn refuse(&self, change: &mut Change, mut event: StoredEvent) -> Result<(), RoomError> {
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
    pub(super) async fn place(&self, change: &mut Change, came: &[ShortEventId]) -> Result<(), RoomError> {
        for short in came {
            let mut event = self.event(change, *short).await?;
            if !self.decide(change, |room| room.is_withheld(&event.pdu, event.before)).await? {
                event = self.show(change, &event).await?;
            }
            self.apply_redactions(change, &event).await?;
        }
        Ok(())
    }
}
