//! Positions: who gets which, and below which one everything is durable.
//!
//! A [`Ticket`] holds consecutive positions until what they stand for is durable, or given up. The watermark is the
//! highest position below which no ticket is open. It also never passes the ceiling, a position stored in the store: after
//! a crash positions go on above the ceiling, so a position a client may have seen as the watermark is not used again.
//! The ceiling is raised by [`LEASE`] at a time, so a commit rarely has to write it.

use std::{
    collections::BTreeMap,
    ops::{DerefMut, RangeInclusive},
    sync::Arc,
};

use engine::id::Position;

use crate::{
    primitives::{AtomicU64, Mutex, Ordering},
    signal::{Signal, Watcher},
};

/// How far the stored ceiling is raised above the positions handed out. Large enough that raising it is rare, small enough
/// that no number of crashes uses up the 64 bits.
pub(crate) const LEASE: u64 = 1 << 16;

/// Hands out positions and keeps the watermark.
#[derive(Debug)]
pub(crate) struct Sequencer {
    state: Mutex<State>,
    watermark: AtomicU64,
    changed: Signal<Position>,
}

#[derive(Debug)]
struct State {
    /// The highest position handed out.
    last: u64,
    /// The position stored in the store, below which positions may be seen.
    ceiling: u64,
    /// First and last position of each open ticket.
    open: BTreeMap<u64, u64>,
    /// After a failed commit: the watermark stays.
    frozen: bool,
}

impl State {
    fn reached(&self) -> u64 {
        self.open.first_key_value().map_or(self.last, |(first, _)| first - 1).min(self.ceiling)
    }

    fn is_low(&self) -> bool {
        !self.frozen && self.ceiling.saturating_sub(self.last) < LEASE / 2
    }
}

impl Sequencer {
    /// Goes on above `ceiling`, as read from the store; everything up to it is durable or was never shown.
    pub(crate) fn new(ceiling: u64) -> Self {
        Self {
            state: Mutex::new(State { last: ceiling, ceiling, open: BTreeMap::new(), frozen: false }),
            watermark: AtomicU64::new(ceiling),
            changed: Signal::new(Position(ceiling)),
        }
    }

    /// Takes `count` consecutive positions. The flag says that just now the ceiling came near and should be raised.
    pub(crate) fn reserve(self: &Arc<Self>, count: u64) -> (Ticket, bool) {
        let mut state = self.lock();
        let was_low = state.is_low() && state.last != state.ceiling;
        let first = state.last + 1;
        state.last += count;
        if count > 0 {
            let last = state.last;
            state.open.insert(first, last);
        }
        let near = !was_low && state.is_low();
        drop(state);
        (Ticket { first, count, sequencer: self.clone() }, near)
    }

    /// The highest position at or below which everything is durable.
    pub(crate) fn watermark(&self) -> Position {
        Position(self.watermark.load(Ordering::Acquire))
    }

    /// The highest position handed out so far.
    pub(crate) fn issued(&self) -> Position {
        Position(self.lock().last)
    }

    /// A watcher of the watermark.
    pub(crate) fn changed(&self) -> Watcher<Position> {
        self.changed.watch()
    }

    /// The ceiling to store with the next commit, if the present one is near.
    pub(crate) fn ceiling_due(&self) -> Option<u64> {
        let state = self.lock();
        state.is_low().then_some(state.last + LEASE)
    }

    /// The new ceiling is durable.
    pub(crate) fn raise_ceiling(&self, ceiling: u64) {
        let mut state = self.lock();
        state.ceiling = state.ceiling.max(ceiling);
        self.publish(&state);
    }

    /// Completes many tickets with one change of the watermark.
    pub(crate) fn complete(&self, tickets: Vec<Ticket>) {
        let mut state = self.lock();
        for mut ticket in tickets {
            debug_assert!(std::ptr::eq(self, &raw const *ticket.sequencer), "ticket of another store");
            if std::mem::take(&mut ticket.count) > 0 {
                state.open.remove(&ticket.first);
            }
        }
        self.publish(&state);
    }

    /// Ends the lease: the highest position handed out, which the watermark does not pass any more. To be stored as the
    /// ceiling of a store that closes, so that positions go on without a gap.
    pub(crate) fn seal(&self) -> u64 {
        let mut state = self.lock();
        state.ceiling = state.ceiling.min(state.last);
        state.last
    }

    /// Keeps the watermark where it is from now on.
    ///
    /// After a failed commit it must not pass positions that may, or may not, turn out to be stored.
    pub(crate) fn freeze(&self) {
        let mut state = self.lock();
        state.frozen = true;
        // Whoever waits for a higher watermark learns that it does not come.
        self.changed.set(self.watermark());
    }

    /// Whether the watermark stays where it is.
    pub(crate) fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// Moves the watermark; under the lock, so that it never goes back.
    fn publish(&self, state: &State) {
        let reached = state.reached();
        if !state.frozen && reached > self.watermark.load(Ordering::Relaxed) {
            self.watermark.store(reached, Ordering::Release);
            self.changed.set(Position(reached));
        }
    }

    fn lock(&self) -> impl DerefMut<Target = State> + '_ {
        self.state.lock()
    }
}

/// Consecutive positions of a change that is on its way to the disk. Dropping it completes them.
#[derive(Debug)]
pub struct Ticket {
    first: u64,
    /// 0 once completed.
    count: u64,
    sequencer: Arc<Sequencer>,
}

impl Ticket {
    /// The first position.
    pub fn first(&self) -> Position {
        Position(self.first)
    }

    /// The last position; one below the first if none was asked for.
    pub fn last(&self) -> Position {
        Position(self.first + self.count - 1)
    }

    /// All positions, in order.
    pub fn positions(&self) -> impl DoubleEndedIterator<Item = Position> + use<> {
        let range: RangeInclusive<u64> = self.first..=self.last().0;
        range.map(Position)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.count > 0 {
            let mut state = self.sequencer.lock();
            state.open.remove(&self.first);
            self.sequencer.publish(&state);
        }
    }
}
