//! Admission: how much may wait for one actor.
//!
//! Mailboxes have no bound, so whoever sends takes a [`Place`] first, and the place is given back when the
//! actor has dealt with the message. Who gives up waiting does not give the place back any earlier:
//! otherwise callers that hang up could fill a mailbox without limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime, sync::oneshot};

/// What a refused caller is told to wait: long enough for a few group commits.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What waits for one actor.
pub(crate) struct Backlog {
    places: AtomicU32,
    class: Arc<AtomicU64>,
}

impl Backlog {
    /// An empty backlog that is counted in its class's.
    pub(crate) fn new(class: Arc<AtomicU64>) -> Self {
        Self { places: AtomicU32::new(0), class }
    }

    /// A place, if fewer than `places_max` are taken.
    pub(crate) fn admit(self: &Arc<Self>, places_max: u32) -> Option<Place> {
        let add_one = |places| (places < places_max).then_some(places + 1);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one).ok()?;
        self.class.fetch_add(1, Ordering::Relaxed);
        Some(Place(self.clone()))
    }
}

/// A message's place in an actor's backlog; it is free again when this is dropped.
pub struct Place(Arc<Backlog>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::Relaxed);
        self.0.class.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that waits for its answer.
pub(crate) struct UnderWay<T: Send + 'static>(Option<(oneshot::Receiver<T>, Place)>);

impl<T: Send + 'static> UnderWay<T> {
    /// A call that is about to be sent.
    pub(crate) fn new(answer: oneshot::Receiver<T>, place: Place) -> Self {
        Self(Some((answer, place)))
    }

    /// The answer; `None` if the actor dropped the reply port.
    pub(crate) async fn answer(&mut self) -> Option<T> {
        let (answer, _) = self.0.as_mut()?;
        let result = answer.await.ok();
        self.0 = None;
        result
    }
}

impl<T: Send + 'static> Drop for UnderWay<T> {
    fn drop(&mut self) {
        // Given up: the message is still in the mailbox, and keeps its place until the actor is through with it.
        if let Some((answer, place)) = self.0.take()
            && let Ok(runtime) = runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                let _ = answer.await;
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog() -> (Arc<Backlog>, Arc<AtomicU64>) {
        let class = Arc::new(AtomicU64::new(0));
        (Arc::new(Backlog::new(class.clone())), class)
    }

    #[test]
    fn a_full_backlog_admits_again_when_a_place_is_given_back() {
        let (backlog, class) = backlog();
        let first = backlog.admit(2).unwrap();
        let _second = backlog.admit(2).unwrap();
        assert!(backlog.admit(2).is_none());
        assert_eq!(class.load(Ordering::Relaxed), 2);
        drop(first);
        assert!(backlog.admit(2).is_some());
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_keeps_its_place_until_the_answer() {
        let (backlog, _) = backlog();
        let (port, answer) = oneshot::channel();
        drop(UnderWay::new(answer, backlog.admit(1).unwrap()));
        tokio::task::yield_now().await;
        assert!(backlog.admit(1).is_none());
        port.send(()).unwrap();
        tokio::task::yield_now().await;
        assert!(backlog.admit(1).is_some());
    }
}
