//! What becomes of a received event.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{EventId, OwnedEventId, RoomId, events::StateEventType};
use serde::{Deserialize, Serialize};

use crate::{
    auth::{self, AuthFailure},
    id::TimelineIndex,
    pdu::Pdu,
    resolve::StateKey,
    room_version::RoomVersion,
};

/// How an event that was taken in stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Part of the graph and of the timeline.
    Accepted,
    /// Part of the graph, but hidden from clients and never a prev event of ours.
    SoftFailed,
    /// Failed authorization; kept so that it is not fetched again.
    Rejected,
    /// Known (as an auth event, say) but outside the graph.
    Outlier,
}

/// What became of a received event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is part of the room now, or was before.
    Accepted,
    /// It is part of the graph, but hidden from clients.
    SoftFailed,
    /// It was never allowed.
    Rejected(String),
    /// These are to be fetched first.
    Lacks {
        /// Prev events that are not known.
        prev_events: Vec<OwnedEventId>,
        /// Auth events that are not known.
        auth_events: Vec<OwnedEventId>,
    },
}

/// What is to be done with a received event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing; this is the answer.
    Answer(Received),
    /// It belongs into the hole that ends here, not at the end of the timeline.
    Fill(TimelineIndex),
    /// It is to be judged by the state before it.
    Judge,
}

/// The answer to an event that needs no look at its surroundings: it is known, or not of this room.
pub fn recall(pdu: &Pdu, room_id: &RoomId, standing: Option<Standing>) -> Option<Received> {
    if pdu.room_id() != room_id {
        return Some(Received::Rejected("the event belongs to another room".to_owned()));
    }
    match standing? {
        Standing::Rejected => Some(Received::Rejected("rejected before".to_owned())),
        Standing::Accepted => Some(Received::Accepted),
        Standing::SoftFailed => Some(Received::SoftFailed),
        Standing::Outlier => None,
    }
}

/// What is known of the surroundings of a received event.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its auth events that are not known.
    pub unknown_auth_events: &'a [OwnedEventId],
    /// Its prev events that have no place in the graph.
    pub missing_prev_events: &'a [OwnedEventId],
    /// The events of the state after a prev event, where they came along.
    pub prev_states: &'a BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    /// The end of the hole in the timeline that lacks the event.
    pub hole: Option<TimelineIndex>,
}

impl Arrival<'_> {
    /// What to do next: without its auth events, and a state for each prev event, there is nothing to judge it by.
    pub fn step(&self) -> Step {
        let has_state = |id: &&OwnedEventId| self.prev_states.contains_key(*id);
        let prev_events: Vec<_> =
            self.missing_prev_events.iter().filter(|id| !has_state(id)).cloned().collect();
        if !self.unknown_auth_events.is_empty() || !prev_events.is_empty() {
            let auth_events = self.unknown_auth_events.to_vec();
            return Step::Answer(Received::Lacks { prev_events, auth_events });
        }
        self.hole.map_or(Step::Judge, Step::Fill)
    }
}

/// What a policy server thinks of an event.
///
/// Spec: server-server API, "Policy Servers" (MSC4284).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Advice {
    /// It is recommended, or nobody was to be asked.
    #[default]
    Recommended,
    /// It is not, so that clients do not see it.
    Refused,
}

/// How a received event fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It is part of the graph, but the room's present state does not allow it: clients do not see it.
    SoftFailed(AuthFailure),
    /// It was never allowed; nothing may be authorised by it.
    Rejected(AuthFailure),
}

impl Verdict {
    /// How the event stands from now on, and what became of it; a policy server's advice counts for what is allowed.
    pub fn settle(&self, advice: Advice) -> (Standing, Received) {
        match self {
            Self::Accepted if advice == Advice::Recommended => (Standing::Accepted, Received::Accepted),
            Self::Accepted | Self::SoftFailed(_) => (Standing::SoftFailed, Received::SoftFailed),
            Self::Rejected(reason) => (Standing::Rejected, Received::Rejected(reason.to_string())),
        }
    }

    /// Why it is not part of the room, if it is not.
    pub fn reason(&self) -> Option<&AuthFailure> {
        match self {
            Self::Accepted => None,
            Self::SoftFailed(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// The events that a received one is judged by.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Its auth events, rejected ones among them.
    pub auth_events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    /// Those of the state before it that authorise it.
    pub before: BTreeMap<StateKey, Arc<Pdu>>,
    /// Those of the room's current state that authorise it.
    pub current: BTreeMap<StateKey, Arc<Pdu>>,
    /// The room's create event.
    pub create: Option<Arc<Pdu>>,
}

impl Evidence {
    /// Steps 4 to 6 of the checks: its auth events, the state before it, the room's current state.
    pub fn judge(&self, pdu: &Pdu, version: &RoomVersion) -> Verdict {
        match self.check_auth_events(pdu, version).and_then(|()| self.check_state(pdu, &self.before, version))
        {
            Err(failure) => Verdict::Rejected(failure),
            Ok(()) => match self.check_state(pdu, &self.current, version) {
                Err(failure) => Verdict::SoftFailed(failure),
                Ok(()) => Verdict::Accepted,
            },
        }
    }

    /// How an event stands that others refer to and that gets no place in the graph.
    pub fn judge_outlier(&self, pdu: &Pdu, version: &RoomVersion) -> Result<Standing, AuthFailure> {
        let is_whole = pdu.auth_events().iter().all(|id| self.auth_events.contains_key(id));
        self.check_auth_events(pdu, version)?;
        Ok(if is_whole { Standing::Outlier } else { Standing::Rejected })
    }

    /// Whether an event is allowed by its own auth events, which is all that is asked of an outlier.
    pub fn check_auth_events(&self, pdu: &Pdu, version: &RoomVersion) -> Result<(), AuthFailure> {
        let by_id = |id: &EventId| {
            let create = self.create.as_ref().filter(|create| create.event_id() == id);
            self.auth_events.get(id).or(create).cloned()
        };
        let by_auth_events: BTreeMap<StateKey, Arc<Pdu>> = self
            .auth_events
            .values()
            .filter(|event| !event.is_rejected())
            .filter_map(|event| {
                Some(((event.kind().to_owned(), event.state_key()?.to_owned()), event.clone()))
            })
            .collect();
        let by_key = |kind: &StateEventType, key: &str| self.find(&by_auth_events, kind, key);
        auth::check(pdu, by_id, by_key, version)
    }

    fn check_state(
        &self,
        pdu: &Pdu,
        state: &BTreeMap<StateKey, Arc<Pdu>>,
        version: &RoomVersion,
    ) -> Result<(), AuthFailure> {
        auth::check_against(pdu, |kind, key| self.find(state, kind, key), version)
    }

    fn find(
        &self,
        state: &BTreeMap<StateKey, Arc<Pdu>>,
        kind: &StateEventType,
        state_key: &str,
    ) -> Option<Arc<Pdu>> {
        if *kind == StateEventType::RoomCreate {
            return self.create.clone();
        }
        state.get(&(kind.to_string(), state_key.to_owned())).cloned()
    }
}
