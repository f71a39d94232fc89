//! Metrics: what the HTTP side counts, and all of it as text for Prometheus.
//!
//! They are served on listeners of their own (`listen.metrics`), without authentication: what they say is not for
//! strangers. `docs/operations.md` lists every metric; a test keeps the list complete.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{Method, StatusCode, header};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, prometheus_text,
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use tokio::time::Instant;

use crate::app::App;

/// What the names of all metrics begin with.
const PREFIX: &str = "ganglion";

/// Bounds of the times that requests take, in seconds. The long ones are for long polls and big joins.
const SECONDS: [f64; 12] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0];

/// Requests to one server; clones share the counts.
#[derive(Clone)]
pub struct RequestMetrics {
    requests: Family<RouteStatus, Counter>,
    seconds: Family<RouteMethod, Histogram, fn() -> Histogram>,
    active: Gauge,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            active: Gauge::default(),
        }
    }
}

impl RequestMetrics {
    fn register(&self, registry: &mut Registry) {
        let counted = "Requests by route and class of status";
        registry.register("requests", counted, self.requests.clone());
        registry.register("request_seconds", "How long requests took", self.seconds.clone());
        registry.register("requests_active", "Requests under way", self.active.clone());
    }
}

/// A route as the router's table spells it: there are as many as rows in it.
#[derive(Clone, Debug)]
struct Route(Option<MatchedPath>);

impl Route {
    fn as_str(&self) -> &str {
        self.0.as_ref().map_or("none", MatchedPath::as_str)
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Route {}

impl Hash for Route {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl EncodeLabelValue for Route {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteMethod {
    route: Route,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: Route,
    method: &'static str,
    status: &'static str,
}

/// Counts a request and how it ended; one that its client gave up is counted with the status `gone`.
pub async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = Route(request.extensions().get::<MatchedPath>().cloned());
    let mut ending = Ending {
        metrics: app.metrics().clone(),
        route: RouteMethod { route, method: method(request.method()) },
        status: "gone",
        start: Instant::now(),
    };
    ending.metrics.active.inc();
    let response = next.run(request).await;
    ending.status = class(response.status());
    response
}

/// Counts when it is dropped, so that requests that are given up count, too.
struct Ending {
    metrics: RequestMetrics,
    route: RouteMethod,
    status: &'static str,
    start: Instant,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let RouteMethod { route, method } = self.route.clone();
        let took = self.start.elapsed().as_secs_f64();
        self.metrics.active.dec();
        self.metrics.seconds.get_or_create(&self.route).observe(took);
        self.metrics.requests.get_or_create(&RouteStatus { route, method, status: self.status }).inc();
    }
}

/// The method; strangers may invent any, so there is one label for those.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "other",
    }
}

/// The process as the operating system sees it; nothing where there is no `/proc`.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let limit = rlimit::Resource::NOFILE.get().ok().map(|(soft, _)| soft);
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        for (name, help, value) in [
            ("process_memory_bytes", "Memory of the process that is resident", resident_bytes()),
            ("process_descriptors", "File descriptors in use", open),
            ("process_descriptors_max", "File descriptors allowed", limit),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Resident memory, which `/proc` gives in KiB.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// All metrics of a server, ready to be encoded.
struct Exposition {
    app: App,
    registry: Registry,
    store_bytes: Gauge,
}

impl Exposition {
    fn new(app: App) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        app.metrics().register(&mut registry);
        app.homeserver().register_metrics(&mut registry);
        let store_bytes = Gauge::default();
        registry.register("store_bytes", "What the store takes on the disk", store_bytes.clone());
        registry.register_collector(Box::new(Process));
        Self { app, registry, store_bytes }
    }

    async fn text(&self) -> Result<String, fmt::Error> {
        match self.app.homeserver().store_bytes().await {
            Ok(bytes) => drop(self.store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX))),
            Err(error) => tracing::warn!(%error, "cannot tell the store's size"),
        }
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The one route of the listeners for metrics.
pub fn router(app: App) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(Arc::new(Exposition::new(app)))
}

/// `GET /metrics`
async fn metrics(State(exposition): State<Arc<Exposition>>) -> Response {
    match exposition.text().await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_statuses_have_few_labels() {
        assert_eq!(method(&Method::PUT), "PUT");
        assert_eq!(method(&Method::from_bytes(b"BREW").unwrap()), "other");
        assert_eq!(class(StatusCode::FOUND), "3xx");
        assert_eq!(class(StatusCode::IM_A_TEAPOT), "4xx");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_knows_its_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
