//! Filling holes in a room's timeline from other servers.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{id::TimelineIndex, pdu::Pdu};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName};

use crate::{
    homeserver::Homeserver,
    room::{Backfill, Lacking, PageDirection, RoomError, RoomHandle, StoredEvent},
};

/// Events that one request asks for.
const LIMIT: usize = 100;

/// Servers that are asked, one after the other.
const SERVERS_MAX: usize = 5;

/// Holes that are filled to get to an event, at most.
const FILLS_MAX: usize = 10;

/// Events of a page whose state is fetched, since it does not follow from what is known.
const EDGES_MAX: usize = 20;

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

    /// The event closest to a moment of those that only other servers have, if there is one closer than `known`, once it
    /// was fetched.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`.
    pub async fn missed_event_near(
        &self,
        room: &RoomHandle,
        moment: MilliSecondsSinceUnixEpoch,
        direction: PageDirection,
        known: Option<&StoredEvent>,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let snapshot = room.snapshot();
        let index = known.and_then(|event| event.index);
        // Only what lies in a hole on the way to the known event can be closer.
        let may_be_closer = |at: &TimelineIndex| match (direction, index) {
            (_, None) => true,
            (PageDirection::Forward, Some(index)) => *at <= index,
            (PageDirection::Backward, Some(index)) => *at > index,
        };
        let Some(gap) = snapshot.head.gaps.iter().rev().find(|(at, _)| may_be_closer(at)).map(|(_, gap)| gap)
        else {
            return Ok(None);
        };
        if self.federation().is_none() {
            return Ok(None);
        }
        for server in self.candidates(room, &gap.origin) {
            let found = match self.remote(&server)?.event_near(&snapshot.room_id, moment, direction).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%server, %error, "a server knows no event near a moment");
                    continue;
                }
            };
            let is_closer = known.is_none_or(|known| match direction {
                PageDirection::Forward => found.origin_server_ts < known.pdu.origin_server_ts(),
                PageDirection::Backward => found.origin_server_ts > known.pdu.origin_server_ts(),
            });
            if is_closer {
                return self.fetch_into_timeline(room, &found.event_id).await;
            }
        }
        Ok(None)
    }

    /// Fills holes until an event has its place, as far as that takes no more than some requests.
    async fn fetch_into_timeline(
        &self,
        room: &RoomHandle,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        for _ in 0..FILLS_MAX {
            if let Some(event) = room.event(event_id).await? {
                return Ok(Some(event));
            }
            if !self.fill_gap(room, TimelineIndex(i64::MIN), TimelineIndex(i64::MAX)).await? {
                break;
            }
        }
        room.event(event_id).await
    }

    /// The servers to ask about a room: a likely one, then those with most members.
    pub(super) fn candidates(&self, room: &RoomHandle, first: &OwnedServerName) -> Vec<OwnedServerName> {
        let snapshot = room.snapshot();
        let mut others: Vec<_> = snapshot
            .head
            .census
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
        let around = events.iter().flat_map(|pdu| pdu.prev_events().iter().chain([pdu.event_id()]));
        let known = room.known_events(&around.cloned().collect()).await?;
        let mut states = BTreeMap::new();
        for edge in edges(&events, &known) {
            if states.len() == EDGES_MAX {
                break;
            }
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
        let lacking: Lacking = states.values().flat_map(|state| state.lacking.clone()).collect();
        let filled = room.backfill(Backfill { gap, events, states }).await?;
        if !lacking.is_empty() {
            self.wait_for_keys(&snapshot.room_id, &lacking).await;
        }
        Ok(filled)
    }
}

/// The events of a page before which the state does not follow from the page itself and from what is known here, oldest
/// first; what has its place already needs none.
///
/// Nothing follows from events whose states lack members: after them comes what happened once this server had left a room
/// before its members came.
fn edges(events: &[Pdu], known: &BTreeMap<OwnedEventId, Arc<StoredEvent>>) -> Vec<OwnedEventId> {
    let own: BTreeSet<_> = events.iter().map(Pdu::event_id).collect();
    let placed = |id: &OwnedEventId| known.get(id).filter(|event| event.has_place());
    let leads_on = |id: &OwnedEventId| placed(id).map_or_else(|| own.contains(id), |event| event.has_state());
    let mut edges: Vec<_> = events
        .iter()
        .filter(|pdu| pdu.kind() != "m.room.create" && placed(pdu.event_id()).is_none())
        .filter(|pdu| !pdu.prev_events().iter().all(leads_on))
        .collect();
    edges.sort_by_key(|pdu| (pdu.depth(), pdu.origin_server_ts()));
    edges.into_iter().map(|pdu| pdu.event_id().clone()).collect()
}

#[cfg(test)]
mod tests;
