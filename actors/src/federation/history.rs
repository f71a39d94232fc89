//! Filling holes in a room's timeline from other servers.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::collections::{BTreeMap, BTreeSet};

use engine::{id::TimelineIndex, pdu::Pdu};
use ruma::{OwnedEventId, OwnedServerName};

use crate::{
    homeserver::Homeserver,
    room::{Backfill, RoomError, RoomHandle},
};

/// Events that one request asks for.
const LIMIT: usize = 100;

/// Servers that are asked, one after the other.
const SERVERS_MAX: usize = 5;

/// Events whose state is fetched, since what comes before them is not known.
const EDGES_MAX: usize = 5;

impl Homeserver {
    /// Fills the newest hole that ends after `after` and not after `until`; says whether something came of it.
    pub async fn fill_gap(
        &self,
        room: &RoomHandle,
        after: TimelineIndex,
        until: TimelineIndex,
    ) -> Result<bool, RoomError> {
        if self.federation().is_none() {
            return Ok(false);
        }
        let Some(at) = room.newest_gap(after, until) else { return Ok(false) };
        let snapshot = room.snapshot();
        let Some(gap) = snapshot.head.gaps.get(&at) else { return Ok(false) };
        for server in self.candidates(room, &gap.origin) {
            match self.backfill_from(room, at, &gap.missing, &server).await {
                Ok(0) => {}
                Ok(_) => return Ok(true),
                Err(error) => tracing::debug!(%server, %error, "a server does not give older events"),
            }
        }
        Ok(false)
    }

    /// The servers to ask about a room: a likely one, then those with most members.
    pub(super) fn candidates(&self, room: &RoomHandle, first: &OwnedServerName) -> Vec<OwnedServerName> {
        let snapshot = room.snapshot();
        let mut others: Vec<_> = snapshot
            .head
            .servers
            .iter()
            .filter(|(server, _)| **server != *self.server_name() && *server != first)
            .map(|(server, count)| (std::cmp::Reverse(*count), server.clone()))
            .collect();
        others.sort();
        let first = (**first != *self.server_name()).then(|| first.clone());
        first.into_iter().chain(others.into_iter().map(|(_, server)| server)).take(SERVERS_MAX).collect()
    }

    async fn backfill_from(
        &self,
        room: &RoomHandle,
        gap: TimelineIndex,
        missing: &[OwnedEventId],
        server: &OwnedServerName,
    ) -> Result<usize, RoomError> {
        let snapshot = room.snapshot();
        let events = self.remote(server)?.backfill(&snapshot.room_id, missing, LIMIT).await?;
        let events = self.verified(&events, snapshot.rules).await;
        if events.is_empty() {
            return Ok(0);
        }
        let mut states = BTreeMap::new();
        for edge in edges(&events).into_iter().take(EDGES_MAX) {
            match self.fetch_state_before(room, server, &edge).await {
                Ok(state) => drop(states.insert(edge, state)),
                Err(error) => tracing::debug!(%server, %error, "a server does not give an older state"),
            }
        }
        let own: BTreeSet<_> = events.iter().map(Pdu::event_id).collect();
        let auth: BTreeSet<_> =
            events.iter().flat_map(Pdu::auth_events).filter(|id| !own.contains(*id)).cloned().collect();
        let unknown = room.unknown_events(&auth.into_iter().collect::<Vec<_>>()).await?;
        self.fetch_events(room, server, &unknown).await?;
        // State events of the page may authorise others of it before they have their places.
        let state_events: Vec<_> = events.iter().filter(|pdu| pdu.state_key().is_some()).cloned().collect();
        if !state_events.is_empty() {
            room.keep_outliers(state_events).await?;
        }
        room.backfill(Backfill { gap, events, states, origin: server.clone() }).await
    }
}

/// The events whose prev events are not among the others, oldest first.
fn edges(events: &[Pdu]) -> Vec<OwnedEventId> {
    let own: BTreeSet<_> = events.iter().map(Pdu::event_id).collect();
    let mut edges: Vec<_> = events
        .iter()
        .filter(|pdu| pdu.kind() != "m.room.create" && pdu.prev_events().iter().any(|id| !own.contains(id)))
        .collect();
    edges.sort_by_key(|pdu| (pdu.depth(), pdu.origin_server_ts()));
    edges.into_iter().map(|pdu| pdu.event_id().clone()).collect()
}
