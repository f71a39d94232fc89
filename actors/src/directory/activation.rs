//! Starting an actor, and what repeated crashes do to the next start.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use ractor::{Actor, ActorRef, SpawnErr};
use tracing::Instrument;

use super::{DirectoryActor, Inner, Phase, Slot, handle::Lease, supervisor::SupervisorMessage};

/// Why an actor could not be started.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ActivateError {
    /// Its start failed.
    #[error("{0}")]
    Failed(String),
    /// Its start failed for what is in its rows, so that the next one fails, too.
    #[error("{0}")]
    Damaged(String),
    /// The start, or the end of the actor before, takes too long.
    #[error("it did not start in time")]
    Late,
    /// It crashed repeatedly, and the next start waits.
    #[error("it crashed repeatedly; retry in {} ms", retry_after.as_millis())]
    BackingOff {
        /// When to try again.
        retry_after: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
}

/// Recent crashes of one key's actors.
#[derive(Clone, Copy)]
pub(super) struct Crashes {
    count: u32,
    last_ms: u64,
}

/// Crashes that are forgiven before starts are delayed.
pub(super) const CRASHES_FREE: u32 = 3;

/// The first delay of a start after repeated crashes; each further crash doubles it.
const BACK_OFF_MIN_MS: u64 = 100;

/// The longest delay of a start after repeated crashes, and how long an actor must work to be forgiven.
const BACK_OFF_MAX_MS: u64 = 60_000;

/// Starts that fit in the time that callers wait for one: they learn how it went.
const STARTS_PER_WAIT: u32 = 2;

/// How long a start waits for memory: passivating takes less, and a start must not hang on others.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(250);

impl Crashes {
    /// With one crash more, at `now_ms`.
    fn and_one(before: Option<Self>, now_ms: u64) -> Self {
        let recent = before.filter(|crashes| !crashes.is_forgiven(now_ms));
        Self { count: recent.map_or(0, |crashes| crashes.count) + 1, last_ms: now_ms }
    }

    /// Whether they are too long ago to count.
    pub(super) fn is_forgiven(self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_ms) > self.delay_ms() + BACK_OFF_MAX_MS
    }

    fn delay_ms(self) -> u64 {
        let over = self.count.checked_sub(CRASHES_FREE);
        over.map_or(0, |over| (BACK_OFF_MIN_MS << over.min(20)).min(BACK_OFF_MAX_MS))
    }

    /// How long to wait for the next start, at `now_ms`.
    fn retry_after(self, now_ms: u64) -> Option<Duration> {
        let wait_ms = (self.last_ms + self.delay_ms()).saturating_sub(now_ms);
        (wait_ms > 0).then(|| Duration::from_millis(wait_ms))
    }
}

/// Starts the actor of a new slot.
///
/// In a task of its own, so that callers who give up do not undo what others wait for.
pub(super) fn spawn<A: DirectoryActor>(directory: &Arc<Inner<A>>, slot: Arc<Slot<A>>) {
    // The lease keeps sweeps away. Without it the gate is closed already, by the shutdown.
    let lease = Lease::take(slot.clone(), directory);
    let directory = directory.clone();
    let activation = async move {
        directory.activate(&slot).await;
        drop(lease);
    };
    tokio::spawn(activation.in_current_span());
}

impl<A: DirectoryActor> Inner<A> {
    /// Whether the actor of a key may be started now.
    pub(super) fn check_may_start(&self, key: &A::Key) -> Result<(), ActivateError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ActivateError::Stopping);
        }
        let crashes = self.crashes.get(key).map(|crashes| *crashes);
        match crashes.and_then(|crashes| crashes.retry_after(self.now_ms())) {
            Some(retry_after) => Err(ActivateError::BackingOff { retry_after }),
            None => Ok(()),
        }
    }

    /// Starts the actor of a slot and tells those who wait for it.
    async fn activate(&self, slot: &Arc<Slot<A>>) {
        let started = AssertUnwindSafe(self.start(slot)).catch_unwind().await;
        let started = started.unwrap_or_else(|_| Err(ActivateError::Failed("its start panicked".to_owned())));
        match started {
            Ok(actor) => {
                self.counters.activated.fetch_add(1, Ordering::Relaxed);
                self.counters.active.fetch_add(1, Ordering::Relaxed);
                slot.enter_phase(Phase::Active(actor.clone()));
                if let Some(supervisor) = self.supervisor.get() {
                    let _ = supervisor.cast(SupervisorMessage::Started(actor.get_cell(), slot.clone()));
                }
            }
            Err(error) => {
                match &error {
                    ActivateError::Failed(_) | ActivateError::Late => {
                        self.note_crash(&slot.key, &error.to_string());
                    }
                    // Nothing is gained by waiting, and whoever asks is told what is wrong.
                    ActivateError::Damaged(reason) => {
                        tracing::error!(class = A::CLASS, key = %slot.key, reason, "an actor's rows are damaged");
                    }
                    ActivateError::BackingOff { .. } | ActivateError::Stopping => {}
                }
                if slot.gate.close() {
                    self.free(slot, Phase::Failed(error));
                } else {
                    slot.enter_phase(Phase::Failed(error));
                }
            }
        }
    }

    async fn start(&self, slot: &Arc<Slot<A>>) -> Result<ActorRef<A::Msg>, ActivateError> {
        // A shutdown that began before this slot was known does not drain it.
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ActivateError::Stopping);
        }
        let supervisor = self.supervisor.get().ok_or(ActivateError::Stopping)?;
        if self.budget.is_exceeded() {
            let _ = supervisor.call(SupervisorMessage::MakeRoom, Some(ROOM_WAIT_MAX)).await;
            self.budget.settled(ROOM_WAIT_MAX).await;
        }
        let arguments = A::arguments(&slot.key, &self.context, slot.meter.clone());
        let start = Actor::spawn_linked(None, A::new(), arguments, supervisor.get_cell());
        let start_max = self.config.call_timeout / STARTS_PER_WAIT;
        let started = tokio::time::timeout(start_max, start).await;
        match started {
            Ok(Ok((actor, _))) => Ok(actor),
            Ok(Err(SpawnErr::StartupFailed(error))) if A::is_damage(&*error) => {
                Err(ActivateError::Damaged(error.to_string()))
            }
            Ok(Err(error)) => Err(ActivateError::Failed(error.to_string())),
            Err(_) => Err(ActivateError::Late),
        }
    }

    /// Notes that the actor of a key crashed or did not start.
    pub(super) fn note_crash(&self, key: &A::Key, reason: &str) {
        self.counters.crashed.fetch_add(1, Ordering::Relaxed);
        let before = self.crashes.get(key).map(|crashes| *crashes);
        let crashes = Crashes::and_one(before, self.now_ms());
        self.crashes.insert(key.clone(), crashes);
        let delay_ms = crashes.delay_ms();
        tracing::error!(class = A::CLASS, %key, reason, crashes = crashes.count, delay_ms, "actor crashed; its next use starts it afresh");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_cap_and_is_forgiven() {
        let mut crashes = None;
        let mut delays = Vec::new();
        for _ in 0..16 {
            let now = Crashes::and_one(crashes, 1000);
            delays.push(now.retry_after(1000).map_or(0, |delay| delay.as_millis()));
            crashes = Some(now);
        }
        assert_eq!(delays[..6], [0, 0, 100, 200, 400, 800]);
        assert_eq!(delays[15], 60_000);
        let crashes = crashes.unwrap();
        assert_eq!(crashes.retry_after(61_000), None);
        assert_eq!(Crashes::and_one(Some(crashes), 61_001).count, 17);
        assert_eq!(Crashes::and_one(Some(crashes), 121_001).count, 1);
    }
}
