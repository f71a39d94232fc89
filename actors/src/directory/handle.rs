//! A lease on an actor, and calls through it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::oneshot;

use super::{ActivateError, DirectoryActor, Inner, Slot};
use crate::admission::{Place, RETRY_AFTER, UnderWay};

/// Why a call did not come back with an answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// Too many calls are under way; nothing was done.
    #[error("busy; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The actor ended before it answered; what was asked may or may not have happened.
    #[error("the actor ended before it answered")]
    Crashed,
    /// The actor did not answer in time; what was asked may yet happen.
    #[error("the actor did not answer in time")]
    TimedOut,
    /// The actor could not be started; nothing was done.
    #[error("the actor could not be started: {0}")]
    Activate(#[from] ActivateError),
}

/// Keeps an actor from being passivated.
pub(super) struct Lease<A: DirectoryActor> {
    slot: Arc<Slot<A>>,
    directory: Arc<Inner<A>>,
}

impl<A: DirectoryActor> Lease<A> {
    /// A lease, unless the actor is ending.
    pub(super) fn take(slot: Arc<Slot<A>>, directory: &Arc<Inner<A>>) -> Option<Self> {
        slot.gate.enter().then(|| Self { slot, directory: directory.clone() })
    }

    pub(super) fn slot(&self) -> &Arc<Slot<A>> {
        &self.slot
    }
}

impl<A: DirectoryActor> Clone for Lease<A> {
    fn clone(&self) -> Self {
        self.slot.gate.enter_again();
        Self { slot: self.slot.clone(), directory: self.directory.clone() }
    }
}

impl<A: DirectoryActor> Drop for Lease<A> {
    fn drop(&mut self) {
        self.slot.last_used_ms.store(self.directory.now_ms(), Ordering::Relaxed);
        self.slot.gate.leave();
    }
}

/// A lease on an active actor: it is not passivated while the handle exists.
pub struct Handle<A: DirectoryActor> {
    lease: Lease<A>,
    actor: ActorRef<A::Msg>,
}

impl<A: DirectoryActor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self { lease: self.lease.clone(), actor: self.actor.clone() }
    }
}

impl<A: DirectoryActor> Handle<A> {
    /// A handle of the actor that runs in a leased slot.
    pub(super) fn new(lease: Lease<A>, actor: ActorRef<A::Msg>) -> Self {
        Self { lease, actor }
    }

    /// Asks the actor and waits for its answer.
    ///
    /// A call that is given up is carried out all the same.
    pub async fn call<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> A::Msg,
    ) -> Result<T, CallError> {
        let timeout = self.lease.directory.config.call_timeout;
        let place = self.admit()?;
        let (port, answer) = oneshot::channel();
        self.actor.cast(message((port, timeout).into())).map_err(|_| CallError::Crashed)?;
        let mut call = UnderWay::new(answer, place);
        match tokio::time::timeout(timeout, call.answer()).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(CallError::Crashed),
            Err(_) => Err(CallError::TimedOut),
        }
    }

    /// Tells the actor something.
    ///
    /// The message carries its place in the backlog, and the actor drops it when it is through.
    pub fn cast(&self, message: impl FnOnce(Place) -> A::Msg) -> Result<(), CallError> {
        let place = self.admit()?;
        self.actor.cast(message(place)).map_err(|_| CallError::Crashed)
    }

    fn admit(&self) -> Result<Place, CallError> {
        let places_max = self.lease.directory.config.backlog_max;
        let place = self.lease.slot.backlog.admit(places_max);
        place.ok_or(CallError::Busy { retry_after: RETRY_AFTER })
    }
}
