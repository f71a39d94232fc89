//! State resolution of room versions 2 to 12.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedEventId, room_version_rules::StateResolutionV2Rules};

use super::{
    AgreedState, EventSource, Lacking, MissingEvents, Partial, StateSet, States, chain, fetch, is_allowed,
};
use crate::{
    auth::{Level, Powers},
    pdu::Pdu,
    room_version::RoomVersion,
};

pub(super) fn resolve<A: AgreedState>(
    version: &RoomVersion,
    rules: StateResolutionV2Rules,
    states: &States<'_, A>,
    source: &impl EventSource,
) -> Result<StateSet, Lacking> {
    // The full conflicted set.
    let mut full: BTreeSet<_> = states.differing.iter().flat_map(BTreeMap::values).cloned().collect();
    if rules.consider_conflicted_state_subgraph {
        full.extend(chain::subgraph(&full, source)?);
    }
    extend_by_difference(&mut full, states, source)?;
    // 1. The power events, with those of their auth chains that are conflicted too.
    let power_events = power_events(&full, source)?;
    let sorted = sort_by_power(version, &power_events, source)?;
    // 2. A partially resolved state.
    let base = (!rules.begin_iterative_auth_checks_with_empty_state_map).then_some(states);
    let mut state = Partial { resolved: StateSet::new(), base };
    apply_allowed(version, &mut state, &sorted, source)?;
    // 3. The others, by the mainline of its power levels.
    let others: Vec<_> = full.difference(&power_events).cloned().collect();
    let sorted = sort_by_mainline(&state, &others, source)?;
    // 4. The resolved state.
    apply_allowed(version, &mut state, &sorted, source)?;
    // 5. What nobody disputes stays.
    let mut resolved = StateSet::new();
    for (key, id) in state.resolved {
        if states.agreed(&key)?.is_none() {
            resolved.insert(key, id);
        }
    }
    Ok(resolved)
}

/// Adds the auth difference: the events that are in the auth chains of some states, but not of all.
///
/// A state's chain is that of its differing events and that of the agreed ones, and the latter is in the chain of
/// every state. So an event is in the difference exactly if it is in the chains of the differing events of some
/// states, but not of all, and the agreed state does not lead to it. What is in the full conflicted set anyway need
/// not be asked for, which is nearly always everything: two states mostly differ by an event and one that it replaced.
/// Spec: room version 2, "Definitions", "Auth difference".
fn extend_by_difference(
    full: &mut BTreeSet<OwnedEventId>,
    states: &States<'_, impl AgreedState>,
    source: &impl EventSource,
) -> Result<(), Lacking> {
    let mut difference = chain::difference(states.differing, source)?;
    difference.retain(|id| !full.contains(id));
    if !difference.is_empty() {
        let agreed = states.agreed.leads_to(&difference)?;
        full.extend(difference.into_iter().filter(|id| !agreed.contains(id)));
    }
    Ok(())
}

/// Spec: room version 2, "Definitions", "Power events".
fn is_power_event(event: &Pdu) -> bool {
    match (event.kind(), event.state_key()) {
        ("m.room.power_levels" | "m.room.join_rules" | "m.room.create", Some("")) => true,
        ("m.room.member", Some(target)) if target != event.sender().as_str() => {
            let content: serde_json::Value = serde_json::from_str(event.content().get()).unwrap_or_default();
            matches!(content["membership"].as_str(), Some("leave" | "ban"))
        }
        _ => false,
    }
}

fn power_events(
    full: &BTreeSet<OwnedEventId>,
    source: &impl EventSource,
) -> Result<BTreeSet<OwnedEventId>, MissingEvents> {
    let mut found = BTreeSet::new();
    let mut open = Vec::new();
    for id in full {
        if is_power_event(&fetch(source, id)?.event) {
            open.push(id.clone());
        }
    }
    while let Some(id) = open.pop() {
        let event = fetch(source, &id)?.event;
        if found.insert(id) {
            open.extend(event.auth_events().iter().filter(|id| full.contains(*id)).cloned());
        }
    }
    Ok(found)
}

/// The reverse topological power ordering.
///
/// Spec: room version 2, "Definitions".
fn sort_by_power(
    version: &RoomVersion,
    ids: &BTreeSet<OwnedEventId>,
    source: &impl EventSource,
) -> Result<Vec<Arc<Pdu>>, MissingEvents> {
    let mut waiting = BTreeMap::<OwnedEventId, BTreeSet<OwnedEventId>>::new();
    let mut ready = BTreeMap::new();
    for id in ids {
        let event = fetch(source, id)?.event;
        let before: BTreeSet<_> =
            event.auth_events().iter().filter(|id| ids.contains(*id)).cloned().collect();
        if before.is_empty() {
            ready.insert(power_order(version, &event, source)?, event);
        } else {
            waiting.insert(id.clone(), before);
        }
    }
    let mut sorted = Vec::with_capacity(ids.len());
    while let Some((_, event)) = ready.pop_first() {
        let mut freed = Vec::new();
        for (id, before) in &mut waiting {
            if before.remove(event.event_id()) && before.is_empty() {
                freed.push(id.clone());
            }
        }
        for id in freed {
            waiting.remove(&id);
            let event = fetch(source, &id)?.event;
            ready.insert(power_order(version, &event, source)?, event);
        }
        sorted.push(event);
    }
    Ok(sorted)
}

/// Among events that could come next: more power first, then older, then by ID.
type PowerOrder = (Reverse<Option<Level>>, u64, OwnedEventId);

fn power_order(
    version: &RoomVersion,
    event: &Arc<Pdu>,
    source: &impl EventSource,
) -> Result<PowerOrder, MissingEvents> {
    let (mut create, mut power_levels) = (None, None);
    for id in event.auth_events() {
        let auth_event = fetch(source, id)?.event;
        match (auth_event.kind(), auth_event.state_key()) {
            ("m.room.create", Some("")) => create = Some(auth_event),
            ("m.room.power_levels", Some("")) => power_levels = Some(auth_event),
            _ => {}
        }
    }
    if version.authorization.room_create_event_id_as_room_id && event.kind() != "m.room.create" {
        let id = OwnedEventId::try_from(format!("${}", event.room_id().as_str().trim_start_matches('!')));
        create = id.ok().map(|id| fetch(source, &id)).transpose()?.map(|create| create.event);
    }
    if event.kind() == "m.room.create" {
        create = Some(event.clone());
    }
    let level = create.and_then(|create| Powers::level_of(event.sender(), &create, power_levels, version));
    Ok((Reverse(level), event.origin_server_ts().get().into(), event.event_id().clone()))
}

/// The mainline ordering.
///
/// Spec: room version 2, "Definitions".
fn sort_by_mainline(
    state: &Partial<'_, impl AgreedState>,
    ids: &[OwnedEventId],
    source: &impl EventSource,
) -> Result<Vec<Arc<Pdu>>, Lacking> {
    let mut mainline = BTreeMap::new();
    let mut next = state.get(&("m.room.power_levels".to_owned(), String::new()))?;
    while let Some(id) = next {
        next = power_levels_of(&fetch(source, &id)?.event, source)?;
        let place = mainline.len();
        mainline.insert(id, place);
    }
    let mut sorted = BTreeMap::new();
    for id in ids {
        let event = fetch(source, id)?.event;
        let mut place = usize::MAX;
        let mut next = Some(id.clone());
        while let Some(id) = next {
            if let Some(found) = mainline.get(&id) {
                place = *found;
                break;
            }
            next = power_levels_of(&fetch(source, &id)?.event, source)?;
        }
        let key = (Reverse(place), u64::from(event.origin_server_ts().get()), id.clone());
        sorted.insert(key, event);
    }
    Ok(sorted.into_values().collect())
}

/// The power levels among an event's auth events.
fn power_levels_of(event: &Pdu, source: &impl EventSource) -> Result<Option<OwnedEventId>, MissingEvents> {
    for id in event.auth_events() {
        let auth_event = fetch(source, id)?.event;
        if auth_event.kind() == "m.room.power_levels" && auth_event.state_key() == Some("") {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

/// The iterative auth checks.
///
/// Spec: room version 2, "Definitions".
fn apply_allowed(
    version: &RoomVersion,
    state: &mut Partial<'_, impl AgreedState>,
    events: &[Arc<Pdu>],
    source: &impl EventSource,
) -> Result<(), Lacking> {
    for event in events {
        let Some(state_key) = event.state_key() else { continue };
        if is_allowed(version, event, state, source)? {
            let key = (event.kind().to_owned(), state_key.to_owned());
            state.resolved.insert(key, event.event_id().clone());
        }
    }
    Ok(())
}
