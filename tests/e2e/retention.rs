//! Messages that are kept for a time only.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use crate::federation::eventually;

async fn bodies(client: &Client, room: &str) -> Vec<String> {
    let events = client.all_messages(room).await;
    events.iter().filter_map(|event| event["content"]["body"].as_str()).map(ToOwned::to_owned).collect()
}

async fn keep_for(client: &Client, room: &str, ms: u64) {
    let content = json!({ "max_lifetime": ms });
    client.set_state(room, "m.room.retention", "", &content).await.ok();
}

#[tokio::test]
async fn old_messages_go_and_everything_else_stays() {
    let config = "[retention]\nenabled = true\ninterval = \"100ms\"\n";
    let mut server = Server::start_with(config).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "short-lived" })).await;
    bob.join(&room).await.ok();
    let kept = alice.create_room(json!({ "preset": "public_chat" })).await;
    alice.say(&kept, "1", "for ever").await;
    let root = alice.say(&room, "1", "an old message").await;
    let content = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "+" } });
    let reaction = bob.send(&room, "m.reaction", "1", &content).await.ok();
    let reply = json!({
        "msgtype": "m.text", "body": "in a thread",
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    bob.send(&room, "m.room.message", "2", &reply).await.ok();
    let since = bob.token_of_sync().await;
    keep_for(&alice, &room, 1).await;
    eventually("the messages are gone", async || bodies(&bob, &room).await.is_empty().then_some(())).await;
    let check = async |alice: &Client, bob: &Client| {
        for event in [root.as_str(), reaction["event_id"].as_str().unwrap()] {
            let path = Client::room(&room, &format!("event/{}", segment(event)));
            bob.get(&path).await.is(404, "M_NOT_FOUND");
            let path = Client::room(&room, &format!("context/{}", segment(event)));
            bob.get(&path).await.is(404, "M_NOT_FOUND");
        }
        let path = format!("/_matrix/client/v1/rooms/{}/threads", segment(&room));
        assert_eq!(bob.get(&path).await.ok()["chunk"], json!([]));
        assert_eq!(alice.state(&room, "m.room.name", "").await.ok()["name"], "short-lived");
        let members = alice.get(&Client::room(&room, "joined_members")).await.ok();
        assert_eq!(members["joined"].as_object().unwrap().len(), 2);
        assert_eq!(bodies(alice, &kept).await, ["for ever"]);
        let sync = bob.sync("timeout=0").await;
        let timeline = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
        assert!(timeline.iter().all(|event: &Value| event["content"]["body"].is_null()), "{timeline:?}");
    };
    check(&alice, &bob).await;
    // The room goes on: what comes later is kept for as long as is asked now.
    keep_for(&alice, &room, 3_600_000).await;
    alice.say(&room, "2", "a new message").await;
    bob.event_of_sync(&since, &room, |event| event["content"]["body"] == "a new message").await;
    server.kill();
    server.restart().await;
    assert_eq!(bodies(&bob, &room).await, ["a new message"]);
    bob.say(&room, "3", "and another one").await;
    assert_eq!(bodies(&alice, &room).await, ["a new message", "and another one"]);
}

#[tokio::test]
async fn the_operator_bounds_what_rooms_may_ask_for() {
    let config = "[retention]\nenabled = true\ninterval = \"50ms\"\n";
    let bounds = "default_lifetime = \"1ms\"\nmin_lifetime = \"200ms\"\nmax_lifetime = \"1 s\"\n";
    let server = Server::start_with(&format!("{config}{bounds}")).await;
    let alice = server.client("alice").await;
    let (silent, long) = (alice.create_room(json!({})).await, alice.create_room(json!({})).await);
    keep_for(&alice, &long, 3_600_000).await;
    for room in [&long, &silent] {
        alice.say(room, "1", "goes").await;
        alice.set_state(room, "m.room.topic", "", &json!({ "topic": "t" })).await.ok();
    }
    // The room that says nothing loses it first, then the room that wants more than is allowed.
    eventually("the message is gone", async || bodies(&alice, &silent).await.is_empty().then_some(())).await;
    eventually("the other one too", async || bodies(&alice, &long).await.is_empty().then_some(())).await;
    // Without the operator's consent nothing goes, whatever rooms ask for.
    let off = Server::start().await;
    let bob = off.client("bob").await;
    let room = bob.create_room(json!({})).await;
    bob.say(&room, "1", "stays").await;
    keep_for(&bob, &room, 1).await;
    assert_eq!(bodies(&bob, &room).await, ["stays"]);
}
