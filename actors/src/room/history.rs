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
    room::{
        graph::by_age,
        hole::Hole,
        receive::{Standing, Verdict},
    },
    state::StateRoot,
};
use ruma::OwnedEventId;
use storage::schema::{self, GapRecord};

use super::{
    ActiveRoom, RoomError, RoomHandle, StoredEvent,
    change::Change,
    receive::{Placement, rank_of},
};

/// Older events, to be put into a hole of the timeline.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The place after the hole.
    pub gap: TimelineIndex,
    /// The events, in any order.
    pub events: Vec<Pdu>,
    /// For events whose prev events are not known either: the events of the state before each of them.
    pub states: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
}

impl ActiveRoom {
    /// Puts older events into a hole; returns how many came of it.
    pub(super) async fn backfill(&self, change: &mut Change, backfill: Backfill) -> Result<usize, RoomError> {
        let Backfill { gap: at, events, states } = backfill;
        let mut roots = BTreeMap::new();
        for (id, state) in states {
            roots.insert(id, self.state_of(change, &state).await?);
        }
        self.fill(change, at, events, &roots).await
    }

    /// Puts older events into a hole, by the states before those whose prev events are not known; returns how many
    /// got a place in the graph.
    pub(super) async fn fill(
        &self,
        change: &mut Change,
        at: TimelineIndex,
        events: Vec<Pdu>,
        roots: &BTreeMap<OwnedEventId, StateRoot>,
    ) -> Result<usize, RoomError> {
        let Some(gap) = change.head.gaps.get(&at).cloned() else { return Ok(0) };
        let GapRecord { missing, floor, origin } = gap;
        let mut hole = Hole { end: at, floor, missing: missing.into_iter().collect() };
        let mut accepted: Vec<StoredEvent> = Vec::new();
        let mut rejected = 0;
        for pdu in by_age(events) {
            let known = self.known_event(change, pdu.event_id()).await?;
            if pdu.kind() == "m.room.create" && !self.is_beginning(change, &pdu).await? {
                continue;
            }
            if *pdu.room_id() != *self.room_id || known.as_ref().is_some_and(|known| known.has_place()) {
                hole.missing.remove(pdu.event_id());
                continue;
            }
            let (auth_events, missing) = self.known_events(change, pdu.auth_events()).await?;
            if !missing.is_empty() {
                continue;
            }
            // Without its state an event cannot be judged: what follows it stays at the edge of the hole.
            let Some(before) = self.state_before_old(change, &pdu, roots).await? else { continue };
            let evidence = self.evidence(change, &pdu, &auth_events, before).await?;
            let placement = Placement {
                before,
                rank: rank_of(&auth_events),
                short: known.as_ref().map(|known| known.short),
                origin: origin.clone(),
                missing: Vec::new(),
                sent_by: None,
            };
            hole.missing.remove(pdu.event_id());
            for prev in pdu.prev_events() {
                let known = self.known_event(change, prev).await?;
                if known.is_none_or(|known| !known.has_place()) {
                    hole.missing.insert(prev.clone());
                }
            }
            if let Verdict::Rejected(_) = self.judge(&pdu, known.as_deref(), &evidence) {
                self.hide(change, Arc::new(pdu), Standing::Rejected, &placement);
                rejected += 1;
                continue;
            }
            let event = self.old_event(change, pdu, &placement).await?;
            change.hidden_ids.insert(event.pdu.event_id().clone(), event.short);
            change.hidden.insert(event.short, Arc::new(event.clone()));
            accepted.push(event);
        }
        let skipped = accepted.len().saturating_sub(hole.room());
        let count = accepted.len() - skipped;
        let mut placed = Vec::with_capacity(count);
        for (place, mut event) in accepted.into_iter().rev().take(count).enumerate() {
            event.index = Some(hole.place(place));
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
        change.head.gaps.remove(&at);
        change.batch.delete(&schema::GAPS, &(self.room, at));
        if let Some(Hole { end, floor, missing }) = hole.filled(count) {
            let missing = missing.into_iter().collect();
            self.open_gap(change, end, GapRecord { missing, floor, origin });
        }
        Ok(count + rejected)
    }

    /// Whether an event is the create event that the room's state has.
    async fn is_beginning(&self, change: &Change, pdu: &Pdu) -> Result<bool, RoomError> {
        let create = self.current(change, "m.room.create", "").await?;
        Ok(create.is_some_and(|create| create.pdu.event_id() == pdu.event_id()))
    }

    /// The state before an event whose prev events are all known, or whose state was fetched.
    async fn state_before_old(
        &self,
        change: &mut Change,
        pdu: &Pdu,
        roots: &BTreeMap<OwnedEventId, StateRoot>,
    ) -> Result<Option<StateRoot>, RoomError> {
        if pdu.kind() == "m.room.create" {
            return Ok(Some(StateRoot::default()));
        }
        let (prevs, missing) = self.known_events(change, pdu.prev_events()).await?;
        let all_placed = prevs.iter().all(|prev| prev.has_place());
        if missing.is_empty() && all_placed && !prevs.is_empty() {
            let mut roots = BTreeSet::new();
            for prev in &prevs {
                roots.insert(self.state_after(change, prev).await?);
            }
            return Ok(Some(self.merge(change, roots).await?));
        }
        Ok(roots.get(pdu.event_id()).copied())
    }

    async fn old_event(
        &self,
        change: &mut Change,
        pdu: Pdu,
        placement: &Placement,
    ) -> Result<StoredEvent, RoomError> {
        let ticket = self.shared.store.storage().reserve(1);
        let before = placement.before;
        let has_relations = self.has_relations(change, pdu.event_id()).await?;
        let mut event = StoredEvent {
            short: placement.short.unwrap_or(ShortEventId(ticket.last().0)),
            room: self.room,
            pdu: Arc::new(pdu),
            index: None,
            standing: Standing::Accepted,
            before,
            after: before,
            replaces: None,
            redacted_by: None,
            sent_by: None,
            rank: placement.rank,
            has_relations,
        };
        change.tickets.push(ticket);
        if let Some(state_key) = event.pdu.state_key() {
            let (kind, own) = (event.pdu.kind(), event.short);
            let held =
                self.with_nodes(change, |nodes| engine::state::get(nodes, before, kind, state_key)).await?;
            event.replaces = held.filter(|held| *held != own);
        }
        event.after = self.state_after(change, &event).await?;
        Ok(event)
    }
}

impl RoomHandle {
    /// The depth of the deepest event after a hole of the timeline, of those after the newest `limit` holes.
    pub(crate) async fn hole_depth(&self, limit: usize) -> Result<Option<u64>, RoomError> {
        let snapshot = self.snapshot();
        let places = snapshot.head.gaps.keys().rev().take(limit).map(|at| (snapshot.room, *at));
        let shorts = self.storage().get_many(&schema::TIMELINE, places).await?;
        let events = self.events(&shorts.into_iter().flatten().collect::<Vec<_>>()).await?;
        Ok(events.iter().map(|event| event.pdu.depth()).max())
    }
}
