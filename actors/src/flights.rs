//! One at a time for each key: many ask for the same picture at the same time, and clients repeat a request that is still under way.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// What is being done, by key. Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<BTreeMap<String, Lock>>>);

/// The right to do what the key stands for, until it is dropped.
pub(crate) struct Flight {
    flights: Flights,
    key: String,
    held: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits until nobody else does what the key stands for.
    pub(crate) async fn board(&self, key: String) -> Flight {
        let lock = self.0.lock().entry(key.clone()).or_default().clone();
        // Made before the wait, so that whoever gives up waiting tidies up too.
        let mut flight = Flight { flights: self.clone(), key, held: None };
        flight.held = Some(lock.lock_owned().await);
        flight
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.held = None;
        let mut flights = self.flights.0.lock();
        // The map's alone: nobody waits.
        if flights.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_goes_at_a_time_and_nothing_is_left_behind() {
        let flights = Flights::default();
        let first = flights.board("tea".to_owned()).await;
        let other = flights.board("coffee".to_owned()).now_or_never();
        assert!(other.is_some(), "another key waits for nobody");
        assert!(flights.board("tea".to_owned()).now_or_never().is_none(), "two go at a time");
        let mut waiting = Box::pin(flights.board("tea".to_owned()));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((first, other));
        drop(waiting.await);
        assert!(flights.0.lock().is_empty());
        let held = flights.board("tea".to_owned()).await;
        drop(Box::pin(flights.board("tea".to_owned())));
        drop(held);
        assert!(flights.0.lock().is_empty());
    }
}
