//! State resolution: one state from several that disagree.
//!
//! Room version 1 has an algorithm of its own, versions 2 to 11 share one, version 12 changes it in two places.
//! Spec: "State resolution" of room versions 1, 2 and 12 (MSC4297).

mod chain;
mod v1;
mod v2;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, events::StateEventType, room_version_rules::StateResolutionVersion};

use crate::{auth, pdu::Pdu, room_version::RoomVersion};

/// An event type and a state key.
pub type StateKey = (String, String);

/// A room state: the event of each key.
pub type StateSet = BTreeMap<StateKey, OwnedEventId>;

/// An event with its rank.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The event.
    pub event: Arc<Pdu>,
    /// One more than the highest rank of its auth events; 0 without any.
    ///
    /// Computed here, unlike an event's depth, which its server chooses: walks in the order of ranks never meet an event
    /// before all that it authorises.
    pub rank: u64,
}

/// Where events come from.
pub trait EventSource {
    /// An event, if it is known.
    fn event(&self, id: &EventId) -> Option<Ranked>;
}

/// The resolution needs these events; fetch them and call it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state resolution lacks {} events", .0.len())]
pub struct MissingEvents(pub BTreeSet<OwnedEventId>);

/// Resolves several states of a room into one.
pub fn resolve(
    version: &RoomVersion,
    sets: &[StateSet],
    source: &impl EventSource,
) -> Result<StateSet, MissingEvents> {
    let split = Split::new(sets);
    if split.conflicted.is_empty() {
        return Ok(split.unconflicted);
    }
    match &version.state_res {
        StateResolutionVersion::V2(rules) => v2::resolve(version, *rules, sets, split, source),
        _ => v1::resolve(version, sets, source),
    }
}

/// What the states agree on, and the events that they do not.
///
/// Spec: room version 2, "Definitions", "Unconflicted state map and conflicted state set".
struct Split {
    unconflicted: StateSet,
    conflicted: BTreeSet<OwnedEventId>,
}

impl Split {
    fn new(sets: &[StateSet]) -> Self {
        let mut values = BTreeMap::<&StateKey, Vec<&OwnedEventId>>::new();
        for (key, event) in sets.iter().flatten() {
            values.entry(key).or_default().push(event);
        }
        let mut split = Self { unconflicted: StateSet::new(), conflicted: BTreeSet::new() };
        for (key, events) in values {
            if events.len() == sets.len() && events.iter().all(|event| *event == events[0]) {
                split.unconflicted.insert(key.clone(), events[0].clone());
            } else {
                split.conflicted.extend(events.into_iter().cloned());
            }
        }
        split
    }
}

fn fetch(source: &impl EventSource, id: &EventId) -> Result<Ranked, MissingEvents> {
    source.event(id).ok_or_else(|| MissingEvents([id.to_owned()].into()))
}

/// Whether an event is allowed in a state; keys that the state lacks are taken from the event's own auth events.
fn is_allowed(
    version: &RoomVersion,
    event: &Arc<Pdu>,
    state: &StateSet,
    source: &impl EventSource,
) -> Result<bool, MissingEvents> {
    if event.is_rejected() {
        return Ok(false);
    }
    let keys =
        auth::auth_keys(event.event_type(), event.sender(), event.state_key(), event.content(), version);
    let Ok(mut keys) = keys else { return Ok(false) };
    keys.push((StateEventType::RoomCreate, String::new()));
    let mut found = BTreeMap::<StateKey, Arc<Pdu>>::new();
    for id in event.auth_events() {
        let auth_event = fetch(source, id)?.event;
        if let Some(state_key) = auth_event.state_key().filter(|_| !auth_event.is_rejected()) {
            found.insert((auth_event.kind().to_owned(), state_key.to_owned()), auth_event);
        }
    }
    if version.authorization.room_create_event_id_as_room_id && event.kind() != "m.room.create" {
        let id = OwnedEventId::try_from(format!("${}", event.room_id().as_str().trim_start_matches('!')));
        let Ok(id) = id else { return Ok(false) };
        found.insert(("m.room.create".to_owned(), String::new()), fetch(source, &id)?.event);
    }
    for (kind, state_key) in keys {
        let key = (kind.to_string(), state_key);
        if let Some(id) = state.get(&key) {
            let held = fetch(source, id)?.event;
            found.insert(key, held);
        }
    }
    let by_key = |kind: &StateEventType, key: &str| found.get(&(kind.to_string(), key.to_owned())).cloned();
    Ok(auth::check_against(event, by_key, version).is_ok())
}

#[cfg(test)]
mod tests;
