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
    id::{Position, ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::receive::Verdict,
    state::{self, StateRoot},
};
use ruma::OwnedEventId;
use storage::{
    Direction, KeyRange,
    schema::{self, Standing},
};

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
            let anew = if is_join { Some(full) } else { self.before_anew(change, &event, &since).await? };
            let before = anew.unwrap_or(event.before);
            let pdu = Arc::new(Pdu::from_stored(event.pdu.event_id().clone(), event.pdu.raw().clone())?);
            let (auth_events, missing) = self.known_events(change, pdu.auth_events()).await?;
            if !missing.is_empty() {
                continue;
            }
            let root = change.head.root;
            if anew.is_none() {
                // Where something is missing before an event, the room may have moved on there without us.
                change.head.root = self.merge(change, BTreeSet::from([root, before])).await?;
            }
            let verdict = self.evidence(change, &pdu, &auth_events, before).await?.judge(&pdu, self.rules);
            change.head.root = root;
            match verdict {
                Verdict::Rejected(reason) if is_join => return Err(RoomError::Forbidden(reason)),
                Verdict::Rejected(reason) => {
                    tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an event after all");
                    rejudged.out += usize::from(event.index.is_some());
                    let pdu = Arc::new(Pdu::clone(&pdu).rejected());
                    let refused =
                        StoredEvent { pdu, standing: Standing::Rejected, before, ..(*event).clone() };
                    self.refuse(change, refused).await?;
                }
                // What lay in a hole of the timeline was not judged by the state of the moment.
                Verdict::SoftFailed(reason) if !is_old(&event) && !is_join => {
                    tracing::debug!(event_id = %pdu.event_id(), %reason, "soft-failed an event after all");
                    rejudged.out += usize::from(event.index.is_some());
                    let refused =
                        StoredEvent { pdu, standing: Standing::SoftFailed, before, ..(*event).clone() };
                    self.refuse(change, refused).await?;
                }
                Verdict::SoftFailed(_) | Verdict::Accepted => {
                    if event.index.is_none() {
                        rejudged.came.push(event.short);
                    }
                    let accepted =
                        StoredEvent { pdu, standing: Standing::Accepted, before, ..(*event).clone() };
                    self.accept_anew(change, accepted).await?;
                }
            }
        }
        self.place(change, &rejudged.came).await?;
        Ok(rejudged)
    }

    /// The events of the timeline since a join, and those that were refused since then, each after those that it
    /// follows.
    async fn events_since_join(
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

    /// The state before an event by what its prev events are now; none where it is as it was, since they are not known.
    async fn before_anew(
        &self,
        change: &mut Change,
        event: &StoredEvent,
        since: &BTreeSet<OwnedEventId>,
    ) -> Result<Option<StateRoot>, RoomError> {
        let (prevs, missing) = self.known_events(change, event.pdu.prev_events()).await?;
        let is_whole = missing.is_empty() && prevs.iter().all(|prev| prev.has_place());
        // Another server gave the whole state where we did not know what came before.
        if !is_whole || !prevs.iter().any(|prev| since.contains(prev.pdu.event_id())) {
            return Ok(None);
        }
        let mut roots = BTreeSet::new();
        for prev in &prevs {
            roots.insert(self.state_after(change, prev).await?);
        }
        Ok(Some(self.merge(change, roots).await?))
    }

    /// Takes an event into the extremities and the current state.
    async fn accept_anew(&self, change: &mut Change, mut event: StoredEvent) -> Result<(), RoomError> {
        if let Some(state_key) = event.pdu.state_key() {
            let (kind, before) = (event.pdu.kind(), event.before);
            let held = self.with_nodes(change, |nodes| state::get(nodes, before, kind, state_key)).await?;
            event.replaces = held.filter(|held| *held != event.short);
        }
        let own = self.state_after(change, &event).await?;
        event.after = own;
        if is_old(&event) {
            change.replace(&Arc::new(event));
            return Ok(());
        }
        let mut tips = self.tips_beside(change, &event.pdu).await?;
        let mut roots = BTreeSet::from([own]);
        for tip in &tips {
            roots.insert(self.state_after(change, tip).await?);
        }
        // The event itself is looked up where states disagree about it.
        change.replace(&Arc::new(event.clone()));
        event.after = self.merge(change, roots).await?;
        change.head.root = event.after;
        let event = Arc::new(event);
        change.replace(&event);
        tips.push(event);
        tips.sort_by_key(|tip| tip.short);
        change.head.tips = tips;
        Ok(())
    }

    /// Takes an event out of the timeline, if it is there.
    async fn refuse(&self, change: &mut Change, mut event: StoredEvent) -> Result<(), RoomError> {
        if let Some(index) = event.index.take() {
            self.unrelate(change, &event).await?;
            let sent_ms = u64::from(event.pdu.origin_server_ts().get());
            change.batch.delete(&schema::TIMELINE, &(self.room, index));
            change.batch.delete(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short));
            change.head.recent.retain(|known| known.short != event.short);
        }
        event.after = event.before;
        event.replaces = None;
        change.replace(&Arc::new(event));
        Ok(())
    }

    /// Gives events that were refused a place at the end of the timeline.
    async fn place(&self, change: &mut Change, came: &[ShortEventId]) -> Result<(), RoomError> {
        for short in came {
            let ticket = self.shared.store.storage().reserve(1);
            let index = TimelineIndex::from(ticket.last());
            let judged = self.event(change, *short).await?;
            let event =
                Arc::new(StoredEvent { index: Some(index), after: change.head.root, ..(*judged).clone() });
            change.replaced.retain(|held| held.short != *short);
            if let Some(tip) = change.head.tips.iter_mut().find(|tip| tip.short == *short) {
                *tip = event.clone();
            }
            change.head.latest = index;
            change.head.push_recent(event.clone());
            self.store_event(change, &event);
            change.tickets.push(ticket);
            change.events.push(event.clone());
            self.relate(change, &event).await?;
            self.apply_redactions(change, &event).await?;
        }
        Ok(())
    }
}

/// Whether an event was put into a hole of the timeline, so that it got its number later than its place.
fn is_old(event: &StoredEvent) -> bool {
    event.index.is_some_and(|index| index < TimelineIndex::from(Position(event.short.0)))
}

/// Events, each after those of them that it follows; otherwise in the order in which they are.
fn by_graph(events: &[Arc<StoredEvent>]) -> Vec<Arc<StoredEvent>> {
    let places: BTreeMap<OwnedEventId, usize> =
        events.iter().enumerate().map(|(place, event)| (event.pdu.event_id().clone(), place)).collect();
    let mut blocked = vec![0_usize; events.len()];
    let mut blocks = vec![Vec::new(); events.len()];
    for (place, event) in events.iter().enumerate() {
        let prevs: BTreeSet<_> = event.pdu.prev_events().iter().filter_map(|id| places.get(id)).collect();
        blocked[place] = prevs.len();
        for prev in prevs {
            blocks[*prev].push(place);
        }
    }
    let mut ready: BTreeSet<usize> = (0..events.len()).filter(|place| blocked[*place] == 0).collect();
    let mut sorted = Vec::with_capacity(events.len());
    while let Some(place) = ready.pop_first() {
        sorted.push(events[place].clone());
        for next in &blocks[place] {
            blocked[*next] -= 1;
            if blocked[*next] == 0 {
                ready.insert(*next);
            }
        }
    }
    sorted
}
