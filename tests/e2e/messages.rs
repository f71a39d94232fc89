//! Sending and reading messages.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

#[tokio::test]
async fn a_transaction_makes_one_event_whoever_retries() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let first = alice.say(&room, "same", "once").await;
    assert_eq!(alice.say(&room, "same", "once").await, first);
    let other = alice.another_device("password of alice").await;
    assert_ne!(other.say(&room, "same", "once").await, first);
    let event = alice.get(&Client::room(&room, &format!("event/{}", segment(&first)))).await.ok();
    assert_eq!(event["unsigned"]["transaction_id"], "same");
    let event = other.get(&Client::room(&room, &format!("event/{}", segment(&first)))).await.ok();
    assert_eq!(event["unsigned"]["transaction_id"], Value::Null);
}

/// Also of what the room does not remember by itself any more: it starts with its last 64 events.
#[tokio::test]
async fn a_retry_after_a_crash_makes_no_second_event() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..80 {
        sent.push(alice.say(&room, &format!("t{number}"), "once").await);
    }
    server.kill();
    server.restart().await;
    for (number, event_id) in sent.iter().enumerate() {
        assert_eq!(&alice.say(&room, &format!("t{number}"), "once").await, event_id);
    }
    let all = alice.all_messages(&room).await;
    assert_eq!(all.iter().filter(|event| event["type"] == "m.room.message").count(), sent.len());
}

#[tokio::test]
async fn paging_meets_each_message_once_in_both_directions() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    for number in 0..250 {
        alice.say(&room, &format!("t{number}"), &number.to_string()).await;
    }
    let bodies = |events: &[Value]| -> Vec<u32> {
        let bodies = events.iter().filter_map(|event| event["content"]["body"].as_str());
        bodies.map(|body| body.parse().unwrap()).collect()
    };
    assert_eq!(bodies(&alice.all_messages(&room).await), (0..250).collect::<Vec<_>>());
    let mut forward = Vec::new();
    let mut from = String::new();
    loop {
        let path = Client::room(&room, &format!("messages?dir=f&limit=37{from}"));
        let page = alice.get(&path).await.ok();
        forward.extend(page["chunk"].as_array().unwrap().iter().cloned());
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    assert_eq!(bodies(&forward), (0..250).collect::<Vec<_>>());
    let filter = segment(&json!({ "types": ["m.room.name"] }).to_string());
    let none = alice.get(&Client::room(&room, &format!("messages?dir=b&limit=5&filter={filter}"))).await.ok();
    assert_eq!(none["chunk"], json!([]));
    alice.get(&Client::room(&room, "messages?dir=b&from=garbage")).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn context_is_what_surrounds_an_event() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(alice.say(&room, &number.to_string(), &number.to_string()).await);
    }
    let path = Client::room(&room, &format!("context/{}?limit=2", segment(&ids[2])));
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["event_id"], ids[2]);
    assert_eq!(context["events_before"][0]["event_id"], ids[1]);
    assert_eq!(context["events_after"][0]["event_id"], ids[3]);
    assert!(!context["state"].as_array().unwrap().is_empty());
    let end = context["end"].as_str().unwrap();
    let rest = alice.get(&Client::room(&room, &format!("messages?dir=f&from={end}"))).await.ok();
    assert_eq!(rest["chunk"][0]["event_id"], ids[4]);
    // matrix-js-sdk takes the lists for granted.
    let path = Client::room(&room, &format!("context/{}?limit=0", segment(&ids[2])));
    let alone = alice.get(&path).await.ok();
    assert_eq!((&alone["events_before"], &alone["events_after"]), (&json!([]), &json!([])));
    let path = Client::room(&room, &format!("context/{}", segment("$unknown")));
    alice.get(&path).await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn history_is_as_visible_as_the_room_says() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    for (visibility, expected) in [
        ("joined", vec!["after"]),
        ("invited", vec!["invited", "after"]),
        ("shared", vec!["before", "invited", "after"]),
    ] {
        let state =
            json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } }]);
        let room = alice.create_room(json!({ "initial_state": state })).await;
        alice.say(&room, "1", "before").await;
        alice.moderate("invite", &room, &bob.user_id).await.ok();
        alice.say(&room, "2", "invited").await;
        bob.join(&room).await.ok();
        alice.say(&room, "3", "after").await;
        let messages = bob.all_messages(&room).await;
        let bodies: Vec<_> = messages.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
        assert_eq!(bodies, expected, "{visibility}");
    }
    let state = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } }]);
    let room = alice.create_room(json!({ "initial_state": state })).await;
    alice.say(&room, "1", "for everyone").await;
    let messages = bob.all_messages(&room).await;
    assert_eq!(messages.last().unwrap()["content"]["body"], "for everyone");
}

#[tokio::test]
async fn a_redaction_needs_power_or_ownership() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let hers = alice.say(&room, "1", "hers").await;
    let his = bob.say(&room, "2", "his").await;
    let path = |event: &str, txn: &str| Client::room(&room, &format!("redact/{}/{txn}", segment(event)));
    bob.put(&path(&hers, "3"), &json!({})).await.is(403, "M_FORBIDDEN");
    let as_event = json!({ "redacts": hers });
    bob.put(&Client::room(&room, "send/m.room.redaction/3"), &as_event).await.is(403, "M_FORBIDDEN");
    let still = alice.get(&Client::room(&room, &format!("event/{}", segment(&hers)))).await.ok();
    assert_eq!(still["content"]["body"], "hers");
    let own = bob.say(&room, "3b", "a slip").await;
    bob.put(&path(&own, "3c"), &json!({})).await.ok();
    let other = server.client("carol").await;
    other.put(&path(&his, "4"), &json!({})).await.is(403, "M_FORBIDDEN");
    alice.put(&path(&his, "5"), &json!({ "reason": "spam" })).await.ok();
    // An event of another room is as unknown as one that nobody has sent.
    let elsewhere = alice.create_room(json!({})).await;
    let elsewhere = alice.say(&elsewhere, "1", "elsewhere").await;
    for unknown in ["$unknown", &elsewhere] {
        alice.put(&path(unknown, "6"), &json!({})).await.is(404, "M_NOT_FOUND");
        other.put(&path(unknown, "6"), &json!({})).await.is(403, "M_FORBIDDEN");
    }
    // Administrators of the server may redact what its users send.
    let root = crate::moderation::administrator(&server, "root").await;
    root.put(&path(&hers, "7"), &json!({})).await.is(403, "M_FORBIDDEN");
    root.join(&room).await.ok();
    root.put(&path(&hers, "8"), &json!({})).await.ok();
}

#[tokio::test]
async fn what_a_room_cannot_go_on_without_is_not_redacted() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "room_version": "10" })).await;
    let acl = json!({ "allow": ["*"] });
    alice.set_state(&room, "m.room.server_acl", "", &acl).await.ok();
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "tea" })).await.ok();
    let event_id = async |kind: &str| {
        let path = Client::room(&room, &format!("state/{kind}?format=event"));
        alice.get(&path).await.ok()["event_id"].as_str().unwrap().to_owned()
    };
    let redact = async |event: &str, txn: &str| {
        alice.put(&Client::room(&room, &format!("redact/{}/{txn}", segment(event))), &json!({})).await
    };
    redact(&event_id("m.room.create").await, "1").await.is(403, "M_FORBIDDEN");
    redact(&event_id("m.room.server_acl").await, "2").await.is(403, "M_FORBIDDEN");
    redact(&event_id("m.room.name").await, "3").await.ok();
}

#[tokio::test]
async fn a_moment_leads_to_the_nearest_event() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let said = alice.say(&room, "1", "now").await;
    let event = alice.get(&Client::room(&room, &format!("event/{}", segment(&said)))).await.ok();
    let ts = event["origin_server_ts"].as_u64().unwrap();
    let path = |ts: u64, dir: &str| {
        format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir={dir}", segment(&room))
    };
    assert_eq!(alice.get(&path(ts + 1000, "b")).await.ok()["event_id"], said);
    assert!(alice.get(&path(0, "f")).await.ok()["event_id"].is_string());
    alice.get(&path(ts + 1000, "f")).await.is(404, "M_NOT_FOUND");
}

/// What `filter` lets through of a fixed conversation, by body, oldest first.
async fn filtered(alice: &Client, room: &str, filter: Value) -> Vec<String> {
    let filter = segment(&filter.to_string());
    let page = alice.get(&Client::room(room, &format!("messages?dir=f&limit=50&filter={filter}"))).await.ok();
    let bodies =
        page["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str());
    bodies.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn a_filter_chooses_by_sender_type_and_link() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "hers").await;
    bob.say(&room, "2", "his").await;
    let image = json!({ "msgtype": "m.image", "body": "picture", "url": "mxc://localhost/a" });
    bob.send(&room, "m.room.message", "3", &image).await.ok();
    bob.send(&room, "org.example.odd", "4", &json!({ "body": "odd" })).await.ok();
    for (filter, expected) in [
        (json!({}), vec!["hers", "his", "picture", "odd"]),
        (json!({ "senders": [bob.user_id] }), vec!["his", "picture", "odd"]),
        (json!({ "not_senders": [bob.user_id] }), vec!["hers"]),
        (json!({ "types": ["m.room.message"] }), vec!["hers", "his", "picture"]),
        (json!({ "types": ["org.*"] }), vec!["odd"]),
        (json!({ "types": ["m.*"], "not_types": ["m.room.*"] }), vec![]),
        (json!({ "contains_url": true }), vec!["picture"]),
        (json!({ "contains_url": false, "senders": [bob.user_id] }), vec!["his", "odd"]),
        (json!({ "rooms": [] }), vec![]),
        (json!({ "not_rooms": [room] }), vec![]),
    ] {
        assert_eq!(filtered(&alice, &room, filter.clone()).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn pages_bring_the_members_they_mention() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    bob.say(&room, "1", "hello").await;
    let filter = segment(&json!({ "lazy_load_members": true, "types": ["m.room.message"] }).to_string());
    let page = alice.get(&Client::room(&room, &format!("messages?dir=b&filter={filter}"))).await.ok();
    let state = page["state"].as_array().unwrap();
    let users: Vec<_> = state.iter().map(|event| event["state_key"].as_str().unwrap()).collect();
    assert_eq!(users, [bob.user_id.as_str()]);
}

#[tokio::test]
async fn what_is_no_event_is_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let long = "x".repeat(256);
    let answer = alice.send(&room, &long, "1", &json!({})).await;
    assert!([400, 413].contains(&answer.status), "{answer:?}");
    let answer = alice.set_state(&room, "org.example.state", &long, &json!({})).await;
    assert!([400, 413].contains(&answer.status), "{answer:?}");
    let large = json!({ "msgtype": "m.text", "body": "x".repeat(65_536) });
    alice.send(&room, "m.room.message", "2", &large).await.is(413, "M_TOO_LARGE");
    for number in [json!(1.5), json!(9_007_199_254_740_992_i64)] {
        alice.send(&room, "org.example.number", "3", &json!({ "n": number })).await.is(400, "M_BAD_JSON");
    }
    for (path, what) in [
        ("messages", "no direction"),
        ("messages?dir=x", "an unknown direction"),
        ("messages?dir=b&from=garbage", "a token that was never given"),
        ("messages?dir=b&limit=many", "a limit that is no number"),
        ("messages?dir=b&filter=%7B", "a filter that is no JSON"),
    ] {
        let answer = alice.get(&Client::room(&room, path)).await;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
    }
    let unknown = format!("event/{}", segment("$unknown"));
    alice.get(&Client::room(&room, &unknown)).await.is(404, "M_NOT_FOUND");
    let other = alice.create_room(json!({})).await;
    let elsewhere = alice.say(&other, "4", "elsewhere").await;
    let path = Client::room(&room, &format!("event/{}", segment(&elsewhere)));
    alice.get(&path).await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_redacted_message_is_empty_wherever_it_is_read() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let said = alice.say(&room, "1", "a mistake").await;
    let since = alice.token_of_sync().await;
    let path = Client::room(&room, &format!("redact/{}/2", segment(&said)));
    let redaction = alice.put(&path, &json!({ "reason": "typo" })).await.ok();
    assert_eq!(
        alice.put(&path, &json!({ "reason": "typo" })).await.ok(),
        redaction,
        "a retry is one redaction"
    );
    let is_redacted = |event: &Value| {
        assert_eq!(event["content"], json!({}), "{event}");
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(
            (&because["event_id"], &because["content"]["reason"]),
            (&redaction["event_id"], &json!("typo"))
        );
    };
    is_redacted(&alice.get(&Client::room(&room, &format!("event/{}", segment(&said)))).await.ok());
    let messages = alice.all_messages(&room).await;
    is_redacted(messages.iter().find(|event| event["event_id"] == said).unwrap());
    let context = alice.get(&Client::room(&room, &format!("context/{}", segment(&said)))).await.ok();
    is_redacted(&context["event"]);
    let sync = alice.sync("timeout=0").await;
    let timeline = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    is_redacted(timeline.iter().find(|event| event["event_id"] == said).unwrap());
    let told = alice.event_of_sync(&since, &room, |event| event["type"] == "m.room.redaction").await;
    // Room versions from 11 on have it in the content; clients get it in both places.
    assert_eq!((&told["redacts"], &told["content"]["redacts"]), (&json!(said), &json!(said)));
}

/// Spec: "Transaction identifiers": an ID is good for one path.
#[tokio::test]
async fn the_same_transaction_redacts_another_event() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let said = [alice.say(&room, "1", "one").await, alice.say(&room, "2", "two").await];
    let redact = async |event: &str| {
        let path = Client::room(&room, &format!("redact/{}/3", segment(event)));
        alice.put(&path, &json!({})).await.ok()["event_id"].clone()
    };
    let redactions = [redact(&said[0]).await, redact(&said[1]).await];
    assert_ne!(redactions[0], redactions[1]);
    assert_eq!([redact(&said[0]).await, redact(&said[1]).await], redactions, "a retry is no second event");
    for event in &said {
        let event = alice.get(&Client::room(&room, &format!("event/{}", segment(event)))).await.ok();
        assert_eq!(event["content"], json!({}));
    }
    server.kill();
    server.restart().await;
    assert_eq!([redact(&said[0]).await, redact(&said[1]).await], redactions, "nor is it after a restart");
}

/// Spec: `PUT /rooms/{roomId}/send/{eventType}/{txnId}`, since version 1.18.
#[tokio::test]
async fn a_redaction_that_is_sent_as_event_names_its_target_as_the_room_version_does() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let filter = json!({ "event_format": "federation", "room": { "timeline": { "limit": 1 } } });
    for version in ["1", "10", "11", "12"] {
        let room = alice.create_room(json!({ "room_version": version })).await;
        let said = alice.say(&room, "1", "a slip").await;
        let content = json!({ "redacts": said, "reason": "typo" });
        alice.send(&room, "m.room.redaction", "2", &content).await.ok();
        let event = alice.get(&Client::room(&room, &format!("event/{}", segment(&said)))).await.ok();
        assert_eq!(event["content"], json!({}), "version {version}");
        let sync = alice.sync(&format!("timeout=0&filter={}", segment(&filter.to_string()))).await;
        let sent = &sync["rooms"]["join"][&room]["timeline"]["events"][0];
        let (field, in_content) = (&sent["redacts"], &sent["content"]["redacts"]);
        let expected = if ["1", "10"].contains(&version) {
            (&json!(said), &Value::Null)
        } else {
            (&Value::Null, &json!(said))
        };
        assert_eq!((field, in_content), expected, "version {version}: {sent}");
        assert_eq!(sent["content"]["reason"], "typo");
    }
}

/// Spec: client-server API, "Instant Messaging", server behaviour.
#[tokio::test]
async fn a_message_that_cannot_be_shown_is_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let text = json!({ "msgtype": "m.text", "body": "hello" });
    for (key, wrong) in [("msgtype", Value::Null), ("msgtype", json!(1)), ("body", json!(["hello"]))] {
        let mut content = text.clone();
        content[key] = wrong;
        alice.send(&room, "m.room.message", "1", &content).await.is(400, "M_BAD_JSON");
        content.as_object_mut().unwrap().remove(key);
        alice.send(&room, "m.room.message", "1", &content).await.is(400, "M_BAD_JSON");
        alice.set_state(&room, "m.room.message", "", &content).await.is(400, "M_BAD_JSON");
        let later = Client::room(&room, "send/m.room.message/1?org.matrix.msc4140.delay=1000");
        alice.put(&later, &content).await.is(400, "M_BAD_JSON");
        // What is none of these messages may look as it likes.
        alice.send(&room, "org.example.message", "1", &content).await.ok();
    }
    alice.send(&room, "m.room.message", "1", &text).await.ok();
}
