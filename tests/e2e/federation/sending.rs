//! What becomes of events for a server that does not take them, in every way in which it may not.
//!
//! Spec: server-server API, "Transactions".

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::json;
use tests::{Client, Heard, Presence, Reply, Server, Stranger, free_port, segment};

use super::{User, eventually, path};

/// A server whose log says what became of transactions, and where it serves its metrics.
async fn talkative() -> (Server, u16) {
    let mut server = Server::start_federating("").await;
    let port = free_port();
    server.set("logging.level", "warn,actors::destination=info");
    server.set("logging.format", "json");
    server.set("listen.metrics", &format!("['127.0.0.1:{port}']"));
    server.restart().await;
    (server, port)
}

fn is_transaction(heard: &Heard) -> bool {
    heard.uri.starts_with("/_matrix/federation/v1/send/")
}

/// The bodies of the messages that a stranger got, each once, in the order in which they first came.
fn texts(stranger: &Stranger) -> Vec<String> {
    let mut texts = Vec::new();
    for event in stranger.received() {
        if let Some(body) = event["content"]["body"].as_str().map(ToOwned::to_owned)
            && !texts.contains(&body)
        {
            texts.push(body);
        }
    }
    texts
}

async fn gets(stranger: &Stranger, text: &str) {
    eventually(&format!("{} gets {text:?}", stranger.name()), async || {
        texts(stranger).iter().any(|known| known == text).then_some(())
    })
    .await;
}

/// Answers transactions with `fault` as long as the switch says so; answers that count are only given after that.
fn fail(stranger: &Stranger, fault: Reply) -> Arc<Mutex<bool>> {
    let broken = Arc::new(Mutex::new(true));
    let is_broken = broken.clone();
    stranger.on(move |heard| (is_transaction(heard) && *is_broken.lock()).then(|| fault.clone()));
    broken
}

#[tokio::test]
async fn every_fault_is_named_counted_and_overcome_and_holds_up_nobody_else() {
    let (server, metrics) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let healthy = Stranger::start().await;
    healthy.join(&server, &room, "healthy").await;
    let error = |code: &str| json!({ "errcode": code, "error": "the test says so" });
    let faults = [
        ("5xx", Reply::Json(503, error("M_UNKNOWN")), "503 Service Unavailable"),
        ("4xx", Reply::Json(403, error("M_FORBIDDEN")), "403 Forbidden: the test says so"),
        ("not found", Reply::Text(404, "<html>nothing here</html>".to_owned()), "404 Not Found"),
        ("signature", Reply::Json(401, error("M_UNAUTHORIZED")), "401 Unauthorized: the test says so"),
        ("wrong JSON", Reply::Text(200, "<html>welcome</html>".to_owned()), "unexpected answer"),
        ("huge", Reply::Flood, "larger than"),
        ("hang up", Reply::HangUp, "the connection ended"),
    ];
    let mut strangers = Vec::new();
    for (name, fault, line) in faults {
        let stranger = Stranger::start().await;
        stranger.join(&server, &room, "guest").await;
        strangers.push((name, stranger, fault, line));
    }
    for (name, stranger, ..) in &strangers {
        gets_up_to_date(&alice, &room, stranger, name).await;
    }
    let broken: Vec<_> =
        strangers.iter().map(|(_, stranger, fault, _)| fail(stranger, fault.clone())).collect();
    for number in 0..3 {
        alice.say(&room, &format!("message {number}")).await;
    }
    gets(&healthy, "message 2").await;
    for (name, stranger, _, line) in &strangers {
        eventually(&format!("{name}: the log names the cause"), async || {
            let log = server.log();
            let found = log
                .lines()
                .any(|entry| ["will retry", stranger.name(), line].iter().all(|part| entry.contains(part)));
            found.then_some(())
        })
        .await;
    }
    let text =
        reqwest::get(format!("http://127.0.0.1:{metrics}/metrics")).await.unwrap().text().await.unwrap();
    for cause in ["status_5xx", "status_4xx", "bad_body", "too_large"] {
        let name = format!("ganglion_federation_failures_total{{kind=\"send\",cause=\"{cause}\"}}");
        assert!(text.contains(&name), "{name} is not in\n{text}");
    }
    // All at once: whoever stays broken for longer is left alone for longer.
    for broken in &broken {
        *broken.lock() = false;
    }
    for (_, stranger, ..) in &strangers {
        gets(stranger, "message 2").await;
        let order: Vec<_> = texts(stranger).into_iter().filter(|text| text.starts_with("message")).collect();
        assert_eq!(order, ["message 0", "message 1", "message 2"]);
    }
}

/// Waits until a stranger got everything so far, so that its fault begins with the next event.
async fn gets_up_to_date(alice: &User, room: &str, stranger: &Stranger, name: &str) {
    let text = format!("before {name}");
    alice.say(room, &text).await;
    gets(stranger, &text).await;
}

/// How long a server was left alone each time that it could not be had for this reason, in seconds, as the log says.
fn pauses(server: &Server, stranger: &Stranger, reason: &str) -> Vec<u64> {
    let log = server.log();
    let entries = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_it = entries.filter(|entry| {
        let text = entry.to_string();
        ["will retry", stranger.name(), reason].iter().all(|part| text.contains(part))
    });
    of_it.filter_map(|entry| entry["fields"]["delay_s"].as_u64()).collect()
}

#[tokio::test]
async fn a_server_that_cannot_be_had_is_left_alone_for_longer_each_time_and_holds_up_nobody_else() {
    let healthy = Stranger::start().await;
    let (mut server, metrics) = talkative().await;
    server.set("federation.trusted_key_servers", &format!("['{}']", healthy.name()));
    server.restart().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    healthy.join(&server, &room, "healthy").await;
    let lost = Stranger::astray("lost.invalid:8448").await;
    let keys = lost.published_keys();
    healthy.on(move |heard| {
        let is_asked = heard.uri.starts_with("/_matrix/key/v2/query");
        is_asked.then(|| Reply::Json(200, json!({ "server_keys": [keys] })))
    });
    lost.join(&server, &room, "lost").await;
    let mut unreachable = vec![("dns", lost, "cannot resolve the server's name: there is no such name")];
    for (cause, presence, line) in [
        ("connect", Presence::Refusing, "cannot connect: Connection refused"),
        ("tls", Presence::Untrusted, "TLS fails: invalid peer certificate: UnknownIssuer"),
    ] {
        let mut stranger = Stranger::start().await;
        stranger.join(&server, &room, "guest").await;
        gets_up_to_date(&alice, &room, &stranger, cause).await;
        stranger.becomes(presence).await;
        unreachable.push((cause, stranger, line));
    }
    for number in 0..3 {
        let text = format!("message {number}");
        alice.say(&room, &text).await;
        gets(&healthy, &text).await;
    }
    for (cause, stranger, line) in &unreachable {
        eventually(&format!("{cause}: it is named and left alone for longer"), async || {
            let pauses = pauses(&server, stranger, line);
            (pauses.len() > 1 && pauses[1] > pauses[0]).then_some(())
        })
        .await;
    }
    let text =
        reqwest::get(format!("http://127.0.0.1:{metrics}/metrics")).await.unwrap().text().await.unwrap();
    for (cause, ..) in &unreachable {
        let name = format!("ganglion_federation_failures_total{{kind=\"send\",cause=\"{cause}\"}}");
        assert!(text.contains(&name), "{name} is not in\n{text}");
    }
    for (_, stranger, _) in unreachable.iter_mut().skip(1) {
        stranger.becomes(Presence::Answering).await;
        // It need not be waited for: it gives a sign of life.
        let uri = format!("/_matrix/federation/v1/query/profile?user_id={}", segment(alice.id()));
        eventually("it has caught up", async || {
            stranger.get(&server, &uri).await.ok();
            texts(stranger).iter().any(|text| text == "message 2").then_some(())
        })
        .await;
        let order: Vec<_> = texts(stranger).into_iter().filter(|text| text.starts_with("message")).collect();
        assert_eq!(order, ["message 0", "message 1", "message 2"]);
    }
}

#[tokio::test]
async fn a_silent_server_and_a_dripping_one_hold_up_nobody_else() {
    let (server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let healthy = Stranger::start().await;
    healthy.join(&server, &room, "healthy").await;
    let stuck = [Stranger::start().await, Stranger::start().await];
    for stranger in &stuck {
        stranger.join(&server, &room, "stuck").await;
    }
    for stranger in &stuck {
        gets_up_to_date(&alice, &room, stranger, stranger.name()).await;
    }
    gets(&stuck[0], &format!("before {}", stuck[1].name())).await;
    let before = stuck.each_ref().map(|stranger| stranger.heard("/v1/send/").len());
    for (stranger, fault) in stuck.iter().zip([Reply::Silence, Reply::Drip]) {
        fail(stranger, fault);
    }
    for number in 0..5 {
        let text = format!("message {number}");
        alice.say(&room, &text).await;
        gets(&healthy, &text).await;
    }
    // One transaction at a time.
    for (stranger, before) in stuck.iter().zip(before) {
        eventually("it was tried", async || (stranger.heard("/v1/send/").len() == before + 1).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn an_event_that_a_server_refuses_is_left_out_and_the_others_arrive() {
    let (server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let picky = Stranger::start().await;
    picky.join(&server, &room, "picky").await;
    gets_up_to_date(&alice, &room, &picky, "the poison").await;
    let broken = Arc::new(Mutex::new(true));
    let is_broken = broken.clone();
    let taken = Arc::new(Mutex::new(Vec::<String>::new()));
    let takes = taken.clone();
    picky.on(move |heard| {
        if !is_transaction(heard) {
            return None;
        }
        if *is_broken.lock() {
            return Some(Reply::Json(503, json!({})));
        }
        let body = heard.json().to_string();
        if body.contains("poison") {
            return Some(Reply::Json(400, json!({ "errcode": "M_BAD_JSON", "error": "poison" })));
        }
        let pdus = heard.json()["pdus"].as_array().cloned().unwrap_or_default();
        takes.lock().extend(pdus.iter().filter_map(|pdu| Some(pdu["content"]["body"].as_str()?.to_owned())));
        None
    });
    for text in ["one", "two", "the poison", "three", "four", "five"] {
        alice.say(&room, text).await;
    }
    *broken.lock() = false;
    eventually("everything else is taken", async || {
        let taken = taken.lock();
        ["one", "two", "three", "four", "five"]
            .iter()
            .all(|text| taken.iter().any(|known| known == text))
            .then_some(())
    })
    .await;
    assert!(server.log().contains("it is left out"), "{}", server.log());
    let tried = picky
        .heard("/v1/send/")
        .iter()
        .filter(|heard| heard.json().to_string().contains("the poison"))
        .count();
    // It is not sent again.
    alice.say(&room, "six").await;
    eventually("what follows is taken", async || {
        taken.lock().iter().any(|known| known == "six").then_some(())
    })
    .await;
    let tried_then = picky
        .heard("/v1/send/")
        .iter()
        .filter(|heard| heard.json().to_string().contains("\"the poison\""))
        .count();
    assert!(tried_then <= tried, "{tried_then} after {tried}");
}

#[tokio::test]
async fn a_server_is_left_alone_for_as_long_as_it_asks_for() {
    let (server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let busy = Stranger::start().await;
    busy.join(&server, &room, "busy").await;
    gets_up_to_date(&alice, &room, &busy, "it is busy").await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = times.clone();
    busy.on(move |heard| {
        if !is_transaction(heard) {
            return None;
        }
        let mut times = noted.lock();
        times.push(tokio::time::Instant::now());
        let body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "later", "retry_after_ms": 6000 });
        (times.len() == 1).then_some(Reply::Json(429, body))
    });
    alice.say(&room, "patience").await;
    eventually("it is tried again", async || (times.lock().len() > 1).then_some(())).await;
    let times = times.lock();
    assert!(times[1] - times[0] >= Duration::from_secs(6), "{:?}", times[1] - times[0]);
}

#[tokio::test]
async fn a_sign_of_life_ends_the_waiting() {
    let (server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let away = Stranger::start().await;
    away.join(&server, &room, "away").await;
    gets_up_to_date(&alice, &room, &away, "it goes").await;
    let body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "later", "retry_after_ms": 3_000_000 });
    let broken = fail(&away, Reply::Json(429, body));
    let before = away.heard("/v1/send/").len();
    alice.say(&room, "welcome back").await;
    eventually("it is tried", async || (away.heard("/v1/send/").len() > before).then_some(())).await;
    *broken.lock() = false;
    let tried = away.heard("/v1/send/").len();
    let uri = format!("/_matrix/federation/v1/query/profile?user_id={}", segment(alice.id()));
    eventually("it is back in touch", async || {
        away.get(&server, &uri).await.ok();
        (away.heard("/v1/send/").len() > tried).then_some(())
    })
    .await;
    gets(&away, "welcome back").await;
}

/// Spec: "must wait and retry for a 200 OK response before sending a transaction with a different `txnId`".
#[tokio::test]
async fn a_transaction_that_is_not_answered_is_sent_again_as_the_same() {
    let (server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let lossy = Stranger::start().await;
    lossy.join(&server, &room, "lossy").await;
    gets_up_to_date(&alice, &room, &lossy, "it goes").await;
    let before = lossy.heard("/v1/send/").len();
    let broken = fail(&lossy, Reply::Json(502, json!({})));
    alice.say(&room, "the answer is lost").await;
    let tries = async |count: usize| {
        eventually("it is tried", async || {
            let heard = lossy.heard("/v1/send/");
            (heard.len() >= before + count).then(|| heard[before..].to_vec())
        })
        .await
    };
    tries(1).await;
    alice.say(&room, "more").await;
    tries(2).await;
    *broken.lock() = false;
    let heard = tries(4).await;
    let pdus = |heard: &Heard| heard.json()["pdus"].clone();
    for again in &heard[1..3] {
        assert_eq!((&again.uri, pdus(again)), (&heard[0].uri, pdus(&heard[0])));
    }
    // What came meanwhile follows as another.
    assert_ne!(heard[3].uri, heard[0].uri);
    gets(&lossy, "more").await;
    let of_text = |text: &str| {
        let bodies = heard.iter().map(|heard| heard.json().to_string());
        bodies.filter(|body| body.contains(text)).count()
    };
    assert_eq!((of_text("the answer is lost"), of_text("\"more\"")), (3, 1));
}

/// How long the lists of a server's devices are left alone after each failure, in milliseconds, as the log says.
fn pauses_of_lists(server: &Server, stranger: &Stranger) -> Vec<u64> {
    let log = server.log();
    let entries = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_it = entries.filter(|entry| {
        let text = entry.to_string();
        ["cannot fetch device lists", stranger.name()].iter().all(|part| text.contains(part))
    });
    of_it.filter_map(|entry| entry["fields"]["delay_ms"].as_u64()).collect()
}

#[tokio::test]
async fn a_stale_device_list_is_asked_for_once_after_a_restart_and_then_as_its_server_deserves() {
    let (mut server, _) = talkative().await;
    server.set("logging.level", "warn,actors::destination=info,actors::federation::device_lists=info");
    server.restart().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let away = Stranger::start().await;
    let bob = away.join(&server, &room, "bob").await.user;
    gets_up_to_date(&alice, &room, &away, "it goes").await;
    let known = json!({ "device_keys": { bob.as_str(): {} } });
    away.on(move |heard| {
        let refused = json!({ "errcode": "M_UNKNOWN", "error": "the test says so" });
        if heard.uri.contains("/user/keys/query") {
            return Some(Reply::Json(200, known.clone()));
        }
        let is_refused = is_transaction(heard) || heard.uri.contains("/user/devices/");
        is_refused.then_some(Reply::Json(503, refused))
    });
    let query = json!({ "device_keys": { bob.as_str(): [] } });
    alice.0.post("/_matrix/client/v3/keys/query", &query).await.ok();
    // The list is known; then an update comes that follows others.
    let update = json!({ "user_id": bob, "device_id": "PHONE", "stream_id": 78, "prev_id": [77] });
    let body = json!({
        "origin": away.name(), "origin_server_ts": 1, "pdus": [],
        "edus": [{ "edu_type": "m.device_list_update", "content": update }],
    });
    away.put(&server, "/_matrix/federation/v1/send/update", body).await.ok();
    eventually("the list cannot be fetched", async || {
        (!pauses_of_lists(&server, &away).is_empty()).then_some(())
    })
    .await;
    alice.say(&room, "are you there?").await;
    eventually("it is away for a while", async || {
        (pauses(&server, &away, "503 Service Unavailable").len() >= 3).then_some(())
    })
    .await;
    server.stop().await;
    let before = pauses_of_lists(&server, &away).len();
    server.restart().await;
    let pause = eventually("the list is asked for after the restart", async || {
        pauses_of_lists(&server, &away).get(before).copied()
    })
    .await;
    assert!(pause >= 16_000, "{pause} ms");
}

/// Two users of one server, and what that answers for each; the one comes before the other.
#[tokio::test]
async fn a_device_list_that_is_not_given_holds_up_no_other_of_its_server() {
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let away = Stranger::start().await;
    let (ann, bob) =
        (away.join(&server, &room, "ann").await.user, away.join(&server, &room, "bob").await.user);
    let known = json!({ "device_keys": { ann.as_str(): {}, bob.as_str(): {} } });
    let list = json!({ "user_id": bob, "stream_id": 80, "devices": [] });
    let of = |user: &ruma::UserId| format!("/user/devices/{}", segment(user.as_str()));
    let (of_ann, of_bob) = (of(&ann), of(&bob));
    let asked = of_bob.clone();
    away.on(move |heard| match &heard.uri {
        uri if uri.contains("/user/keys/query") => Some(Reply::Json(200, known.clone())),
        uri if uri.contains(&of_ann) => Some(Reply::Json(200, json!({ "stream_id": "nonsense" }))),
        uri if uri.contains(&of_bob) => Some(Reply::Json(200, list.clone())),
        _ => None,
    });
    let query = json!({ "device_keys": { ann.as_str(): [], bob.as_str(): [] } });
    alice.0.post("/_matrix/client/v3/keys/query", &query).await.ok();
    // Updates that follow others, which did not come.
    let update = |user: &ruma::UserId| {
        let content = json!({ "user_id": user, "device_id": "PHONE", "stream_id": 78, "prev_id": [77] });
        json!({ "edu_type": "m.device_list_update", "content": content })
    };
    let body = json!({
        "origin": away.name(), "origin_server_ts": 1, "pdus": [], "edus": [update(&ann), update(&bob)],
    });
    away.put(&server, "/_matrix/federation/v1/send/update", body).await.ok();
    eventually("the other list is asked for", async || (!away.heard(&asked).is_empty()).then_some(())).await;
}

/// Sends something, again and again while the room is too busy.
async fn say_at_last(alice: Client, room: String, text: String) {
    let path = path(&room, &format!("send/m.room.message/{}", segment(&text)));
    let content = json!({ "msgtype": "m.text", "body": text });
    loop {
        let answer = alice.put(&path, &content).await;
        if answer.status == 200 {
            return;
        }
        assert!([429, 503].contains(&answer.status), "{}", answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_busy_destination_was_not_told_of_goes_out_without_a_restart() {
    let (mut server, _) = talkative().await;
    let alice = User(server.client("alice").await);
    let stranger = Stranger::start().await;
    let mut rooms = Vec::new();
    for _ in 0..12 {
        let room = alice.create("11", json!({})).await;
        stranger.join(&server, &room, "bob").await;
        rooms.push(room);
    }
    server.set("actors.backlog_max", "1");
    server.restart().await;
    let mut said = Vec::new();
    for round in 0..30 {
        let texts: Vec<_> = (0..rooms.len()).map(|number| format!("{round} {number}")).collect();
        let sends: Vec<_> = rooms
            .iter()
            .zip(&texts)
            .map(|(room, text)| tokio::spawn(say_at_last(alice.0.clone(), room.clone(), text.clone())))
            .collect();
        for send in sends {
            send.await.unwrap();
        }
        said.extend(texts);
        if server.log().contains("a destination is not told of something to send") {
            break;
        }
    }
    assert!(server.log().contains("a destination is not told"), "the destination kept up with everything");
    for text in said {
        gets(&stranger, &text).await;
    }
}
