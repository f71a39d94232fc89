//! Filling holes in the timeline with events that another server still has.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::{admit::Placement, event::Standing, graph::by_age, hole::Hole, receive::OldStep},
    state::StateRoot,
};
use ruma::OwnedEventId;
use storage::schema::{self, GapRecord};

use super::{ActiveRoom, GivenState, Lacking, RoomError, RoomHandle, StoredEvent, change::Change};

/// Older events, to be put into a hole of the timeline.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The place after the hole.
    pub gap: TimelineIndex,
    /// The events, in any order.
    pub events: Vec<Pdu>,
    /// For events whose prev events are not known either: the state before each of them.
    pub states: BTreeMap<OwnedEventId, GivenState>,
}

impl ActiveRoom {
    /// Puts older events into a hole; returns how many came of it.
    pub(super) async fn backfill(&self, change: &mut Change, backfill: Backfill) -> Result<usize, RoomError> {
        let Backfill { gap: at, events, states } = backfill;
        let (mut roots, mut lacking) = (BTreeMap::new(), BTreeMap::new());
        for (id, state) in states {
            roots.insert(id.clone(), self.decide(change, |room| room.state_of(&state.events)).await?);
            lacking.insert(id, state.lacking);
        }
        let state_events = events.iter().filter(|pdu| pdu.state_key().is_some());
        let known: Vec<_> = state_events.map(|pdu| pdu.event_id().clone()).collect();
        let filled = self.fill(change, at, events, (&roots, &lacking)).await?;
        self.mend(change, known).await?;
        Ok(filled)
    }

    /// Puts older events into a hole, by the states before those whose prev events are not known; returns how many
    /// got a place in the graph, or 1 if none did but the hole turned out to be none. `lacking` says what these states
    /// lack.
    pub(super) async fn fill(
        &self,
        change: &mut Change,
        at: TimelineIndex,
        events: Vec<Pdu>,
        (roots, lacking): (&BTreeMap<OwnedEventId, StateRoot>, &BTreeMap<OwnedEventId, Lacking>),
    ) -> Result<usize, RoomError> {
        let Some(gap) = change.head.gaps.get(&at).cloned() else { return Ok(0) };
        let GapRecord { missing, floor, origin, mut root } = gap;
        let mut hole = Hole { end: at, floor, missing: missing.into_iter().collect() };
        let mut placed = BTreeSet::new();
        for pdu in &events {
            let known = self.known_event(change, pdu.event_id()).await?;
            placed.extend(known.filter(|known| known.has_place()).map(|known| known.pdu.event_id().clone()));
        }
        let mut accepted: Vec<StoredEvent> = Vec::new();
        let mut rejected = Vec::new();
        for pdu in by_age(hole.own(events, &placed)) {
            let pdu = Arc::new(pdu);
            let given = roots.get(pdu.event_id()).copied();
            let (standing, reason, placement) =
                match self.decide(change, |room| room.receive_old(&pdu, given)).await? {
                    OldStep::Wait => continue,
                    OldStep::Done => {
                        hole.missing.remove(pdu.event_id());
                        continue;
                    }
                    OldStep::Settle { standing, reason, placement } => (standing, reason, placement),
                };
            if let Some(reason) = reason {
                tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an older event");
            }
            hole.missing.remove(pdu.event_id());
            hole.missing.extend(placement.missing.iter().cloned());
            // The state before it was given, unless it follows from what comes before.
            let lacking = lacking.get(pdu.event_id()).filter(|_| given == Some(placement.before));
            let note = |change: &mut Change, short| {
                if let Some(lacking) = lacking {
                    self.note_lacking(change, short, lacking);
                }
            };
            if standing == Standing::Rejected {
                let short = self.hide(change, &pdu, standing, &placement);
                note(change, short);
                rejected.push(pdu.event_id().clone());
                continue;
            }
            let event = self.old_event(change, &pdu, &placement).await?;
            note(change, event.short);
            change.hidden_ids.insert(event.pdu.event_id().clone(), event.short);
            change.hidden.insert(event.short, Arc::new(event.clone()));
            accepted.push(event);
        }
        let skipped = accepted.len().saturating_sub(hole.room());
        let count = accepted.len() - skipped;
        let mut placed = Vec::with_capacity(count);
        for (place, mut event) in accepted.into_iter().rev().take(count).enumerate() {
            event.index = Some(hole.place(place));
            // What clients were told by then: tokens of after the hole say nothing of what was in it.
            if let Some(root) = root.take() {
                event.after = root;
            }
            let event = Arc::new(event);
            self.store_event(change, &event);
            change.hidden.insert(event.short, event.clone());
            placed.push(event);
        }
        // Only now that all are in their places, so that none marks a target that is written once more.
        for event in placed {
            self.relate(change, &event).await?;
            self.apply_redactions(change, &event).await?;
        }
        self.redact_unseen(change, &rejected).await?;
        // What came before the hole does not follow at once on what comes after it any more.
        change.head.keep_recent(|event| event.index >= Some(at));
        change.head.recent_is_all = false;
        change.head.gaps.remove(&at);
        change.batch.delete(&schema::GAPS, &(self.room, at));
        if let Some(Hole { end, floor, missing }) = hole.filled(count) {
            let missing = missing.into_iter().collect();
            self.open_gap(change, end, GapRecord { missing, floor, origin, root });
            return Ok(count + rejected.len());
        }
        // That there is no hole is news, too.
        Ok((count + rejected.len()).max(1))
    }

    async fn old_event(
        &self,
        change: &mut Change,
        pdu: &Arc<Pdu>,
        placement: &Placement,
    ) -> Result<StoredEvent, RoomError> {
        let ticket = self.shared.store.storage().reserve(1);
        let has_relations = self.has_relations(change, pdu.event_id()).await?;
        let short = ShortEventId(ticket.last().0);
        change.tickets.push(ticket);
        self.decide(change, |room| room.admit_old(pdu, placement, short, has_relations)).await
    }
}

impl RoomHandle {
    /// Those of some events that are known here, wherever they stand.
    pub(crate) async fn known_events(
        &self,
        ids: &BTreeSet<OwnedEventId>,
    ) -> Result<BTreeMap<OwnedEventId, Arc<StoredEvent>>, RoomError> {
        let room = self.snapshot().room;
        let ids = ids.iter().cloned();
        let shorts = self.storage().get_many(&schema::EVENT_IDS, ids).await?;
        let events = self.events(&shorts.into_iter().flatten().collect::<Vec<_>>()).await?;
        let own = events.into_iter().filter(|event| event.room == room);
        Ok(own.map(|event| (event.pdu.event_id().clone(), event)).collect())
    }

    /// The depth of the deepest event after a hole of the timeline, of those after the newest `limit` holes.
    pub(crate) async fn hole_depth(&self, limit: usize) -> Result<Option<u64>, RoomError> {
        let snapshot = self.snapshot();
        let places = snapshot.head.gaps.keys().rev().take(limit).map(|at| (snapshot.room, *at));
        let shorts = self.storage().get_many(&schema::TIMELINE, places).await?;
        let events = self.events(&shorts.into_iter().flatten().collect::<Vec<_>>()).await?;
        Ok(events.iter().map(|event| event.pdu.depth()).max())
    }
}
