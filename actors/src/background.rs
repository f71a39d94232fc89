//! Tasks that the server starts once and ends when it stops.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

/// How long a task that panicked waits before it begins again.
const PAUSE: Duration = Duration::from_secs(10);

/// A task that runs beside the actors until it is told to stop.
pub(crate) struct Background {
    /// What it does, for the log.
    name: &'static str,
    stopping: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    /// No task yet. `name` says what it does, as in "the purging of old messages".
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, stopping: watch::Sender::new(false), task: Mutex::default() }
    }

    /// Starts the task, which is to end soon after [`Self::stopping`] has turned true.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        *self.task.lock() = Some(tokio::spawn(task));
    }

    /// The same for what goes on for the server's whole life: after a panic it begins again, since nobody else would notice that
    /// it is gone.
    pub(crate) fn keep<F>(&self, mut task: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (name, mut stopping) = (self.name, self.stopping());
        self.start(async move {
            while panicked(name, task()).await {
                tokio::select! {
                    biased;
                    // The sender is there for as long as whoever waits for the end.
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        });
    }

    /// Turns true when the task is to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Whether the task is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, task = self.name, "a task of the server ended badly");
        }
    }
}

/// Runs a task of the server's whole life that nobody waits for at its end; see [`Background::keep`].
pub(crate) async fn outlive_panics<F: Future<Output = ()>>(name: &'static str, mut task: impl FnMut() -> F) {
    while panicked(name, task()).await {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a task ended with a panic, which is logged.
async fn panicked(name: &'static str, run: impl Future<Output = ()>) -> bool {
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    if let Err(panic) = &ended {
        let reason = reason(&**panic);
        tracing::error!(task = name, reason, "a task of the server panicked; it begins again after a pause");
    }
    ended.is_err()
}

fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again() {
        let runs = AtomicU32::new(0);
        let task = || async {
            let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(run == 3, "the task breaks, as the test wants it");
        };
        outlive_panics("the test", task).await;
        assert_eq!(runs.into_inner(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panicked_ends_at_once_when_it_is_to() {
        let background = Background::new("the test");
        background.keep(|| async { panic!("the task breaks, as the test wants it") });
        tokio::time::sleep(PAUSE / 2).await;
        let begun = tokio::time::Instant::now();
        background.stop().await;
        assert!(begun.elapsed() < PAUSE / 4);
    }
}
