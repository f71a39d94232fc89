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
    room::receive::Verdict,
    state::StateRoot,
};
use ruma::{OwnedEventId, OwnedServerName};
use storage::schema::{self, GapRecord, Standing};

use super::{
    ActiveRoom, RoomError, StoredEvent,
    change::Change,
    receive::{Placement, rank},
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
    /// The server that they came from.
    pub origin: OwnedServerName,
}

impl ActiveRoom {
    /// Puts older events into a hole; returns how many there were.
    pub(super) async fn backfill(&self, change: &mut Change, backfill: Backfill) -> Result<usize, RoomError> {
        let Backfill { gap: at, events, states, origin } = backfill;
        let Some(gap) = change.head.gaps.get(&at).cloned() else { return Ok(0) };
        let room_for = usize::try_from(at.0.saturating_sub(gap.floor.0).saturating_sub(1)).unwrap_or(0);
        let mut accepted: Vec<StoredEvent> = Vec::new();
        let mut open: BTreeSet<OwnedEventId> = gap.missing.iter().cloned().collect();
        for pdu in by_age(events) {
            let known = self.known_event(change, pdu.event_id()).await?;
            if *pdu.room_id() != *self.room_id
                || known.as_ref().is_some_and(|known| known.standing != Standing::Outlier)
            {
                open.remove(pdu.event_id());
                continue;
            }
            let (auth_events, missing) = self.known_events(change, pdu.auth_events()).await?;
            if !missing.is_empty() {
                continue;
            }
            let before = match self.state_before_old(change, &pdu, &states).await? {
                Some(root) => root,
                None => match accepted.last() {
                    Some(older) => older.after,
                    None => continue,
                },
            };
            let evidence = self.evidence(change, &pdu, &auth_events, before).await?;
            let placement = Placement {
                before,
                rank: rank(&auth_events),
                short: known.map(|known| known.short),
                origin: origin.clone(),
                missing: Vec::new(),
                sent_by: None,
            };
            open.remove(pdu.event_id());
            if let Verdict::Rejected(_) = evidence.judge(&pdu, self.rules) {
                self.hide(change, Arc::new(pdu.rejected()), Standing::Rejected, &placement);
                continue;
            }
            for prev in pdu.prev_events() {
                let known = self.known_event(change, prev).await?;
                if known.is_none_or(|known| known.standing == Standing::Outlier) {
                    open.insert(prev.clone());
                }
            }
            let event = self.old_event(change, pdu, &placement).await?;
            change.hidden_ids.insert(event.pdu.event_id().clone(), event.short);
            change.hidden.insert(event.short, Arc::new(event.clone()));
            accepted.push(event);
        }
        let skipped = accepted.len().saturating_sub(room_for);
        let count = accepted.len() - skipped;
        let mut placed = Vec::with_capacity(count);
        for (place, mut event) in accepted.into_iter().rev().take(count).enumerate() {
            let place = i64::try_from(place).unwrap_or(i64::MAX);
            event.index = Some(TimelineIndex(at.0 - 1 - place));
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
        self.move_gap(change, at, count, GapRecord { missing: open.into_iter().collect(), ..gap });
        Ok(count)
    }

    /// The state before an event whose prev events are all known, or whose state was fetched.
    async fn state_before_old(
        &self,
        change: &mut Change,
        pdu: &Pdu,
        states: &BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    ) -> Result<Option<StateRoot>, RoomError> {
        if pdu.kind() == "m.room.create" {
            return Ok(Some(StateRoot::default()));
        }
        let (prevs, missing) = self.known_events(change, pdu.prev_events()).await?;
        let all_placed = prevs.iter().all(|prev| prev.standing != Standing::Outlier);
        if missing.is_empty() && all_placed && !prevs.is_empty() {
            let mut roots = BTreeSet::new();
            for prev in &prevs {
                roots.insert(self.state_after(change, prev).await?);
            }
            return Ok(Some(self.merge(change, roots).await?));
        }
        match states.get(pdu.event_id()) {
            Some(ids) => Ok(Some(self.state_of(change, ids).await?)),
            None => Ok(None),
        }
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

    /// Moves a hole to before the events that were put into it, or closes it.
    fn move_gap(&self, change: &mut Change, at: TimelineIndex, filled: usize, gap: GapRecord) {
        change.head.gaps.remove(&at);
        change.batch.delete(&schema::GAPS, &(self.room, at));
        let at = TimelineIndex(at.0.saturating_sub(i64::try_from(filled).unwrap_or(i64::MAX)));
        let is_full = at.0 <= gap.floor.0.saturating_add(1);
        if !gap.missing.is_empty() && !is_full {
            self.open_gap(change, at, gap);
        }
    }
}

/// Events, each after those of them that it follows; as old as possible first.
fn by_age(events: Vec<Pdu>) -> Vec<Pdu> {
    let mut waiting: BTreeMap<OwnedEventId, Pdu> =
        events.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)).collect();
    let mut sorted = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let is_free = |pdu: &Pdu| !pdu.prev_events().iter().any(|prev| waiting.contains_key(prev));
        // Without a free one the events refer to each other in a circle, which no honest server makes.
        let oldest = waiting
            .values()
            .filter(|pdu| is_free(pdu))
            .min_by_key(|pdu| (pdu.depth(), pdu.origin_server_ts(), pdu.event_id().clone()));
        let Some(id) = oldest.map(|pdu| pdu.event_id().clone()) else { break };
        sorted.extend(waiting.remove(&id));
    }
    sorted
}
