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

use super::{ActiveRoom, Advice, GivenState, Lacking, RoomError, RoomHandle, StoredEvent, change::Change};

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

/// What became of older events that were put into a hole.
#[derive(Default)]
struct Filling {
    /// Those that clients are to see, oldest first.
    shown: Vec<StoredEvent>,
    /// Those that are part of the graph only, or not even of that.
    hidden: Vec<OwnedEventId>,
    /// How many are redactions that do not apply.
    void: usize,
}

/// How an older event stands from now on. What is history is not judged by the room's present state; but what lies before
/// an event that clients do not see is none, so that nobody gets around a ban by having their events looked for.
///
/// Spec: server-server API, "Soft failure".
fn standing_in_hole(standing: Standing, advice: Advice, is_before_hidden: bool) -> Standing {
    match standing {
        Standing::Accepted if advice == Advice::Refused => Standing::SoftFailed,
        Standing::SoftFailed if advice == Advice::Recommended && !is_before_hidden => Standing::Accepted,
        standing => standing,
    }
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
        let filled = self.fill(change, at, events, Advice::Recommended, (&roots, &lacking)).await?;
        self.mend(change, known).await?;
        Ok(filled)
    }

    /// Puts older events into a hole, by the states before those whose prev events are not known; returns how many
    /// got a place in the graph, or 1 if none did but the hole turned out to be none. `lacking` says what these states
    /// lack, `advice` what the policy server thinks of the events, if it was asked.
    pub(super) async fn fill(
        &self,
        change: &mut Change,
        at: TimelineIndex,
        events: Vec<Pdu>,
        advice: Advice,
        (roots, lacking): (&BTreeMap<OwnedEventId, StateRoot>, &BTreeMap<OwnedEventId, Lacking>),
    ) -> Result<usize, RoomError> {
        let Some(gap) = change.head.gaps.get(&at).cloned() else { return Ok(0) };
        let GapRecord { missing, floor, origin, root } = gap;
        let mut hole = Hole { end: at, floor, missing: missing.into_iter().collect() };
        let mut placed = BTreeSet::new();
        for pdu in &events {
            let known = self.known_event(change, pdu.event_id()).await?;
            placed.extend(known.filter(|known| known.has_place()).map(|known| known.pdu.event_id().clone()));
        }
        let mut filling = Filling::default();
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
                tracing::debug!(event_id = %pdu.event_id(), %reason, "a rule refuses an older event");
            }
            hole.missing.remove(pdu.event_id());
            hole.missing.extend(placement.missing.iter().cloned());
            let standing = standing_in_hole(standing, advice, root.is_some());
            let short = self.keep_old(change, &pdu, standing, &placement, &mut filling).await?;
            if standing == Standing::SoftFailed && advice == Advice::Recommended {
                self.note_refused(change, pdu.event_id());
            }
            // The state before it was given, unless it follows from what comes before.
            let lacking = lacking.get(pdu.event_id()).filter(|_| given == Some(placement.before));
            if let Some(lacking) = lacking {
                self.note_lacking(change, short, lacking);
            }
        }
        let Filling { shown, hidden, void } = filling;
        let count = shown.len().min(hole.room());
        self.show_old(change, &hole, shown, root).await?;
        self.redact_unseen(change, &hidden).await?;
        // What came before the hole does not follow at once on what comes after it any more.
        change.head.keep_recent(|event| event.index >= Some(at));
        change.head.recent_is_all = false;
        change.head.gaps.remove(&at);
        change.batch.delete(&schema::GAPS, &(self.room, at));
        let kept = count + hidden.len() + void;
        if let Some(Hole { end, floor, missing }) = hole.filled(count) {
            let missing = missing.into_iter().collect();
            self.open_gap(change, end, GapRecord { missing, floor, origin, root });
            return Ok(kept);
        }
        // That there is no hole is news, too.
        Ok(kept.max(1))
    }

    /// Keeps an older event as it stands, without a place in the timeline so far.
    async fn keep_old(
        &self,
        change: &mut Change,
        pdu: &Arc<Pdu>,
        standing: Standing,
        placement: &Placement,
        filling: &mut Filling,
    ) -> Result<ShortEventId, RoomError> {
        if standing != Standing::Accepted {
            filling.hidden.push(pdu.event_id().clone());
            return Ok(self.hide(change, pdu, standing, placement));
        }
        let is_void = self.decide(change, |room| room.is_void(pdu, placement.before)).await?;
        let event = self.old_event(change, pdu, placement).await?;
        let short = event.short;
        change.hidden_ids.insert(event.pdu.event_id().clone(), short);
        change.hidden.insert(short, Arc::new(event.clone()));
        if is_void {
            self.store_event(change, &event);
            filling.void += 1;
        } else {
            filling.shown.push(event);
        }
        Ok(short)
    }

    /// Gives older events, oldest first, their places at the end of a hole, as many as it has; `root` is the state that
    /// clients were told of by then, if no event has that place.
    async fn show_old(
        &self,
        change: &mut Change,
        hole: &Hole,
        events: Vec<StoredEvent>,
        root: Option<StateRoot>,
    ) -> Result<(), RoomError> {
        let mut placed = Vec::with_capacity(events.len());
        for (place, mut event) in events.into_iter().rev().take(hole.room()).enumerate() {
            event.index = Some(hole.place(place));
            // Tokens of after the hole say nothing of what was in it.
            event.after = root.filter(|_| place == 0).unwrap_or(event.after);
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
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::{Advice, Standing, standing_in_hole};

    #[test]
    fn only_what_lies_before_hidden_events_is_judged_by_the_present() {
        use Advice::{Recommended, Refused};
        use Standing::{Accepted, Rejected, SoftFailed};
        for (standing, advice, is_before_hidden, expected) in [
            (Accepted, Recommended, false, Accepted),
            (Accepted, Recommended, true, Accepted),
            (Accepted, Refused, false, SoftFailed),
            (SoftFailed, Recommended, false, Accepted),
            (SoftFailed, Recommended, true, SoftFailed),
            (SoftFailed, Refused, false, SoftFailed),
            (Rejected, Recommended, false, Rejected),
        ] {
            let stands = standing_in_hole(standing, advice, is_before_hidden);
            assert_eq!(
                stands, expected,
                "{standing:?}, {advice:?}, before a hidden event: {is_before_hidden}"
            );
        }
    }
}
