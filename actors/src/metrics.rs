//! What the actors count, one set per server.
//!
//! Whoever serves metrics takes a registry, [registers](crate::homeserver::Homeserver::register_metrics) these in it
//! and encodes it. Names are `ganglion_<noun>_<unit>`; labels have few values, all of them known: never a room, a
//! user or a server.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::Registry,
};

use crate::{directory::Stats, federation::FederationError};

/// What the actors of one server count; clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests to other servers by what they ask for.
    requests: Family<Kind, Counter>,
    /// Those that failed.
    failures: Family<Failure, Counter>,
    /// PDUs in transactions that were taken.
    sent_pdus: Counter,
    /// EDUs in transactions that were taken.
    sent_edus: Counter,
    /// Resolutions that went back to older state without a reason.
    state_resets: Counter,
    /// Events that only tie the graph of a room together.
    dummy_events: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: &'static str,
    cause: &'static str,
}

impl Metrics {
    /// Adds the counts to those that are served.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let asked = "Requests to other servers";
        registry.register("federation_requests", asked, self.requests.clone());
        let failed = "Requests to other servers that failed";
        registry.register("federation_failures", failed, self.failures.clone());
        let pdus = "Events in transactions that other servers took";
        registry.register("federation_sent_pdus", pdus, self.sent_pdus.clone());
        let edus = "EDUs in transactions that other servers took";
        registry.register("federation_sent_edus", edus, self.sent_edus.clone());
        let resets = "State resolutions that went back to older state without a reason";
        registry.register("room_state_resets", resets, self.state_resets.clone());
        let dummies = "Events that were sent to tie forward extremities of rooms together";
        registry.register("room_dummy_events", dummies, self.dummy_events.clone());
    }

    /// A resolution went back to older state without a reason.
    pub(crate) fn state_was_reset(&self) {
        self.state_resets.inc();
    }

    /// So many events were sent to tie forward extremities of a room together.
    pub(crate) fn tied(&self, events: usize) {
        self.dummy_events.inc_by(events as u64);
    }

    /// How often a resolution went back to older state without a reason.
    pub(crate) fn state_resets(&self) -> u64 {
        self.state_resets.get()
    }

    /// Another server was asked for something.
    pub(crate) fn asked(&self, path: &str, failure: Option<&FederationError>) {
        let kind = kind(path);
        self.requests.get_or_create(&Kind { kind }).inc();
        if let Some(error) = failure {
            self.failures.get_or_create(&Failure { kind, cause: error.cause() }).inc();
        }
    }

    /// A good answer turned out to be none.
    pub(crate) fn misread(&self, path: &str, error: &FederationError) {
        self.failures.get_or_create(&Failure { kind: kind(path), cause: error.cause() }).inc();
    }

    /// Another server took a transaction.
    pub(crate) fn sent(&self, pdus: usize, edus: usize) {
        self.sent_pdus.inc_by(pdus as u64);
        self.sent_edus.inc_by(edus as u64);
    }
}

/// What a request to another server asks for, by its path: the part after the version, if it is a known one.
fn kind(path: &str) -> &'static str {
    const KINDS: [&str; 27] = [
        "backfill",
        "event",
        "event_auth",
        "exchange_third_party_invite",
        "get_missing_events",
        "hierarchy",
        "invite",
        "make_join",
        "make_knock",
        "make_leave",
        "media",
        "openid",
        "publicRooms",
        "query",
        "send",
        "send_join",
        "send_knock",
        "send_leave",
        "server",
        "state",
        "state_ids",
        "timestamp_to_event",
        "user",
        "version",
        "3pid",
        "download",
        "thumbnail",
    ];
    let path = path.split('?').next().unwrap_or_default();
    // `/_matrix/federation/v1/send/…`, `/_matrix/key/v2/server`
    let name = path.split('/').nth(4).unwrap_or_default();
    KINDS.into_iter().find(|known| *known == name).unwrap_or("other")
}

/// How many forward extremities each room in memory has, looked at when somebody asks.
pub(crate) struct Extremities(pub(crate) Box<dyn Fn() -> Vec<u64> + Send + Sync>);

impl fmt::Debug for Extremities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extremities")
    }
}

impl Collector for Extremities {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let rooms = (self.0)();
        let all = "Forward extremities of the rooms in memory";
        let most = "Forward extremities of that room in memory that has most";
        for (name, help, value) in [
            ("room_extremities", all, rooms.iter().sum::<u64>()),
            ("room_extremities_max", most, rooms.iter().copied().max().unwrap_or(0)),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// The actors of each class, looked at when somebody asks.
pub(crate) struct ActorClasses(pub(crate) Box<dyn Fn() -> Vec<(&'static str, Stats)> + Send + Sync>);

impl fmt::Debug for ActorClasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ActorClasses")
    }
}

impl Collector for ActorClasses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let classes = (self.0)();
        let mut gauge = |name, help, value: fn(&Stats) -> u64| {
            encode(&mut encoder, name, help, &classes, |stats| ConstGauge::new(value(stats)))
        };
        gauge("actors_active", "Actors in memory", |stats| stats.active)?;
        gauge("actors_bytes", "Memory that actors report", |stats| stats.bytes)?;
        gauge("actors_backlog", "Messages to actors that wait", |stats| stats.backlog)?;
        let mut counter = |name, help, value: fn(&Stats) -> u64| {
            encode(&mut encoder, name, help, &classes, |stats| ConstCounter::new(value(stats)))
        };
        counter("actors_activations", "Actors that were started", |stats| stats.activated)?;
        counter("actors_passivations", "Actors that left memory", |stats| stats.passivated)?;
        counter("actors_crashes", "Actors that crashed or did not start", |stats| stats.crashed)
    }
}

fn encode<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    classes: &[(&'static str, Stats)],
    metric: impl Fn(&Stats) -> M,
) -> Result<(), fmt::Error> {
    let Some((_, stats)) = classes.first() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, metric(stats).metric_type())?;
    for (class, stats) in classes {
        metric(stats).encode(family.encode_family(&[("class", *class)])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_ask_for() {
        for (path, expected) in [
            ("/_matrix/federation/v1/send/17", "send"),
            ("/_matrix/federation/v2/send_join/!a:b/$c", "send_join"),
            ("/_matrix/federation/v1/publicRooms?limit=3", "publicRooms"),
            ("/_matrix/key/v2/server", "server"),
            ("/_matrix/federation/v1/@mallory:evil.example", "other"),
            ("/", "other"),
        ] {
            assert_eq!(kind(path), expected, "{path}");
        }
    }
}
