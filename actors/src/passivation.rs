//! The hand-over between "no longer needed" and "needed again": a gate in front of each actor.
//!
//! Callers pass the gate with a lease and give it back; passivation closes the gate, which succeeds only
//! while no lease is out. So no message can go to an actor that is being passivated, and whoever finds the
//! gate closed waits until the old actor is gone and starts a new one: never two for one key. Whoever
//! closes the gate is the one to end what is behind it: exactly one does.

use crate::primitives::{AtomicU32, Ordering};

/// Set once the gate is closed for good.
const CLOSED: u32 = 1 << 31;

/// The number of leases, and whether the gate is closed.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU32);

impl Gate {
    /// An open gate.
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes a lease, unless the gate is closed.
    pub(crate) fn enter(&self) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state & CLOSED == 0).then_some(state + 1)
            })
            .is_ok()
    }

    /// Takes a further lease on behalf of someone who holds one already.
    pub(crate) fn enter_again(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives a lease back.
    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Closes the gate if no lease is out; true for the one who closed it.
    pub(crate) fn close_if_idle(&self) -> bool {
        self.0.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Closes the gate whatever leases are out, because the actor behind it has ended or must end.
    ///
    /// True for the one who closed it.
    pub(crate) fn close(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Whether the gate is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whether no lease is out and the gate is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}
