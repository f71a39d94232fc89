//! Taking in the events of other servers, with whatever has to be fetched for it first.
//!
//! Events of one room are dealt with one after the other, rooms beside each other. What a server sent is stored before
//! it is dealt with, so that a crash loses nothing.
//!
//! Spec: server-server API, "PDUs" and `PUT /_matrix/federation/v1/send/{txnId}`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use dashmap::DashMap;
use engine::{pdu::Pdu, room_version::RoomVersion};
use futures_util::future::join_all;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{Batch, Direction, KeyRange, schema};
use tokio::sync::Mutex;

use super::{
    FederationError,
    keys::WantedKeys,
    remote::{MissingEventsQuery, RawEvents},
    verify::{Unverified, computing},
};
use crate::{
    homeserver::Homeserver,
    room::{Receive, Received, RoomError, RoomHandle},
};

/// Events that one request for missing ones asks for.
const MISSING_LIMIT: u64 = 20;

/// Requests for missing events before the state is fetched instead.
const MISSING_ROUNDS: usize = 5;

/// Rounds of fetching what an event lacks.
const SETTLE_ROUNDS: usize = 3;

/// Unknown events of a state that are fetched one by one; more are fetched together.
const FETCH_SINGLY_MAX: usize = 50;

/// Events that are parsed, or whose signatures are checked, before others get their turn.
const VERIFY_CHUNK: usize = 64;

/// What became of each event of a transaction; an error is for the sender to read.
pub type Results = BTreeMap<OwnedEventId, Result<(), String>>;

/// The work on received events that is under way.
#[derive(Default)]
pub(crate) struct Inbound {
    rooms: DashMap<OwnedRoomId, Arc<Mutex<()>>>,
    origins: DashMap<OwnedServerName, Arc<Mutex<Option<LastTransaction>>>>,
}

struct LastTransaction {
    txn_id: String,
    results: Results,
}

#[derive(Deserialize)]
struct Header {
    room_id: Option<OwnedRoomId>,
}

impl Homeserver {
    /// Takes in the events of a transaction, and says what became of each.
    ///
    /// A transaction that is sent again gets the answer that it got before.
    pub async fn receive_transaction(
        &self,
        origin: &ServerName,
        txn_id: &str,
        pdus: RawEvents,
    ) -> Result<Results, RoomError> {
        let Some(federation) = self.federation() else { return Err(RoomError::NotFound) };
        let last = federation.inbound.origins.entry(origin.to_owned()).or_default().clone();
        let mut last = last.lock().await;
        if let Some(done) = last.as_ref().filter(|done| done.txn_id == txn_id) {
            return Ok(done.results.clone());
        }
        let staged = self.stage(origin, pdus).await?;
        let rooms = staged.into_iter().map(|(room_id, events)| self.deal_with(origin, room_id, events));
        let results: Results = join_all(rooms).await.into_iter().flatten().collect();
        *last = Some(LastTransaction { txn_id: txn_id.to_owned(), results: results.clone() });
        Ok(results)
    }

    /// Stores received events until they are dealt with.
    async fn stage(
        &self,
        origin: &ServerName,
        pdus: RawEvents,
    ) -> Result<BTreeMap<OwnedRoomId, Vec<Staged>>, RoomError> {
        let mut batch = Batch::default();
        let mut rooms = BTreeMap::<_, Vec<_>>::new();
        for json in pdus {
            let header = serde_json::from_str::<Header>(json.get());
            let Some(room_id) = header.ok().and_then(|header| header.room_id) else { continue };
            let position = self.storage().reserve(1).last();
            let key = (room_id.clone(), position, origin.to_owned());
            batch.put(&schema::STAGED, &key, &Bytes::copy_from_slice(json.get().as_bytes()));
            rooms.entry(room_id).or_default().push(Staged { key, json });
        }
        self.storage().commit(batch).await.map_err(RoomError::Commit)?;
        Ok(rooms)
    }

    /// Deals with staged events of one room.
    async fn deal_with(&self, origin: &ServerName, room_id: OwnedRoomId, events: Vec<Staged>) -> Results {
        let Some(federation) = self.federation() else { return Results::new() };
        let turn = federation.inbound.rooms.entry(room_id.clone()).or_default().clone();
        let turn = turn.lock().await;
        let (keys, jsons): (Vec<_>, Vec<_>) =
            events.into_iter().map(|staged| (staged.key, staged.json)).unzip();
        let results = match self.take_in(origin, &room_id, &jsons).await {
            Ok(results) => results,
            Err(error) => {
                tracing::debug!(%room_id, %origin, %error, "cannot take in events");
                Results::new()
            }
        };
        let mut batch = Batch::default();
        for key in keys {
            batch.delete(&schema::STAGED, &key);
        }
        self.storage().submit(batch, None, |_| {});
        drop(turn);
        results
    }

    /// Takes up what was staged when the server stopped.
    pub(crate) async fn resume_staged(&self) -> Result<(), RoomError> {
        loop {
            let rows =
                self.storage().range(&schema::STAGED, KeyRange::all(), Direction::Ascending, 500).await?;
            let mut groups = BTreeMap::<(OwnedServerName, OwnedRoomId), Vec<Staged>>::new();
            for (key, json) in rows {
                let Ok(json) = serde_json::from_slice(&json) else { continue };
                groups.entry((key.2.clone(), key.0.clone())).or_default().push(Staged { key, json });
            }
            if groups.is_empty() {
                return Ok(());
            }
            for ((origin, room_id), events) in groups {
                self.deal_with(&origin, room_id, events).await;
            }
            self.storage().flush().await.map_err(RoomError::Commit)?;
        }
    }

    async fn take_in(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        events: &[Box<RawValue>],
    ) -> Result<Results, RoomError> {
        let room = self.room(room_id).await?;
        let rules = room.snapshot().rules;
        let mut results = Results::new();
        let refuse = |results: &mut Results, reason: &str| {
            for event in events.iter().filter_map(|json| Unverified::parse(json, rules).ok()) {
                results.insert(event.pdu.event_id().clone(), Err(reason.to_owned()));
            }
        };
        if !room.snapshot().head.has_server(self.server_name()) {
            refuse(&mut results, "this server is not in the room");
            return Ok(results);
        }
        if !room.admits_server(origin).await? {
            refuse(&mut results, "your server is not allowed in the room");
            return Ok(results);
        }
        for (event_id, checked) in self.verify(events, rules).await {
            let result = match checked {
                Ok(pdu) => self.take_in_one(&room, origin, pdu).await.map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            results.insert(event_id, result);
        }
        Ok(results)
    }

    /// Parses events and checks their signatures and hashes; what is no event at all is left out.
    pub(super) async fn verify(
        &self,
        events: &[Box<RawValue>],
        rules: &'static RoomVersion,
    ) -> Vec<(OwnedEventId, Result<Pdu, String>)> {
        let parse = |json: &RawValue| {
            let parsed = Unverified::parse(json, rules);
            parsed.inspect_err(|error| tracing::debug!(%error, "received something that is no event")).ok()
        };
        let mut parsed = Vec::with_capacity(events.len());
        for some in events.chunks(VERIFY_CHUNK) {
            parsed.extend(computing(some.len(), || {
                some.iter().filter_map(|json| parse(json)).collect::<Vec<_>>()
            }));
            tokio::task::yield_now().await;
        }
        let mut wanted = WantedKeys::new();
        for event in &parsed {
            event.want_keys(&mut wanted, rules);
        }
        let keys = self.public_keys(wanted).await;
        let check = |event: Unverified| {
            let event_id = event.pdu.event_id().clone();
            (event_id, event.verify(&keys, rules).map_err(|error| error.to_string()))
        };
        let mut checked = Vec::with_capacity(parsed.len());
        let mut parsed = parsed.into_iter().peekable();
        while parsed.peek().is_some() {
            let some: Vec<_> = parsed.by_ref().take(VERIFY_CHUNK).collect();
            checked.extend(computing(some.len(), || some.into_iter().map(check).collect::<Vec<_>>()));
            tokio::task::yield_now().await;
        }
        checked
    }

    /// Those of some events whose signatures hold.
    pub(super) async fn verified(&self, events: &[Box<RawValue>], rules: &'static RoomVersion) -> Vec<Pdu> {
        let checked = self.verify(events, rules).await;
        checked
            .into_iter()
            .filter_map(|(event_id, checked)| {
                checked.inspect_err(|error| tracing::debug!(%event_id, error, "left out an event")).ok()
            })
            .collect()
    }

    /// Takes in one event, after what comes before it.
    async fn take_in_one(&self, room: &RoomHandle, origin: &ServerName, pdu: Pdu) -> Result<(), RoomError> {
        let receive = Receive { pdu, origin: origin.to_owned(), prev_states: BTreeMap::new(), relay: false };
        let Received::Lacks { prev_events, .. } = room.receive(receive.clone()).await? else { return Ok(()) };
        if !prev_events.is_empty() {
            for older in self.missing_events(room, origin, &receive.pdu).await {
                let older = Receive { pdu: older, ..receive.clone() };
                self.settle(room, older).await?;
            }
        }
        self.settle(room, receive).await
    }

    /// The events between those that are known and a new one, oldest first, as far as they can be had.
    async fn missing_events(&self, room: &RoomHandle, origin: &ServerName, newest: &Pdu) -> Vec<Pdu> {
        let snapshot = room.snapshot();
        let mut found = BTreeMap::<OwnedEventId, Pdu>::new();
        let mut latest = vec![newest.event_id().clone()];
        for _ in 0..MISSING_ROUNDS {
            let query = MissingEventsQuery {
                earliest_events: snapshot.head.tips.iter().map(|tip| tip.pdu.event_id().clone()).collect(),
                latest_events: std::mem::take(&mut latest),
                limit: MISSING_LIMIT,
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
            for (event_id, open) in edges(&found) {
                if lacks_any(room, &open).await {
                    latest.push(event_id);
                }
            }
            if latest.is_empty() {
                break;
            }
        }
        found.remove(newest.event_id());
        let mut found: Vec<_> = found.into_values().collect();
        found.sort_by_key(|pdu| (pdu.depth(), pdu.origin_server_ts()));
        found
    }

    /// Takes in an event, fetching what it still lacks: auth events, and the state where prev events cannot be had.
    async fn settle(&self, room: &RoomHandle, mut receive: Receive) -> Result<(), RoomError> {
        let origin = receive.origin.clone();
        for _ in 0..SETTLE_ROUNDS {
            let (prev_events, auth_events) = match room.receive(receive.clone()).await? {
                Received::Lacks { prev_events, auth_events } => (prev_events, auth_events),
                Received::Accepted | Received::SoftFailed => return Ok(()),
                Received::Rejected(reason) => return Err(RoomError::NotAllowed(reason)),
            };
            if !auth_events.is_empty() {
                self.fetch_auth_chain(room, &origin, &receive.pdu, &auth_events).await?;
            }
            for prev in prev_events {
                let state = self.fetch_state_after(room, &origin, &prev).await?;
                receive.prev_states.insert(prev, state);
            }
        }
        Err(RoomError::Invalid("what the event refers to cannot be had".to_owned()))
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
            Ok(chain) => room.keep_outliers(self.verified(&chain, snapshot.rules).await).await,
            Err(error) => {
                tracing::debug!(%origin, %error, "a server does not give an auth chain");
                self.fetch_events(room, origin, missing).await
            }
        }
    }

    /// Fetches the state after an event that is not part of the graph here; all of it is known afterwards.
    async fn fetch_state_after(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        event_id: &OwnedEventId,
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let mut state = self.fetch_state_before(room, origin, event_id).await?;
        self.fetch_events(room, origin, std::slice::from_ref(event_id)).await?;
        // The last one holds its key, if it is a state event.
        state.push(event_id.clone());
        Ok(state)
    }

    /// Fetches the state before an event; all of it is known afterwards.
    pub(super) async fn fetch_state_before(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        event_id: &OwnedEventId,
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let snapshot = room.snapshot();
        let remote = self.remote(origin)?;
        let ids = remote.state_ids(&snapshot.room_id, event_id).await?;
        let wanted: BTreeSet<_> = ids.pdu_ids.iter().chain(&ids.auth_chain_ids).cloned().collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let unknown = room.unknown_events(&wanted).await?;
        if unknown.len() <= FETCH_SINGLY_MAX {
            self.fetch_events(room, origin, &unknown).await?;
        } else {
            let state = remote.state(&snapshot.room_id, event_id).await?;
            let events: Vec<_> = state.pdus.into_iter().chain(state.auth_chain).collect();
            room.keep_outliers(self.verified(&events, snapshot.rules).await).await?;
        }
        Ok(ids.pdu_ids)
    }

    /// Fetches events one by one, with those that authorise them, as outliers.
    pub(super) async fn fetch_events(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        ids: &[OwnedEventId],
    ) -> Result<(), RoomError> {
        let rules = room.snapshot().rules;
        let mut open = room.unknown_events(ids).await?;
        let mut found = BTreeMap::<OwnedEventId, Pdu>::new();
        while !open.is_empty() && found.len() < 10 * FETCH_SINGLY_MAX {
            let remote = self.remote(origin)?;
            let answers = join_all(open.iter().map(|id| remote.event(id))).await;
            let answers: Vec<_> = answers.into_iter().filter_map(|answer| answer.ok().flatten()).collect();
            let pdus = self.verified(&answers, rules).await;
            let before = found.len();
            found.extend(pdus.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)));
            if found.len() == before {
                break;
            }
            open = room.unknown_events(&auth_of(&found)).await?;
        }
        if found.is_empty() {
            return Ok(());
        }
        room.keep_outliers(found.into_values().collect()).await
    }

    /// Another server, as far as this one federates.
    pub(super) fn remote<'a>(
        &'a self,
        server: &'a ServerName,
    ) -> Result<super::remote::Remote<'a>, FederationError> {
        let federation = self.federation().ok_or(FederationError::Disabled)?;
        Ok(super::remote::Remote::new(&**federation.client(), server))
    }
}

/// The events of which some prev events are not among the others, with those.
fn edges(events: &BTreeMap<OwnedEventId, Pdu>) -> Vec<(OwnedEventId, Vec<OwnedEventId>)> {
    let open = |pdu: &Pdu| -> Vec<OwnedEventId> {
        pdu.prev_events().iter().filter(|id| !events.contains_key(*id)).cloned().collect()
    };
    let edges = events.iter().map(|(event_id, pdu)| (event_id.clone(), open(pdu)));
    edges.filter(|(_, open)| !open.is_empty()).collect()
}

/// The auth events of some events that are not among them.
fn auth_of(events: &BTreeMap<OwnedEventId, Pdu>) -> Vec<OwnedEventId> {
    let auth: BTreeSet<_> = events.values().flat_map(Pdu::auth_events).collect();
    auth.into_iter().filter(|id| !events.contains_key(*id)).cloned().collect()
}

async fn lacks_any(room: &RoomHandle, ids: &[OwnedEventId]) -> bool {
    for id in ids {
        if !matches!(room.is_placed(id).await, Ok(true)) {
            return true;
        }
    }
    false
}

struct Staged {
    key: (OwnedRoomId, engine::id::Position, OwnedServerName),
    json: Box<RawValue>,
}
