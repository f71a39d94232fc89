//! Walks along auth chains, from high ranks to low, only as far as they are needed.

use std::collections::{BTreeMap, BTreeSet};

use ruma::OwnedEventId;

use super::{EventSource, MissingEvents, Ranked, StateSet, fetch};

/// Finds out which of some events others lead to along their auth events, a page of those others at a time.
pub struct Reach {
    wanted: BTreeSet<OwnedEventId>,
    found: BTreeSet<OwnedEventId>,
    visited: BTreeSet<OwnedEventId>,
    /// Those of the visited whose own auth events are still to be visited.
    open: BTreeSet<OwnedEventId>,
    /// Nothing of a lower rank leads to any of the wanted.
    lowest: u64,
}

impl Reach {
    /// Nothing was walked yet.
    pub fn new(wanted: BTreeSet<OwnedEventId>, source: &impl EventSource) -> Result<Self, MissingEvents> {
        let mut lowest = u64::MAX;
        for id in &wanted {
            lowest = lowest.min(fetch(source, id)?.rank);
        }
        Ok(Self { wanted, found: BTreeSet::new(), visited: BTreeSet::new(), open: BTreeSet::new(), lowest })
    }

    /// Walks from some events, which are not in their own chains.
    ///
    /// If events are missing it is to be called again with the same ones; what was walked before is not walked again.
    pub fn walk<'a>(
        &mut self,
        from: impl IntoIterator<Item = &'a OwnedEventId>,
        source: &impl EventSource,
    ) -> Result<(), MissingEvents> {
        let mut missing = BTreeSet::new();
        for id in from {
            match source.event(id) {
                Some(ranked) => self.open_below(&ranked),
                None => drop(missing.insert(id.clone())),
            }
        }
        let mut unknown = BTreeSet::new();
        while let Some(id) = self.open.pop_last() {
            if self.is_done() {
                return Ok(());
            }
            match source.event(&id) {
                Some(ranked) => self.open_below(&ranked),
                None => drop(unknown.insert(id)),
            }
        }
        missing.extend(unknown.iter().cloned());
        self.open = unknown;
        if missing.is_empty() { Ok(()) } else { Err(MissingEvents(missing)) }
    }

    fn open_below(&mut self, ranked: &Ranked) {
        if ranked.rank <= self.lowest {
            return;
        }
        for id in ranked.event.auth_events() {
            if self.visited.insert(id.clone()) {
                if self.wanted.contains(id) {
                    self.found.insert(id.clone());
                }
                self.open.insert(id.clone());
            }
        }
    }

    /// Whether all were found, so that nothing more is to be walked.
    pub fn is_done(&self) -> bool {
        self.found.len() == self.wanted.len()
    }

    /// The wanted events that were found.
    pub fn into_found(self) -> BTreeSet<OwnedEventId> {
        self.found
    }
}

/// The events to visit, highest rank first, with the states that lead to each.
struct Frontier {
    events: BTreeMap<(u64, OwnedEventId), BTreeSet<usize>>,
    /// How many states there are.
    sets: usize,
    /// How many of the events some state does not lead to.
    partial: usize,
}

impl Frontier {
    fn is_partial(&self, members: &BTreeSet<usize>) -> bool {
        members.len() < self.sets
    }

    fn add(
        &mut self,
        id: &OwnedEventId,
        members: &BTreeSet<usize>,
        source: &impl EventSource,
    ) -> Result<(), MissingEvents> {
        let rank = fetch(source, id)?.rank;
        let sets = self.sets;
        let held = self.events.entry((rank, id.clone())).or_default();
        let was_partial = !held.is_empty() && held.len() < sets;
        held.extend(members);
        let is_partial = held.len() < sets;
        self.partial = self.partial + usize::from(is_partial) - usize::from(was_partial);
        Ok(())
    }

    fn pop(&mut self) -> Option<(OwnedEventId, BTreeSet<usize>)> {
        let ((_, id), members) = self.events.pop_last()?;
        self.partial -= usize::from(self.is_partial(&members));
        Some((id, members))
    }
}

/// The events that are in the auth chains of some states, but not of all.
///
/// Ranks fall along every auth chain, so an event is visited after all that lead to it, and the walk ends where all
/// that is left to visit belongs to every state.
/// Spec: room version 2, "Definitions", "Auth difference".
pub(super) fn difference(
    sets: &[StateSet],
    source: &impl EventSource,
) -> Result<BTreeSet<OwnedEventId>, MissingEvents> {
    let mut frontier = Frontier { events: BTreeMap::new(), sets: sets.len(), partial: 0 };
    for (number, set) in sets.iter().enumerate() {
        let own = BTreeSet::from([number]);
        for id in set.values() {
            for auth_id in fetch(source, id)?.event.auth_events() {
                frontier.add(auth_id, &own, source)?;
            }
        }
    }
    let mut difference = BTreeSet::new();
    while frontier.partial > 0 {
        let Some((id, members)) = frontier.pop() else { break };
        if frontier.is_partial(&members) {
            difference.insert(id.clone());
        }
        for auth_id in fetch(source, &id)?.event.auth_events() {
            frontier.add(auth_id, &members, source)?;
        }
    }
    Ok(difference)
}

/// The events on the paths of auth events between conflicted events, those included.
///
/// Spec: room version 12, "State resolution", "Conflicted state subgraph" (MSC4297).
pub(super) fn subgraph(
    conflicted: &BTreeSet<OwnedEventId>,
    source: &impl EventSource,
) -> Result<BTreeSet<OwnedEventId>, MissingEvents> {
    let mut lowest = u64::MAX;
    let mut frontier = BTreeSet::new();
    for id in conflicted {
        let rank = fetch(source, id)?.rank;
        lowest = lowest.min(rank);
        frontier.insert((rank, id.clone()));
    }
    // Down from the conflicted events: nothing below the lowest of them can lead to one.
    let mut visited = BTreeSet::new();
    while let Some((rank, id)) = frontier.pop_last() {
        for auth_id in fetch(source, &id)?.event.auth_events() {
            let below = fetch(source, auth_id)?.rank;
            if below >= lowest {
                frontier.insert((below, auth_id.clone()));
            }
        }
        visited.insert((rank, id));
    }
    // Up again: an event belongs to it if it is conflicted or one of its auth events belongs to it.
    let mut subgraph = BTreeSet::new();
    for (_, id) in visited {
        let event = fetch(source, &id)?.event;
        if conflicted.contains(&id) || event.auth_events().iter().any(|auth_id| subgraph.contains(auth_id)) {
            subgraph.insert(id);
        }
    }
    Ok(subgraph)
}
