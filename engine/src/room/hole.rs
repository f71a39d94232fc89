//! Holes in the known timeline, which are filled with events that other servers still have.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::collections::{BTreeMap, BTreeSet};

use ruma::OwnedEventId;

use crate::{id::TimelineIndex, pdu::Pdu};

/// Places in the timeline that are kept free where events are missing.
pub const HOLE_PLACES: u64 = 1000;

/// A hole: places between two events of the timeline, and the events that lead on into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The place after the hole.
    pub end: TimelineIndex,
    /// Places above this one, and below the end, are free.
    pub floor: TimelineIndex,
    /// The events that are missing at its end.
    pub missing: BTreeSet<OwnedEventId>,
}

impl Hole {
    /// How many events it has places for.
    pub fn room(&self) -> usize {
        usize::try_from(self.end.0.saturating_sub(self.floor.0).saturating_sub(1)).unwrap_or(0)
    }

    /// The place of an event in it, counted back from its end: 0 is the newest.
    pub fn place(&self, back: usize) -> TimelineIndex {
        let back = i64::try_from(back).unwrap_or(i64::MAX);
        TimelineIndex(self.end.0.saturating_sub(1).saturating_sub(back))
    }

    /// Those of a batch of events that lie in it: what is missing at its end, and what comes before that, but not what
    /// comes only before events that have their places already: that lies in older holes.
    ///
    /// All of them, if none is one that is missing: then nothing says where they belong.
    pub fn own(&self, events: Vec<Pdu>, placed: &BTreeSet<OwnedEventId>) -> Vec<Pdu> {
        let prevs: BTreeMap<_, _> = events.iter().map(|pdu| (pdu.event_id(), pdu.prev_events())).collect();
        let mut open: Vec<_> = self.missing.iter().filter(|id| prevs.contains_key(id)).collect();
        if open.is_empty() {
            return events;
        }
        let mut own = BTreeSet::new();
        while let Some(id) = open.pop() {
            if let Some(prev_events) = prevs.get(id)
                && own.insert(id.clone())
                && !placed.contains(id)
            {
                open.extend(*prev_events);
            }
        }
        events.into_iter().filter(|pdu| own.contains(pdu.event_id())).collect()
    }

    /// What is left of it once so many events are in it; none if it is full, or nothing is missing any more.
    pub fn filled(self, count: usize) -> Option<Self> {
        let end = TimelineIndex(self.end.0.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)));
        let is_full = end.0 <= self.floor.0.saturating_add(1);
        (!self.missing.is_empty() && !is_full).then_some(Self { end, ..self })
    }
}
