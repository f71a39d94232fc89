//! Tasks that the server starts once and ends when it stops.

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

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
