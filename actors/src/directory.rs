//! Finding actors: one per key, started on first use, passivated when idle or when memory is short.
//!
//! A [`Handle`] is a lease: as long as one exists, its actor is not passivated. Calls pass admission: an
//! actor with too many calls under way refuses more. Every actor of a class runs under the class's
//! supervisor; a crash frees the key, so that the next call starts the actor afresh from the store.

mod handle;
mod supervisor;
#[cfg(test)]
mod tests;

use std::{
    fmt::Display,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use ractor::{Actor, ActorId, ActorRef};
use tokio::{
    sync::{Notify, OnceCell, watch},
    time::Instant,
};

pub use self::handle::{CallError, Handle};
use self::supervisor::{Supervisor, SupervisorMessage};
use crate::passivation::Gate;

/// An actor that a directory can start.
pub trait DirectoryActor: Actor {
    /// What the actor is one per.
    type Key: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static;
    /// What all actors of the class share.
    type Context: Clone + Send + Sync + 'static;
    /// The class's name in logs and metrics.
    const CLASS: &'static str;

    /// A new actor.
    fn new() -> Self;

    /// What the actor of a key starts with.
    fn arguments(key: &Self::Key, context: &Self::Context, meter: Meter) -> Self::Arguments;
}

/// Limits of a class of actors.
#[derive(Clone, Copy, Debug)]
pub struct ClassConfig {
    /// Bytes that the class may hold in memory.
    pub budget_bytes: u64,
    /// An actor that nobody used for this long is passivated.
    pub idle_after: Duration,
    /// Calls that one actor may have under way.
    pub backlog_max: u32,
    /// How long a call may take.
    pub call_timeout: Duration,
}

impl Default for ClassConfig {
    fn default() -> Self {
        Self {
            budget_bytes: 256 << 20,
            idle_after: Duration::from_secs(15 * 60),
            backlog_max: 4096,
            call_timeout: Duration::from_secs(60),
        }
    }
}

/// Why an actor could not be started.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ActivateError {
    /// Its start failed.
    #[error("{0}")]
    Failed(String),
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

/// What a class of actors does, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Actors in memory.
    pub active: usize,
    /// Bytes that they report.
    pub bytes: u64,
    /// Calls under way.
    pub backlog: u64,
    /// Starts since the beginning.
    pub activated: u64,
    /// Passivations since the beginning.
    pub passivated: u64,
    /// Crashes since the beginning.
    pub crashed: u64,
}

/// Through which an actor reports its memory.
#[derive(Clone)]
pub struct Meter {
    bytes: Arc<AtomicU64>,
    class: Arc<ClassMeter>,
}

impl Meter {
    /// Sets how many bytes the actor holds.
    pub fn set_bytes(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        let total = &self.class.bytes;
        let now = total
            .fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed)
            .wrapping_add(bytes.wrapping_sub(before));
        if now > self.class.budget {
            self.class.over_budget.notify_one();
        }
    }
}

struct ClassMeter {
    budget: u64,
    bytes: AtomicU64,
    over_budget: Notify,
    backlog: AtomicU64,
    activated: AtomicU64,
    passivated: AtomicU64,
    crashed: AtomicU64,
}

/// The place of one key's actor.
struct Slot<A: DirectoryActor> {
    key: A::Key,
    gate: Gate,
    actor: OnceCell<ActorRef<A::Msg>>,
    gone: watch::Sender<bool>,
    bytes: Arc<AtomicU64>,
    backlog: AtomicU32,
    last_used_ms: AtomicU64,
}

struct Inner<A: DirectoryActor> {
    context: A::Context,
    config: ClassConfig,
    meter: Arc<ClassMeter>,
    slots: DashMap<A::Key, Arc<Slot<A>>>,
    running: DashMap<ActorId, Arc<Slot<A>>>,
    crashes: DashMap<A::Key, Crashes>,
    supervisor: OnceCell<ActorRef<SupervisorMessage>>,
    started: Instant,
    stopping: AtomicBool,
}

/// Recent crashes of one actor.
#[derive(Clone, Copy)]
struct Crashes {
    count: u32,
    last_ms: u64,
}

/// Crashes that are forgiven before starts are delayed.
const CRASHES_FREE: u32 = 3;

/// The longest delay of a start after repeated crashes.
const BACK_OFF_MAX_MS: u64 = 60_000;

impl Crashes {
    /// How long to wait for the next start, at `now_ms`.
    fn retry_after(self, now_ms: u64) -> Option<Duration> {
        let over = self.count.checked_sub(CRASHES_FREE)?;
        let delay = (100_u64 << over.min(20)).min(BACK_OFF_MAX_MS);
        let due = self.last_ms + delay;
        (due > now_ms).then(|| Duration::from_millis(due - now_ms))
    }
}

/// The actors of one class. Cloning shares it.
pub struct Directory<A: DirectoryActor>(Arc<Inner<A>>);

impl<A: DirectoryActor> Clone for Directory<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: DirectoryActor> Directory<A> {
    /// Starts the class's supervisor.
    pub async fn start(context: A::Context, config: ClassConfig) -> Self {
        let meter = Arc::new(ClassMeter {
            budget: config.budget_bytes,
            bytes: AtomicU64::new(0),
            over_budget: Notify::new(),
            backlog: AtomicU64::new(0),
            activated: AtomicU64::new(0),
            passivated: AtomicU64::new(0),
            crashed: AtomicU64::new(0),
        });
        let inner = Arc::new(Inner {
            context,
            config,
            meter,
            slots: DashMap::new(),
            running: DashMap::new(),
            crashes: DashMap::new(),
            supervisor: OnceCell::new(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        });
        Supervisor::<A>::start(&inner).await;
        Self(inner)
    }

    /// The actor of a key; starts it if it is not active.
    pub async fn get(&self, key: &A::Key) -> Result<Handle<A>, ActivateError> {
        loop {
            self.check_may_start(key)?;
            let slot = self.slot(key);
            if !slot.gate.enter() {
                // Being passivated or crashed: wait until the old actor is gone.
                let _ = slot.gone.subscribe().wait_for(|gone| *gone).await;
                continue;
            }
            let handle = Handle::leased(slot, self.0.clone());
            match handle.slot().actor.get_or_try_init(|| self.spawn(handle.slot())).await {
                Ok(_) => return Ok(handle),
                Err(error) => {
                    self.0.slots.remove_if(key, |_, known| Arc::ptr_eq(known, handle.slot()));
                    return Err(error);
                }
            }
        }
    }

    /// The actor of a key if it is active.
    pub fn peek(&self, key: &A::Key) -> Option<Handle<A>> {
        let slot = self.0.slots.get(key)?.clone();
        (slot.actor.initialized() && slot.gate.enter()).then(|| Handle::leased(slot, self.0.clone()))
    }

    fn slot(&self, key: &A::Key) -> Arc<Slot<A>> {
        if let Some(slot) = self.0.slots.get(key) {
            return slot.clone();
        }
        let new = || {
            Arc::new(Slot {
                key: key.clone(),
                gate: Gate::new(),
                actor: OnceCell::new(),
                gone: watch::Sender::new(false),
                bytes: Arc::new(AtomicU64::new(0)),
                backlog: AtomicU32::new(0),
                last_used_ms: AtomicU64::new(self.0.now_ms()),
            })
        };
        self.0.slots.entry(key.clone()).or_insert_with(new).clone()
    }

    fn check_may_start(&self, key: &A::Key) -> Result<(), ActivateError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(ActivateError::Stopping);
        }
        let crashes = self.0.crashes.get(key).map(|crashes| *crashes);
        match crashes.and_then(|crashes| crashes.retry_after(self.0.now_ms())) {
            Some(retry_after) => Err(ActivateError::BackingOff { retry_after }),
            None => Ok(()),
        }
    }

    async fn spawn(&self, slot: &Arc<Slot<A>>) -> Result<ActorRef<A::Msg>, ActivateError> {
        let supervisor = self.0.supervisor.get().ok_or(ActivateError::Stopping)?;
        let meter = Meter { bytes: slot.bytes.clone(), class: self.0.meter.clone() };
        let arguments = A::arguments(&slot.key, &self.0.context, meter);
        let (actor, _) = Actor::spawn_linked(None, A::new(), arguments, supervisor.get_cell())
            .await
            .map_err(|error| ActivateError::Failed(error.to_string()))?;
        self.0.meter.activated.fetch_add(1, Ordering::Relaxed);
        self.0.running.insert(actor.get_id(), slot.clone());
        Ok(actor)
    }

    /// What the class does.
    pub fn stats(&self) -> Stats {
        let meter = &self.0.meter;
        Stats {
            active: self.0.running.len(),
            bytes: meter.bytes.load(Ordering::Relaxed),
            backlog: meter.backlog.load(Ordering::Relaxed),
            activated: meter.activated.load(Ordering::Relaxed),
            passivated: meter.passivated.load(Ordering::Relaxed),
            crashed: meter.crashed.load(Ordering::Relaxed),
        }
    }

    /// Passivates all actors and lets none start any more.
    pub async fn drain_all(&self) {
        self.0.stopping.store(true, Ordering::Release);
        let slots: Vec<_> = self.0.slots.iter().map(|slot| slot.value().clone()).collect();
        for slot in slots {
            slot.gate.close();
            self.0.drain(&slot).await;
        }
    }
}

/// How long an actor may take to work off its mailbox before it is stopped.
const DRAIN_MAX: Duration = Duration::from_secs(10);

impl<A: DirectoryActor> Inner<A> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets an actor whose gate is closed work off its mailbox and end, and frees the key.
    async fn drain(&self, slot: &Arc<Slot<A>>) {
        if let Some(actor) = slot.actor.get()
            && actor.drain_and_wait(Some(DRAIN_MAX)).await.is_err()
        {
            tracing::warn!(class = A::CLASS, key = %slot.key, "actor did not drain in time, stopping it");
            actor.stop(Some("did not drain in time".to_owned()));
        }
        self.meter.passivated.fetch_add(1, Ordering::Relaxed);
        self.release(slot);
    }

    /// Frees the key of an actor that has ended.
    fn release(&self, slot: &Arc<Slot<A>>) {
        if let Some(actor) = slot.actor.get() {
            self.running.remove(&actor.get_id());
        }
        let bytes = slot.bytes.swap(0, Ordering::Relaxed);
        self.meter.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.slots.remove_if(&slot.key, |_, known| Arc::ptr_eq(known, slot));
        slot.gone.send_replace(true);
    }

    /// Notes the crash of an actor and frees its key.
    fn crashed(&self, id: ActorId, reason: &str) {
        let Some((_, slot)) = self.running.remove(&id) else { return };
        slot.gate.close();
        self.meter.crashed.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        let mut crashes =
            self.crashes.entry(slot.key.clone()).or_insert(Crashes { count: 0, last_ms: now_ms });
        // An actor that worked for a while has earned its forgiveness.
        crashes.count = if now_ms - crashes.last_ms > BACK_OFF_MAX_MS { 1 } else { crashes.count + 1 };
        crashes.last_ms = now_ms;
        let count = crashes.count;
        drop(crashes);
        tracing::error!(class = A::CLASS, key = %slot.key, reason, crashes = count, "actor crashed, restarting on next use");
        self.release(&slot);
    }

    /// Passivates actors that are idle for long, and the least recently used while the class is over its budget.
    fn sweep(self: &Arc<Self>) {
        let now_ms = self.now_ms();
        self.crashes.retain(|_, crashes| now_ms - crashes.last_ms <= BACK_OFF_MAX_MS);
        let mut idle: Vec<_> = self
            .slots
            .iter()
            .filter(|slot| slot.gate.is_idle() && slot.actor.initialized())
            .map(|slot| (slot.last_used_ms.load(Ordering::Relaxed), slot.value().clone()))
            .collect();
        idle.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        let idle_ms = u64::try_from(self.config.idle_after.as_millis()).unwrap_or(u64::MAX);
        // A tenth below the budget, so that the next message does not start another sweep.
        let target = self.config.budget_bytes - self.config.budget_bytes / 10;
        let mut bytes = self.meter.bytes.load(Ordering::Relaxed);
        let is_over = bytes > self.config.budget_bytes;
        for (last_used_ms, slot) in idle {
            let is_old = now_ms.saturating_sub(last_used_ms) >= idle_ms;
            let makes_room = is_over && bytes > target;
            if !is_old && !makes_room {
                break;
            }
            if slot.gate.close_if_idle() {
                bytes = bytes.saturating_sub(slot.bytes.load(Ordering::Relaxed));
                let inner = self.clone();
                tokio::spawn(async move { inner.drain(&slot).await });
            }
        }
    }
}
