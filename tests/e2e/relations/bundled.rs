//! What comes along with an event of those that relate to it, on every path and for every kind of reader.
//!
//! Spec: client-server API, "Aggregations of child events".

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use super::{bundle, edit, reaction, redact, related, relations, reply, send, threads};

/// A thread whose first message has an edit, a reference and a reaction, and whose only reply has the first two.
struct Thread {
    room: String,
    root: String,
    root_edit: String,
    root_reference: String,
    child: String,
    child_edit: String,
    child_reference: String,
}

/// Mallory, whom Alice ignores, adds some of everything.
async fn thread(alice: &Client, bob: &Client, mallory: &Client) -> Thread {
    let ignore = json!({ "ignored_users": { mallory.user_id.clone(): {} } });
    let path =
        format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&alice.user_id));
    alice.put(&path, &ignore).await.ok();
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for client in [bob, mallory] {
        client.join(&room).await.ok();
    }
    let root = alice.say(&room, "root", "a rot").await;
    let root_edit = send(alice, &room, "m.room.message", "1", edit(&root, "a mighty root")).await;
    let child = send(bob, &room, "m.room.message", "2", reply(&root, "a chld")).await;
    let child_edit = send(bob, &room, "m.room.message", "3", edit(&child, "a child")).await;
    let note = |target: &str| related("m.reference", target, json!({}));
    let root_reference = send(bob, &room, "org.example.note", "4", note(&root)).await;
    let child_reference = send(alice, &room, "org.example.note", "5", note(&child)).await;
    send(bob, &room, "m.reaction", "6", reaction(&root, "tea")).await;
    send(mallory, &room, "m.room.message", "7", reply(&root, "noise")).await;
    send(mallory, &room, "org.example.note", "8", note(&root)).await;
    Thread { room, root, root_edit, root_reference, child, child_edit, child_reference }
}

impl Thread {
    #[track_caller]
    fn check_root(&self, event: &Value, path: &str) {
        assert_eq!(event["event_id"], self.root, "{path}");
        assert_eq!(event["content"]["body"], "a rot", "{path}: the content stays as it is");
        let bundle = &event["unsigned"]["m.relations"];
        let kinds: Vec<_> = bundle.as_object().unwrap_or_else(|| panic!("{path}: {event}")).keys().collect();
        assert_eq!(kinds, ["m.reference", "m.replace", "m.thread"], "{path}");
        assert_eq!(
            bundle["m.reference"],
            json!({ "chunk": [{ "event_id": self.root_reference }] }),
            "{path}"
        );
        let replacement = &bundle["m.replace"];
        assert_eq!(replacement["event_id"], self.root_edit, "{path}");
        assert_eq!(replacement["content"]["m.new_content"]["body"], "a mighty root", "{path}");
        assert!(replacement["sender"].is_string() && replacement["origin_server_ts"].is_u64(), "{path}");
        let thread = &bundle["m.thread"];
        assert_eq!(
            (&thread["count"], &thread["current_user_participated"]),
            (&json!(1), &json!(true)),
            "{path}"
        );
        self.check_child(&thread["latest_event"], path);
    }

    #[track_caller]
    fn check_child(&self, event: &Value, path: &str) {
        assert_eq!(event["event_id"], self.child, "{path}");
        let bundle = &event["unsigned"]["m.relations"];
        assert_eq!(bundle["m.replace"]["event_id"], self.child_edit, "{path}");
        assert_eq!(
            bundle["m.reference"],
            json!({ "chunk": [{ "event_id": self.child_reference }] }),
            "{path}"
        );
        assert!(bundle.get("m.thread").is_none(), "{path}");
    }

    /// Finds the root among events and checks it.
    #[track_caller]
    fn check_root_in(&self, events: &Value, path: &str) {
        let mut events = events.as_array().unwrap_or_else(|| panic!("{path}")).iter();
        let root = events.find(|event| event["event_id"] == self.root.as_str());
        self.check_root(root.unwrap_or_else(|| panic!("{path} lacks the root")), path);
    }

    async fn context(&self, reader: &Client, event: &str) -> Value {
        reader.get(&Client::room(&self.room, &format!("context/{}", segment(event)))).await.ok()
    }
}

#[tokio::test]
async fn what_relates_to_an_event_comes_with_it_on_every_path() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let thread = thread(&alice, &bob, &mallory).await;
    let room = &thread.room;
    let event = alice.get(&Client::room(room, &format!("event/{}", segment(&thread.root)))).await.ok();
    thread.check_root(&event, "/event");
    let page = alice.get(&Client::room(room, "messages?dir=b&limit=20")).await.ok();
    thread.check_root_in(&page["chunk"], "/messages");
    let context = thread.context(&alice, &thread.root).await;
    thread.check_root(&context["event"], "/context, event");
    thread.check_root_in(&thread.context(&alice, &thread.child).await["events_before"], "/context, before");
    let joins = alice.get(&Client::room(room, "members?membership=join")).await.ok();
    let mut joins = joins["chunk"].as_array().unwrap().iter();
    let join = joins.find(|event| event["state_key"] == mallory.user_id.as_str()).unwrap();
    let context = thread.context(&alice, join["event_id"].as_str().unwrap()).await;
    thread.check_root_in(&context["events_after"], "/context, after");

    let filter = json!({ "room": { "timeline": { "limit": 8 } } }).to_string();
    let synced = alice.sync(&format!("timeout=0&filter={}", segment(&filter))).await;
    let timeline = &synced["rooms"]["join"][room]["timeline"];
    assert_eq!(timeline["limited"], true);
    thread.check_root_in(&timeline["events"], "/sync");
    let body = json!({ "room_subscriptions": { room: { "timeline_limit": 8, "required_state": [] } } });
    for path in ["/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", "/_matrix/client/v4/sync"] {
        let synced = alice.post(path, &body).await.ok();
        // The two forms name it differently.
        let room = &synced["rooms"][room];
        let events = room.get("timeline").or_else(|| room.get("timeline_events"));
        thread.check_root_in(events.unwrap_or_else(|| panic!("{path}: {synced}")), path);
    }

    let criteria = json!({ "search_term": "mighty", "event_context": {} });
    let body = json!({ "search_categories": { "room_events": criteria } });
    let found = alice.post("/_matrix/client/v3/search", &body).await.ok();
    let result = &found["search_categories"]["room_events"]["results"][0];
    thread.check_root(&result["result"], "/search");
    let list = alice.get(&threads(room, "")).await.ok();
    thread.check_root(&list["chunk"][0], "/threads");
    for rest in ["", "/m.thread", "/m.thread/m.room.message"] {
        let found = alice.get(&relations(room, &thread.root, rest)).await.ok();
        let mut found = found["chunk"].as_array().unwrap().iter();
        let child = found.find(|event| event["event_id"] == thread.child.as_str());
        thread.check_child(child.unwrap(), &format!("/relations{rest}"));
    }

    // Bob ignores nobody.
    let his = bundle(&bob, room, &thread.root).await;
    assert_eq!(
        (&his["m.thread"]["count"], &his["m.thread"]["latest_event"]["content"]["body"]),
        (&json!(2), &json!("noise"))
    );
    assert_eq!(his["m.reference"]["chunk"].as_array().unwrap().len(), 2);
    // What is redacted relates to nothing any more; what relates to something that is redacted still does.
    redact(&alice, room, &thread.root_edit, "9").await;
    redact(&bob, room, &thread.root_reference, "10").await;
    redact(&alice, room, &thread.root, "11").await;
    let bundle = bundle(&alice, room, &thread.root).await;
    assert_eq!(bundle.as_object().unwrap().keys().collect::<Vec<_>>(), ["m.thread"]);
    thread.check_child(&bundle["m.thread"]["latest_event"], "after the redactions");
}

#[tokio::test]
async fn encrypted_events_have_edits_and_state_events_have_nothing() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let encrypted = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "…" });
    let secret = send(&alice, &room, "m.room.encrypted", "1", encrypted.clone()).await;
    let better =
        send(&alice, &room, "m.room.encrypted", "2", related("m.replace", &secret, encrypted.clone())).await;
    send(&alice, &room, "m.room.message", "3", edit(&secret, "in the clear")).await;
    let answer = send(&alice, &room, "m.room.encrypted", "4", related("m.thread", &secret, encrypted)).await;
    let bundled = bundle(&alice, &room, &secret).await;
    assert_eq!(bundled["m.replace"]["event_id"], better, "an edit has the type of what it edits");
    assert_eq!(bundled["m.thread"]["latest_event"]["event_id"], answer);

    let topic = alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "t" })).await.ok();
    let topic = topic["event_id"].as_str().unwrap();
    send(&alice, &room, "org.example.note", "5", related("m.reference", topic, json!({}))).await;
    assert_eq!(bundle(&alice, &room, topic).await, Value::Null);
    let found = alice.get(&relations(&room, topic, "")).await.ok();
    assert_eq!(found["chunk"].as_array().unwrap().len(), 1, "but it can be asked for");
}

#[tokio::test]
async fn references_that_a_reader_may_not_see_are_not_named() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let visibility = json!([{
        "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "joined" },
    }]);
    let room = alice.create_room(json!({ "preset": "public_chat", "initial_state": visibility })).await;
    bob.join(&room).await.ok();
    let hello = alice.say(&room, "1", "hello").await;
    let note = related("m.reference", &hello, json!({}));
    let mut notes = Vec::new();
    for (txn, away) in [("2", false), ("3", true), ("4", false)] {
        if away {
            bob.leave(&room).await.ok();
        }
        notes.push(send(&alice, &room, "org.example.note", txn, note.clone()).await);
        if away {
            bob.join(&room).await.ok();
        }
    }
    let named = |events: &[&String]| {
        let chunk: Vec<_> = events.iter().map(|id| json!({ "event_id": id })).collect();
        json!({ "m.reference": { "chunk": chunk } })
    };
    assert_eq!(bundle(&alice, &room, &hello).await, named(&[&notes[0], &notes[1], &notes[2]]));
    assert_eq!(bundle(&bob, &room, &hello).await, named(&[&notes[0], &notes[2]]));
}

#[tokio::test]
async fn a_thread_of_ignored_users_alone_is_no_thread() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for client in [&bob, &mallory] {
        client.join(&room).await.ok();
    }
    let [noisy, busy] = [alice.say(&room, "1", "noisy").await, alice.say(&room, "2", "busy").await];
    send(&mallory, &room, "m.room.message", "3", reply(&noisy, "noise")).await;
    send(&bob, &room, "m.room.message", "4", reply(&busy, "work")).await;
    send(&mallory, &room, "m.room.message", "5", reply(&busy, "noise")).await;
    let ignore = json!({ "ignored_users": { mallory.user_id.clone(): {} } });
    let path =
        format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&alice.user_id));
    alice.put(&path, &ignore).await.ok();
    let list = alice.get(&threads(&room, "")).await.ok();
    assert_eq!(super::ids(&list), [busy.as_str()]);
    assert_eq!(list["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 1);
    assert_eq!(super::ids(&bob.get(&threads(&room, "")).await.ok()).len(), 2);
}
