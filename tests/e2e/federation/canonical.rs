//! What canonical JSON forbids, in the bodies of requests: numbers that are no integers of 53 bits.
//!
//! Spec: appendices, "Canonical JSON"; server-server API, "Request Authentication"; room version 6, "Canonical JSON".

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use engine::{canonical::Json, pdu::Pdu, room_version};
use http::Method;
use ruma::signatures::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Client, Reply, Server, Stranger, Synapse, segment};

use super::{User, eventually, path};

fn send_path(txn: &str) -> String {
    format!("/_matrix/client/v3/sendToDevice/org.example.test/{txn}")
}

/// Sends messages with these contents to all devices of a user, each in a request of its own.
async fn send(from: &Client, to: &str, contents: &[Value]) {
    for (number, content) in contents.iter().enumerate() {
        let body = json!({ "messages": { to: { "*": content } } });
        from.put(&send_path(&number.to_string()), &body).await.ok();
    }
}

/// Waits until messages have come whose contents are these, in this order.
async fn receives(client: &Client, since: &str, expected: &[Value]) {
    let (mut since, mut got) = (since.to_owned(), Vec::new());
    let is_there = |response: &Value| response["to_device"]["events"][0].is_object();
    while got.len() < expected.len() {
        let response = client.sync_until(&since, is_there).await;
        let events = response["to_device"]["events"].as_array().unwrap();
        got.extend(events.iter().map(|event| event["content"].clone()));
        response["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    assert_eq!(got, expected);
}

/// Numbers that canonical JSON forbids, and one that it does not, in the order in which they are sent.
fn contents() -> [Value; 4] {
    [
        json!({ "n": 1.5 }),
        json!({ "n": 9_007_199_254_740_992_u64 }),
        json!({ "n": [-0.25] }),
        json!({ "n": 1 }),
    ]
}

#[tokio::test]
async fn messages_with_any_numbers_cross_over_between_ganglions() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let room = alice.create("11", json!({})).await;
    bob.join(&room, one.name()).await;
    alice.sees(&room, &bob, "join").await;
    let since = bob.0.token_of_sync().await;
    // A device's keys become an EDU like the messages.
    let keys = json!({
        "user_id": alice.id(), "device_id": alice.0.device_id, "algorithms": [], "keys": {}, "signatures": {},
        "org.example.version": 1.5,
    });
    alice.0.post("/_matrix/client/v3/keys/upload", &json!({ "device_keys": keys })).await.ok();
    let contents = contents();
    send(&alice.0, bob.id(), &contents).await;
    receives(&bob.0, &since, &contents).await;
    alice.say(&room, "still here").await;
    bob.hears(&room, "still here").await;
}

#[tokio::test]
async fn messages_with_any_numbers_cross_over_to_synapse_and_back() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (server.client("alice").await, synapse.client("bob").await);
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let since = to.token_of_sync().await;
        send(from, &to.user_id, &contents()).await;
        receives(to, &since, &contents()).await;
    }
}

/// A server that signs canonical JSON only cannot check other signatures: it gets the rest.
#[tokio::test]
async fn a_message_whose_signature_a_server_cannot_check_is_left_out() {
    let (server, strict) = (Server::start_federating("").await, Stranger::start().await);
    let alice = server.client("alice").await;
    strict.on(|heard| {
        let is_bad = heard.uri.contains("/v1/send/") && heard.json().to_string().contains("1.5");
        let error = json!({ "errcode": "M_UNAUTHORIZED", "error": "the signature does not hold" });
        is_bad.then_some(Reply::Json(401, error))
    });
    let contents = [json!({ "n": 0 }), json!({ "n": 1.5 }), json!({ "n": 2 })];
    send(&alice, &format!("@bob:{}", strict.name()), &contents).await;
    eventually("what follows is taken", async || {
        let mut taken = strict.heard("/v1/send/").into_iter().map(|heard| heard.json()["edus"].to_string());
        taken.any(|edus| edus.contains("\"n\":2") && !edus.contains("1.5")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_event_with_forbidden_numbers_is_dropped_alone() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut guest = stranger.join(&server, &room, "mallory").await;
    let since = alice.0.token_of_sync().await;
    let good = stranger.event(&mut guest, "m.room.message", None, &json!({ "body": "good" }));
    let good_json: Value = serde_json::from_slice(good.raw()).unwrap();
    let mut bad = good_json.clone();
    bad["content"] = json!({ "body": "bad", "n": 1.5 });
    let message = json!({
        "sender": guest.user, "type": "org.example.test", "message_id": "1",
        "messages": { alice.id(): { "*": { "n": 1.5 } } },
    });
    let body = json!({
        "origin": stranger.name(), "origin_server_ts": 1, "pdus": [bad, good_json],
        "edus": [{ "edu_type": "m.direct_to_device", "content": message }],
    });
    let answer = stranger.put(&server, "/_matrix/federation/v1/send/numbers", body).await.ok();
    assert_eq!(answer["pdus"], json!({ good.event_id().as_str(): {} }));
    let shown = alice.messages(&room).await;
    let is_shown = |body: &str| shown.iter().any(|event| event["content"]["body"] == body);
    assert!(is_shown("good") && !is_shown("bad"), "{shown:?}");
    receives(&alice.0, &since, &[json!({ "n": 1.5 })]).await;
}

/// Spec: room version 6, "a 400 `M_BAD_JSON` error on most endpoints".
#[tokio::test]
async fn where_one_event_is_the_request_forbidden_numbers_are_bad_json() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let user = format!("@mallory:{}", stranger.name());
    let rules = room_version::rules(&"11".try_into().unwrap()).unwrap();
    let member = |room: &str, key: &str, membership: &str| {
        let event = stranger.seal(
            json!({
                "type": "m.room.member", "state_key": key, "sender": user, "room_id": room, "depth": 2,
                "content": { "membership": membership }, "origin_server_ts": 1,
                "prev_events": [], "auth_events": [],
            }),
            rules,
        );
        let mut json: Value = serde_json::from_slice(event.raw()).unwrap();
        json["content"]["n"] = json!(1.5);
        json
    };
    let id = segment(&room);
    let elsewhere = format!("!elsewhere:{}", stranger.name());
    let invite = member(&elsewhere, alice.id(), "invite");
    let invite = json!({ "room_version": "11", "event": invite, "invite_room_state": [] });
    for (uri, body) in [
        (format!("v2/send_join/{id}/$a"), member(&room, &user, "join")),
        (format!("v2/send_leave/{id}/$a"), member(&room, &user, "leave")),
        (format!("v1/send_knock/{id}/$a"), member(&room, &user, "knock")),
        (format!("v2/invite/{}/$a", segment(&elsewhere)), invite),
    ] {
        let uri = format!("/_matrix/federation/{uri}");
        let answer = stranger.request(&server, Method::PUT, &uri, Some(body)).await;
        assert_eq!((answer.status, answer.body["errcode"].as_str()), (400, Some("M_BAD_JSON")), "{uri}");
    }
}

/// A stranger's message with a number in its content that canonical JSON forbids, hashed and signed.
fn with_number(stranger: &Stranger, message: &Pdu) -> Value {
    let canonical = |event: &Value, but: &[&str]| {
        let mut event = event.clone();
        event.as_object_mut().unwrap().retain(|field, _| !but.contains(&field.as_str()));
        let text = event.to_string();
        serde_json::to_vec(&Json::parse(text.as_bytes()).unwrap()).unwrap()
    };
    let mut event: Value = serde_json::from_slice(message.raw()).unwrap();
    event["content"]["n"] = json!(1.5);
    let hash = Sha256::digest(canonical(&event, &["hashes", "signatures"]));
    event["hashes"] = json!({ "sha256": BASE64_STANDARD_NO_PAD.encode(hash) });
    let mut redacted = event.clone();
    redacted["content"] = json!({});
    let signature = stranger.key().sign(&canonical(&redacted, &["signatures"]));
    let signature = BASE64_STANDARD_NO_PAD.encode(signature.as_bytes());
    event["signatures"] = json!({ stranger.name(): { stranger.key().id(): signature } });
    event
}

/// Spec: room versions 1 to 5, "Canonical JSON": "Servers MUST NOT strictly enforce the JSON format".
#[tokio::test]
async fn rooms_before_version_6_take_events_with_any_numbers() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let other = Server::start_federating("").await;
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    for version in ["1", "3", "5", "6"] {
        let room = alice.create(version, json!({})).await;
        let guest = stranger.join(&server, &room, "mallory").await;
        let message = json!({ "msgtype": "m.text", "body": "a number" });
        let message = stranger.event_after(&guest, &guest.tips, "m.room.message", None, &message);
        let pdus = json!([with_number(&stranger, &message)]);
        let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": pdus });
        let answer =
            stranger.put(&server, &format!("/_matrix/federation/v1/send/{version}"), body).await.ok();
        let results: Vec<_> = answer["pdus"].as_object().unwrap().values().collect();
        if version == "6" {
            assert!(results.is_empty(), "{answer}");
            continue;
        }
        assert_eq!(results, [&json!({})], "version {version}: {answer}");
        let event = alice.hears(&room, "a number").await;
        assert_eq!(event["content"]["n"], 1.5, "version {version}");
        // It is followed, passed on and redacted like any other.
        alice.say(&room, "after it").await;
        bob.join(&room, server.name()).await;
        bob.hears(&room, "after it").await;
        assert_eq!(bob.hears(&room, "a number").await["content"]["n"], 1.5, "version {version}");
        let id = event["event_id"].as_str().unwrap();
        alice.0.put(&path(&room, &format!("redact/{}/1", segment(id))), &json!({})).await.ok();
        eventually("it is redacted", async || {
            let shown = bob.0.get(&path(&room, &format!("event/{}", segment(id)))).await.ok();
            (shown["content"] == json!({})).then_some(())
        })
        .await;
    }
}
