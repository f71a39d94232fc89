//! What the writer counts.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Commits of one store; clones share the counts.
#[derive(Clone, Debug)]
pub struct CommitMetrics {
    batches: Histogram,
    seconds: Histogram,
    failures: Counter,
}

impl Default for CommitMetrics {
    fn default() -> Self {
        Self {
            // Up to the largest group, 4,096 batches.
            batches: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            // 0.1 ms, what a fast disk takes, to 3.3 s.
            seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            failures: Counter::default(),
        }
    }
}

impl CommitMetrics {
    /// Adds the counts to those that are served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("commit_batches", "Batches in one commit", self.batches.clone());
        registry.register("commit_seconds", "How long a commit took", self.seconds.clone());
        registry.register("commit_failures", "Commits that failed", self.failures.clone());
    }

    pub(crate) fn committed(&self, batches: usize, took: Duration) {
        self.batches.observe(f64::from(u32::try_from(batches).unwrap_or(u32::MAX)));
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }
}
