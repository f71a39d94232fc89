//! Taking in the events of other servers, with whatever has to be fetched for it first.
//!
//! The events of one server in one room are dealt with one after the other, everything else beside each other: a server
//! that has us fetch much, or does not give what its events refer to, holds up nobody but itself. What a server sent is
//! stored before it is dealt with, so that a crash loses nothing.
//!
//! Spec: server-server API, "PDUs" and `PUT /_matrix/federation/v1/send/{txnId}`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use engine::pdu::Pdu;
use futures_util::future::join_all;
use http::StatusCode;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId};
use serde_json::value::RawValue;
use tokio::sync::{Mutex, Semaphore, oneshot};

use super::{FederationError, remote::RawEvents, staging::Joins, verify::Unverified};
use crate::{
    homeserver::Homeserver,
    room::{Advice, Receive, Received, RoomError, RoomHandle, membership_of},
};

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

/// What became of each event of a transaction; an error is for the sender to read.
pub type Results = BTreeMap<OwnedEventId, Result<(), String>>;

/// What became of some events.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) results: Results,
    /// Why some of them may fare better later, if that is so.
    pub(super) postponed: Option<String>,
}

/// The work on received events that is under way.
pub(crate) struct Inbound {
    pub(super) turns: DashMap<(OwnedRoomId, OwnedServerName), Arc<Mutex<()>>>,
    origins: DashMap<OwnedServerName, Arc<Origin>>,
    pub(super) states: Semaphore,
    pub(super) joins: Joins,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            turns: DashMap::new(),
            origins: DashMap::new(),
            states: Semaphore::new(STATES_MAX),
            joins: Joins::default(),
        }
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

impl Homeserver {
    /// Takes in the events of a transaction, and says what became of each.
    ///
    /// A transaction that is sent again gets the answer that it got before. Events of rooms that are not known here are
    /// left out, since not even their IDs can be said; so are those that wait for a join to end.
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
        let results = Arc::new(parking_lot::Mutex::new(Results::new()));
        let (homeserver, origin, collected) = (self.clone(), origin.to_owned(), results.clone());
        let origin_state = state.clone();
        let (told, is_staged) = oneshot::channel();
        // On its own, so that it goes on when the sender hangs up, and no event stays where only the next start would
        // find it; what a shutdown ends is taken up then.
        let work = tokio::spawn(async move {
            let staged = match homeserver.stage(&origin, pdus).await {
                Ok(staged) => staged,
                Err(error) => {
                    let _ = told.send(Err(error)); // a sender that hung up tries again
                    return;
                }
            };
            let _ = told.send(Ok(())); // a sender that hung up does not care
            let rooms = staged.into_iter().map(async |(room_id, events)| {
                let _under_way = UnderWay::new(origin_state.clone(), events.len());
                let results = homeserver.deal_with(&origin, room_id, events).await;
                collected.lock().extend(results);
            });
            join_all(rooms).await;
        });
        is_staged.await.map_err(|_| RoomError::Crashed)??;
        if tokio::time::timeout(ANSWER_MAX, work).await.is_err() {
            tracing::debug!(txn_id, "answered a transaction before all of its events were dealt with");
        }
        let results = results.lock().clone();
        *last = Some(LastTransaction { txn_id: txn_id.to_owned(), results: results.clone() });
        Ok(results)
    }

    pub(super) async fn take_in(
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
                taken.results.insert(event.into_pdu().event_id().clone(), Err(reason));
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
pub(super) fn concluded(received: Received) -> Result<(), RoomError> {
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
        | RoomError::NotBanned
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
        | RoomError::UnsupportedThere(_)
        | RoomError::NoGuests
        | RoomError::Policy(_)
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
pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}
