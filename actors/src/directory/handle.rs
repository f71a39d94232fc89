//! A lease on an actor, and calls through it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ractor::{RpcReplyPort, rpc::CallResult};

use super::{ActivateError, DirectoryActor, Inner, Slot};

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

/// What a refused caller is told to wait: long enough for a few group commits.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A lease on an active actor: it is not passivated while the handle exists.
pub struct Handle<A: DirectoryActor> {
    slot: Arc<Slot<A>>,
    directory: Arc<Inner<A>>,
}

impl<A: DirectoryActor> Handle<A> {
    /// A handle for a lease that was just taken.
    pub(super) fn leased(slot: Arc<Slot<A>>, directory: Arc<Inner<A>>) -> Self {
        Self { slot, directory }
    }

    pub(super) fn slot(&self) -> &Arc<Slot<A>> {
        &self.slot
    }

    /// Asks the actor and waits for its answer.
    pub async fn call<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> A::Msg,
    ) -> Result<T, CallError> {
        let _admission = self.admit()?;
        let actor = self.slot.actor.get().ok_or(CallError::Crashed)?;
        match actor.call(message, Some(self.directory.config.call_timeout)).await {
            Ok(CallResult::Success(answer)) => Ok(answer),
            Ok(CallResult::Timeout) => Err(CallError::TimedOut),
            Ok(CallResult::SenderError) | Err(_) => Err(CallError::Crashed),
        }
    }

    fn admit(&self) -> Result<Admission<'_>, CallError> {
        let under_way = self.slot.backlog.fetch_add(1, Ordering::Relaxed);
        self.directory.meter.backlog.fetch_add(1, Ordering::Relaxed);
        let admission = Admission { backlog: &self.slot.backlog, total: &self.directory.meter.backlog };
        if under_way >= self.directory.config.backlog_max {
            return Err(CallError::Busy { retry_after: RETRY_AFTER });
        }
        Ok(admission)
    }
}

impl<A: DirectoryActor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        self.slot.gate.enter_again();
        Self { slot: self.slot.clone(), directory: self.directory.clone() }
    }
}

impl<A: DirectoryActor> Drop for Handle<A> {
    fn drop(&mut self) {
        self.slot.last_used_ms.store(self.directory.now_ms(), Ordering::Relaxed);
        self.slot.gate.leave();
    }
}

/// A call's place in the backlog.
struct Admission<'a> {
    backlog: &'a AtomicU32,
    total: &'a std::sync::atomic::AtomicU64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.backlog.fetch_sub(1, Ordering::Relaxed);
        self.total.fetch_sub(1, Ordering::Relaxed);
    }
}
