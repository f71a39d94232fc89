//! What is counted of each application service.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::ServiceError;

/// What services are asked for.
const KINDS: [&str; 7] = ["transactions", "ping", "users", "rooms", "protocol", "user", "location"];

/// Counts of requests to services, and of what they took; clones share the counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceMetrics {
    requests: Family<Request, Counter>,
    failures: Family<Failure, Counter>,
    milliseconds: Family<Request, Counter>,
    events: Family<Of, Counter>,
    behind: Family<Of, Gauge>,
    resting: Family<Of, Gauge>,
}

/// A service's ID comes from the operator, so that there are few of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    service: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    service: String,
    cause: &'static str,
}

impl ServiceMetrics {
    /// Adds the counts to those that are served.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let asked = "Requests to application services";
        registry.register("appservice_requests", asked, self.requests.clone());
        let failed = "Requests to application services without an answer, or with an error for one";
        registry.register("appservice_failures", failed, self.failures.clone());
        let took = "Milliseconds that application services took to answer";
        registry.register("appservice_request_milliseconds", took, self.milliseconds.clone());
        let events = "Events in transactions that application services took";
        registry.register("appservice_sent_events", events, self.events.clone());
        let behind = "Positions that application services have not been told of";
        registry.register("appservice_behind_positions", behind, self.behind.clone());
        let resting = "Whether an application service is to be tried again after a failure";
        registry.register("appservice_resting", resting, self.resting.clone());
    }

    /// A service is registered: its counts are served from the start.
    pub(super) fn introduce(&self, service: &str) {
        for kind in KINDS {
            let request = Request { service: service.to_owned(), kind };
            drop(self.requests.get_or_create(&request));
            drop(self.milliseconds.get_or_create(&request));
        }
        for cause in ServiceError::CAUSES {
            drop(self.failures.get_or_create(&Failure { service: service.to_owned(), cause }));
        }
        self.took(service, 0);
        self.stands(service, 0, false);
    }

    /// A service was asked for something.
    pub(super) fn asked(&self, service: &str, kind: &'static str, took: Duration) {
        let request = Request { service: service.to_owned(), kind };
        self.requests.get_or_create(&request).inc();
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.get_or_create(&request).inc_by(took);
    }

    /// A service gave no good answer.
    pub(super) fn failed(&self, service: &str, error: &ServiceError) {
        let failure = Failure { service: service.to_owned(), cause: error.cause() };
        self.failures.get_or_create(&failure).inc();
    }

    /// A service took a transaction.
    pub(super) fn took(&self, service: &str, events: u64) {
        self.events.get_or_create(&of(service)).inc_by(events);
    }

    /// How far a service is behind, and whether it is tried again later.
    pub(super) fn stands(&self, service: &str, behind: u64, is_resting: bool) {
        self.behind.get_or_create(&of(service)).set(i64::try_from(behind).unwrap_or(i64::MAX));
        self.resting.get_or_create(&of(service)).set(i64::from(is_resting));
    }
}

fn of(service: &str) -> Of {
    Of { service: service.to_owned() }
}
