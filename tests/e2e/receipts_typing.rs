//! Receipts, read markers and typing.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

/// The contents of a room's ephemeral events of a type in one response of `/sync`.
fn ephemeral<'a>(sync: &'a Value, room: &str, kind: &str) -> Vec<&'a Value> {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array();
    let of_kind = events.into_iter().flatten().filter(|event| event["type"] == kind);
    of_kind.map(|event| &event["content"]).collect()
}

fn receipt(room: &str, kind: &str, event: &str) -> String {
    Client::room(room, &format!("receipt/{kind}/{}", segment(event)))
}

#[tokio::test]
async fn a_private_receipt_is_shown_to_its_owner_only() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let first = alice.say(&room, "1", "one").await;
    let (hers, his) = (alice.token_of_sync().await, bob.token_of_sync().await);
    bob.post(&receipt(&room, "m.read.private", &first), &json!({})).await.ok();
    let is_private = |sync: &Value| {
        let contents = ephemeral(sync, &room, "m.receipt");
        contents.iter().any(|content| !content[&first]["m.read.private"][&bob.user_id].is_null())
    };
    bob.sync_until(&his, is_private).await;
    // A public one afterwards is the proof that the private one did not come.
    let second = alice.say(&room, "2", "two").await;
    bob.post(&receipt(&room, "m.read", &second), &json!({})).await.ok();
    let is_public = |sync: &Value| {
        assert!(!is_private(sync), "{sync}");
        let contents = ephemeral(sync, &room, "m.receipt");
        contents.iter().any(|content| !content[&second]["m.read"][&bob.user_id].is_null())
    };
    alice.sync_until(&hers, is_public).await;
}

#[tokio::test]
async fn receipts_of_threads_stand_beside_each_other() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "1", "root").await;
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": relation });
    let reply = alice.send(&room, "m.room.message", "2", &content).await.ok();
    let reply = reply["event_id"].as_str().unwrap();
    bob.post(&receipt(&room, "m.read", &root), &json!({ "thread_id": "main" })).await.ok();
    bob.post(&receipt(&room, "m.read", reply), &json!({ "thread_id": root })).await.ok();
    let sync = alice.sync("timeout=0").await;
    let contents = ephemeral(&sync, &room, "m.receipt");
    let thread = |event: &str| {
        let places = contents.iter().map(|content| &content[event]["m.read"][&bob.user_id]["thread_id"]);
        places.into_iter().find(|thread| thread.is_string()).cloned()
    };
    assert_eq!((thread(&root), thread(reply)), (Some(json!("main")), Some(json!(root))));
    for wrong in [json!({ "thread_id": "" }), json!({ "thread_id": 1 })] {
        assert_eq!(bob.post(&receipt(&room, "m.read", &root), &wrong).await.status, 400, "{wrong}");
    }
    // A receipt is for an event that is in the thread; a reaction is where its target is.
    let content = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": reply, "key": "tea" } });
    let reaction = bob.send(&room, "m.reaction", "3", &content).await.ok();
    let reaction = reaction["event_id"].as_str().unwrap();
    for event in [reply, reaction] {
        bob.post(&receipt(&room, "m.read", event), &json!({ "thread_id": root })).await.ok();
        for other in ["main", event, "$elsewhere"] {
            let misplaced = bob.post(&receipt(&room, "m.read", event), &json!({ "thread_id": other })).await;
            if other == event {
                misplaced.ok();
            } else {
                misplaced.is(400, "M_INVALID_PARAM");
            }
        }
    }
    bob.post(&receipt(&room, "m.read", &root), &json!([])).await.is(400, "M_BAD_JSON");
    let kind = bob.post(&receipt(&room, "org.example.read", &root), &json!({})).await;
    assert_eq!(kind.status, 400, "{kind:?}");
}

#[tokio::test]
async fn read_markers_move_together() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let (first, second) = (alice.say(&room, "1", "one").await, alice.say(&room, "2", "two").await);
    let (hers, his) = (alice.token_of_sync().await, bob.token_of_sync().await);
    let markers = json!({ "m.fully_read": first, "m.read": second });
    bob.post(&Client::room(&room, "read_markers"), &markers).await.ok();
    let fully_read = |sync: &Value| {
        let events = sync["rooms"]["join"][&room]["account_data"]["events"].as_array();
        let mut events = events.into_iter().flatten();
        events.any(|event| event["type"] == "m.fully_read" && event["content"]["event_id"] == first)
    };
    bob.sync_until(&his, fully_read).await;
    let read = |sync: &Value| {
        let contents = ephemeral(sync, &room, "m.receipt");
        contents.iter().any(|content| !content[&second]["m.read"][&bob.user_id].is_null())
    };
    alice.sync_until(&hers, read).await;
    let kept = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/account_data/m.fully_read",
        segment(&bob.user_id),
        segment(&room)
    );
    assert_eq!(bob.get(&kept).await.ok()["event_id"], first);
    let receipt = receipt(&room, "m.fully_read", &second);
    bob.post(&receipt, &json!({})).await.ok();
    assert_eq!(bob.get(&kept).await.ok()["event_id"], second);
    // A device that is behind does not move it back.
    bob.post(&Client::room(&room, "read_markers"), &json!({ "m.fully_read": first })).await.ok();
    assert_eq!(bob.get(&kept).await.ok()["event_id"], second);
}

#[tokio::test]
async fn typing_ends_by_itself_and_by_word() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let typing = Client::room(&room, &format!("typing/{}", segment(&alice.user_id)));
    let lists = |users: Value| {
        let room = room.clone();
        move |sync: &Value| {
            ephemeral(sync, &room, "m.typing").iter().any(|content| content["user_ids"] == users)
        }
    };
    for (timeout, ends_by_word) in [(300, false), (30_000, true)] {
        let since = bob.token_of_sync().await;
        alice.put(&typing, &json!({ "typing": true, "timeout": timeout })).await.ok();
        let sync = bob.sync_until(&since, lists(json!([alice.user_id]))).await;
        if ends_by_word {
            alice.put(&typing, &json!({ "typing": false })).await.ok();
        }
        bob.sync_until(sync["next_batch"].as_str().unwrap(), lists(json!([]))).await;
    }
    let since = bob.token_of_sync().await;
    alice.put(&typing, &json!({ "typing": true })).await.ok();
    bob.sync_until(&since, lists(json!([alice.user_id]))).await;
    // Nobody types in a room that they have left.
    let since = bob.token_of_sync().await;
    bob.put(&Client::room(&room, &format!("typing/{}", segment(&bob.user_id))), &json!({ "typing": true }))
        .await
        .ok();
    let sync = alice.sync_until(&since, |sync| lists(json!([alice.user_id, bob.user_id]))(sync)).await;
    bob.leave(&room).await.ok();
    alice.sync_until(sync["next_batch"].as_str().unwrap(), lists(json!([alice.user_id]))).await;
    for wrong in
        [json!({ "typing": "yes" }), json!({ "timeout": 1000 }), json!({ "typing": true, "timeout": "1" })]
    {
        let answer = alice.put(&typing, &wrong).await;
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
    bob.put(&typing, &json!({ "typing": true })).await.is(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_receipt_of_a_thread_hides_none_of_the_whole_room() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let said = alice.say(&room, "1", "one").await;
    bob.post(&receipt(&room, "m.read", &said), &json!({})).await.ok();
    bob.post(&receipt(&room, "m.read", &said), &json!({ "thread_id": "main" })).await.ok();
    let sync = alice.sync("timeout=0").await;
    let contents = ephemeral(&sync, &room, "m.receipt");
    let threads: Vec<_> =
        contents.iter().map(|content| content[&said]["m.read"][&bob.user_id]["thread_id"].clone()).collect();
    assert_eq!(threads, [Value::Null, json!("main")], "{sync}");
    // Sliding sync has one event for a room.
    let lists = json!({ "all": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } });
    let body = json!({ "lists": lists, "extensions": { "receipts": { "enabled": true } } });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let answer = alice.post(path, &body).await.ok();
    let content = &answer["extensions"]["receipts"]["rooms"][&room]["content"];
    let of_bob = &content[&said]["m.read"][&bob.user_id];
    assert!(of_bob["ts"].is_u64() && of_bob["thread_id"].is_null(), "{content}");
}
