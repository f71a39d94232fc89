//! The supervisor of a class: it notices crashes and sweeps for actors to passivate.

use std::{
    marker::PhantomData,
    sync::{Arc, Weak},
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::{DirectoryActor, Inner};

/// How often a class looks for idle actors.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// How long a sweep for memory waits for more reports, so that a burst causes one sweep.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// What a supervisor is told.
pub(super) enum SupervisorMessage {
    /// Look for actors to passivate.
    Sweep,
}

/// The supervisor of a class of actors.
pub(super) struct Supervisor<A>(PhantomData<fn() -> A>);

impl<A: DirectoryActor> Supervisor<A> {
    /// Starts the supervisor of a directory.
    pub(super) async fn start(directory: &Arc<Inner<A>>) {
        let arguments = Arc::downgrade(directory);
        match Actor::spawn(None, Self(PhantomData), arguments).await {
            Ok((supervisor, _)) => {
                let _ = directory.supervisor.set(supervisor.clone());
                tokio::spawn(sweep_on_demand(Arc::downgrade(directory), supervisor));
            }
            // Without a supervisor every activation answers that the server is stopping.
            Err(error) => tracing::error!(class = A::CLASS, %error, "supervisor did not start"),
        }
    }
}

/// Sweeps at intervals, and soon when the class went over its budget.
async fn sweep_on_demand<A: DirectoryActor>(
    directory: Weak<Inner<A>>,
    supervisor: ActorRef<SupervisorMessage>,
) {
    loop {
        let Some(meter) = directory.upgrade().map(|directory| directory.meter.clone()) else {
            supervisor.stop(None);
            return;
        };
        tokio::select! {
            biased;
            () = meter.over_budget.notified() => tokio::time::sleep(SWEEP_PAUSE).await,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if supervisor.cast(SupervisorMessage::Sweep).is_err() {
            return;
        }
    }
}

impl<A: DirectoryActor> Actor for Supervisor<A> {
    type Msg = SupervisorMessage;
    type State = Weak<Inner<A>>;
    type Arguments = Weak<Inner<A>>;

    async fn pre_start(
        &self,
        _myself: ActorRef<SupervisorMessage>,
        directory: Weak<Inner<A>>,
    ) -> Result<Weak<Inner<A>>, ActorProcessingErr> {
        Ok(directory)
    }

    async fn handle(
        &self,
        _myself: ActorRef<SupervisorMessage>,
        SupervisorMessage::Sweep: SupervisorMessage,
        directory: &mut Weak<Inner<A>>,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(directory) = directory.upgrade() {
            directory.sweep();
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        directory: &mut Weak<Inner<A>>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(directory) = directory.upgrade() else { return Ok(()) };
        match event {
            SupervisionEvent::ActorFailed(actor, error) => {
                directory.crashed(actor.get_id(), &error.to_string());
            }
            // One that was drained has been released already; any other end counts as a crash.
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                let slot = directory.running.get(&actor.get_id()).map(|slot| slot.clone());
                if slot.is_some_and(|slot| slot.gate.is_idle()) {
                    directory.crashed(actor.get_id(), reason.as_deref().unwrap_or("stopped"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
