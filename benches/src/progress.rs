//! What a run is at, for whoever waits for it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line that tells what is being done, how often it was done and how fast. Cloning shares it.
///
/// Nothing is drawn where nobody looks at a terminal.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A line on standard error.
    pub fn on_terminal() -> Self {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}: {pos} ({per_sec})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// A line that is not shown.
    pub fn hidden() -> Self {
        Self(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()))
    }

    /// Begins something else.
    pub fn begin(&self, what: impl Into<String>) {
        self.0.reset();
        self.0.set_message(what.into());
    }

    /// It was done once more.
    pub fn step(&self) {
        self.0.inc(1);
    }

    /// Removes the line.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
