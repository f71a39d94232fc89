//! What the server has acknowledged and could not bring about is taken up again: when it starts, and now and then while it runs.

use std::time::Duration;

use engine::id::Position;

use crate::{background::Background, homeserver::Homeserver, room::RoomError};

/// How long the server runs before it looks for what it could not bring about.
const PAUSE_FIRST: Duration = Duration::from_secs(5 * 60);

/// The longest time between two looks, while they are in vain.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The task that looks for what is left.
pub(crate) struct Resuming {
    task: Background,
}

impl Resuming {
    pub(crate) fn new() -> Self {
        Self { task: Background::new("the retrying of what could not be done") }
    }

    /// Starts the task.
    pub(crate) fn start(&self, homeserver: &Homeserver) {
        let homeserver = homeserver.clone();
        self.task.keep(move || homeserver.clone().resume_now_and_then());
    }

    /// Ends the task; what is left is taken up at the next start.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }
}

impl Homeserver {
    /// Takes up, in the background, what was under way when the server stopped.
    pub(crate) fn resume(&self) {
        self.delayed().start(self);
        self.room_shared().txns.start();
        let upto = self.storage().watermark();
        let homeserver = self.clone();
        self.session_shared().spawn(async move {
            if let Err(error) = homeserver.resume_effects(upto).await {
                tracing::error!(%error, "cannot take up what was under way before the restart");
            }
        });
        self.retention().start(self);
        self.resuming().start(self);
        if let Some(federation) = self.federation() {
            federation.run(self);
            let homeserver = self.clone();
            tokio::spawn(async move {
                if let Err(error) = homeserver.resume_staged(upto).await {
                    tracing::error!(%error, "cannot deal with events that were received before the restart");
                }
            });
            let homeserver = self.clone();
            tokio::spawn(async move {
                if let Err(error) = homeserver.resume_mending().await {
                    tracing::error!(%error, "cannot read what the states of rooms lack");
                }
            });
            let homeserver = self.clone();
            tokio::spawn(async move {
                if let Err(error) = homeserver.resume_partial_joins().await {
                    tracing::error!(%error, "cannot complete rooms that were joined before the restart");
                }
            });
        }
    }

    async fn resume_now_and_then(self) {
        let mut stopping = self.resuming().task.stopping();
        tokio::select! {
            biased;
            // The sender is the server's own.
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.look_for_what_is_left() => {}
        }
    }

    async fn look_for_what_is_left(&self) {
        let mut pause = PAUSE_FIRST;
        // What has been there since the look before is not merely under way.
        let mut before = self.storage().watermark();
        loop {
            tokio::time::sleep(pause).await;
            let now = self.storage().watermark();
            let is_done = match self.resume_left(before).await {
                Ok(left) => left == 0,
                Err(error) => {
                    tracing::error!(%error, "cannot look for what could not be done");
                    false
                }
            };
            pause = if is_done { PAUSE_FIRST } else { PAUSE_MAX.min(2 * pause) };
            before = now;
        }
    }

    /// Takes up what has been left since a position; answers how much that is.
    pub(crate) async fn resume_left(&self, upto: Position) -> Result<usize, RoomError> {
        let effects = self.resume_effects(upto).await?;
        let staged = if self.federates() { self.resume_staged(upto).await? } else { 0 };
        if effects + staged > 0 {
            tracing::info!(effects, staged, "took up again what could not be done before");
        }
        Ok(effects + staged)
    }
}
