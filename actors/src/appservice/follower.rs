//! The task of one service: it follows what is stored, and pushes what concerns the service, transaction by transaction.
//!
//! Events are numbered in the order in which they are stored, so that one durable cursor is enough. A transaction is
//! stored before it is sent and stays until the service has acknowledged it, so that it is sent again as it was, under
//! the same ID, whatever happens in between; only then comes the next one. A service that does not take it is tried
//! again later and later; meanwhile nothing is read for it.
//!
//! Spec: application service API, "Pushing events".

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use engine::{
    id::{Position, ShortEventId, TimelineIndex},
    room::{StoredEvent, event::Standing},
};
use http::Method;
use serde::Serialize;
use serde_json::value::RawValue;
use storage::{
    Batch, CommitError, Direction, KeyRange, StoreError,
    schema::{self, ServiceCursorRecord, ServiceTxnRecord},
};
use tokio::sync::mpsc;

use super::{
    Service, ServiceError,
    ask::Question,
    interest::{Concern, Interest, own_target},
    mail::{self, Mail},
    watch::{EphemeralNews, Heard},
};
use crate::{
    env::Entropy,
    homeserver::Homeserver,
    room::{ReadError, RoomError, is_dummy},
    session::SessionError,
};

/// Events of one transaction, at most.
const EVENTS_MAX: usize = 100;

/// Bytes of the events of one transaction after which no more are added.
const BYTES_MAX: usize = 1 << 20;

/// Events that are read at a time.
const PAGE: usize = 200;

/// Ephemeral events of one transaction, at most.
const EPHEMERAL_MAX: usize = 100;

/// Positions that the stored cursor may be behind while nothing concerns the service.
const BEHIND_MAX: u64 = 10_000;

/// How long a service may take for a transaction: bridges answer once they have dealt with it.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The first retry comes after about this long.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Retries are never further apart than this.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Why a task starts over.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error(transparent)]
    Room(#[from] RoomError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not store: {0}")]
    Commit(#[from] CommitError),
}

impl FollowError {
    /// Whether it is about one row, which stays as it is: to read it again does not help.
    fn is_damage(&self) -> bool {
        match self {
            Self::Read(error) | Self::Room(RoomError::Read(error)) => error.is_damage(),
            Self::Store(error) => error.is_damage(),
            Self::Room(_) | Self::Session(_) | Self::Commit(_) => false,
        }
    }
}

/// What a task does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// There is more to do.
    More,
    /// It waits for news.
    Idle,
    /// The service failed; it is tried again after this.
    Retry(Duration),
}

/// The task of one service.
pub(super) struct Follower {
    homeserver: Homeserver,
    service: Arc<Service>,
    interest: Interest,
    mail: Mail,
    cursor: ServiceCursorRecord,
    /// Where the store has the cursor.
    stored: Position,
    /// The transaction under way.
    txn: Option<ServiceTxnRecord>,
    failures: u32,
}

/// The body of a transaction.
///
/// Spec: application service API, `PUT /_matrix/app/v1/transactions/{txnId}`; MSC2409 for the former name.
#[derive(Serialize)]
struct Body<'a> {
    events: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ephemeral: &'a [Box<RawValue>],
    #[serde(rename = "de.sorunome.msc2409.ephemeral", skip_serializing_if = "<[_]>::is_empty")]
    old_ephemeral: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    to_device: &'a [Box<RawValue>],
    #[serde(rename = "de.sorunome.msc2409.to_device", skip_serializing_if = "<[_]>::is_empty")]
    old_to_device: &'a [Box<RawValue>],
}

/// What is to go into a transaction.
#[derive(Default)]
struct Gathered {
    events: Vec<Box<RawValue>>,
    bytes: usize,
    ephemeral: Vec<Box<RawValue>>,
    to_device: Vec<Box<RawValue>>,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.ephemeral.is_empty() && self.to_device.is_empty()
    }

    fn is_full(&self) -> bool {
        self.events.len() >= EVENTS_MAX || self.bytes >= BYTES_MAX
    }
}

impl Follower {
    /// Takes up what the last run left; a service that is new is told of what happens from now on.
    pub(super) async fn load(homeserver: &Homeserver, service: &Arc<Service>) -> Result<Self, FollowError> {
        let storage = homeserver.storage();
        let mut cursor =
            storage.get(&schema::SERVICE_CURSORS, service.id.as_str()).await?.unwrap_or_default();
        if cursor.epoch.is_empty() {
            let epoch = homeserver.env().entropy.token(8);
            cursor = ServiceCursorRecord { upto: storage.watermark(), epoch, begun: 0 };
            let mut batch = Batch::default();
            batch.put(&schema::SERVICE_CURSORS, service.id.as_str(), &cursor);
            storage.commit(batch).await?;
        }
        let txn = storage.get(&schema::SERVICE_TXNS, service.id.as_str()).await?;
        // What is in the transaction is passed already.
        let at = txn.as_ref().map_or(cursor.upto, |txn| txn.upto);
        let interest = Interest::load(service, storage, at).await?;
        let mail =
            if service.receives_ephemeral { Mail::load(homeserver, service).await? } else { Mail::default() };
        let (homeserver, service) = (homeserver.clone(), service.clone());
        let stored = cursor.upto;
        Ok(Self { homeserver, service, interest, mail, stored, cursor, txn, failures: 0 })
    }

    /// How many positions the service has not been told of.
    pub(super) fn behind(&self) -> u64 {
        self.homeserver.storage().watermark().0.saturating_sub(self.cursor.upto.0)
    }

    /// Sends the transaction that is under way, or makes the next one of what has happened up to a position.
    pub(super) async fn go_on(
        &mut self,
        upto: Position,
        heard: Option<&mut Heard>,
    ) -> Result<Next, FollowError> {
        if let Some(txn) = self.txn.clone() {
            return self.send(&txn).await;
        }
        let mut gathered = Gathered::default();
        let mut read = self.cursor.upto;
        let (mut waiting, bound) = match &heard {
            Some(heard) => {
                self.mail.came(std::mem::take(&mut *heard.mail.lock()));
                self.mail.waiting(&self.homeserver, read, upto).await?
            }
            None => (Vec::new(), upto),
        };
        while read < bound && !gathered.is_full() {
            read = self.read_on(read, bound, &mut gathered).await?;
        }
        waiting.retain(|(position, ..)| *position <= read);
        gathered.to_device = mail::messages(&self.homeserver, waiting).await?;
        if let Some(heard) = heard {
            gathered.ephemeral = self.ephemeral(&mut heard.news).await?;
        }
        if gathered.is_empty() {
            self.cursor.upto = read;
            if read.0 > self.stored.0 + BEHIND_MAX {
                self.store_cursor(Batch::default()).await?;
            }
            return Ok(if read < upto { Next::More } else { Next::Idle });
        }
        self.begin(read, &gathered).await?;
        Ok(Next::More)
    }

    /// Passes the events of one page; answers up to where it came.
    async fn read_on(
        &mut self,
        after: Position,
        upto: Position,
        gathered: &mut Gathered,
    ) -> Result<Position, FollowError> {
        let storage = self.homeserver.storage().clone();
        let range = KeyRange::all().after(&ShortEventId(after.0)).up_to(&ShortEventId(upto.0));
        let rows = storage.range(&schema::EVENTS, range, Direction::Ascending, PAGE).await?;
        let bound =
            if rows.len() < PAGE { upto } else { rows.last().map_or(upto, |(short, _)| Position(short.0)) };
        let store = &self.homeserver.room_shared().store;
        let mut passed = Vec::with_capacity(rows.len());
        for (short, record) in rows {
            let event = match store.cached(short) {
                Some(event) => Ok(event),
                None => record.into_event(short).map(Arc::new),
            };
            match event {
                Ok(event) => passed.push((Position(short.0), event)),
                Err(error) => {
                    let service = &self.service.id;
                    tracing::warn!(service, event = short.0, %error, "an application service is not told of an event");
                }
            }
        }
        let late = KeyRange::all().after(&after).up_to(&bound);
        for (at, short) in storage.range(&schema::LATE_EVENTS, late, Direction::Ascending, usize::MAX).await?
        {
            passed.push((at, self.homeserver.room_shared().store.event(short).await?));
        }
        passed.sort_by_key(|(at, _)| *at);
        for (at, event) in passed {
            match self.told(at, &event).await {
                Ok(Some(told)) => {
                    gathered.bytes += event.pdu.raw().len();
                    gathered.events.push(told);
                    if gathered.is_full() {
                        return Ok(at);
                    }
                }
                Ok(None) => {}
                // It stays as it is: what comes after it is not to wait for ever.
                Err(error) if error.is_damage() => {
                    let service = &self.service.id;
                    tracing::warn!(service, event.id = %event.pdu.event_id(), %error, "an application service is not told of an event");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bound)
    }

    /// An event as the service is told of it, if it is.
    async fn told(
        &mut self,
        at: Position,
        event: &Arc<StoredEvent>,
    ) -> Result<Option<Box<RawValue>>, FollowError> {
        if self.pass(at, event).await? { self.render(event).await.map(Some) } else { Ok(None) }
    }

    /// Whether the service is to be told of an event that was stored, or got its place, at a position.
    async fn pass(&mut self, at: Position, event: &StoredEvent) -> Result<bool, FollowError> {
        if event.index != Some(TimelineIndex::from(at)) {
            return Ok(event.index.is_none() && self.is_outside(event).await?);
        }
        if event.standing != Standing::Accepted || is_dummy(&event.pdu) {
            return Ok(false);
        }
        let shared = self.homeserver.room_shared().clone();
        let at = (shared.store.storage(), &shared.hub.services);
        Ok(self.interest.pass(&self.service, at, event).await? != Concern::Nothing)
    }

    /// Whether an event without a place is the membership of one of the service's users in a room that this server is not in.
    async fn is_outside(&self, event: &StoredEvent) -> Result<bool, FollowError> {
        let Some(target) = own_target(&self.service, event) else { return Ok(false) };
        let key = (target, event.pdu.room_id().to_owned());
        let record = self.homeserver.storage().get(&schema::MEMBERSHIPS, &key).await?;
        Ok(record.is_some_and(|record| record.event == event.short))
    }

    async fn render(&self, event: &Arc<StoredEvent>) -> Result<Box<RawValue>, FollowError> {
        let room = self.homeserver.room(event.pdu.room_id()).await?;
        let invited = own_target(&self.service, event);
        Ok(room.render_for_service(event, invited.as_deref()).await?)
    }

    /// Stores the next transaction.
    async fn begin(&mut self, upto: Position, gathered: &Gathered) -> Result<(), FollowError> {
        let Gathered { events, ephemeral, to_device, .. } = gathered;
        let (old_ephemeral, old_to_device) = (ephemeral, to_device);
        let body = serde_json::to_vec(&Body { events, ephemeral, old_ephemeral, to_device, old_to_device })
            .map_err(|error| RoomError::Invalid(error.to_string()))?;
        self.cursor.begun += 1;
        let txn = ServiceTxnRecord {
            id: format!("{}.{}", self.cursor.epoch, self.cursor.begun),
            upto,
            events: events.len() as u64,
            body: Bytes::from(body),
        };
        let mut batch = Batch::default();
        batch.put(&schema::SERVICE_TXNS, self.service.id.as_str(), &txn);
        self.store_cursor(batch).await?;
        self.txn = Some(txn);
        Ok(())
    }

    /// Sends a transaction, and moves on if the service has taken it.
    async fn send(&mut self, txn: &ServiceTxnRecord) -> Result<Next, FollowError> {
        let question = Question {
            kind: "transactions",
            method: Method::PUT,
            path: format!("/transactions/{}", txn.id),
            old: Some(""),
            body: Some(txn.body.clone()),
            timeout: TIMEOUT,
        };
        let services = self.homeserver.services();
        let failure = match services.ask(&self.service, question).await {
            Ok(answer) if answer.status.is_success() => None,
            Ok(answer) => {
                let error = ServiceError::Status(answer.status);
                services.metrics().failed(&self.service.id, &error);
                Some(error)
            }
            Err(error) => Some(error),
        };
        let service = &self.service.id;
        let Some(error) = failure else {
            if self.failures > 0 {
                tracing::info!(service, "an application service takes events again");
            }
            services.metrics().took(service, txn.events);
            self.failures = 0;
            self.cursor.upto = txn.upto;
            let mut batch = Batch::default();
            batch.delete(&schema::SERVICE_TXNS, self.service.id.as_str());
            self.store_cursor(batch).await?;
            self.txn = None;
            self.forget_late().await?;
            return Ok(Next::More);
        };
        self.failures = self.failures.saturating_add(1);
        let wait = delay(self.failures, &*self.homeserver.env().entropy);
        let (failures, delay_s) = (self.failures, wait.as_secs());
        if failures == 1 {
            tracing::warn!(service, %error, "an application service did not take a transaction; will retry");
        } else {
            tracing::info!(service, %error, failures, delay_s, "an application service failed again; will retry");
        }
        Ok(Next::Retry(wait))
    }

    async fn store_cursor(&mut self, mut batch: Batch) -> Result<(), FollowError> {
        batch.put(&schema::SERVICE_CURSORS, self.service.id.as_str(), &self.cursor);
        self.homeserver.storage().commit(batch).await?;
        self.stored = self.cursor.upto;
        Ok(())
    }

    /// Lets go of the late events that all services have passed.
    async fn forget_late(&self) -> Result<(), FollowError> {
        let storage = self.homeserver.storage();
        let late = KeyRange::all().up_to(&self.cursor.upto);
        let rows = storage.range(&schema::LATE_EVENTS, late, Direction::Ascending, PAGE).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut passed = self.cursor.upto;
        for other in self.homeserver.services().iter().filter(|other| other.url.is_some()) {
            let cursor = storage.get(&schema::SERVICE_CURSORS, other.id.as_str()).await?;
            passed = passed.min(cursor.unwrap_or_default().upto);
        }
        let mut batch = Batch::default();
        for (at, _) in rows.into_iter().filter(|(at, _)| *at <= passed) {
            batch.delete(&schema::LATE_EVENTS, &at);
        }
        if !batch.is_empty() {
            storage.commit(batch).await?;
        }
        Ok(())
    }

    /// The ephemeral events that concern the service, of the news that wait.
    async fn ephemeral(
        &mut self,
        news: &mut mpsc::Receiver<EphemeralNews>,
    ) -> Result<Vec<Box<RawValue>>, FollowError> {
        let mut events = Vec::new();
        while events.len() < EPHEMERAL_MAX {
            let Ok(news) = news.try_recv() else { break };
            let shared = self.homeserver.room_shared().clone();
            let at = (shared.store.storage(), &shared.hub.services);
            let concerns = match &news {
                EphemeralNews::Typing(room, room_id, _) | EphemeralNews::Receipt(room, room_id, _) => {
                    self.interest.has_room(&self.service, at, (*room, &**room_id)).await?
                }
                EphemeralNews::Presence(user_id) => {
                    let rooms = KeyRange::prefix(&(user_id,));
                    let rooms =
                        at.0.range(&schema::USER_ROOMS, rooms, Direction::Ascending, usize::MAX).await?;
                    self.service.has_user(user_id)
                        || self.interest.is_in_any(rooms.into_iter().map(|((_, room), _)| room))
                }
            };
            if concerns {
                events.extend(self.homeserver.ephemeral_event(&news));
            }
        }
        Ok(events)
    }
}

/// How long to wait after a failure: doubled each time, and a fifth more or less at random.
fn delay(failures: u32, entropy: &dyn Entropy) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1_u32 << failures.saturating_sub(1).min(16));
    let jitter = 80 + entropy.next_u64() % 41;
    doubled.min(RETRY_MAX).mul_f64(f64::from(u32::try_from(jitter).unwrap_or(100)) / 100.0)
}
