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

pub use self::chain::Reach;
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

/// What a resolution needs before it can go on; it is to be called again with that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// Events.
    #[error(transparent)]
    Events(#[from] MissingEvents),
    /// What the states have in these keys.
    #[error("state resolution lacks {} keys", .0.len())]
    Keys(BTreeSet<StateKey>),
    /// Which of these events the agreed state leads to.
    #[error("state resolution asks for {} events in the chain of the agreed state", .0.len())]
    Chain(BTreeSet<OwnedEventId>),
}

/// What all states agree on: the keys that have the same event in each of them.
pub trait AgreedState {
    /// The event of a key; asked only for keys that the states do not differ in, so any of them can answer.
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking>;

    /// Those of some events that are in the auth chains of the events that all states agree on; see [`Reach`].
    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking>;
}

/// Resolves several states of a room into one.
pub fn resolve(
    version: &RoomVersion,
    sets: &[StateSet],
    source: &impl EventSource,
) -> Result<StateSet, MissingEvents> {
    let Split { mut agreed, differing } = Split::new(sets);
    let held = Held { state: &agreed, source };
    let resolved =
        resolve_differing(version, &differing, &held, source).map_err(|lacking| match lacking {
            Lacking::Events(missing) => missing,
            // All of the state is at hand.
            Lacking::Keys(_) | Lacking::Chain(_) => MissingEvents(BTreeSet::new()),
        })?;
    agreed.extend(resolved);
    Ok(agreed)
}

/// Resolves several states of a room by what they differ in: for each, its events of the keys that are not the same
/// in all of them. Answers with the events of such keys, and rarely of others that no state has.
///
/// The cost is one of the differences and their auth chains, unless the states' chains differ by events that are not
/// themselves in conflict: then the agreed state is asked whether it leads to those.
pub fn resolve_differing(
    version: &RoomVersion,
    differing: &[StateSet],
    agreed: &impl AgreedState,
    source: &impl EventSource,
) -> Result<StateSet, Lacking> {
    let keys: BTreeSet<&StateKey> = differing.iter().flat_map(BTreeMap::keys).collect();
    if keys.is_empty() {
        return Ok(StateSet::new());
    }
    let states = States { differing, keys, agreed };
    match &version.state_res {
        StateResolutionVersion::V2(rules) => v2::resolve(version, *rules, &states, source),
        _ => v1::resolve(version, &states, source),
    }
}

/// The states to resolve.
struct States<'a, A> {
    differing: &'a [StateSet],
    keys: BTreeSet<&'a StateKey>,
    agreed: &'a A,
}

impl<A: AgreedState> States<'_, A> {
    fn agreed(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        if self.keys.contains(key) { Ok(None) } else { self.agreed.get(key) }
    }
}

/// A state in the making: what was resolved so far, over what it began with.
struct Partial<'a, A> {
    resolved: StateSet,
    /// None if it began empty.
    base: Option<&'a States<'a, A>>,
}

impl<A: AgreedState> Partial<'_, A> {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        match (self.resolved.get(key), self.base) {
            (Some(id), _) => Ok(Some(id.clone())),
            (None, Some(states)) => states.agreed(key),
            (None, None) => Ok(None),
        }
    }
}

/// An agreed state that is wholly at hand.
struct Held<'a, S> {
    state: &'a StateSet,
    source: &'a S,
}

impl<S: EventSource> AgreedState for Held<'_, S> {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        Ok(self.state.get(key).cloned())
    }

    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        let mut reach = Reach::new(events.clone(), self.source)?;
        reach.walk(self.state.values(), self.source)?;
        Ok(reach.into_found())
    }
}

/// What the states agree on, and what each has in the other keys.
///
/// Spec: room version 2, "Definitions", "Unconflicted state map and conflicted state set".
struct Split {
    agreed: StateSet,
    differing: Vec<StateSet>,
}

impl Split {
    fn new(sets: &[StateSet]) -> Self {
        let Some((first, others)) = sets.split_first() else {
            return Self { agreed: StateSet::new(), differing: Vec::new() };
        };
        let is_agreed =
            |(key, id): &(&StateKey, &OwnedEventId)| others.iter().all(|set| set.get(*key) == Some(*id));
        let agreed: StateSet =
            first.iter().filter(is_agreed).map(|(key, id)| (key.clone(), id.clone())).collect();
        let differs = |(key, _): &(&StateKey, &OwnedEventId)| !agreed.contains_key(*key);
        let differing = sets
            .iter()
            .map(|set| set.iter().filter(differs).map(|(key, id)| (key.clone(), id.clone())).collect());
        Self { differing: differing.collect(), agreed }
    }
}

fn fetch(source: &impl EventSource, id: &EventId) -> Result<Ranked, MissingEvents> {
    source.event(id).ok_or_else(|| MissingEvents([id.to_owned()].into()))
}

/// Whether an event is allowed in a state; keys that the state lacks are taken from the event's own auth events.
///
/// Spec: room version 2, "State resolution", "Iterative auth checks".
fn is_allowed(
    version: &RoomVersion,
    event: &Arc<Pdu>,
    state: &Partial<'_, impl AgreedState>,
    source: &impl EventSource,
) -> Result<bool, Lacking> {
    if event.is_rejected() {
        return Ok(false);
    }
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
    is_allowed_in(version, event, (state, found), source)
}

/// Whether an event that was not rejected is allowed in a state; `found` has what that may lack.
fn is_allowed_in(
    version: &RoomVersion,
    event: &Arc<Pdu>,
    (state, mut found): (&Partial<'_, impl AgreedState>, BTreeMap<StateKey, Arc<Pdu>>),
    source: &impl EventSource,
) -> Result<bool, Lacking> {
    let keys =
        auth::auth_keys(event.event_type(), event.sender(), event.state_key(), event.content(), version);
    let Ok(mut keys) = keys else { return Ok(false) };
    keys.push((StateEventType::RoomCreate, String::new()));
    for (kind, state_key) in keys {
        let key = (kind.to_string(), state_key);
        if let Some(id) = state.get(&key)? {
            let held = fetch(source, &id)?.event;
            found.insert(key, held);
        }
    }
    let by_key = |kind: &StateEventType, key: &str| found.get(&(kind.to_string(), key.to_owned())).cloned();
    Ok(auth::check_against(event, by_key, version).is_ok())
}

#[cfg(test)]
mod tests;
