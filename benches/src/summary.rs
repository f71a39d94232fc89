//! What a scenario measured.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;

/// Latencies and rate of one kind of request.
pub struct Summary {
    name: String,
    latencies: Histogram<u64>,
    elapsed: Duration,
}

impl Summary {
    /// An empty summary.
    pub fn new(name: impl Into<String>) -> Self {
        // From 1 µs to 10 minutes.
        let latencies = Histogram::new_with_bounds(1, 600_000_000, 3)
            .expect("three significant digits are within the crate's range");
        Self { name: name.into(), latencies, elapsed: Duration::ZERO }
    }

    /// Adds one request's latency.
    pub fn record(&mut self, latency: Duration) {
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds another summary's latencies.
    pub fn merge(&mut self, other: &Self) {
        self.latencies += &other.latencies;
    }

    /// Sets how long the whole run took.
    pub fn set_elapsed(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    /// Requests per second.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |quantile| Duration::from_micros(self.latencies.value_at_quantile(quantile));
        write!(
            f,
            "{:<28} {:>8} requests {:>10.1}/s   p50 {:>9.2?}   p90 {:>9.2?}   p99 {:>9.2?}   max {:>9.2?}",
            self.name,
            self.latencies.len(),
            self.rate(),
            at(0.5),
            at(0.9),
            at(0.99),
            Duration::from_micros(self.latencies.max()),
        )
    }
}
