//! Walks along auth chains, from high ranks to low, only as far as they are needed.

use std::collections::{BTreeMap, BTreeSet};

use ruma::OwnedEventId;

use super::{EventSource, MissingEvents, StateSet, fetch};

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
