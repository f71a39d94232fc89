//! How much a server sends and takes: small here, as much as is asked for in long runs.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{Server, Stranger, free_port};

use super::{User, eventually};

/// Servers of a room; `GANGLION_FANOUT_SERVERS` asks for more. A third of them is dead.
const SERVERS: usize = 12;

/// Messages in each direction; `GANGLION_FEDERATION_MESSAGES` asks for more.
const MESSAGES: usize = 60;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A metric; 0 as long as nothing was counted.
async fn metric(port: u16, name: &str) -> u64 {
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap().text().await.unwrap();
    let Some(line) = text.lines().find(|line| line.starts_with(name)) else { return 0 };
    let value = line.rsplit(' ').next().unwrap();
    value.split('.').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_reaches_all_servers_of_a_room_that_are_alive() {
    let count = setting("GANGLION_FANOUT_SERVERS", SERVERS);
    let port = free_port();
    let mut server = Server::start_federating("").await;
    server.set("listen.metrics", &format!("['127.0.0.1:{port}']"));
    server.restart().await;
    let host = Stranger::start().await;
    let mut room = host.found_room("host");
    let mut strangers = join_all((1..count).map(|_| Stranger::start())).await;
    for stranger in &strangers {
        host.let_in(&mut room, stranger, "member");
    }
    host.host(&room);
    let alice = User(server.client("alice").await);
    alice.join(room.room_id.as_str(), host.name()).await;
    // A third of them dies before anything is sent.
    strangers.truncate(count - 1 - count / 3);
    let before = metric(port, "ganglion_federation_requests_total{kind=\"send\"}").await;
    let descriptors = metric(port, "ganglion_process_descriptors ").await;
    let start = tokio::time::Instant::now();
    alice.say(room.room_id.as_str(), "hello, everyone").await;
    let has_it = |stranger: &Stranger| {
        stranger.received().iter().any(|event| event["content"]["body"] == "hello, everyone")
    };
    let mut most = descriptors;
    let arrived = tokio::time::timeout(Duration::from_secs(120), async {
        while !strangers.iter().all(has_it) {
            most = most.max(metric(port, "ganglion_process_descriptors ").await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(
        arrived.await.is_ok(),
        "{} of {} have it",
        strangers.iter().filter(|one| has_it(one)).count(),
        strangers.len()
    );
    let took = start.elapsed();
    let requests = metric(port, "ganglion_federation_requests_total{kind=\"send\"}").await - before;
    println!(
        "{count} servers, {} of them dead: all others have the message after {took:?}; {requests} requests; \
         descriptors {descriptors} before, {most} at most",
        count / 3
    );
    for stranger in &strangers {
        let received = stranger.received();
        let copies = received.iter().filter(|event| event["content"]["body"] == "hello, everyone").count();
        assert_eq!(copies, 1, "{} got the message more than once", stranger.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_in_both_directions_in_order() {
    let count = setting("GANGLION_FEDERATION_MESSAGES", MESSAGES);
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut guest = stranger.join(&server, &room, "guest").await;
    let events: Vec<_> = (0..count)
        .map(|number| {
            let content = json!({ "msgtype": "m.text", "body": format!("in {number}") });
            stranger.event(&mut guest, "m.room.message", None, &content)
        })
        .collect();
    let start = tokio::time::Instant::now();
    for (number, some) in events.chunks(50).enumerate() {
        let pdus: Vec<_> = some.iter().map(|event| &**event).collect();
        let results = stranger.send(&server, &format!("bulk{number}"), &pdus).await;
        assert!(results.as_object().unwrap().values().all(|result| *result == json!({})), "{results}");
    }
    let taken = start.elapsed();
    let start = tokio::time::Instant::now();
    for number in 0..count {
        alice.say(&room, &format!("out {number}")).await;
    }
    let sent = |event: &Value| event["content"]["body"].as_str().is_some_and(|body| body.starts_with("out "));
    let received = eventually("all messages arrive", async || {
        let received: Vec<Value> = stranger.received().into_iter().filter(sent).collect();
        (received.len() >= count).then_some(received)
    })
    .await;
    let passed = start.elapsed();
    let bodies: Vec<_> =
        received.iter().map(|event| event["content"]["body"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bodies, (0..count).map(|number| format!("out {number}")).collect::<Vec<_>>());
    let rate = |took: Duration| f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64();
    println!(
        "{count} messages: {:.0}/s taken, {:.0}/s sent by one user one after the other",
        rate(taken),
        rate(passed)
    );
}
