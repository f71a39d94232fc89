//! States that lack members, since a resident server left them out of the answer to a join.
//!
//! Spec: server-server API, `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, `omit_members` (MSC3706, MSC3902).

use std::{collections::BTreeMap, sync::Arc};

use crate::{pdu::Pdu, resolve::StateKey};

/// The members that an event's auth events name, by the key of the state that each of them holds.
pub fn members(auth_events: &[Arc<Pdu>]) -> impl Iterator<Item = (StateKey, &Arc<Pdu>)> {
    let members = auth_events.iter().filter(|event| event.kind() == "m.room.member" && !event.is_rejected());
    members.filter_map(|event| Some(((event.kind().to_owned(), event.state_key()?.to_owned()), event)))
}

/// Adds the members that an event's auth events name to a state, where that has no event for them.
pub fn add_members(state: &mut BTreeMap<StateKey, Arc<Pdu>>, auth_events: &[Arc<Pdu>]) {
    for (key, event) in members(auth_events) {
        state.entry(key).or_insert_with(|| event.clone());
    }
}
