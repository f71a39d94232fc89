//! State resolution of room version 1.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::OwnedEventId;
use sha1::{Digest, Sha1};

use super::{
    AgreedState, EventSource, Lacking, MissingEvents, Partial, StateKey, StateSet, States, fetch,
    is_allowed_in,
};
use crate::{pdu::Pdu, room_version::RoomVersion};

/// The types whose conflicts are resolved first, in this order.
const AUTH_TYPES: [&str; 3] = ["m.room.power_levels", "m.room.join_rules", "m.room.member"];

pub(super) fn resolve(
    version: &RoomVersion,
    states: &States<'_, impl AgreedState>,
    source: &impl EventSource,
) -> Result<StateSet, Lacking> {
    let mut values = BTreeMap::<&StateKey, BTreeSet<&OwnedEventId>>::new();
    for (key, id) in states.differing.iter().flatten() {
        values.entry(key).or_default().insert(id);
    }
    // A key that only some states have is no conflict here.
    let mut state = Partial { resolved: StateSet::new(), base: Some(states) };
    let mut conflicts = BTreeMap::<&StateKey, Vec<Arc<Pdu>>>::new();
    for (key, ids) in values {
        match ids.first() {
            Some(id) if ids.len() == 1 => drop(state.resolved.insert(key.clone(), (*id).clone())),
            _ => {
                let events = ids.into_iter().map(|id| Ok(fetch(source, id)?.event));
                conflicts.insert(key, events.collect::<Result<_, MissingEvents>>()?);
            }
        }
    }
    for kind in AUTH_TYPES {
        for (key, events) in conflicts.iter_mut().filter(|(key, _)| key.0 == kind) {
            events.sort_by_key(|event| (event.depth(), std::cmp::Reverse(sha1(event))));
            for (place, event) in events.iter().enumerate() {
                if place > 0 && !is_allowed(version, event, &state, source)? {
                    break;
                }
                state.resolved.insert((*key).clone(), event.event_id().clone());
            }
        }
    }
    for (key, events) in conflicts.iter_mut().filter(|(key, _)| !AUTH_TYPES.contains(&key.0.as_str())) {
        events.sort_by_key(|event| (std::cmp::Reverse(event.depth()), sha1(event)));
        for event in events {
            if is_allowed(version, event, &state, source)? {
                state.resolved.insert((*key).clone(), event.event_id().clone());
                break;
            }
        }
    }
    Ok(state.resolved)
}

/// Whether an event is allowed in the state so far, and by nothing else: its own auth events do not count here.
fn is_allowed(
    version: &RoomVersion,
    event: &Arc<Pdu>,
    state: &Partial<'_, impl AgreedState>,
    source: &impl EventSource,
) -> Result<bool, Lacking> {
    Ok(!event.is_rejected() && is_allowed_in(version, event, (state, BTreeMap::new()), source)?)
}

fn sha1(event: &Pdu) -> [u8; 20] {
    Sha1::digest(event.event_id().as_bytes()).into()
}
