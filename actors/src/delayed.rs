//! Events that are sent later, unless their sender cancels them or puts them off.
//!
//! Each is a row, changed under the condition that nobody else has changed it; a task sends what is due. An event is
//! claimed before it is sent, and sent with a transaction ID: after a crash it is sent again and is the same event.
//!
//! Spec: MSC4140.

use std::time::Duration;

use bytes::Bytes;
use engine::pdu::Draft;
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::value::RawValue;
use storage::{
    Batch, CommitError, Direction, KeyRange, StoreError,
    schema::{self, DelayedEventRecord, DelayedStage, SentBy},
};
use tokio::sync::Notify;

use crate::{
    background::Background,
    federation::is_own_trouble,
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, Send},
};

/// Events of one user that may wait at a time.
const SCHEDULED_MAX: usize = 100;

/// Events of one user that are remembered once they are over, for clients that ask again.
const FINALIZED_MAX: usize = 100;

/// The largest content: that of an event.
const CONTENT_MAX: usize = 65_536;

/// Rows that the task looks at at a time.
const PAGE: usize = 100;

/// The task looks at the clock at least this often: it may be set while the task sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// When to try again to send an event that a fault of this server has held up, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// How often a change is tried that others come before.
const TRIES: usize = 5;

/// An event to be sent later.
#[derive(Clone, Debug)]
pub struct Delayed {
    /// Who sends it.
    pub user_id: OwnedUserId,
    /// With which device.
    pub device_id: OwnedDeviceId,
    /// The client's transaction ID, if there is one.
    pub txn_id: Option<String>,
    /// The room that it goes to.
    pub room_id: OwnedRoomId,
    /// The event.
    pub draft: Draft,
    /// How long it waits.
    pub delay: Duration,
}

/// What is done with an event that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayedAction {
    /// Do not send it.
    Cancel,
    /// Let it wait as long again.
    Restart,
    /// Send it now.
    Send,
}

/// Why a delayed event was not scheduled or changed.
#[derive(Debug, thiserror::Error)]
pub enum DelayedError {
    /// The delay is longer than this server allows.
    #[error("an event may be delayed by at most {} ms here", max.as_millis())]
    TooLong {
        /// The longest delay.
        max: Duration,
    },
    /// The user has as many delayed events as one user may have.
    #[error("you have too many delayed events")]
    TooMany,
    /// The content is larger than that of an event may be.
    #[error("the content of an event has at most 64 KiB")]
    TooLarge,
    /// There is no such delayed event, or it is over.
    #[error("there is no such delayed event")]
    NotFound,
    /// Others keep changing it.
    #[error("other changes came between; retry")]
    Overtaken,
    /// The room does not take the event.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change is not durable.
    #[error("could not store: {0}")]
    Commit(CommitError),
}

/// The task that sends what is due.
pub(crate) struct DelayedEvents {
    max: Duration,
    changed: Notify,
    task: Background,
}

impl DelayedEvents {
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, changed: Notify::new(), task: Background::new("the sending of delayed events") }
    }

    /// Starts the task.
    pub(crate) fn start(&self, homeserver: &Homeserver) {
        let homeserver = homeserver.clone();
        self.task.keep(move || homeserver.clone().send_delayed_events());
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }
}

/// When an event is due, in milliseconds since the epoch.
fn due_ms(record: &DelayedEventRecord) -> u64 {
    record.since_ms.saturating_add(record.delay_ms)
}

fn is_open(record: &DelayedEventRecord) -> bool {
    matches!(record.stage, DelayedStage::Scheduled | DelayedStage::Sending)
}

/// When an event was over; 0 if it is not.
fn over_ms(record: &DelayedEventRecord) -> u64 {
    match record.stage {
        DelayedStage::Scheduled | DelayedStage::Sending => 0,
        DelayedStage::Sent { at_ms, .. } | DelayedStage::Cancelled { at_ms, .. } => at_ms,
    }
}

/// An ID with what is known of it.
pub type DelayedEvent = (String, DelayedEventRecord);

impl Homeserver {
    /// The longest delay of an event; zero if this server delays none.
    pub fn delay_max(&self) -> Duration {
        self.delayed().max
    }

    /// Schedules an event and returns the ID of the delay; the same transaction has the same ID.
    pub async fn delay(&self, delayed: Delayed) -> Result<String, DelayedError> {
        let max = self.delay_max();
        if delayed.delay > max || max.is_zero() {
            return Err(DelayedError::TooLong { max });
        }
        if delayed.draft.content.get().len() > CONTENT_MAX {
            return Err(DelayedError::TooLarge);
        }
        let room = self.room(&delayed.room_id).await?;
        if !room.is_joined(&delayed.user_id).await? {
            return Err(RoomError::NotJoined.into());
        }
        let known = self.delayed_events(&delayed.user_id).await?;
        let kind = delayed.draft.kind.to_string();
        if let Some(txn_id) = &delayed.txn_id
            && let Some((id, _)) = known.iter().find(|(_, record)| {
                record.txn_id == *txn_id
                    && record.device_id == delayed.device_id
                    && record.room_id == delayed.room_id
                    && record.kind == kind
            })
        {
            return Ok(id.clone());
        }
        if known.iter().filter(|(_, record)| is_open(record)).count() >= SCHEDULED_MAX {
            return Err(DelayedError::TooMany);
        }
        let held = match &delayed.draft.state_key {
            Some(key) => room.current(&kind, key).await?.map(|event| event.pdu.event_id().to_owned()),
            None => None,
        };
        let record = DelayedEventRecord {
            txn_id: delayed.txn_id.unwrap_or_default(),
            room_id: delayed.room_id,
            kind,
            state_key: delayed.draft.state_key,
            content: Bytes::copy_from_slice(delayed.draft.content.get().as_bytes()),
            delay_ms: u64::try_from(delayed.delay.as_millis()).unwrap_or(u64::MAX),
            since_ms: self.env().clock.now_ms(),
            held,
            stage: DelayedStage::Scheduled,
            user_id: delayed.user_id,
            device_id: delayed.device_id,
        };
        // Whoever knows the ID may put the event off or send it.
        let id = self.env().entropy.token(32);
        let mut batch = Batch::new();
        forget_old(&mut batch, known);
        batch.put(&schema::DELAYED_EVENTS, &id, &record);
        batch.put(&schema::DELAYED_OF_USERS, &(record.user_id.clone(), id.clone()), &());
        batch.put(&schema::DELAYED_DUE, &(due_ms(&record), id.clone()), &());
        self.storage().commit(batch).await.map_err(DelayedError::Commit)?;
        self.delayed().changed.notify_one();
        Ok(id)
    }

    /// The delayed events of a user: those that wait, and the last of those that are over.
    pub async fn delayed_events(&self, user_id: &UserId) -> Result<Vec<DelayedEvent>, StoreError> {
        let all = KeyRange::prefix(&(user_id,));
        let rows =
            self.storage().range(&schema::DELAYED_OF_USERS, all, Direction::Ascending, usize::MAX).await?;
        let ids: Vec<String> = rows.into_iter().map(|((_, id), ())| id).collect();
        let records = self.storage().get_many(&schema::DELAYED_EVENTS, ids.iter().cloned()).await?;
        let mut events: Vec<DelayedEvent> =
            ids.into_iter().zip(records).filter_map(|(id, record)| Some((id, record?))).collect();
        events.sort_by_key(|(_, record)| due_ms(record));
        Ok(events)
    }

    /// Does something with a delayed event, for whoever knows its ID.
    pub async fn manage_delayed(&self, id: &str, action: DelayedAction) -> Result<(), DelayedError> {
        for _ in 0..TRIES {
            let record = self.storage().get(&schema::DELAYED_EVENTS, id).await?;
            let record = record.ok_or(DelayedError::NotFound)?;
            let now_ms = self.env().clock.now_ms();
            let outcome = match (action, &record.stage) {
                (DelayedAction::Cancel, DelayedStage::Scheduled) => {
                    let stage = DelayedStage::Cancelled { at_ms: now_ms, reason: None };
                    self.change_delayed(id, &record, stage, record.since_ms).await
                }
                (DelayedAction::Restart, DelayedStage::Scheduled) => {
                    self.change_delayed(id, &record, DelayedStage::Scheduled, now_ms).await
                }
                (DelayedAction::Send, DelayedStage::Scheduled | DelayedStage::Sending) => {
                    self.send_delayed(id, record).await
                }
                (DelayedAction::Cancel, DelayedStage::Cancelled { reason: None, .. })
                | (DelayedAction::Send, DelayedStage::Sent { .. }) => Ok(()),
                _ => Err(DelayedError::NotFound),
            };
            match outcome {
                Err(DelayedError::Commit(CommitError::Refused(_))) => {}
                outcome => {
                    self.delayed().changed.notify_one();
                    return outcome;
                }
            }
        }
        Err(DelayedError::Overtaken)
    }

    /// Takes an event to another stage, if it still is as it was read.
    async fn change_delayed(
        &self,
        id: &str,
        record: &DelayedEventRecord,
        stage: DelayedStage,
        since_ms: u64,
    ) -> Result<(), DelayedError> {
        let next = DelayedEventRecord { stage, since_ms, ..record.clone() };
        let mut batch = Batch::new();
        batch.expect(&schema::DELAYED_EVENTS, id, record).put(&schema::DELAYED_EVENTS, id, &next);
        batch.delete(&schema::DELAYED_DUE, &(due_ms(record), id.to_owned()));
        if is_open(&next) {
            batch.put(&schema::DELAYED_DUE, &(due_ms(&next), id.to_owned()), &());
        }
        self.storage().commit(batch).await.map_err(DelayedError::Commit)
    }

    /// Sends what is due until the server stops.
    async fn send_delayed_events(self) {
        let mut stopping = self.delayed().task.stopping();
        loop {
            let wait = match self.send_due().await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "cannot look for delayed events");
                    LOOK_EVERY
                }
            };
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = self.delayed().changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Sends what is due; returns how long to wait for more.
    ///
    /// A failure of the store ends the round: what is due stays so, and would be tried without a pause.
    async fn send_due(&self) -> Result<Duration, DelayedError> {
        loop {
            let rows = self
                .storage()
                .range(&schema::DELAYED_DUE, KeyRange::all(), Direction::Ascending, PAGE)
                .await?;
            let now_ms = self.env().clock.now_ms();
            let next = rows.first().map(|((due_ms, _), ())| *due_ms);
            match next {
                None => return Ok(LOOK_EVERY),
                Some(due_ms) if due_ms > now_ms => {
                    return Ok(LOOK_EVERY.min(Duration::from_millis(due_ms - now_ms)));
                }
                Some(_) => {}
            }
            for ((due_ms, id), ()) in rows.into_iter().filter(|((due_ms, _), ())| *due_ms <= now_ms) {
                if self.delayed().task.is_stopping() {
                    return Ok(LOOK_EVERY);
                }
                self.send_due_one(due_ms, &id).await?;
            }
        }
    }

    async fn send_due_one(&self, due_ms: u64, id: &str) -> Result<(), DelayedError> {
        let record = match self.storage().get(&schema::DELAYED_EVENTS, id).await {
            Ok(Some(record)) => record,
            Ok(None) => return self.forget_due(due_ms, id).await,
            // It never gets better, and must not hold up the others.
            Err(error) if error.is_damage() => {
                tracing::error!(%error, id, "a delayed event cannot be read, and is not sent");
                return self.forget_due(due_ms, id).await;
            }
            Err(error) => return Err(error.into()),
        };
        match self.send_delayed(id, record.clone()).await {
            // Somebody else changed it just now.
            Ok(()) | Err(DelayedError::Commit(CommitError::Refused(_))) => Ok(()),
            Err(error @ (DelayedError::Commit(_) | DelayedError::Store(_))) => Err(error),
            Err(error) => {
                tracing::info!(%error, room.id = %record.room_id, "a delayed event was not sent");
                Ok(())
            }
        }
    }

    /// Lets go of a time at which there is nothing to send.
    async fn forget_due(&self, due_ms: u64, id: &str) -> Result<(), DelayedError> {
        let mut batch = Batch::new();
        batch.delete(&schema::DELAYED_DUE, &(due_ms, id.to_owned()));
        self.storage().commit(batch).await.map_err(DelayedError::Commit)
    }

    /// Sends an event, and notes what became of it.
    async fn send_delayed(&self, id: &str, mut record: DelayedEventRecord) -> Result<(), DelayedError> {
        if record.stage == DelayedStage::Scheduled {
            self.change_delayed(id, &record, DelayedStage::Sending, record.since_ms).await?;
            record.stage = DelayedStage::Sending;
        }
        let outcome = self.try_delayed(id, &record).await;
        let at_ms = self.env().clock.now_ms();
        match outcome {
            Ok(event_id) => {
                let stage = DelayedStage::Sent { event_id, at_ms };
                self.change_delayed(id, &record, stage, record.since_ms).await
            }
            Err(error) if is_own_trouble(&error) => {
                let since_ms = (at_ms + RETRY_MS).saturating_sub(record.delay_ms);
                self.change_delayed(id, &record, DelayedStage::Scheduled, since_ms).await?;
                Err(error.into())
            }
            Err(error) => {
                let stage = DelayedStage::Cancelled { at_ms, reason: Some(error.to_string()) };
                self.change_delayed(id, &record, stage, record.since_ms).await?;
                Err(error.into())
            }
        }
    }

    async fn try_delayed(&self, id: &str, record: &DelayedEventRecord) -> Result<OwnedEventId, RoomError> {
        let room = self.room(&record.room_id).await?;
        if is_overtaken(&room, record).await? {
            return Err(RoomError::NotAllowed("somebody else has changed this state since".to_owned()));
        }
        let content = std::str::from_utf8(&record.content).unwrap_or_default().to_owned();
        let content =
            RawValue::from_string(content).map_err(|error| RoomError::Invalid(error.to_string()))?;
        let mut draft = Draft::new(record.kind.as_str().into(), record.state_key.clone(), content);
        let filled = self.fill_in_profile(&mut draft).await;
        filled.map_err(|error| RoomError::Invalid(error.to_string()))?;
        self.check_delayed_sender(&room, &record.user_id, &draft).await?;
        // A client's own transaction ID, so that the client knows its event again.
        let is_message = record.state_key.is_none() && !record.txn_id.is_empty();
        let txn_id = if is_message { record.txn_id.clone() } else { id.to_owned() };
        let sent_by = Some(SentBy { device_id: record.device_id.clone(), txn_id });
        room.send(Send { sender: record.user_id.clone(), draft, sent_by }).await
    }

    /// Refuses what a user who has been restricted since may not send.
    async fn check_delayed_sender(
        &self,
        room: &RoomHandle,
        user: &UserId,
        draft: &Draft,
    ) -> Result<(), RoomError> {
        let account = self.storage().get(&schema::ACCOUNTS, user).await?;
        match account {
            Some(account) if account.is_deactivated || account.is_locked => {
                Err(RoomError::NotAllowed("the account cannot be used".to_owned()))
            }
            Some(account) => {
                if account.is_suspended {
                    room.check_suspended(user, draft).await?;
                }
                if account.is_guest {
                    room.check_guest(user, draft).await?;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Whether another user has set the state that an event is to set, since it was scheduled.
async fn is_overtaken(room: &RoomHandle, record: &DelayedEventRecord) -> Result<bool, RoomError> {
    let Some(state_key) = &record.state_key else { return Ok(false) };
    let current = room.current(&record.kind, state_key).await?;
    Ok(current.is_some_and(|event| {
        Some(event.pdu.event_id()) != record.held.as_ref() && *event.pdu.sender() != *record.user_id
    }))
}

/// Lets go of the oldest of the events that are over.
fn forget_old(batch: &mut Batch, mut known: Vec<DelayedEvent>) {
    known.retain(|(_, record)| !is_open(record));
    known.sort_by_key(|(_, record)| over_ms(record));
    let surplus = known.len().saturating_sub(FINALIZED_MAX - 1);
    for (id, record) in known.into_iter().take(surplus) {
        batch.delete(&schema::DELAYED_EVENTS, &id);
        batch.delete(&schema::DELAYED_OF_USERS, &(record.user_id, id));
    }
}
