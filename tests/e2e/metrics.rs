//! Metrics: what is counted, where it is served, and that all of it is documented.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tests::{Server, free_port};

/// The samples of a text for Prometheus, by name and labels.
pub(crate) fn samples(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).collect()
}

pub(crate) async fn scrape(port: u16) -> String {
    let response = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    response.text().await.unwrap()
}

#[tokio::test]
async fn what_the_server_does_is_counted_and_documented() {
    let port = free_port();
    let mut server = Server::start_federating("").await;
    server.set("listen.metrics", &format!("['127.0.0.1:{port}']"));
    // A service of which nothing is known but that it is registered.
    let registration = json!({
        "id": "irc", "url": "http://localhost:1", "as_token": "as", "hs_token": "hs", "sender_localpart": "irc",
        "namespaces": {},
    });
    let file = server.data_dir().join("irc.yaml");
    std::fs::write(&file, registration.to_string()).unwrap();
    server.set("appservices.registrations", &format!("['{}']", file.display()));
    server.restart().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    for number in 0..3 {
        alice.say(&room, &number.to_string(), "counted").await;
    }
    alice.get("/_matrix/client/v3/rooms/!nowhere:localhost/state").await;
    alice.get("/nowhere").await;
    // Nobody listens on port 1.
    assert_ne!(alice.get("/_matrix/client/v3/publicRooms?server=localhost:1").await.status, 200);
    let text = scrape(port).await;
    let samples = samples(&text);
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    let number = |name: &str| value(name).parse::<f64>().unwrap();
    let of_route = |metric: &str, route: &str, method: &str, more: &str| {
        value(&format!("ganglion_{metric}{{route=\"{route}\",method=\"{method}\"{more}}}"))
    };
    let send = "/_matrix/client/v3/rooms/{room}/send/{kind}/{txn}";
    assert_eq!(of_route("requests_total", send, "PUT", ",status=\"2xx\""), "3");
    assert_eq!(of_route("request_seconds_count", send, "PUT", ""), "3");
    let state = "/_matrix/client/v3/rooms/{room}/state";
    assert_eq!(of_route("requests_total", state, "GET", ",status=\"4xx\""), "1");
    assert_eq!(of_route("requests_total", "none", "GET", ",status=\"4xx\""), "1");
    assert_eq!(value("ganglion_requests_active"), "0");
    assert_eq!(value("ganglion_actors_active{class=\"room\"}"), "1");
    assert_eq!(value("ganglion_actors_active{class=\"session\"}"), "1");
    assert!(number("ganglion_actors_bytes{class=\"room\"}") > 0.0);
    assert!(number("ganglion_actors_activations_total{class=\"room\"}") >= 1.0);
    assert!(number("ganglion_commit_seconds_count") >= 5.0);
    assert!(number("ganglion_commit_batches_sum") >= 5.0);
    assert_eq!(value("ganglion_federation_requests_total{kind=\"publicRooms\"}"), "1");
    let failed = "ganglion_federation_failures_total{kind=\"publicRooms\",cause=\"connect\"}";
    assert_eq!(value(failed), "1");
    assert_eq!(value("ganglion_push_requests_total{kind=\"event\"}"), "0");
    assert_eq!(value("ganglion_pushers_waiting"), "0");
    assert_eq!(value("ganglion_appservice_sent_events_total{service=\"irc\"}"), "0");
    assert!(number("ganglion_process_memory_bytes") > f64::from(1 << 20));
    assert!(number("ganglion_process_descriptors") < number("ganglion_process_descriptors_max"));
    assert!(number("ganglion_store_bytes") > 0.0);
    assert!(!text.contains("alice") && !text.contains(&room), "labels are bounded:\n{text}");
    check_documentation(&text);
}

/// The manual lists the metrics that are served, and no others.
fn check_documentation(text: &str) {
    let served: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let manual = include_str!("../../docs/operations.md");
    let documented: BTreeSet<&str> =
        manual.lines().filter_map(|line| line.strip_prefix("| `ganglion_")?.split('`').next()).collect();
    let documented: BTreeSet<String> = documented.iter().map(|name| format!("ganglion_{name}")).collect();
    let missing: Vec<_> = served.iter().filter(|name| !documented.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    let gone: Vec<_> = documented.iter().filter(|name| !served.contains(name.as_str())).collect();
    assert!(gone.is_empty(), "docs/operations.md has {gone:?}, which nobody serves");
}

#[tokio::test]
async fn metrics_are_not_for_the_public() {
    let server = Server::start().await;
    server.anonymous().get("/metrics").await.is(404, "M_UNRECOGNIZED");
}
