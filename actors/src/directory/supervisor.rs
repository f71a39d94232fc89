//! The supervisor of a class: it notices crashes and chooses whom to passivate.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SupervisionEvent,
};

use super::{DirectoryActor, Inner, Phase, Slot};
use crate::budget::{Budget, LastUse, Recency};

/// How often a class looks for idle actors: some times in the time that makes one idle.
const SWEEPS_PER_IDLE_TIME: u32 = 16;

/// Bounds of the time between two looks for idle actors.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a sweep for memory waits for more reports, so that a burst causes one sweep.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Actors that one sweep looks at; the next goes on where it ended. All in use, they cost some 50 µs.
const LOOKS_MAX: usize = 256;

/// What a supervisor is told.
pub(super) enum SupervisorMessage<A: DirectoryActor> {
    /// An actor was started.
    Started(ActorCell, Arc<Slot<A>>),
    /// Look for actors to passivate.
    Sweep,
    /// The same, for an actor that is about to start.
    MakeRoom(RpcReplyPort<()>),
}

/// The supervisor of a class of actors.
struct Supervisor<A>(PhantomData<fn() -> A>);

/// What a supervisor knows.
struct Watch<A: DirectoryActor> {
    directory: Weak<Inner<A>>,
    running: BTreeMap<ActorId, Arc<Slot<A>>>,
    recency: Recency<Weak<Slot<A>>>,
    /// Where to stop, when a search for memory goes through all actors in several sweeps.
    round_end: Option<LastUse>,
}

/// Starts the supervisor of a directory.
pub(super) async fn start<A: DirectoryActor>(directory: &Arc<Inner<A>>) {
    let supervisor = Supervisor::<A>(PhantomData);
    match Actor::spawn(None, supervisor, Arc::downgrade(directory)).await {
        Ok((supervisor, _)) => {
            let every = directory.config.idle_after / SWEEPS_PER_IDLE_TIME;
            let every = every.clamp(SWEEP_EVERY.0, SWEEP_EVERY.1);
            tokio::spawn(sweep_on_demand(directory.budget.clone(), every, supervisor.clone()));
            let _ = directory.supervisor.set(supervisor);
        }
        // Without a supervisor every activation answers that the server is stopping.
        Err(error) => tracing::error!(class = A::CLASS, %error, "supervisor did not start"),
    }
}

/// Sweeps at intervals, and soon when the class went over its budget, until the supervisor has ended.
async fn sweep_on_demand<A: DirectoryActor>(
    budget: Arc<Budget>,
    every: Duration,
    supervisor: ActorRef<SupervisorMessage<A>>,
) {
    loop {
        tokio::select! {
            biased;
            () = budget.exceeded.notified() => tokio::time::sleep(SWEEP_PAUSE).await,
            () = tokio::time::sleep(every) => {}
        }
        if supervisor.cast(SupervisorMessage::Sweep).is_err() {
            return;
        }
    }
}

impl<A: DirectoryActor> Actor for Supervisor<A> {
    type Msg = SupervisorMessage<A>;
    type State = Watch<A>;
    type Arguments = Weak<Inner<A>>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        directory: Weak<Inner<A>>,
    ) -> Result<Watch<A>, ActorProcessingErr> {
        Ok(Watch { directory, running: BTreeMap::new(), recency: Recency::new(), round_end: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        watch: &mut Watch<A>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(directory) = watch.directory.upgrade() else { return Ok(()) };
        match message {
            SupervisorMessage::Started(actor, slot) => watch.started(&directory, &actor, slot),
            SupervisorMessage::Sweep => watch.sweep(&directory),
            SupervisorMessage::MakeRoom(reply) => {
                watch.sweep(&directory);
                let _ = reply.send(()); // it started without waiting any longer
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        watch: &mut Watch<A>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(directory) = watch.directory.upgrade() else { return Ok(()) };
        match event {
            SupervisionEvent::ActorFailed(actor, error) => {
                if let Some(slot) = watch.running.remove(&actor.get_id()) {
                    directory.crashed(&slot, &error.to_string());
                }
            }
            // With its gate closed it was meant to end; any other end counts as a crash.
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                if let Some(slot) = watch.running.remove(&actor.get_id())
                    && !slot.gate.is_closed()
                {
                    directory.crashed(&slot, reason.as_deref().unwrap_or("stopped"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl<A: DirectoryActor> Watch<A> {
    fn started(&mut self, directory: &Inner<A>, actor: &ActorCell, slot: Arc<Slot<A>>) {
        let is_ending = actor.get_status() >= ActorStatus::Stopping;
        if !is_ending {
            self.recency.insert(slot.last_used_ms.load(Ordering::Relaxed), Arc::downgrade(&slot));
            self.running.insert(actor.get_id(), slot);
        } else if !slot.gate.is_closed() {
            // Its end was reported before it was known here, or will be and is not looked at.
            directory.crashed(&slot, "ended as soon as it had started");
        }
    }

    /// Passivates actors that are idle for long, and the least recently used while the class is over its budget.
    fn sweep(&mut self, directory: &Arc<Inner<A>>) {
        let now_ms = directory.now_ms();
        directory.crashes.retain(|_, crashes| !crashes.is_forgiven(now_ms));
        let mut looks = LOOKS_MAX;
        let idle_ms = u64::try_from(directory.config.idle_after.as_millis()).unwrap_or(u64::MAX);
        if let Some(idle_since_ms) = now_ms.checked_sub(idle_ms) {
            let end = self.recency.end(idle_since_ms);
            while self.passivate_one(directory, end, &mut looks).is_some() {}
        }
        let mut excess = directory.budget.excess();
        let end = *self.round_end.get_or_insert_with(|| self.recency.end(now_ms));
        while excess > 0
            && let Some(bytes) = self.passivate_one(directory, end, &mut looks)
        {
            excess = excess.saturating_sub(bytes);
        }
        if looks == 0 {
            directory.budget.exceeded.notify_one();
        } else {
            self.round_end = None;
        }
    }

    /// Passivates the least recently used actor before `end`; answers its bytes.
    fn passivate_one(&mut self, directory: &Arc<Inner<A>>, end: LastUse, looks: &mut usize) -> Option<u64> {
        let now_ms = directory.now_ms();
        let last_used = |slot: &Weak<Slot<A>>| slot.upgrade().and_then(|slot| slot.last_used(now_ms));
        while let Some(slot) = self.recency.pop(end, looks, last_used) {
            let Some(slot) = slot.upgrade() else { continue };
            if slot.gate.close_if_idle() {
                let bytes = slot.meter.leave();
                let directory = directory.clone();
                tokio::spawn(async move { directory.drain(&slot).await });
                return Some(bytes);
            }
            self.recency.insert(now_ms, Arc::downgrade(&slot));
        }
        None
    }
}

impl<A: DirectoryActor> Slot<A> {
    /// When the actor was last used, which may be now; `None` if it is ending.
    fn last_used(&self, now_ms: u64) -> Option<u64> {
        if self.gate.is_idle() {
            return Some(self.last_used_ms.load(Ordering::Relaxed));
        }
        (!self.gate.is_closed()).then_some(now_ms)
    }
}

impl<A: DirectoryActor> Inner<A> {
    /// Notes the crash of an actor and frees its key.
    fn crashed(&self, slot: &Arc<Slot<A>>, reason: &str) {
        self.note_crash(&slot.key, reason);
        // Being passivated, it is freed by the one who drains it.
        if slot.gate.close() {
            self.free(slot, Phase::Gone);
        }
    }
}
