//! A remote server as seen from here: the queue of what it is to be sent, one transaction at a time.
//!
//! Owns the rows of its server in `DESTINATIONS`, `CATCH_UP` and `EDU_QUEUE`. States: *sending* (the server takes what
//! it is sent; PDUs wait in memory, and in `OUTBOX` for the case of a crash) and *backing off* (it did not take the
//! last transaction; rooms with news are noted in `CATCH_UP`, so that nothing grows with the length of the outage).
//! Passivation ends neither: the server's next actor waits for a transaction that is on its way, and for a back-off.
//! Started by the dispatcher when there is something to send, by a sign of life of its server, and at start-up if
//! something is left to send. A restart costs one range of each table.
//!
//! Spec: server-server API, "Transactions".

mod dispatch;
mod ephemeral;
mod missed;
mod outbox;
mod reaction;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use engine::id::Position;
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr};
use ruma::{OwnedRoomId, OwnedServerName, RoomId};
use storage::{
    Batch, Direction, KeyRange, Storage,
    schema::{self, DestinationRecord},
};

pub(crate) use self::outbox::PresenceNews;
pub use self::{
    dispatch::Dispatcher,
    ephemeral::{Ephemeral, EphemeralContent},
    missed::Handed,
    outbox::{Announcement, Outbox},
};
use self::{
    ephemeral::Waiting,
    reaction::Reaction,
    transaction::{CaughtUp, EDUS_MAX as EDUS_MAX_SENT, Outcome, Transaction},
};
use crate::{
    directory::{DirectoryActor, Meter, Place},
    env::{Env, has_come},
    federation::{FederationClient, FederationError},
    metrics::Metrics,
    room::{RoomShared, StoredEvent},
};

/// PDUs that wait in memory for one server; more are left to the catch-up.
const QUEUE_MAX: usize = 500;

/// The first retry comes after about this long.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// Retries are never further apart than this.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// The same in milliseconds.
const RETRY_MAX_MS: u64 = RETRY_MAX.as_secs() * 1000;

/// A server that gives signs of life and takes nothing is not asked more often than this.
const ALIVE_PAUSE_MS: u64 = 2000;

/// What all destinations share.
pub struct DestinationShared {
    /// This server's name.
    pub server_name: OwnedServerName,
    /// Clock and randomness.
    pub env: Env,
    /// The store.
    pub storage: Storage,
    /// Sends the transactions.
    pub client: Arc<dyn FederationClient>,
    /// Where announced events are waiting to be acknowledged.
    pub outbox: Arc<Outbox>,
    /// Rooms, for the catch-up.
    pub rooms: Arc<RoomShared>,
    /// Counts what is sent.
    pub metrics: Metrics,
}

/// An event to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its position, which is acknowledged in the outbox.
    pub position: Position,
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event.
    pub event: Arc<StoredEvent>,
}

/// What a destination is told.
pub enum DestinationMessage {
    /// Send an event.
    Pdu(Handed, Place),
    /// Send an EDU, unless a newer one comes first.
    Edu(Ephemeral, Place),
    /// Look for new rows in `EDU_QUEUE`.
    Queued(Place),
    /// The server gave a sign of life.
    Alive(Place),
    /// A back-off is over, or the server was not told of everything.
    RetryDue(Place),
    /// A transaction ended.
    Done(Box<Outcome>),
    /// A transaction ended whose actor had been passivated meanwhile.
    Orphan(Box<Outcome>, Place),
}

/// The actor; see the module's documentation.
pub struct DestinationActor;

/// What a destination actor holds.
pub struct Destination {
    server: OwnedServerName,
    shared: Arc<DestinationShared>,
    meter: Meter,
    pdus: VecDeque<Outgoing>,
    ephemeral: Waiting,
    /// Rooms with news for the server, and where in their timelines the news begins.
    catch_up: BTreeMap<OwnedRoomId, Position>,
    has_queued_edus: bool,
    /// Rows of `EDU_QUEUE` that were sent, and of which the deletion may not be visible yet.
    deleting: BTreeSet<Position>,
    in_flight: bool,
    /// The last transaction, if the server may have taken it though it did not say so: it comes again before all else.
    unanswered: Option<Transaction>,
    /// Rooms whose catch-up is on its way.
    catching: BTreeSet<OwnedRoomId>,
    failures: u32,
    retry_at_ms: Option<u64>,
    /// When the last transaction was sent.
    attempted_ms: u64,
    /// Most PDUs, and most EDUs, of a transaction: fewer after the server refused one for what is in it.
    size_max: usize,
}

impl Actor for DestinationActor {
    type Msg = DestinationMessage;
    type State = Destination;
    type Arguments = (OwnedServerName, Arc<DestinationShared>, Meter);

    async fn pre_start(
        &self,
        myself: ActorRef<DestinationMessage>,
        (server, shared, meter): Self::Arguments,
    ) -> Result<Destination, ActorProcessingErr> {
        let mut destination = Destination::load(server, shared, meter).await?;
        destination.pump(&myself).await?;
        Ok(destination)
    }

    async fn handle(
        &self,
        myself: ActorRef<DestinationMessage>,
        message: DestinationMessage,
        destination: &mut Destination,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DestinationMessage::Pdu(handed, _place) => destination.enqueue(handed.take()),
            DestinationMessage::Edu(edu, _place) => destination.enqueue_edu(edu),
            DestinationMessage::Queued(_place) => destination.has_queued_edus = true,
            DestinationMessage::Alive(_place) => destination.alive(),
            DestinationMessage::RetryDue(_place) => destination.retry_due(),
            DestinationMessage::Done(outcome) => destination.done(*outcome),
            DestinationMessage::Orphan(outcome, _place) => destination.adopt_orphan(*outcome),
        }
        destination.pump(&myself).await?;
        destination.meter.set_bytes(destination.weight());
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<DestinationMessage>,
        destination: &mut Destination,
    ) -> Result<(), ActorProcessingErr> {
        // What waits behind a transaction on its way is left to the server's next actor.
        if let Some(noted) = destination.leave_all_to_catch_up() {
            let _ = noted.await; // if it failed, the outbox has them after the restart
        }
        Ok(())
    }
}

impl DirectoryActor for DestinationActor {
    type Key = OwnedServerName;
    type Context = Arc<DestinationShared>;
    const CLASS: &'static str = "destination";

    fn new() -> Self {
        Self
    }

    fn arguments(key: &OwnedServerName, context: &Self::Context, meter: Meter) -> Self::Arguments {
        (key.clone(), context.clone(), meter)
    }
}

impl Destination {
    async fn load(
        server: OwnedServerName,
        shared: Arc<DestinationShared>,
        meter: Meter,
    ) -> Result<Self, ActorProcessingErr> {
        let storage = &shared.storage;
        let stored = storage.get(&schema::DESTINATIONS, &server).await?;
        let own = KeyRange::prefix(&(server.clone(),));
        let rows = storage.range(&schema::CATCH_UP, own, Direction::Ascending, usize::MAX).await?;
        // After a restart every server gets a chance at once: it, or the way to it, may be back.
        let back_off = shared.outbox.back_off(&server);
        let mut destination = Self {
            catch_up: rows.into_iter().map(|((_, room_id), from)| (room_id, from)).collect(),
            meter,
            pdus: VecDeque::new(),
            ephemeral: Waiting::default(),
            has_queued_edus: true,
            deleting: BTreeSet::new(),
            in_flight: shared.outbox.is_under_way(&server),
            unanswered: None,
            catching: BTreeSet::new(),
            retry_at_ms: back_off.as_ref().map(|back_off| back_off.retry_at_ms),
            failures: back_off.or(stored).unwrap_or_default().failures,
            attempted_ms: 0,
            size_max: EDUS_MAX_SENT,
            server,
            shared,
        };
        destination.take_up_missed();
        destination.schedule_retry();
        Ok(destination)
    }

    /// The server gave a sign of life: it is tried at once, unless that was done just now.
    fn alive(&mut self) {
        if self.retry_at_ms.is_none() {
            return;
        }
        self.failures = self.failures.min(1);
        let now_ms = self.shared.env.clock.now_ms();
        let again_ms = self.attempted_ms.saturating_add(ALIVE_PAUSE_MS);
        self.retry_at_ms = Some(again_ms).filter(|at_ms| !has_come(*at_ms, now_ms, ALIVE_PAUSE_MS));
        self.schedule_retry();
    }

    fn enqueue(&mut self, outgoing: Outgoing) {
        let is_covered =
            self.catch_up.contains_key(&outgoing.room_id) && !self.catching.contains(&outgoing.room_id);
        if is_covered {
            self.extend(&outgoing.room_id, outgoing.position);
            self.shared.outbox.acknowledge(&[outgoing.position]);
        } else if self.retry_at_ms.is_some() || self.pdus.len() >= QUEUE_MAX {
            drop(self.leave_to_catch_up([outgoing]));
        } else {
            self.pdus.push_back(outgoing);
        }
    }

    /// A room has more news than the transaction that is to come again.
    fn extend(&mut self, room_id: &RoomId, position: Position) {
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.ends_before(room_id, position);
        }
    }

    fn enqueue_edu(&mut self, ephemeral: Ephemeral) {
        // Whoever types now does not when the server is back.
        let is_typing = matches!(ephemeral.content, EphemeralContent::Typing(_));
        if !(is_typing && self.retry_at_ms.is_some()) {
            self.ephemeral.push(ephemeral);
        }
    }

    fn retry_due(&mut self) {
        self.take_up_missed();
        self.has_queued_edus = true;
        let now_ms = self.shared.env.clock.now_ms();
        if self.retry_at_ms.is_some_and(|at_ms| has_come(at_ms, now_ms + 50, RETRY_MAX_MS)) {
            self.retry_at_ms = None;
        }
        // The clock was set back meanwhile, or this was a sign for an earlier back-off.
        self.schedule_retry();
    }

    /// Sends the next transaction, if there is anything to send and nothing on its way.
    async fn pump(&mut self, myself: &ActorRef<DestinationMessage>) -> Result<(), ActorProcessingErr> {
        if self.in_flight || self.retry_at_ms.is_some() {
            return Ok(());
        }
        let again = self.unanswered.take();
        let transaction = match again {
            Some(transaction) => transaction,
            None => match self.next_transaction().await? {
                Some(transaction) => transaction,
                None => return Ok(()),
            },
        };
        self.in_flight = true;
        self.attempted_ms = self.shared.env.clock.now_ms();
        let whole = transaction.rooms.iter().filter(|room| room.rest.is_none());
        self.catching = whole.map(|room| room.room_id.clone()).collect();
        let (shared, server, myself) = (self.shared.clone(), self.server.clone(), myself.clone());
        let under_way = shared.outbox.under_way(&server);
        tokio::spawn(async move {
            let outcome = transaction.send(&shared, &server, under_way).await;
            // If the actor has ended meanwhile, the server's next one deals with it.
            if let Err(MessagingErr::SendErr(DestinationMessage::Done(outcome))) =
                myself.cast(DestinationMessage::Done(Box::new(outcome)))
            {
                shared.outbox.orphaned(server, outcome);
            }
        });
        Ok(())
    }

    fn done(&mut self, outcome: Outcome) {
        self.in_flight = false;
        let mut waiting = BTreeMap::new();
        if outcome.result.is_err() {
            for outgoing in &self.pdus {
                waiting.entry(outgoing.room_id.clone()).or_insert(outgoing.position);
            }
        }
        self.unanswered = self.adopt(outcome).map(|transaction| self.hold(transaction, &waiting));
        self.catching.clear();
    }

    /// Takes note of how a transaction of an earlier actor ended.
    fn adopt_orphan(&mut self, mut outcome: Outcome) {
        self.in_flight = false;
        // Only its own actor knew whether a room got more to catch up with after the transaction was made.
        outcome.transaction.rooms.retain(|room| room.rest.is_some());
        if let Some(transaction) = self.adopt(outcome) {
            self.put_back(transaction);
        }
    }

    /// Takes note of how a transaction ended; answers with it if it was not answered.
    fn adopt(&mut self, outcome: Outcome) -> Option<Transaction> {
        let Outcome { transaction, result, under_way } = outcome;
        drop(under_way);
        match result {
            Ok(()) => self.succeeded(transaction),
            Err(error) => match Reaction::to(&error, transaction.item_count(), || transaction.is_canonical())
            {
                Reaction::SendLess => {
                    self.size_max = (transaction.item_count() / 2).max(1);
                    let items_max = self.size_max;
                    tracing::info!(destination = %self.server, %error, items_max, "a transaction cannot be sent, or is refused; sending less at a time");
                    self.put_back(transaction);
                    self.put_off(RETRY_FIRST / 2);
                }
                Reaction::Drop => {
                    tracing::warn!(destination = %self.server, %error, "an event or EDU cannot be sent, or is refused for good; it is left out");
                    self.take_off(transaction);
                    self.put_off(RETRY_FIRST / 2);
                }
                Reaction::BackOff(at_least) => {
                    self.failed(&error, at_least);
                    return Some(transaction);
                }
            },
        }
        None
    }

    /// Keeps a transaction that was not answered, to send it again. What is in it is noted durably, too, and so is by now what was
    /// `waiting` behind it, with the first position of each room.
    fn hold(
        &mut self,
        mut transaction: Transaction,
        waiting: &BTreeMap<OwnedRoomId, Position>,
    ) -> Transaction {
        let rooms = transaction.pdus.iter().map(|outgoing| &outgoing.room_id);
        let new = rooms.filter(|room_id| !self.catch_up.contains_key(*room_id));
        let known = self.catching.iter().chain(new).chain(waiting.keys());
        let rests = known.map(|room_id| (room_id.clone(), waiting.get(room_id).copied())).collect();
        drop(self.leave_to_catch_up(transaction.pdus.iter().cloned()));
        transaction.hold(&self.catch_up, &rests);
        transaction
    }

    fn succeeded(&mut self, transaction: Transaction) {
        self.shared.metrics.sent(transaction.pdu_count(), transaction.edu_count());
        self.size_max = (2 * self.size_max).min(EDUS_MAX_SENT);
        if self.failures > 0 {
            tracing::info!(destination = %self.server, "a server takes events again");
            self.shared.outbox.takes_again(&self.server);
            let mut batch = Batch::default();
            batch.delete(&schema::DESTINATIONS, &self.server);
            self.shared.storage.submit(batch, None, |_| {});
        }
        self.failures = 0;
        self.take_off(transaction);
    }

    /// What was in a transaction is not sent again.
    fn take_off(&mut self, transaction: Transaction) {
        let mut batch = Batch::default();
        for key in transaction.queued {
            batch.delete(&schema::EDU_QUEUE, &key);
            self.deleting.insert(key.1);
        }
        for CaughtUp { room_id, from, rest } in transaction.rooms {
            let key = (self.server.clone(), room_id.clone());
            match rest {
                Some(rest) if self.catch_up.get(&room_id) == Some(&from) => {
                    batch.put(&schema::CATCH_UP, &key, &rest);
                    self.catch_up.insert(room_id, rest);
                }
                None if self.catching.contains(&room_id) => {
                    batch.delete(&schema::CATCH_UP, &key);
                    self.catch_up.remove(&room_id);
                }
                // A room that got more to catch up with meanwhile, or from an earlier actor, is caught up with again.
                _ => {}
            }
        }
        self.shared.storage.submit(batch, None, |_| {});
        let positions: Vec<_> = transaction.pdus.iter().map(|outgoing| outgoing.position).collect();
        self.shared.outbox.acknowledge(&positions);
    }

    fn failed(&mut self, error: &FederationError, at_least: Duration) {
        self.failures = self.failures.saturating_add(1);
        let delay = self.delay().max(at_least).min(RETRY_MAX);
        let delay_s = delay.as_secs();
        tracing::info!(destination = %self.server, %error, delay_s, "a server does not take events; will retry");
        self.put_off(delay);
        let mut batch = Batch::default();
        let retry_at_ms = self.retry_at_ms.unwrap_or_default();
        let record = DestinationRecord { failures: self.failures, retry_at_ms };
        self.shared.outbox.backs_off(&self.server, record.clone());
        batch.put(&schema::DESTINATIONS, &self.server, &record);
        self.shared.storage.submit(batch, None, |_| {});
    }

    /// Sends nothing for a while; what waits is noted durably.
    fn put_off(&mut self, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.retry_at_ms = Some(self.shared.env.clock.now_ms().saturating_add(delay_ms));
        drop(self.leave_all_to_catch_up());
        // What is queued durably is read again.
        self.has_queued_edus = true;
        self.schedule_retry();
    }

    /// How long to wait after the last failure: doubled each time, and a fifth more or less at random.
    fn delay(&self) -> Duration {
        let doubled = RETRY_FIRST.saturating_mul(1_u32 << self.failures.saturating_sub(1).min(16));
        let base = doubled.min(RETRY_MAX);
        let jitter = 80 + self.shared.env.entropy.next_u64() % 41;
        base.mul_f64(f64::from(u32::try_from(jitter).unwrap_or(100)) / 100.0)
    }

    /// Has the dispatcher keep the time of the next try: this actor may be passivated before.
    fn schedule_retry(&self) {
        if let Some(at_ms) = self.retry_at_ms {
            let wait_ms = at_ms.saturating_sub(self.shared.env.clock.now_ms()).min(RETRY_MAX_MS);
            self.shared.outbox.retry_after(&self.server, Duration::from_millis(wait_ms));
        }
    }

    fn weight(&self) -> u64 {
        let pdus: u64 = self.pdus.iter().map(|outgoing| outgoing.event.weight()).sum();
        let held = self.unanswered.as_ref().map_or(0, Transaction::weight);
        2048 + pdus + held + 512 * self.ephemeral.len() as u64 + 128 * self.catch_up.len() as u64
    }
}
