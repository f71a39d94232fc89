//! A value whose changes others wait for, and who are woken in the order in which they began to wait.
//!
//! tokio's `watch` does the same but wakes in random order, so that a simulated run could not be repeated.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The side that changes the value.
#[derive(Debug)]
pub struct Signal<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    /// The number of changes, and the value.
    value: Mutex<(u64, T)>,
    changed: Notify,
}

/// The side that waits. A clone has seen what the original has.
#[derive(Debug)]
pub struct Watcher<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T: Clone> Signal<T> {
    /// A signal with this value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: Mutex::new((0, value)), changed: Notify::new() }))
    }

    /// Someone who has seen all changes so far.
    pub fn watch(&self) -> Watcher<T> {
        Watcher { seen: self.0.value.lock().0, shared: self.0.clone() }
    }

    /// Whether there is anybody who watches.
    pub fn is_watched(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Changes the value and wakes all who wait.
    pub fn set(&self, value: T) {
        let mut held = self.0.value.lock();
        *held = (held.0 + 1, value);
        drop(held);
        self.0.changed.notify_waiters();
    }
}

impl<T: Clone> Watcher<T> {
    /// Whether there was a change that this watcher has not seen.
    pub fn has_changed(&self) -> bool {
        self.shared.value.lock().0 != self.seen
    }

    /// The present value, which counts as seen.
    pub fn see(&mut self) -> T {
        let held = self.shared.value.lock();
        self.seen = held.0;
        held.1.clone()
    }

    /// Waits for a change that this watcher has not seen.
    pub async fn changed(&mut self) {
        loop {
            // Made before the look, it hears of all changes after it.
            let changed = self.shared.changed.notified();
            if self.has_changed() {
                break;
            }
            changed.await;
        }
        self.see();
    }

    /// Waits for a value, which may be the present one.
    pub async fn wait_for(&mut self, is_it: impl Fn(&T) -> bool) -> T {
        loop {
            let value = self.see();
            if is_it(&value) {
                return value;
            }
            self.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_order() {
        let signal = Signal::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let (mut watcher, order) = (signal.watch(), order.clone());
                tokio::spawn(async move {
                    watcher.wait_for(|value| *value == 1).await;
                    order.lock().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        signal.set(1);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_seen_once() {
        let signal = Signal::new(());
        let mut watcher = signal.watch();
        assert!(!watcher.has_changed());
        signal.set(());
        watcher.changed().await;
        assert!(!watcher.has_changed());
    }
}
