//! Fetching what an event lacks: its auth events, and the state where events before it cannot be had.
//!
//! Spec: server-server API, "PDUs" and "Retrieving event authorization information".

use std::collections::{BTreeMap, BTreeSet};

use engine::pdu::Pdu;
use futures_util::future::join_all;
use http::StatusCode;
use ruma::{OwnedEventId, ServerName};

use super::{
    FederationError,
    inbound::{concluded, may_pass},
    verify::SoFar,
};
use crate::{
    homeserver::Homeserver,
    room::{GivenState, Lacking, Receive, Received, RoomError, RoomHandle, lacking_of},
};

/// Rounds of fetching what an event lacks.
const SETTLE_ROUNDS: usize = 3;

/// Servers that are asked for what an event lacks, its sender first.
const HELPERS_MAX: usize = 3;

/// Unknown events of a state that are fetched one by one; more are fetched together.
const FETCH_SINGLY_MAX: usize = 50;

impl Homeserver {
    /// Takes in an event, fetching what it still lacks: auth events, and the state where prev events cannot be had.
    pub(super) async fn settle(&self, room: &RoomHandle, mut receive: Receive) -> Result<(), RoomError> {
        for round in 0..SETTLE_ROUNDS {
            let (prev_events, auth_events) = match room.receive(receive.clone()).await? {
                Received::Lacks { prev_events, auth_events } => (prev_events, auth_events),
                received => {
                    if !receive.lacking.is_empty() {
                        self.wait_for_keys(&room.snapshot().room_id, &receive.lacking).await;
                    }
                    return concluded(received);
                }
            };
            let mut last = None;
            for server in self.candidates(room, &receive.origin).into_iter().take(HELPERS_MAX) {
                match self.fetch_lacking(room, &server, (&prev_events, &auth_events), &mut receive).await {
                    Ok(()) => {
                        last = None;
                        // Others may have what its sender lacks; they are bothered once.
                        if round > 0 || room.unknown_events(&auth_events).await?.is_empty() {
                            break;
                        }
                    }
                    Err(error @ RoomError::Remote(_)) => {
                        tracing::debug!(%server, %error, "a server does not give what an event refers to");
                        last = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = last {
                return Err(error);
            }
        }
        Err(RoomError::Invalid("what the event refers to cannot be had".to_owned()))
    }

    async fn fetch_lacking(
        &self,
        room: &RoomHandle,
        server: &ServerName,
        (prev_events, auth_events): (&[OwnedEventId], &[OwnedEventId]),
        receive: &mut Receive,
    ) -> Result<(), RoomError> {
        if !auth_events.is_empty() {
            self.fetch_auth_chain(room, server, &receive.pdu, auth_events).await?;
        }
        for prev in prev_events {
            if !receive.prev_states.contains_key(prev) {
                let state = self.fetch_state_after(room, server, prev).await?;
                receive.prev_states.insert(prev.clone(), state.events);
                receive.lacking.extend(state.lacking);
            }
        }
        Ok(())
    }

    async fn fetch_auth_chain(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        pdu: &Pdu,
        missing: &[OwnedEventId],
    ) -> Result<(), RoomError> {
        let snapshot = room.snapshot();
        let chain = self.remote(origin)?.event_auth(&snapshot.room_id, pdu.event_id()).await;
        match chain {
            Ok(chain) => {
                let SoFar { pdus, waiting, .. } = self.verified_so_far(&chain, snapshot.rules).await;
                room.keep_outliers(pdus).await?;
                match waiting.into_values().next() {
                    Some(server) if !room.unknown_events(missing).await?.is_empty() => {
                        Err(FederationError::NoKeys(server).into())
                    }
                    _ => Ok(()),
                }
            }
            Err(error) => {
                tracing::debug!(%origin, %error, "a server does not give an auth chain");
                self.fetch_events(room, origin, missing).await.map(drop)
            }
        }
    }

    /// Fetches the state after an event that is not part of the graph here; what it does not lack is known afterwards.
    async fn fetch_state_after(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        event_id: &OwnedEventId,
    ) -> Result<GivenState, RoomError> {
        let mut state = self.fetch_state_before(room, origin, event_id).await?;
        let own = std::slice::from_ref(event_id);
        let gone = self.fetch_events(room, origin, own).await?;
        state.lacking.extend(lacking_of(&room.unknown_events(own).await?, &gone));
        // The last one holds its key, if it is a state event.
        state.events.push(event_id.clone());
        Ok(state)
    }

    /// Fetches the state before an event; what it does not lack is known afterwards.
    pub(super) async fn fetch_state_before(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        event_id: &OwnedEventId,
    ) -> Result<GivenState, RoomError> {
        let snapshot = room.snapshot();
        let remote = self.remote(origin)?;
        let ids = remote.state_ids(&snapshot.room_id, event_id).await?;
        let wanted: BTreeSet<_> = ids.pdu_ids.iter().chain(&ids.auth_chain_ids).cloned().collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let unknown = room.unknown_events(&wanted).await?;
        let gone = if unknown.len() <= FETCH_SINGLY_MAX {
            self.fetch_events(room, origin, &unknown).await?
        } else {
            let federation = self.federation().ok_or(FederationError::Disabled)?;
            let _permit = federation.inbound.states.acquire().await;
            let state = remote.state(&snapshot.room_id, event_id).await?;
            let events: Vec<_> = state.pdus.into_iter().chain(state.auth_chain).collect();
            let SoFar { pdus, waiting, gone } = self.verified_so_far(&events, snapshot.rules).await;
            room.keep_outliers(pdus).await?;
            if let Some(server) = waiting.into_values().next() {
                return Err(FederationError::NoKeys(server).into());
            }
            gone
        };
        // A state cannot wait for those who seem gone; what they signed is put in when it can be checked.
        let unknown = if gone.is_empty() { Vec::new() } else { room.unknown_events(&ids.pdu_ids).await? };
        Ok(GivenState { events: ids.pdu_ids, lacking: lacking_of(&unknown, &gone) })
    }

    /// Fetches events one by one, with those that authorise them, as outliers; what the server does not have, or what is
    /// not signed as it should be, stays unknown. Returns what cannot be checked, since its server seems gone.
    pub(super) async fn fetch_events(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        ids: &[OwnedEventId],
    ) -> Result<Lacking, RoomError> {
        let rules = room.snapshot().rules;
        let mut open = room.unknown_events(ids).await?;
        let mut found = BTreeMap::<OwnedEventId, Pdu>::new();
        let (mut lost, mut all_gone) = (None, Lacking::new());
        while !open.is_empty() && found.len() < 10 * FETCH_SINGLY_MAX {
            let remote = self.remote(origin)?;
            let mut answers = Vec::new();
            for answer in join_all(open.iter().map(|id| remote.event(id))).await {
                match answer {
                    Ok(event) => answers.extend(event),
                    // It does not have the event, or does not give it.
                    Err(FederationError::Status { status, .. }) if is_about_event(status) => {}
                    Err(error) => lost = Some(error),
                }
            }
            let SoFar { pdus, waiting, gone } = self.verified_so_far(&answers, rules).await;
            lost = lost.or(waiting.into_values().next().map(FederationError::NoKeys));
            all_gone.extend(gone);
            let before = found.len();
            found.extend(pdus.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)));
            if found.len() == before {
                break;
            }
            open = room.unknown_events(&auth_of(&found)).await?;
        }
        if !found.is_empty() {
            room.keep_outliers(found.into_values().collect()).await?;
        }
        // A state without what merely got lost on the way, or is not for us now, would be another state.
        lost.map_or(Ok(all_gone), |error| Err(error.into()))
    }
}

/// Whether a server that answers so to the question for an event would answer others so, too: `M_FORBIDDEN` says that the
/// asker is not in the room (any more), and not that there is no such event.
fn is_about_event(status: StatusCode) -> bool {
    !may_pass(status) && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The auth events of some events that are not among them.
fn auth_of(events: &BTreeMap<OwnedEventId, Pdu>) -> Vec<OwnedEventId> {
    let auth: BTreeSet<_> = events.values().flat_map(Pdu::auth_events).collect();
    auth.into_iter().filter(|id| !events.contains_key(*id)).cloned().collect()
}
