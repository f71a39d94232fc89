//! What comes between the events that are known and a new one.
//!
//! Walking back from a new event may lead past what is known, into a hole of the timeline: to what happened before this
//! server joined, for one. Such events belong into the hole; at the end of the timeline they would be taken for news,
//! and their old states for present ones.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::collections::{BTreeMap, BTreeSet};

use engine::{id::TimelineIndex, pdu::Pdu, room::graph::by_age};
use ruma::{OwnedEventId, ServerName};

use super::{inbound::is_own_trouble, remote::MissingEventsQuery};
use crate::{
    homeserver::Homeserver,
    room::{Receive, RoomError, RoomHandle},
};

/// Events that one request for missing ones asks for.
const LIMIT: u64 = 20;

/// Requests for missing events before the state is fetched instead.
const ROUNDS: usize = 5;

/// Requests for events of a hole, to which the missing ones may be tied.
const FILLS: usize = 2;

/// Holes of which is looked how deep they are, the newest first.
const HOLES_MAX: usize = 20;

/// Events by their IDs.
type Found = BTreeMap<OwnedEventId, Pdu>;

impl Homeserver {
    /// Takes in what comes before an event, as far as it can be had.
    pub(super) async fn take_in_missing(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        newest: &Pdu,
    ) -> Result<(), RoomError> {
        let hole_depth = room.hole_depth(HOLES_MAX).await?;
        let mut found = self.missing_events(room, origin, (newest, hole_depth)).await;
        if let Some(hole_depth) = hole_depth {
            let mut loose = loose(room, &found, newest).await;
            for _ in 0..FILLS {
                let everything = (TimelineIndex(i64::MIN), TimelineIndex(i64::MAX));
                if loose.is_empty() || !self.fill_gap(room, everything.0, everything.1).await? {
                    break;
                }
                loose = self::loose(room, &found, newest).await;
            }
            // It may belong into the hole: who fills the hole gets it.
            found.retain(|event_id, pdu| !(loose.contains(event_id) && pdu.depth() <= hole_depth));
        }
        for older in by_age(found.into_values().collect()) {
            let event_id = older.event_id().clone();
            let (older, advice) = room.advice(older).await?;
            match self.settle(room, Receive { advice, ..Receive::new(older, origin.to_owned()) }).await {
                Err(error) if is_own_trouble(&error) => return Err(error),
                // What comes after an event that is rejected, or cannot be had, may be good all the same.
                Err(error) => tracing::debug!(%event_id, %error, "left out an older event"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// The events between those that are known and a new one, as far as a server gives them.
    async fn missing_events(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        (newest, hole_depth): (&Pdu, Option<u64>),
    ) -> Found {
        let snapshot = room.snapshot();
        let mut found = Found::new();
        let mut latest = vec![newest.event_id().clone()];
        for _ in 0..ROUNDS {
            let query = MissingEventsQuery {
                earliest_events: snapshot.head.tips.iter().map(|tip| tip.pdu.event_id().clone()).collect(),
                latest_events: std::mem::take(&mut latest),
                limit: LIMIT,
                min_depth: 0,
            };
            let answer = match self.remote(origin) {
                Ok(remote) => remote.missing_events(&snapshot.room_id, &query).await,
                Err(error) => Err(error),
            };
            let events = match answer {
                Ok(events) => self.verified(&events, snapshot.rules).await,
                Err(error) => {
                    tracing::debug!(%origin, %error, "a server does not give missing events");
                    break;
                }
            };
            let before = found.len();
            found.extend(events.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)));
            if found.len() == before {
                break;
            }
            for pdu in found.values().filter(|pdu| hole_depth.is_none_or(|depth| pdu.depth() > depth)) {
                let open: Vec<_> =
                    pdu.prev_events().iter().filter(|id| !found.contains_key(*id)).cloned().collect();
                if lacks_any(room, &open).await {
                    latest.push(pdu.event_id().clone());
                }
            }
            if latest.is_empty() {
                break;
            }
        }
        found.remove(newest.event_id());
        found
    }
}

/// Those of some events that are not tied to the graph by known ones among them and `newest`.
async fn loose(room: &RoomHandle, found: &Found, newest: &Pdu) -> BTreeSet<OwnedEventId> {
    // Each after those before it, whatever depth its server gave it.
    let found_by_age = by_age(found.values().cloned().collect());
    let mut loose = BTreeSet::new();
    for pdu in found_by_age.iter().chain([newest]) {
        let (own, open): (Vec<_>, Vec<_>) =
            pdu.prev_events().iter().cloned().partition(|id| found.contains_key(id));
        let is_placed = std::slice::from_ref(pdu.event_id());
        // The beginning of the room is tied to nothing.
        let is_loose = pdu.prev_events().is_empty()
            || own.iter().any(|id| loose.contains(id))
            || lacks_any(room, &open).await;
        if is_loose && lacks_any(room, is_placed).await {
            loose.insert(pdu.event_id().clone());
        }
    }
    loose
}

/// Whether some events have no place in the graph.
async fn lacks_any(room: &RoomHandle, ids: &[OwnedEventId]) -> bool {
    for id in ids {
        if !matches!(room.is_placed(id).await, Ok(true)) {
            return true;
        }
    }
    false
}
