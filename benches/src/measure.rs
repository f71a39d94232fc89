//! Latencies of one kind of request.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// Latencies and rate of one kind of request.
pub struct Measurement {
    name: String,
    latencies: Histogram<u64>,
    failed: u64,
    /// Why the first failed one did.
    failure: Option<String>,
    start: Instant,
    per_second: Vec<u64>,
    elapsed: Duration,
}

impl Measurement {
    /// An empty measurement that begins now.
    pub fn new(name: impl Into<String>) -> Self {
        // From 1 µs to 10 minutes.
        let latencies = Histogram::new_with_bounds(1, 600_000_000, 3)
            .expect("three significant digits are within the crate's range");
        Self {
            name: name.into(),
            latencies,
            failed: 0,
            failure: None,
            start: Instant::now(),
            per_second: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// What is measured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Notes a request that was due at `due` and is answered now.
    pub fn note<T>(&mut self, due: Instant, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.record(due.elapsed());
                Some(value)
            }
            Err(error) => {
                self.fail(format!("{error:#}"));
                None
            }
        }
    }

    /// Adds one success.
    pub fn record(&mut self, latency: Duration) {
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.elapsed = self.start.elapsed();
        let second = usize::try_from(self.elapsed.as_secs()).unwrap_or(usize::MAX);
        if second >= self.per_second.len() {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += 1;
    }

    /// Adds one failure.
    pub fn fail(&mut self, why: String) {
        self.failed += 1;
        self.failure.get_or_insert(why);
    }

    /// Adds the measurement of another task that ran at the same time.
    pub fn merge(&mut self, other: &Self) {
        self.latencies += &other.latencies;
        self.failed += other.failed;
        if self.failure.is_none() {
            self.failure.clone_from(&other.failure);
        }
        self.start = self.start.min(other.start);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.per_second.resize(self.per_second.len().max(other.per_second.len()), 0);
        for (own, more) in self.per_second.iter_mut().zip(&other.per_second) {
            *own += more;
        }
    }

    /// Successes.
    pub fn count(&self) -> u64 {
        self.latencies.len()
    }

    /// Failures, and why the first one failed.
    pub fn failed(&self) -> (u64, Option<&str>) {
        (self.failed, self.failure.as_deref())
    }

    /// From the start to the last success.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Successes in each second.
    pub fn per_second(&self) -> &[u64] {
        &self.per_second
    }

    /// Mean latency.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latencies.mean() / 1e6)
    }

    /// The latency that this part of the requests does not exceed.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(quantile))
    }
}
