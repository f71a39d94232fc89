//! Threads that users subscribe to, MSC4306 and MSC4308.

mod notifications;
mod sdk;
mod sync;

use serde_json::{Value, json};
use tests::{Answer, Client, Server, segment};

const SWITCH: (&str, &str) = ("rooms.thread_subscriptions", "true");

const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

const NOT_IN_THREAD: &str = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
const CONFLICT: &str = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";

/// A thread, as a path.
fn thread(room: &str, root: &str) -> String {
    let base = "/_matrix/client/unstable/io.element.msc4306/rooms";
    format!("{base}/{}/thread/{}/subscription", segment(room), segment(root))
}

async fn subscribe(client: &Client, room: &str, root: &str) {
    client.put(&thread(room, root), &json!({})).await.ok();
}

async fn subscribe_because_of(client: &Client, room: &str, root: &str, cause: &str) -> Answer {
    client.put(&thread(room, root), &json!({ "automatic": cause })).await
}

async fn unsubscribe(client: &Client, room: &str, root: &str) {
    client.delete(&thread(room, root), &json!({})).await.ok();
}

/// Whether the user's subscription is automatic; none without one.
async fn subscription(client: &Client, room: &str, root: &str) -> Option<bool> {
    let answer = client.get(&thread(room, root)).await;
    if answer.status == 404 {
        answer.is(404, "M_NOT_FOUND");
        return None;
    }
    Some(answer.ok()["automatic"].as_bool().unwrap())
}

async fn reply(client: &Client, room: &str, root: &str, txn: &str, body: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": body, "m.relates_to": relation });
    let answer = client.send(room, "m.room.message", txn, &content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

/// Alice and Bob in a room with a thread of Alice's.
async fn in_a_thread(server: &Server) -> (Client, Client, String, String) {
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "root", "a thread").await;
    (alice, bob, room, root)
}

#[tokio::test]
async fn without_the_switch_there_are_no_subscriptions() {
    let server = Server::start().await;
    let (alice, _, room, root) = in_a_thread(&server).await;
    let features = alice.get("/_matrix/client/versions").await.ok()["unstable_features"].clone();
    assert_eq!(
        (&features["org.matrix.msc4306"], &features["org.matrix.msc4308"]),
        (&Value::Null, &Value::Null)
    );
    let path = thread(&room, &root);
    alice.get(&path).await.is(404, "M_UNRECOGNIZED");
    alice.put(&path, &json!({})).await.is(404, "M_UNRECOGNIZED");
    alice.delete(&path, &json!({})).await.is(404, "M_UNRECOGNIZED");
    let rules = alice.get("/_matrix/client/v3/pushrules/global/").await.ok();
    assert_eq!(rules["postcontent"], Value::Null);
}

#[tokio::test]
async fn users_subscribe_and_clients_do_so_for_them() {
    let mut server = Server::start_with_settings(&[SWITCH]).await;
    let (alice, bob, room, root) = in_a_thread(&server).await;
    let features = alice.get("/_matrix/client/versions").await.ok()["unstable_features"].clone();
    assert_eq!(features["org.matrix.msc4306"], true);
    assert_eq!(subscription(&alice, &room, &root).await, None);
    let first = reply(&bob, &room, &root, "1", "one").await;
    subscribe_because_of(&alice, &room, &root, &first).await.ok();
    assert_eq!(subscription(&alice, &room, &root).await, Some(true));
    assert_eq!(subscription(&bob, &room, &root).await, None, "everybody for themselves");
    subscribe(&alice, &room, &root).await;
    assert_eq!(subscription(&alice, &room, &root).await, Some(false));
    subscribe_because_of(&alice, &room, &root, &first).await.ok();
    assert_eq!(subscription(&alice, &room, &root).await, Some(false), "what the user did stands");
    unsubscribe(&alice, &room, &root).await;
    unsubscribe(&alice, &room, &root).await;
    assert_eq!(subscription(&alice, &room, &root).await, None);
    subscribe_because_of(&alice, &room, &root, &first).await.is(409, CONFLICT);
    let second = reply(&bob, &room, &root, "2", "two").await;
    server.restart().await;
    subscribe_because_of(&alice, &room, &root, &first).await.is(409, CONFLICT);
    subscribe_because_of(&alice, &room, &root, &second).await.ok();
    assert_eq!(subscription(&alice, &room, &root).await, Some(true));
    let third = reply(&bob, &room, &root, "3", "three").await;
    unsubscribe(&alice, &room, &root).await;
    subscribe_because_of(&alice, &room, &root, &third).await.is(409, CONFLICT);
    let fourth = reply(&bob, &room, &root, "4", "four").await;
    unsubscribe(&alice, &room, &root).await;
    // Also what comes between two of them is settled by the later one.
    subscribe_because_of(&alice, &room, &root, &fourth).await.is(409, CONFLICT);
    subscribe(&alice, &room, &root).await;
    server.restart().await;
    assert_eq!(subscription(&alice, &room, &root).await, Some(false));
}

#[tokio::test]
async fn a_cause_is_an_event_of_the_thread() {
    let server = Server::start_with_settings(&[SWITCH]).await;
    let (alice, bob, room, root) = in_a_thread(&server).await;
    let aside = alice.say(&room, "aside", "no thread").await;
    let other = reply(&bob, &room, &aside, "other", "another thread").await;
    for cause in [&*aside, &*other, &*root, "$nothing"] {
        subscribe_because_of(&alice, &room, &root, cause).await.is(400, NOT_IN_THREAD);
    }
    let elsewhere = alice.create_room(json!({})).await;
    let foreign = reply(&alice, &elsewhere, &root, "foreign", "elsewhere").await;
    subscribe_because_of(&alice, &room, &root, &foreign).await.is(400, NOT_IN_THREAD);
    alice.put(&thread(&room, &root), &json!({ "automatic": true })).await.is(400, "M_BAD_JSON");
    let inside = reply(&bob, &room, &root, "inside", "in the thread").await;
    let new = json!({ "msgtype": "m.text", "body": "edited" });
    let relation = json!({ "rel_type": "m.replace", "event_id": inside });
    let edit =
        json!({ "msgtype": "m.text", "body": "edited", "m.new_content": new, "m.relates_to": relation });
    let edit = bob.send(&room, "m.room.message", "edit", &edit).await.ok();
    subscribe_because_of(&alice, &room, &root, edit["event_id"].as_str().unwrap()).await.ok();
}

#[tokio::test]
async fn who_cannot_see_a_thread_cannot_subscribe_to_it() {
    let server = Server::start_with_settings(&[SWITCH]).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({})).await;
    let root = alice.say(&room, "root", "a thread").await;
    let elsewhere = alice.create_room(json!({})).await;
    for (client, room, root) in [
        (&bob, &*room, &*root),
        (&alice, &*room, "$nothing"),
        (&alice, &*elsewhere, &*root),
        (&alice, "!nowhere:localhost", &*root),
    ] {
        let path = thread(room, root);
        client.put(&path, &json!({})).await.is(404, "M_NOT_FOUND");
        client.delete(&path, &json!({})).await.is(404, "M_NOT_FOUND");
        client.get(&path).await.is(404, "M_NOT_FOUND");
    }
    server.anonymous().get(&thread(&room, &root)).await.is(401, "M_MISSING_TOKEN");
    alice
        .put("/_matrix/client/unstable/io.element.msc4306/rooms/x/thread/y/subscription", &json!({}))
        .await
        .is(400, "M_INVALID_PARAM");
}
