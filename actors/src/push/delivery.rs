//! A run of one pusher: what has happened since its cursor is judged, and the push gateway told of what notifies.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use engine::id::{Position, TimelineIndex};
use ruma::OwnedRoomId;
use storage::{
    Batch, CommitError, StoreError,
    schema::{self, PushCursorRecord, PusherRecord},
};
use tokio::time::Instant;

use super::{
    Owned, PushError,
    badge::Badge,
    metrics::{self, PushMetrics},
    notification,
};
use crate::{
    env::Entropy,
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, StoredEvent},
    session::{Notice, RoomEntry, SessionChange, SessionError, SessionHandle},
};

/// Events of a room that are judged at a time.
const PAGE: usize = 100;

/// The first retry comes after about this long.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Retries are never further apart than this.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(3600);

/// A gateway that has failed for this long is told no more of what happened meanwhile: nobody wants to be woken by it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Positions that the cursor may be behind before it is stored although nobody was notified.
const BEHIND_MAX: u64 = 1000;

/// How long a run waits for a change that is about to become visible.
const SETTLE: Duration = Duration::from_secs(5);

/// What is to become of a pusher after a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// It waits for news.
    Idle,
    /// Its gateway failed; it tries again after this.
    Retry(Duration),
    /// Something failed here.
    Failed,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Room(#[from] RoomError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not store: {0}")]
    Commit(#[from] CommitError),
}

/// Tells a pusher's gateway of everything that it has not been told of.
pub(super) async fn run(homeserver: &Homeserver, owned: &Owned) -> Next {
    let run = async {
        match Run::begin(homeserver, owned).await? {
            Some(mut run) => run.deliver().await,
            None => Ok(Next::Idle),
        }
    };
    match run.await {
        Ok(next) => next,
        // An account that is gone has no pushers either.
        Err(RunError::Session(SessionError::NotFound)) => Next::Idle,
        Err(error) => {
            tracing::warn!(user.id = %owned.0, %error, "a pusher has to start over");
            Next::Failed
        }
    }
}

struct Run<'a> {
    homeserver: &'a Homeserver,
    owned: &'a Owned,
    session: SessionHandle,
    record: Arc<PusherRecord>,
    url: String,
    cursor: PushCursorRecord,
    /// Where the store has the cursor.
    stored: Position,
    badge: Badge,
}

/// Something that notifies, and where it happened.
struct Happened {
    at: Position,
    room: RoomHandle,
    notice: Notice,
}

/// What notifies up to some position.
struct News {
    happened: Vec<Happened>,
    upto: Position,
    is_all: bool,
}

/// What a gateway made of a notification.
enum Told {
    Taken,
    Rejected,
    Failed(PushError),
}

impl<'a> Run<'a> {
    async fn begin(homeserver: &'a Homeserver, owned: &'a Owned) -> Result<Option<Self>, RunError> {
        let (user_id, key) = owned;
        let session = homeserver.session(user_id).await?;
        let Some(record) = session.data().pusher(key).cloned() else { return Ok(None) };
        let Some(url) = notification::url(&record.data) else { return Ok(None) };
        let row = (user_id.clone(), key.app_id.clone(), key.pushkey.clone());
        let mut cursor = homeserver.storage().get(&schema::PUSH_CURSORS, &row).await?.unwrap_or_default();
        // A row can outlive its pusher by a moment.
        cursor.upto = cursor.upto.max(record.since);
        let badge = Badge::load(homeserver, user_id).await?;
        Ok(Some(Self { homeserver, owned, session, record, url, stored: cursor.upto, cursor, badge }))
    }

    async fn deliver(&mut self) -> Result<Next, RunError> {
        self.give_up_if_hopeless();
        loop {
            let News { happened, upto, is_all } = self.news().await?;
            for happened in happened {
                // It may have been read while others were on their way.
                if self.session.has_read(&happened.room, &happened.notice.event).await? {
                    continue;
                }
                let next = self.tell(&happened).await?;
                if next.is_some() {
                    return Ok(next.unwrap_or(Next::Idle));
                }
            }
            self.cursor.upto = self.cursor.upto.max(upto);
            if is_all {
                break;
            }
        }
        if let Some(next) = self.tell_counts().await? {
            return Ok(next);
        }
        if self.cursor.upto.0 > self.stored.0 + BEHIND_MAX {
            self.store().await?;
        }
        Ok(Next::Idle)
    }

    fn give_up_if_hopeless(&mut self) {
        let now_ms = self.homeserver.env().clock.now_ms();
        let failing = Duration::from_millis(now_ms.saturating_sub(self.cursor.failing_since_ms));
        if self.cursor.failures > 0 && failing > GIVE_UP_AFTER {
            let user_id = &self.owned.0;
            tracing::warn!(user.id = %user_id, "a push gateway has failed for long; what waited for it is dropped");
            self.metrics().abandoned();
            self.cursor.upto = self.cursor.upto.max(self.homeserver.storage().watermark());
            self.cursor.failing_since_ms = now_ms;
        }
    }

    /// What notifies after the cursor, of all rooms, in the order in which it happened.
    ///
    /// A room with very many events ends it early: what comes after in other rooms has to wait.
    async fn news(&self) -> Result<News, RunError> {
        let since = self.cursor.upto;
        let settled = self.settled().await;
        let mut upto = settled;
        let mut happened = Vec::new();
        for (room_id, entry) in self.session.view().rooms_changed(since) {
            let (room, events) = self.events(&room_id, &entry, since, settled).await?;
            let Some(room) = room else { continue };
            if events.len() == PAGE
                && let Some(last) = events.last()
            {
                upto = upto.min(at(&entry, last));
            }
            for notice in self.session.notices(&room, &events).await? {
                happened.push(Happened { at: at(&entry, &notice.event), room: room.clone(), notice });
            }
        }
        happened.retain(|happened| happened.at <= upto && !happened.notice.is_read);
        happened.sort_by_key(|happened| happened.at);
        Ok(News { happened, upto, is_all: upto == settled })
    }

    /// Waits until all that is marked for the user is durable and visible; returns a position up to which that is so.
    async fn settled(&self) -> Position {
        let wanted = self.session.view().latest();
        let mut changed = self.homeserver.storage().watermark_changed();
        let settled = changed.wait_for(|watermark| *watermark >= wanted);
        // What takes longer is dealt with by the next run.
        let _ = tokio::time::timeout(SETTLE, settled).await;
        self.homeserver.storage().watermark()
    }

    /// The events of a room that happened after `since` and not after `upto`, as far as they may notify the user.
    async fn events(
        &self,
        room_id: &OwnedRoomId,
        entry: &RoomEntry,
        since: Position,
        upto: Position,
    ) -> Result<(Option<RoomHandle>, Vec<Arc<StoredEvent>>), RunError> {
        let began = Position::from(entry.since);
        let is_invite = entry.membership == "invite" && began > since && began <= upto;
        let is_active = entry.is_joined() && entry.activity > since;
        if !is_invite && !is_active {
            return Ok((None, Vec::new()));
        }
        let room = self.homeserver.room(room_id).await?;
        let events = if is_invite {
            room.events(&[entry.event]).await?
        } else {
            let from = TimelineIndex::from(since).max(entry.since);
            let mut events = room.timeline_forward(from, PAGE).await?;
            events.retain(|event| event.index <= Some(upto.into()));
            events
        };
        Ok((Some(room), events))
    }

    /// Tells the gateway of an event; returns what is to become of the pusher if that does not go on.
    async fn tell(&mut self, happened: &Happened) -> Result<Option<Next>, RunError> {
        let counts = self.badge.count(self.homeserver, &self.session).await?;
        let Happened { at, room, notice } = happened;
        let pusher = (&self.owned.1, &*self.record);
        let body = notification::of_event(pusher, &self.owned.0, room, notice, counts).await?;
        let told = self.call(metrics::Told::Event, body).await;
        if matches!(told, Told::Taken) {
            self.cursor.upto = self.cursor.upto.max(*at);
        }
        self.conclude(told, counts.unread).await
    }

    /// Tells the gateway that less is unread than it was told.
    async fn tell_counts(&mut self) -> Result<Option<Next>, RunError> {
        if self.cursor.badge == 0 {
            return Ok(None);
        }
        let counts = self.badge.count(self.homeserver, &self.session).await?;
        if counts.unread >= self.cursor.badge {
            return Ok(None);
        }
        let body = notification::of_counts((&self.owned.1, &self.record), counts);
        let told = self.call(metrics::Told::Counts, body).await;
        self.conclude(told, counts.unread).await
    }

    fn metrics(&self) -> &PushMetrics {
        self.homeserver.pushing().metrics()
    }

    async fn call(&self, what: metrics::Told, body: Bytes) -> Told {
        let began = Instant::now();
        let answer = self.homeserver.pushing().gateway().notify(&self.url, body).await;
        self.metrics().called(what, began.elapsed(), answer.as_ref().err());
        match answer {
            Ok(answer) if notification::rejects(&answer, &self.owned.1.pushkey) => Told::Rejected,
            Ok(_) => Told::Taken,
            Err(error) => Told::Failed(error),
        }
    }

    async fn conclude(&mut self, told: Told, unread: u64) -> Result<Option<Next>, RunError> {
        let user_id = &self.owned.0;
        match told {
            Told::Taken => {
                if self.cursor.failures > 0 {
                    tracing::info!(user.id = %user_id, "a push gateway takes notifications again");
                }
                let upto = self.cursor.upto;
                self.cursor = PushCursorRecord { upto, badge: unread, ..PushCursorRecord::default() };
                self.store().await?;
                Ok(None)
            }
            Told::Rejected => {
                tracing::info!(user.id = %user_id, "a push gateway rejects a pushkey; its pusher is removed");
                self.metrics().rejected();
                let gone = SessionChange::RemovePusher(self.owned.1.clone(), Some(self.record.set));
                self.session.change(gone).await?;
                Ok(Some(Next::Idle))
            }
            Told::Failed(error) => {
                let wait = self.failed();
                let (failures, delay_s) = (self.cursor.failures, wait.as_secs());
                tracing::info!(user.id = %user_id, %error, failures, delay_s, "a push gateway failed; will retry");
                self.store().await?;
                Ok(Some(Next::Retry(wait)))
            }
        }
    }

    fn failed(&mut self) -> Duration {
        let now_ms = self.homeserver.env().clock.now_ms();
        let cursor = &mut self.cursor;
        if cursor.failures == 0 {
            cursor.failing_since_ms = now_ms;
        }
        cursor.failures = cursor.failures.saturating_add(1);
        let wait = delay(cursor.failures, &*self.homeserver.env().entropy);
        cursor.retry_at_ms = now_ms + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        wait
    }

    async fn store(&mut self) -> Result<(), RunError> {
        let (user_id, key) = self.owned;
        let row = (user_id.clone(), key.app_id.clone(), key.pushkey.clone());
        let mut batch = Batch::default();
        batch.put(&schema::PUSH_CURSORS, &row, &self.cursor);
        self.homeserver.storage().commit(batch).await?;
        self.stored = self.cursor.upto;
        Ok(())
    }
}

/// When an event happened; an invite to a room that this server is not in has no place in a timeline.
fn at(entry: &RoomEntry, event: &StoredEvent) -> Position {
    event.index.unwrap_or(entry.since).into()
}

/// How long to wait after a failure: doubled each time, and a fifth more or less at random.
fn delay(failures: u32, entropy: &dyn Entropy) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1_u32 << failures.saturating_sub(1).min(16));
    let jitter = 80 + entropy.next_u64() % 41;
    doubled.min(RETRY_MAX).mul_f64(f64::from(u32::try_from(jitter).unwrap_or(100)) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededEntropy;

    #[test]
    fn retries_come_later_and_later_up_to_a_limit() {
        let entropy = SeededEntropy::new(7);
        for (failures, about_s) in
            [(1, 1.0), (2, 2.0), (5, 16.0), (12, 2048.0), (13, 3600.0), (u32::MAX, 3600.0)]
        {
            let wait_s = delay(failures, &entropy).as_secs_f64();
            assert!((about_s * 0.8..=about_s * 1.2).contains(&wait_s), "{failures}: {wait_s}");
        }
    }
}
