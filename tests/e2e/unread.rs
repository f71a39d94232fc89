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
