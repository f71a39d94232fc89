//! Memory budgets: how many bytes the actors of a class hold, and which of them to passivate first.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// The bytes of a class of actors.
pub(crate) struct Budget {
    limit: u64,
    bytes: AtomicU64,
    /// The part of `bytes` that is being passivated.
    leaving: AtomicU64,
    accounts: AtomicU64,
    /// Told whenever a report exceeds the limit.
    pub(crate) exceeded: Notify,
    released: Notify,
}

impl Budget {
    /// An unused budget of `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            accounts: AtomicU64::new(0),
            exceeded: Notify::new(),
            released: Notify::new(),
        }
    }

    /// Opens the account of an actor that is about to start.
    ///
    /// It counts as an average one until it reports, so that many that start at once do not overrun the limit.
    pub(crate) fn open_account(self: &Arc<Self>) -> Meter {
        let others = self.accounts.fetch_add(1, Ordering::Relaxed);
        let meter = Meter { account: Arc::default(), budget: self.clone() };
        meter.set_bytes(self.bytes().checked_div(others).unwrap_or(0));
        meter
    }

    /// All bytes that are reported.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether more is in memory than should be.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.bytes() > self.limit
    }

    /// Bytes to passivate, beyond those that are leaving already.
    ///
    /// It aims at a tenth below the limit, so that the next message does not start over.
    pub(crate) fn excess(&self) -> u64 {
        let staying = self.bytes().saturating_sub(self.leaving.load(Ordering::Relaxed));
        if staying > self.limit { staying - (self.limit - self.limit / 10) } else { 0 }
    }

    /// Waits until what is leaving has left, or enough of it; not longer than `wait_max`.
    pub(crate) async fn settled(&self, wait_max: Duration) {
        let settled = async {
            loop {
                let released = self.released.notified();
                if !self.is_exceeded() || self.leaving.load(Ordering::Relaxed) == 0 {
                    return;
                }
                released.await;
            }
        };
        let _ = tokio::time::timeout(wait_max, settled).await;
    }

    fn replace(&self, before: u64, after: u64) -> u64 {
        let change = after.wrapping_sub(before);
        self.bytes.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

/// Marks an account whose actor has ended: later reports do not count.
const CLOSED: u64 = u64::MAX;

#[derive(Default)]
struct Account {
    bytes: AtomicU64,
    leaving: AtomicU64,
}

/// Through which an actor reports its memory.
#[derive(Clone)]
pub struct Meter {
    account: Arc<Account>,
    budget: Arc<Budget>,
}

impl Meter {
    /// Sets how many bytes the actor holds.
    pub fn set_bytes(&self, bytes: u64) {
        let bytes = bytes.min(CLOSED - 1);
        let unless_closed = |before| (before != CLOSED).then_some(bytes);
        let before = self.account.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, unless_closed);
        if let Ok(before) = before
            && self.budget.replace(before, bytes) > self.budget.limit
        {
            self.budget.exceeded.notify_one();
        }
    }

    /// Notes that the actor is being passivated; answers how many bytes that will free.
    pub(crate) fn leave(&self) -> u64 {
        let bytes = self.account.bytes.load(Ordering::Relaxed);
        if bytes == CLOSED {
            return 0;
        }
        let before = self.account.leaving.swap(bytes, Ordering::Relaxed);
        self.budget.leaving.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        bytes
    }

    /// Notes that the actor has ended.
    pub(crate) fn close(&self) {
        let bytes = self.account.bytes.swap(CLOSED, Ordering::Relaxed);
        if bytes == CLOSED {
            return;
        }
        self.budget.replace(bytes, 0);
        self.budget.accounts.fetch_sub(1, Ordering::Relaxed);
        let leaving = self.account.leaving.swap(0, Ordering::Relaxed);
        self.budget.leaving.fetch_sub(leaving, Ordering::Relaxed);
        self.budget.released.notify_waiters();
    }
}

/// Items by when they were last used, as far as it is known.
///
/// A use is not noted here: it would cost every message. Instead an item that comes up is asked when it
/// was really used, and goes back to that place. So the first that answers truly is the least recently
/// used of all, and each detour was paid for by a use.
pub(crate) struct Recency<T> {
    order: BTreeMap<LastUse, T>,
    next: u64,
}

/// When an item was last used, in milliseconds, and its number of insertion.
pub(crate) type LastUse = (u64, u64);

impl<T> Recency<T> {
    /// Without items.
    pub(crate) fn new() -> Self {
        Self { order: BTreeMap::new(), next: 0 }
    }

    /// Adds an item that was used at `used_ms`.
    pub(crate) fn insert(&mut self, used_ms: u64, item: T) {
        self.order.insert((used_ms, self.next), item);
        self.next += 1;
    }

    /// The end of what was last used at `used_ms` or before, and is known now.
    pub(crate) fn end(&self, used_ms: u64) -> LastUse {
        (used_ms, self.next)
    }

    /// Takes out the least recently used item before `end`, looking at no more than `looks` items.
    ///
    /// `last_used` answers when an item was used, or `None` if it is to be forgotten.
    pub(crate) fn pop(
        &mut self,
        end: LastUse,
        looks: &mut usize,
        last_used: impl Fn(&T) -> Option<u64>,
    ) -> Option<T> {
        while *looks > 0 {
            let first = self.order.first_entry()?;
            let place = *first.key();
            if place >= end {
                return None;
            }
            *looks -= 1;
            let item = first.remove();
            match last_used(&item) {
                Some(used_ms) if used_ms <= place.0 => return Some(item),
                Some(used_ms) => self.insert(used_ms, item),
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
