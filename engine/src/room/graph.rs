//! The event graph: its forward extremities, and orders in which events can be taken in.

use std::collections::{BTreeMap, BTreeSet};

use ruma::OwnedEventId;

use crate::pdu::Pdu;

/// Prev events of an event, at most, by the specification.
pub const PREV_EVENTS_MAX: usize = 20;

/// One more than the highest rank of an event's auth events; 0 without any.
pub fn rank(auth_events: impl IntoIterator<Item = u64>) -> u64 {
    auth_events.into_iter().map(|rank| rank + 1).max().unwrap_or(0)
}

/// Events in an order in which each comes after those of them that authorise it; cycles are left out.
pub fn by_auth(pdus: Vec<Pdu>) -> Vec<Pdu> {
    let mut waiting: BTreeMap<OwnedEventId, Pdu> =
        pdus.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)).collect();
    let mut blocked = BTreeMap::<OwnedEventId, usize>::new();
    let mut blocks = BTreeMap::<OwnedEventId, Vec<OwnedEventId>>::new();
    for (id, pdu) in &waiting {
        let open: BTreeSet<_> = pdu.auth_events().iter().filter(|id| waiting.contains_key(*id)).collect();
        blocked.insert(id.clone(), open.len());
        for auth_id in open {
            blocks.entry(auth_id.clone()).or_default().push(id.clone());
        }
    }
    let mut ready: Vec<_> =
        blocked.iter().filter(|(_, open)| **open == 0).map(|(id, _)| id.clone()).rev().collect();
    let mut sorted = Vec::with_capacity(waiting.len());
    while let Some(id) = ready.pop() {
        for freed in blocks.remove(&id).unwrap_or_default() {
            if let Some(open) = blocked.get_mut(&freed) {
                *open -= 1;
                if *open == 0 {
                    ready.push(freed);
                }
            }
        }
        sorted.extend(waiting.remove(&id));
    }
    sorted
}

/// Events, each after those of them that it follows; as old as possible first.
pub fn by_age(events: Vec<Pdu>) -> Vec<Pdu> {
    let mut waiting: BTreeMap<OwnedEventId, Pdu> =
        events.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)).collect();
    let mut sorted = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let is_free = |pdu: &Pdu| !pdu.prev_events().iter().any(|prev| waiting.contains_key(prev));
        // Without a free one the events refer to each other in a circle, which no honest server makes.
        let oldest = waiting
            .values()
            .filter(|pdu| is_free(pdu))
            .min_by_key(|pdu| (pdu.depth(), pdu.origin_server_ts(), pdu.event_id().clone()));
        let Some(id) = oldest.map(|pdu| pdu.event_id().clone()) else { break };
        sorted.extend(waiting.remove(&id));
    }
    sorted
}
