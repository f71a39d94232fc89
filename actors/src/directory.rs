//! Finding actors: one per key, started on first use, passivated when idle or when memory is short.
//!
//! A [`Handle`] is a lease: as long as one exists, its actor is not passivated. Calls pass admission: an
//! actor with too many calls under way refuses more. Every actor of a class runs under the class's
//! supervisor; a crash frees the key, so that the next call starts the actor afresh from the store.
//!
//! A key's place is a [`Slot`]. It lives as long as one actor: [`Phase::Starting`], then active, and at
//! last gone; the next actor gets a new slot. Who closes a slot's gate (a sweep, a crash, a failed start,
//! the shutdown) is the only one to end it.

mod activation;
mod handle;
mod supervisor;
#[cfg(test)]
mod tests;

use std::{
    fmt::Display,
    hash::Hash,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::{DashMap, Entry};
use futures_util::future::join_all;
use parking_lot::Mutex;
use ractor::{Actor, ActorRef, ActorStatus};
use tokio::{sync::Notify, time::Instant};

pub use self::{
    activation::ActivateError,
    handle::{CallError, Handle},
};
use self::{activation::Crashes, handle::Lease, supervisor::SupervisorMessage};
use crate::{admission::Backlog, budget::Budget, passivation::Gate};
pub use crate::{admission::Place, budget::Meter};

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

    /// Whether a start failed for what is in the actor's rows, so that the next one would fail, too.
    fn is_damage(_error: &(dyn std::error::Error + 'static)) -> bool {
        false
    }
}

/// Limits of a class of actors.
#[derive(Clone, Copy, Debug)]
pub struct ClassConfig {
    /// Bytes that the class may hold in memory.
    pub budget_bytes: u64,
    /// An actor that nobody used for this long is passivated.
    pub idle_after: Duration,
    /// Messages that one actor may have before it.
    pub backlog_max: u32,
    /// How long a call may take, and how long one who needs an actor waits for it.
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

/// What a class of actors does, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Actors in memory.
    pub active: u64,
    /// Bytes that they report.
    pub bytes: u64,
    /// Messages admitted and not yet dealt with.
    pub backlog: u64,
    /// Starts since the beginning.
    pub activated: u64,
    /// Passivations since the beginning.
    pub passivated: u64,
    /// Crashes since the beginning, failed starts included.
    pub crashed: u64,
}

#[derive(Default)]
struct Counters {
    active: AtomicU64,
    backlog: Arc<AtomicU64>,
    activated: AtomicU64,
    passivated: AtomicU64,
    crashed: AtomicU64,
}

/// How far the actor of a slot has come.
enum Phase<M> {
    /// It is being started.
    Starting,
    /// It runs, or is about to end.
    Active(ActorRef<M>),
    /// It did not start.
    Failed(ActivateError),
    /// It has ended, and its key is free.
    Gone,
}

impl<M> Phase<M> {
    fn has_started(&self) -> bool {
        !matches!(self, Self::Starting)
    }

    fn has_ended(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Gone)
    }
}

/// The place of one key's actor.
struct Slot<A: DirectoryActor> {
    key: A::Key,
    gate: Gate,
    phase: Mutex<Phase<A::Msg>>,
    /// Told of a new phase. Not a `watch`: that wakes those who wait in random order.
    phase_changed: Notify,
    meter: Meter,
    backlog: Arc<Backlog>,
    last_used_ms: AtomicU64,
}

impl<A: DirectoryActor> Slot<A> {
    /// The slot's actor, if it takes messages.
    fn running_actor(&self) -> Option<ActorRef<A::Msg>> {
        match &*self.phase.lock() {
            Phase::Active(actor) if actor.get_status() < ActorStatus::Draining => Some(actor.clone()),
            _ => None,
        }
    }

    /// Why the actor did not start.
    fn failure(&self) -> Option<ActivateError> {
        if let Phase::Failed(error) = &*self.phase.lock() { Some(error.clone()) } else { None }
    }

    async fn wait_for(&self, is_reached: impl Fn(&Phase<A::Msg>) -> bool) {
        loop {
            let changed = self.phase_changed.notified();
            if is_reached(&self.phase.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Begins a phase; answers the one before.
    fn enter_phase(&self, phase: Phase<A::Msg>) -> Phase<A::Msg> {
        let before = std::mem::replace(&mut *self.phase.lock(), phase);
        self.phase_changed.notify_waiters();
        before
    }
}

struct Inner<A: DirectoryActor> {
    context: A::Context,
    config: ClassConfig,
    budget: Arc<Budget>,
    counters: Counters,
    slots: DashMap<A::Key, Arc<Slot<A>>>,
    crashes: DashMap<A::Key, Crashes>,
    supervisor: OnceLock<ActorRef<SupervisorMessage<A>>>,
    started: Instant,
    stopping: AtomicBool,
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
        let inner = Arc::new(Inner {
            context,
            config,
            budget: Arc::new(Budget::new(config.budget_bytes)),
            counters: Counters::default(),
            slots: DashMap::new(),
            crashes: DashMap::new(),
            supervisor: OnceLock::new(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        });
        supervisor::start(&inner).await;
        Self(inner)
    }

    /// The actor of a key; starts it if it is not active.
    ///
    /// All who ask while it starts wait for that one start and learn how it went. It goes on even if they
    /// give up.
    pub async fn get(&self, key: &A::Key) -> Result<Handle<A>, ActivateError> {
        if let Some(handle) = self.peek(key) {
            return Ok(handle);
        }
        let found = tokio::time::timeout(self.0.config.call_timeout, self.find_or_start(key)).await;
        found.unwrap_or_else(|_| Err(ActivateError::Late))
    }

    /// The actor of a key if it is active.
    pub fn peek(&self, key: &A::Key) -> Option<Handle<A>> {
        let lease = Lease::take(self.0.slots.get(key)?.clone(), &self.0)?;
        let actor = lease.slot().running_actor()?;
        Some(Handle::new(lease, actor))
    }

    async fn find_or_start(&self, key: &A::Key) -> Result<Handle<A>, ActivateError> {
        loop {
            let slot = self.slot(key)?;
            // A closed gate: the actor is being passivated, or has crashed.
            if let Some(lease) = Lease::take(slot.clone(), &self.0) {
                slot.wait_for(Phase::has_started).await;
                if let Some(error) = slot.failure() {
                    return Err(error);
                }
                if let Some(actor) = slot.running_actor() {
                    return Ok(Handle::new(lease, actor));
                }
                // It has ended by itself; the supervisor is about to notice.
            }
            slot.wait_for(Phase::has_ended).await;
        }
    }

    /// The place of a key; a new one's actor is being started.
    fn slot(&self, key: &A::Key) -> Result<Arc<Slot<A>>, ActivateError> {
        if let Some(slot) = self.0.slots.get(key) {
            return Ok(slot.clone());
        }
        self.0.check_may_start(key)?;
        let slot = match self.0.slots.entry(key.clone()) {
            Entry::Occupied(occupied) => return Ok(occupied.get().clone()),
            Entry::Vacant(vacant) => {
                let slot = Arc::new(Slot {
                    key: key.clone(),
                    gate: Gate::new(),
                    phase: Mutex::new(Phase::Starting),
                    phase_changed: Notify::new(),
                    meter: self.0.budget.open_account(),
                    backlog: Arc::new(Backlog::new(self.0.counters.backlog.clone())),
                    last_used_ms: AtomicU64::new(self.0.now_ms()),
                });
                vacant.insert(slot.clone());
                slot
            }
        };
        activation::spawn(&self.0, slot.clone());
        Ok(slot)
    }

    /// What the class does.
    pub fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        Stats {
            active: counters.active.load(Ordering::Relaxed),
            bytes: self.0.budget.bytes(),
            backlog: counters.backlog.load(Ordering::Relaxed),
            activated: counters.activated.load(Ordering::Relaxed),
            passivated: counters.passivated.load(Ordering::Relaxed),
            crashed: counters.crashed.load(Ordering::Relaxed),
        }
    }

    /// Passivates all actors, whoever uses them, and lets none start any more; returns when all are gone.
    pub async fn drain_all(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        // A slot that is added from now on finds that when its start begins, and fails.
        let mut slots: Vec<_> = self.0.slots.iter().map(|slot| slot.value().clone()).collect();
        slots.sort_by(|a, b| a.key.cmp(&b.key));
        join_all(slots.iter().map(|slot| self.0.drain_now(slot))).await;
        if let Some(supervisor) = self.0.supervisor.get() {
            let _ = supervisor.stop_and_wait(None, Some(STOP_MAX)).await; // fails if it has ended
        }
    }
}

/// How long an actor may take to work off its mailbox before it is stopped.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long a stopped actor may take to end its last message before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

impl<A: DirectoryActor> Inner<A> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends the actor of a slot, or waits for the one who does already.
    async fn drain_now(&self, slot: &Arc<Slot<A>>) {
        if slot.gate.close() {
            self.drain(slot).await;
        } else {
            slot.wait_for(Phase::has_ended).await;
        }
    }

    /// Lets an actor whose gate was just closed work off its mailbox and end, and frees the key.
    async fn drain(&self, slot: &Arc<Slot<A>>) {
        slot.wait_for(Phase::has_started).await;
        let actor = if let Phase::Active(actor) = &*slot.phase.lock() { Some(actor.clone()) } else { None };
        if let Some(actor) = actor {
            end(&slot.key, &actor, A::CLASS).await;
            self.counters.passivated.fetch_add(1, Ordering::Relaxed);
        }
        self.free(slot, Phase::Gone);
    }

    /// Frees the key of an actor that has ended; only whoever closed the gate may do it.
    fn free(&self, slot: &Arc<Slot<A>>, phase: Phase<A::Msg>) {
        debug_assert!(slot.gate.is_closed(), "an open slot is not freed");
        self.slots.remove_if(&slot.key, |_, known| Arc::ptr_eq(known, slot));
        slot.meter.close();
        if let Phase::Active(_) = slot.enter_phase(phase) {
            self.counters.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Lets an actor work off its mailbox and waits until it has ended.
///
/// However long it takes: its key must not get a second actor while it runs.
async fn end<M>(key: &impl Display, actor: &ActorRef<M>, class: &'static str) {
    let _ = actor.drain(); // fails if it has crashed
    if actor.wait(Some(DRAIN_MAX)).await.is_ok() {
        return;
    }
    tracing::warn!(class, %key, "actor did not work off its mailbox in time, stopping it");
    actor.stop(Some("did not work off its mailbox in time".to_owned()));
    if actor.wait(Some(STOP_MAX)).await.is_ok() {
        return;
    }
    tracing::error!(class, %key, "actor did not stop in time, killing it");
    actor.kill();
    let _ = actor.wait(None).await;
}

impl<A: DirectoryActor> Drop for Inner<A> {
    fn drop(&mut self) {
        // Nobody can reach the actors any more: they end with their supervisor.
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.stop(None);
        }
    }
}
