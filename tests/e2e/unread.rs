//! Unread counts that change although nothing else does that a client asked for.
//!
//! Spec: client-server API, "Receiving notifications", `unread_notifications` of `GET /_matrix/client/v3/sync`.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

/// A filter by which a device hears of nothing but unread counts.
fn counts_alone(threads: bool) -> String {
    let nothing = json!({ "types": [] });
    let timeline = json!({ "types": [], "unread_thread_notifications": threads });
    let room = json!({
        "timeline": timeline, "state": nothing, "ephemeral": nothing, "account_data": nothing,
    });
    segment(&json!({ "room": room, "account_data": nothing, "presence": nothing }).to_string())
}

/// The notification counts that the next response with the room tells: the main ones, and those of threads.
async fn next(client: &Client, room: &str, filter: &str, since: &mut String) -> (Value, Value) {
    let query = format!("since={since}&timeout=10000&filter={filter}");
    let sync = client.sync(&query).await;
    sync["next_batch"].as_str().unwrap().clone_into(since);
    let joined = &sync["rooms"]["join"][room];
    let count = joined["unread_notifications"]["notification_count"].clone();
    (count, joined["unread_thread_notifications"].clone())
}

#[tokio::test]
async fn a_device_is_told_of_counts_that_change_elsewhere() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    bob.join(&other).await.ok();
    let phone = bob.another_device(&bob.password()).await;
    let root = alice.say(&room, "1", "one").await;
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "two", "m.relates_to": relation });
    let reply = alice.send(&room, "m.room.message", "2", &content).await.ok();
    let reply = reply["event_id"].as_str().unwrap();
    let (all, by_thread) = (counts_alone(false), counts_alone(true));
    let mut since = phone.sync(&format!("filter={all}")).await["next_batch"].as_str().unwrap().to_owned();

    // Events that the filter hides count all the same.
    let three = alice.say(&room, "3", "three").await;
    assert_eq!(next(&phone, &room, &all, &mut since).await.0, 3);
    // The other device reads, publicly or not, the room or a thread.
    for (kind, event, body, expected) in [
        ("m.read.private", reply, json!({ "thread_id": root }), (json!(2), Value::Null)),
        ("m.read", &*root, json!({ "thread_id": "main" }), (json!(1), Value::Null)),
        ("m.read", &*three, json!({}), (json!(0), Value::Null)),
    ] {
        let waiting = next(&phone, &room, &by_thread, &mut since);
        let receipt = async {
            bob.post(&Client::room(&room, &format!("receipt/{kind}/{}", segment(event))), &body).await.ok();
        };
        assert_eq!(tokio::join!(waiting, receipt).0, expected, "{kind} {body}");
    }
    // Whatever else happens in the room is none of this device's business.
    let typing = Client::room(&room, &format!("typing/{}", segment(&alice.user_id)));
    alice.put(&typing, &json!({ "typing": true })).await.ok();
    let sync = phone.sync(&format!("since={since}&timeout=0&filter={all}")).await;
    assert!(sync["rooms"].is_null(), "{sync}");
}

#[tokio::test]
async fn a_changed_push_rule_changes_the_counts_of_those_rooms_that_it_is_about() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    for room in [&room, &other] {
        bob.join(room).await.ok();
        alice.say(room, "1", "one").await;
    }
    let filter = counts_alone(false);
    let mut since = bob.sync(&format!("filter={filter}")).await["next_batch"].as_str().unwrap().to_owned();
    let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", segment(&room));
    let waiting = async {
        let sync = bob.sync(&format!("since={since}&timeout=10000&filter={filter}")).await;
        sync["next_batch"].as_str().unwrap().clone_into(&mut since);
        sync
    };
    let mute = async { bob.put(&rule, &json!({ "actions": [] })).await.ok() };
    let (sync, _) = tokio::join!(waiting, mute);
    let joined = sync["rooms"]["join"].as_object().unwrap();
    assert_eq!(joined.keys().collect::<Vec<_>>(), [&room], "{sync}");
    assert_eq!(joined[&room]["unread_notifications"]["notification_count"], 0);
    let sync = bob.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
    assert!(sync["rooms"].is_null(), "{sync}");
    // So does ignoring whoever wrote.
    let ignored =
        format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&bob.user_id));
    bob.put(&ignored, &json!({ "ignored_users": { &alice.user_id: {} } })).await.ok();
    assert_eq!(next(&bob, &other, &filter, &mut since).await.0, 0);
}

/// Counts of a room in a first sync: the main timeline's, and a thread's.
async fn counts(client: &Client, room: &str, thread: &str) -> (u64, u64) {
    let sync = client.sync(&format!("timeout=0&filter={}", counts_alone(true))).await;
    let joined = &sync["rooms"]["join"][room];
    let in_thread = &joined["unread_thread_notifications"][thread]["notification_count"];
    let main = &joined["unread_notifications"]["notification_count"];
    (main.as_u64().unwrap(), in_thread.as_u64().unwrap_or_default())
}

/// Which of the events that notified a user are read, newest first.
async fn read(client: &Client) -> Vec<bool> {
    let list = client.get("/_matrix/client/v3/notifications").await.ok();
    let of_messages = list["notifications"].as_array().unwrap().iter();
    let of_messages = of_messages.filter(|notified| notified["event"]["type"] == "m.room.message");
    of_messages.map(|notified| notified["read"].as_bool().unwrap()).collect()
}

#[tokio::test]
async fn whoever_sends_something_has_read_what_came_before_in_its_thread() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "1", "one").await;
    let in_thread = |text: &str| {
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        json!({ "msgtype": "m.text", "body": text, "m.relates_to": relation })
    };
    alice.send(&room, "m.room.message", "2", &in_thread("two")).await.ok();
    assert_eq!(counts(&bob, &room, &root).await, (1, 1));
    assert_eq!(read(&bob).await, [false, false]);
    let answer = bob.say(&room, "3", "an answer").await;
    assert_eq!(counts(&bob, &room, &root).await, (0, 1));
    assert_eq!(read(&bob).await, [false, true]);
    // A reaction is in the thread of what it is about.
    let two = bob.get(&Client::room(&room, "messages?dir=b&limit=2")).await.ok()["chunk"][1].clone();
    assert_eq!(two["content"]["body"], "two");
    let relation = json!({ "rel_type": "m.annotation", "event_id": two["event_id"], "key": "tea" });
    bob.send(&room, "m.reaction", "4", &json!({ "m.relates_to": relation })).await.ok();
    assert_eq!(counts(&bob, &room, &root).await, (0, 0));
    assert_eq!(read(&bob).await, [true, true]);
    // What the server sends for the user says nothing of what the user has seen.
    alice.say(&room, "5", "five").await;
    let since = alice.token_of_sync().await;
    let name = format!("/_matrix/client/v3/profile/{}/displayname", segment(&bob.user_id));
    bob.put(&name, &json!({ "displayname": "Robert" })).await.ok();
    alice.event_of_sync(&since, &room, |event| event["content"]["displayname"] == "Robert").await;
    assert_eq!(counts(&bob, &room, &root).await, (1, 0));
    // A receipt further back takes nothing of it away again.
    bob.say(&room, "6", "another answer").await;
    bob.post(&Client::room(&room, &format!("receipt/m.read/{}", segment(&answer))), &json!({})).await.ok();
    assert_eq!(counts(&bob, &room, &root).await, (0, 0));
    assert_eq!(read(&bob).await, [true, true, true]);
}
