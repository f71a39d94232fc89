//! Taking in the events of other servers, with whatever has to be fetched for it first.
//!
//! The events of one server in one room are dealt with one after the other, everything else beside each other: a server
//! that has us fetch much, or does not give what its events refer to, holds up nobody but itself. What a server sent is
//! stored before it is dealt with, so that a crash loses nothing.
//!
//! Spec: server-server API, "PDUs" and `PUT /_matrix/federation/v1/send/{txnId}`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use engine::pdu::Pdu;
use futures_util::future::join_all;
use http::StatusCode;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{Batch, Direction, KeyRange, schema};
use tokio::sync::{Mutex, Semaphore};

use super::{FederationError, remote::RawEvents, verify::Unverified};
use crate::{
    homeserver::Homeserver,
    room::{Advice, Receive, Received, RoomError, RoomHandle, membership_of},
};

/// Rounds of fetching what an event lacks.
const SETTLE_ROUNDS: usize = 3;

/// Servers that are asked for what an event lacks, its sender first.
const HELPERS_MAX: usize = 3;

/// Unknown events of a state that are fetched one by one; more are fetched together.
const FETCH_SINGLY_MAX: usize = 50;

/// Whole states that are fetched at a time: each may be hundreds of megabytes.
const STATES_MAX: usize = 2;

/// A transaction is answered after this long at the latest: its sender would not wait much longer. What is not dealt
/// with by then is stored, and is dealt with all the same.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Events of one server that may be under way before it is told to wait.
const UNDER_WAY_MAX: usize = 500;

/// How long a server is told to wait then.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Servers whose last transaction is remembered.
const ORIGINS_MAX: usize = 10_000;

/// When events are tried again that could not be dealt with for a reason of this server's own.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// What became of each event of a transaction; an error is for the sender to read.
pub type Results = BTreeMap<OwnedEventId, Result<(), String>>;

/// What became of some events.
#[derive(Default)]
struct Taken {
    results: Results,
    /// Why some of them may fare better later, if that is so.
    postponed: Option<String>,
}

/// The work on received events that is under way.
pub(crate) struct Inbound {
    turns: DashMap<(OwnedRoomId, OwnedServerName), Arc<Mutex<()>>>,
    origins: DashMap<OwnedServerName, Arc<Origin>>,
    states: Semaphore,
}

impl Default for Inbound {
    fn default() -> Self {
        Self { turns: DashMap::new(), origins: DashMap::new(), states: Semaphore::new(STATES_MAX) }
    }
}

impl Inbound {
    pub(super) fn origin(&self, origin: &ServerName) -> Arc<Origin> {
        if self.origins.len() >= ORIGINS_MAX {
            // A transaction that comes again after that is dealt with again, which changes nothing.
            self.origins.retain(|_, origin| Arc::strong_count(origin) > 1);
        }
        self.origins.entry(origin.to_owned()).or_default().clone()
    }
}

#[derive(Default)]
pub(super) struct Origin {
    last: Mutex<Option<LastTransaction>>,
    /// Whose turn it is to have EDUs taken in.
    pub(super) edus: Mutex<()>,
    under_way: AtomicUsize,
}

struct LastTransaction {
    txn_id: String,
    results: Results,
}

/// Events of a server that are under way; they are not any more when this is dropped.
struct UnderWay(Arc<Origin>, usize);

impl UnderWay {
    fn new(origin: Arc<Origin>, events: usize) -> Self {
        origin.under_way.fetch_add(events, Ordering::Relaxed);
        Self(origin, events)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
struct Header {
    room_id: Option<OwnedRoomId>,
}

impl Homeserver {
    /// Takes in the events of a transaction, and says what became of each.
    ///
    /// A transaction that is sent again gets the answer that it got before. Events of rooms that are not known here are
    /// left out, since not even their IDs can be said.
    pub async fn receive_transaction(
        &self,
        origin: &ServerName,
        txn_id: &str,
        pdus: RawEvents,
    ) -> Result<Results, RoomError> {
        let Some(federation) = self.federation() else { return Err(RoomError::NotFound) };
        let state = federation.inbound.origin(origin);
        let mut last = state.last.lock().await;
        if let Some(done) = last.as_ref().filter(|done| done.txn_id == txn_id) {
            return Ok(done.results.clone());
        }
        if state.under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX {
            return Err(RoomError::Busy { retry_after: RETRY_AFTER });
        }
        let staged = self.stage(origin, pdus).await?;
        let results = Arc::new(parking_lot::Mutex::new(Results::new()));
        let (homeserver, origin, collected) = (self.clone(), origin.to_owned(), results.clone());
        let origin_state = state.clone();
        // On its own, so that it goes on when the sender hangs up; what a shutdown ends is taken up at the next start.
        let work = tokio::spawn(async move {
            let rooms = staged.into_iter().map(async |(room_id, events)| {
                let _under_way = UnderWay::new(origin_state.clone(), events.len());
                let results = homeserver.deal_with(&origin, room_id, events).await;
                collected.lock().extend(results);
            });
            join_all(rooms).await;
        });
        if tokio::time::timeout(ANSWER_MAX, work).await.is_err() {
            tracing::debug!(txn_id, "answered a transaction before all of its events were dealt with");
        }
        let results = results.lock().clone();
        *last = Some(LastTransaction { txn_id: txn_id.to_owned(), results: results.clone() });
        Ok(results)
    }

    /// Stores received events until they are dealt with.
    async fn stage(
        &self,
        origin: &ServerName,
        pdus: RawEvents,
    ) -> Result<BTreeMap<OwnedRoomId, Vec<Staged>>, RoomError> {
        let mut rooms = BTreeMap::<_, Vec<_>>::new();
        for json in pdus {
            let header = serde_json::from_str::<Header>(json.get());
            if let Some(room_id) = header.ok().and_then(|header| header.room_id) {
                rooms.entry(room_id).or_default().push(json);
            }
        }
        let known = self.storage().get_many(&schema::ROOM_IDS, rooms.keys().cloned()).await?;
        let mut batch = Batch::default();
        let mut staged = BTreeMap::<_, Vec<_>>::new();
        for ((room_id, jsons), known) in rooms.into_iter().zip(known) {
            if known.is_none() {
                tracing::debug!(%room_id, %origin, events = jsons.len(), "left out events of a room that is not known");
                continue;
            }
            for json in jsons {
                let position = self.storage().reserve(1).last();
                let key = (room_id.clone(), position, origin.to_owned());
                batch.put(&schema::STAGED, &key, &Bytes::copy_from_slice(json.get().as_bytes()));
                staged.entry(room_id.clone()).or_default().push(Staged { key, json });
            }
        }
        self.storage().commit(batch).await.map_err(RoomError::Commit)?;
        Ok(staged)
    }

    /// Deals with staged events of one room.
    async fn deal_with(&self, origin: &ServerName, room_id: OwnedRoomId, events: Vec<Staged>) -> Results {
        let Some(federation) = self.federation() else { return Results::new() };
        let key = (room_id, origin.to_owned());
        let turn = federation.inbound.turns.entry(key.clone()).or_default().clone();
        let held = turn.lock().await;
        let results = self.deal_in_turn(origin, &key.0, events).await;
        drop(held);
        drop(turn);
        federation.inbound.turns.remove_if(&key, |_, turn| Arc::strong_count(turn) == 1);
        results
    }

    async fn deal_in_turn(&self, origin: &ServerName, room_id: &RoomId, events: Vec<Staged>) -> Results {
        let (keys, jsons): (Vec<_>, Vec<_>) =
            events.into_iter().map(|staged| (staged.key, staged.json)).unzip();
        let mut retries = RETRIES.iter();
        let results = loop {
            let (taken, wait) = (self.take_in(origin, room_id, &jsons).await, retries.next());
            let error = match (taken, wait) {
                (Ok(Taken { results, postponed: None }), _) | (Ok(Taken { results, .. }), None) => {
                    break results;
                }
                (Ok(Taken { postponed: Some(reason), .. }), Some(_)) => reason,
                (Err(error), Some(_)) => error.to_string(),
                (Err(error), None) => {
                    tracing::warn!(%room_id, %origin, %error, "cannot take in events; they are kept for the next start");
                    return Results::new();
                }
            };
            tracing::debug!(%room_id, %origin, error, "cannot take in events; will retry");
            tokio::time::sleep(wait.copied().unwrap_or_default()).await;
        };
        let mut batch = Batch::default();
        for key in keys {
            batch.delete(&schema::STAGED, &key);
        }
        self.storage().submit(batch, None, |_| {});
        results
    }

    /// Takes up what was staged when the server stopped.
    pub(crate) async fn resume_staged(&self) -> Result<(), RoomError> {
        let mut range = KeyRange::all();
        loop {
            let rows = self.storage().range(&schema::STAGED, range, Direction::Ascending, 500).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            range = KeyRange::all().after(last);
            let mut groups = BTreeMap::<(OwnedServerName, OwnedRoomId), Vec<Staged>>::new();
            for (key, json) in rows {
                let Ok(json) = serde_json::from_slice(&json) else { continue };
                groups.entry((key.2.clone(), key.0.clone())).or_default().push(Staged { key, json });
            }
            let groups = groups
                .into_iter()
                .map(async |((origin, room_id), events)| self.deal_with(&origin, room_id, events).await);
            join_all(groups).await;
        }
    }

    async fn take_in(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        events: &[Box<RawValue>],
    ) -> Result<Taken, RoomError> {
        let mut taken = Taken::default();
        let room = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(taken),
            room => room?,
        };
        let rules = room.snapshot().rules;
        if !room.snapshot().head.has_server(self.server_name()) {
            taken.results = self.take_in_outside(&room, events).await?;
            return Ok(taken);
        }
        if !room.admits_server(origin).await? {
            for event in events.iter().filter_map(|json| Unverified::parse(json, rules).ok()) {
                let reason = "your server is not allowed in the room".to_owned();
                taken.results.insert(event.pdu.event_id().clone(), Err(reason));
            }
            return Ok(taken);
        }
        for (event_id, checked) in self.verify(events, rules).await {
            let result = match checked {
                Ok(pdu) => self.take_in_one(&room, origin, pdu).await,
                Err(error) => Err(error.into()),
            };
            let result = match result {
                Err(error) if is_own_trouble(&error) => return Err(error),
                Err(error) => {
                    if is_passing(&error) {
                        taken.postponed = Some(error.to_string());
                    }
                    Err(error.to_string())
                }
                Ok(()) => Ok(()),
            };
            taken.results.insert(event_id, result);
        }
        Ok(taken)
    }

    /// Takes in what concerns local users in a room that this server is not in: the end of an invite or a knock.
    ///
    /// The room's rules cannot be checked from outside. Whoever ends an invite refers to it, though, and only servers
    /// in the room know it.
    async fn take_in_outside(
        &self,
        room: &RoomHandle,
        events: &[Box<RawValue>],
    ) -> Result<Results, RoomError> {
        let snapshot = room.snapshot();
        let mut results = Results::new();
        for (event_id, checked) in self.verify(events, snapshot.rules).await {
            let result = match checked {
                Ok(pdu) if *pdu.room_id() == *snapshot.room_id => match self.ended_by(room, &pdu).await? {
                    Some(user) => {
                        let version = snapshot.version.clone();
                        self.note_outside(&snapshot.room_id, version, &user, Some(pdu), None).await?;
                        Ok(())
                    }
                    None => Err("this server is not in the room".to_owned()),
                },
                Ok(_) => Err("the event belongs to another room".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            results.insert(event_id, result);
        }
        Ok(results)
    }

    /// The local user whose invite or knock an event ends.
    async fn ended_by(&self, room: &RoomHandle, pdu: &Pdu) -> Result<Option<ruma::OwnedUserId>, RoomError> {
        let is_end = pdu.kind() == "m.room.member" && matches!(membership_of(pdu).as_str(), "leave" | "ban");
        let user = pdu.state_key().and_then(|key| UserId::parse(key).ok());
        let Some(user) = user.filter(|user| is_end && user.server_name() == self.server_name()) else {
            return Ok(None);
        };
        let Some(record) = room.membership_record(&user).await? else { return Ok(None) };
        if !matches!(record.membership.as_str(), "invite" | "knock") {
            return Ok(None);
        }
        let held = room.events(&[record.event]).await?;
        let refers_to_it = held.first().is_some_and(|held| pdu.auth_events().contains(held.pdu.event_id()));
        Ok(refers_to_it.then_some(user))
    }

    /// Takes in one event, after what comes before it.
    async fn take_in_one(&self, room: &RoomHandle, origin: &ServerName, pdu: Pdu) -> Result<(), RoomError> {
        // What is known already needs nobody's advice any more.
        let is_known = room.is_placed(pdu.event_id()).await?;
        let (pdu, advice) = if is_known { (pdu, Advice::Recommended) } else { room.advice(pdu).await? };
        let receive = Receive { advice, ..Receive::new(pdu, origin.to_owned()) };
        let prev_events = match room.receive(receive.clone()).await? {
            Received::Lacks { prev_events, .. } => prev_events,
            received => return concluded(received),
        };
        if !prev_events.is_empty() {
            self.take_in_missing(room, origin, &receive.pdu).await?;
        }
        self.settle(room, receive).await
    }

    /// Takes in an event that came in answer to a request, not in a transaction.
    pub(super) async fn take_in_answer(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        pdu: Pdu,
    ) -> Result<(), RoomError> {
        self.take_in_one(room, origin, pdu).await
    }

    /// Takes in an event, fetching what it still lacks: auth events, and the state where prev events cannot be had.
    pub(super) async fn settle(&self, room: &RoomHandle, mut receive: Receive) -> Result<(), RoomError> {
        for _ in 0..SETTLE_ROUNDS {
            let (prev_events, auth_events) = match room.receive(receive.clone()).await? {
                Received::Lacks { prev_events, auth_events } => (prev_events, auth_events),
                received => return concluded(received),
            };
            let mut last = None;
            for server in self.candidates(room, &receive.origin).into_iter().take(HELPERS_MAX) {
                match self.fetch_lacking(room, &server, (&prev_events, &auth_events), &mut receive).await {
                    Ok(()) => {
                        last = None;
                        break;
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
                receive.prev_states.insert(prev.clone(), state);
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
            let federation = self.federation().ok_or(FederationError::Disabled)?;
            let _permit = federation.inbound.states.acquire().await;
            let state = remote.state(&snapshot.room_id, event_id).await?;
            let events: Vec<_> = state.pdus.into_iter().chain(state.auth_chain).collect();
            let (events, silent) = self.verified_so_far(&events, snapshot.rules).await;
            room.keep_outliers(events).await?;
            if let Some(server) = silent {
                return Err(FederationError::NoKeys(server).into());
            }
        }
        Ok(ids.pdu_ids)
    }

    /// Fetches events one by one, with those that authorise them, as outliers; what the server does not have, or what is
    /// not signed as it should be, stays unknown.
    pub(super) async fn fetch_events(
        &self,
        room: &RoomHandle,
        origin: &ServerName,
        ids: &[OwnedEventId],
    ) -> Result<(), RoomError> {
        let rules = room.snapshot().rules;
        let mut open = room.unknown_events(ids).await?;
        let mut found = BTreeMap::<OwnedEventId, Pdu>::new();
        let mut lost = None;
        while !open.is_empty() && found.len() < 10 * FETCH_SINGLY_MAX {
            let remote = self.remote(origin)?;
            let mut answers = Vec::new();
            for answer in join_all(open.iter().map(|id| remote.event(id))).await {
                match answer {
                    Ok(event) => answers.extend(event),
                    // It does not have the event, or does not give it.
                    Err(FederationError::Status { status, .. }) if !may_pass(status) => {}
                    Err(error) => lost = Some(error),
                }
            }
            let (pdus, silent) = self.verified_so_far(&answers, rules).await;
            lost = lost.or(silent.map(FederationError::NoKeys));
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
        // A state without what merely got lost on the way would be another state.
        lost.map_or(Ok(()), |error| Err(error.into()))
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

/// What became of an event for which nothing is to be fetched.
fn concluded(received: Received) -> Result<(), RoomError> {
    match received {
        Received::Accepted | Received::SoftFailed => Ok(()),
        Received::Rejected(reason) => Err(RoomError::NotAllowed(reason)),
        Received::Lacks { .. } => {
            Err(RoomError::Invalid("the event refers to events that are not known here".to_owned()))
        }
    }
}

/// Whether an event could not be dealt with for a reason of this server's own, so that it may go better later.
pub(crate) fn is_own_trouble(error: &RoomError) -> bool {
    match error {
        RoomError::Busy { .. }
        | RoomError::Read(_)
        | RoomError::Commit(_)
        | RoomError::Crashed
        | RoomError::TimedOut
        | RoomError::Activate(_) => true,
        RoomError::NotFound
        | RoomError::EventNotFound
        | RoomError::NotJoined
        | RoomError::Forbidden(_)
        | RoomError::NotAllowed(_)
        | RoomError::Invalid(_)
        | RoomError::BadRelation(_)
        | RoomError::DuplicateAnnotation
        | RoomError::Pdu(_)
        | RoomError::NewRoom(_)
        | RoomError::AliasInUse
        | RoomError::UnableToAuthoriseJoin
        | RoomError::UnableToGrantJoin
        | RoomError::Incomplete
        | RoomError::IncompatibleVersion(_)
        | RoomError::InviteBlocked
        | RoomError::Suspended
        | RoomError::NoticeRoom
        | RoomError::Remote(_) => false,
    }
}

/// Whether an event could not be dealt with because another server did not answer, which it may do later.
fn is_passing(error: &RoomError) -> bool {
    match error {
        RoomError::Remote(FederationError::Status { status, .. }) => may_pass(*status),
        RoomError::Remote(
            FederationError::Dns(_)
            | FederationError::Connect(_)
            | FederationError::Tls(_)
            | FederationError::Timeout
            | FederationError::NoKeys(_),
        ) => true,
        _ => false,
    }
}

/// Whether a request that was answered so may be answered otherwise later.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The auth events of some events that are not among them.
fn auth_of(events: &BTreeMap<OwnedEventId, Pdu>) -> Vec<OwnedEventId> {
    let auth: BTreeSet<_> = events.values().flat_map(Pdu::auth_events).collect();
    auth.into_iter().filter(|id| !events.contains_key(*id)).cloned().collect()
}

struct Staged {
    key: (OwnedRoomId, engine::id::Position, OwnedServerName),
    json: Box<RawValue>,
}
