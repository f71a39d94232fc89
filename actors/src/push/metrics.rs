//! What pushing counts.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::PushError;

/// What a push gateway is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// That something happened.
    Event,
    /// That less is unread.
    Counts,
}

impl Told {
    const ALL: [Self; 2] = [Self::Event, Self::Counts];

    const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Counts => "counts",
        }
    }
}

/// Calls of push gateways, and the pushers; clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct PushMetrics {
    requests: Family<Kind, Counter>,
    failures: Family<Failure, Counter>,
    seconds: Histogram,
    rejections: Counter,
    abandonments: Counter,
    running: Gauge,
    waiting: Gauge,
    resting: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    cause: &'static str,
}

impl Default for PushMetrics {
    fn default() -> Self {
        let (requests, failures) = (Family::default(), Family::default());
        // All labels are there from the start: a rate is wrong where a counter's first value is not 0.
        for told in Told::ALL {
            drop(requests.get_or_create(&Kind { kind: told.name() }));
        }
        for cause in PushError::CAUSES {
            drop(failures.get_or_create(&Failure { cause }));
        }
        Self {
            requests,
            failures,
            // 5 ms to 41 s; a call is given up after 30 s.
            seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            rejections: Counter::default(),
            abandonments: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            resting: Gauge::default(),
        }
    }
}

impl PushMetrics {
    /// Adds the counts to those that are served.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("push_requests", "Calls of push gateways", self.requests.clone());
        registry.register("push_failures", "Calls of push gateways that failed", self.failures.clone());
        registry.register("push_request_seconds", "How long push gateways took", self.seconds.clone());
        let rejected = "Pushers removed since their gateway rejected the pushkey";
        registry.register("push_rejections", rejected, self.rejections.clone());
        let abandoned = "Times that what waited for a failing push gateway was dropped";
        registry.register("push_abandonments", abandoned, self.abandonments.clone());
        registry.register("pushers_running", "Pushers that are at work", self.running.clone());
        let waiting = "Pushers with news that wait for others to end";
        registry.register("pushers_waiting", waiting, self.waiting.clone());
        let resting = "Pushers that wait to be tried again after a failure";
        registry.register("pushers_resting", resting, self.resting.clone());
    }

    /// A push gateway was called.
    pub(super) fn called(&self, told: Told, took: Duration, failure: Option<&PushError>) {
        self.requests.get_or_create(&Kind { kind: told.name() }).inc();
        self.seconds.observe(took.as_secs_f64());
        if let Some(error) = failure {
            self.failures.get_or_create(&Failure { cause: error.cause() }).inc();
        }
    }

    /// A push gateway rejected a pushkey.
    pub(super) fn rejected(&self) {
        self.rejections.inc();
    }

    /// What waited for a gateway was dropped.
    pub(super) fn abandoned(&self) {
        self.abandonments.inc();
    }

    /// How many pushers are at work, wait for others, and rest.
    pub(super) fn pushers(&self, running: usize, waiting: usize, resting: usize) {
        for (gauge, count) in [(&self.running, running), (&self.waiting, waiting), (&self.resting, resting)] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
