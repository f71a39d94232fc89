//! Where a server sent an event after a fork, the state before it is what the specification makes of the branches.
//!
//! All servers of a run share the engine, so that they agree even on a wrong state. This resolves the branches again with
//! ruma's implementation.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use actors::room::{RoomHandle, StoredEvent};
use anyhow::{Context, Result};
use engine::pdu::Pdu;
use ruma::{
    EventId, OwnedEventId,
    room_version_rules::StateResolutionVersion,
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use storage::schema::Standing;

use super::{History, Side};

/// The newest forks of a server that are looked at: for each, whole states and auth chains are read.
const FORKS_MAX: usize = 8;

type State = BTreeMap<(String, String), OwnedEventId>;

pub(super) async fn as_specified(histories: &[History]) -> Result<Option<String>> {
    for History { room, sides } in histories {
        for side in sides {
            for event in forks(side) {
                let Some(expected) = expected(side, event).await? else { continue };
                let state = state_of(&side.handle, event).await?;
                let keys: BTreeSet<_> = state.keys().chain(expected.keys()).collect();
                if let Some(key) = keys.into_iter().find(|key| state.get(*key) != expected.get(*key)) {
                    let (id, host) = (event.pdu.event_id(), &side.host);
                    let (held, right) = (state.get(key), expected.get(key));
                    return Ok(Some(format!(
                        "{room}: before {id} {key:?} is {held:?} on {host}, not {right:?}"
                    )));
                }
            }
        }
    }
    Ok(None)
}

/// The newest events of a server's own users that follow several others.
fn forks(side: &Side) -> impl Iterator<Item = &Arc<StoredEvent>> {
    let mut forks: Vec<_> = side
        .with_standing(Standing::Accepted)
        .map(|(_, event)| event)
        .filter(|event| event.has_state() && event.pdu.prev_events().len() > 1)
        .filter(|event| event.pdu.sender().server_name() == side.host)
        .collect();
    forks.sort_by_key(|event| std::cmp::Reverse(event.index));
    forks.into_iter().take(FORKS_MAX)
}

/// The state before an event.
async fn state_of(room: &RoomHandle, event: &StoredEvent) -> Result<State> {
    let key = |event: &Arc<StoredEvent>| {
        Some(((event.pdu.kind().to_owned(), event.pdu.state_key()?.to_owned()), event.pdu.event_id().clone()))
    };
    Ok(room.state(event.before, None).await?.iter().filter_map(key).collect())
}

/// What the states after the prev events of an event resolve to; none if they are all the same, or not known.
async fn expected(side: &Side, event: &StoredEvent) -> Result<Option<State>> {
    let mut states = BTreeSet::new();
    // Of messages, that is the state before them; most forks are of messages, and whole states are much to read.
    let unchanged = |id| {
        let prev = side.graph.get(id).and_then(Option::as_ref)?;
        prev.pdu.state_key().is_none().then_some(prev.before)
    };
    let roots: BTreeSet<_> = event.pdu.prev_events().iter().map(unchanged).collect();
    if roots.len() == 1 && !roots.contains(&None) {
        return Ok(None);
    }
    for id in event.pdu.prev_events() {
        let Some(Some(prev)) = side.graph.get(id) else { return Ok(None) };
        if !prev.has_state() {
            return Ok(None);
        }
        let mut state = state_of(&side.handle, prev).await?;
        if let Some(state_key) = prev.pdu.state_key()
            && prev.standing != Standing::Rejected
        {
            state.insert((prev.pdu.kind().to_owned(), state_key.to_owned()), id.clone());
        }
        states.insert(state);
    }
    if states.len() == 1 {
        return Ok(None);
    }
    let rules = side.handle.snapshot().rules;
    let StateResolutionVersion::V2(resolution) = &rules.state_res else { return Ok(None) };
    let events = read_chains(&side.handle, states.iter().flat_map(BTreeMap::values)).await?;
    let maps: Vec<StateMap<OwnedEventId>> = states.iter().map(spelled).collect();
    let chains: Vec<EventIdSet<OwnedEventId>> =
        states.iter().map(|state| chain(&events, state.values()).into_iter().collect()).collect();
    let subgraph = |conflicted: &StateMap<Vec<OwnedEventId>>| {
        let conflicted: BTreeSet<_> = conflicted.values().flatten().cloned().collect();
        let above = chain(&events, conflicted.iter()).into_iter().chain(conflicted.iter().cloned());
        let leads_to =
            |id: &OwnedEventId| conflicted.contains(id) || !chain(&events, [id]).is_disjoint(&conflicted);
        Some(above.filter(leads_to).collect())
    };
    let fetch = |id: &EventId| events.get(id).cloned();
    let resolved =
        state_res::resolve(&rules.authorization, resolution, maps.iter(), chains, fetch, subgraph)?;
    Ok(Some(resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), id)).collect()))
}

fn spelled(state: &State) -> StateMap<OwnedEventId> {
    state.iter().map(|((kind, key), id)| ((kind.as_str().into(), key.clone()), id.clone())).collect()
}

/// Events with all that authorises them.
async fn read_chains<'a>(
    room: &RoomHandle,
    from: impl Iterator<Item = &'a OwnedEventId>,
) -> Result<BTreeMap<OwnedEventId, Arc<Pdu>>> {
    let (mut read, mut open) = (BTreeMap::new(), from.cloned().collect::<Vec<_>>());
    while let Some(id) = open.pop() {
        let Entry::Vacant(place) = read.entry(id) else { continue };
        let event = room.any_event(place.key()).await?;
        let event = event.with_context(|| format!("{} authorises others", place.key()))?;
        open.extend(event.pdu.auth_events().iter().cloned());
        place.insert(event.pdu.clone());
    }
    Ok(read)
}

/// All that authorises some events.
fn chain<'a>(
    events: &BTreeMap<OwnedEventId, Arc<Pdu>>,
    from: impl IntoIterator<Item = &'a OwnedEventId>,
) -> BTreeSet<OwnedEventId> {
    let auth_events =
        |id: &OwnedEventId| events.get(id).map_or(&[][..], |event| event.auth_events()).to_vec();
    let mut open: Vec<_> = from.into_iter().flat_map(auth_events).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(auth_events(&id));
        }
    }
    found
}
