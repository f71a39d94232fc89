//! What becomes of a received event.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{EventId, OwnedEventId, events::StateEventType};

use crate::{
    auth::{self, AuthFailure},
    pdu::Pdu,
    resolve::StateKey,
    room_version::RoomVersion,
};

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
