//! Events that are sent later.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use crate::federation::eventually;

const BASE: &str = "/_matrix/client/unstable/org.matrix.msc4140";

fn later(room: &str, kind: &str, txn: &str) -> String {
    format!("{BASE}/rooms/{}/delayed_event/{kind}/{txn}", segment(room))
}

async fn delay(client: &Client, room: &str, txn: &str, body: &str, ms: u64) -> String {
    let content = json!({ "msgtype": "m.text", "body": body });
    let request = json!({ "delay": ms, "content": content });
    let answer = client.put(&later(room, "m.room.message", txn), &request).await.ok();
    answer["delay_id"].as_str().unwrap().to_owned()
}

async fn act(client: &Client, id: &str, action: &str) -> tests::Answer {
    client.post(&format!("{BASE}/delayed_events/{id}"), &json!({ "action": action })).await
}

async fn waiting(client: &Client) -> Vec<Value> {
    let list = client.get(&format!("{BASE}/delayed_events")).await.ok();
    list["delayed_events"].as_array().unwrap().clone()
}

async fn bodies(client: &Client, room: &str) -> Vec<String> {
    let events = client.all_messages(room).await;
    events.iter().filter_map(|event| event["content"]["body"].as_str()).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn events_wait_are_sent_put_off_and_cancelled() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let versions = alice.get("/_matrix/client/versions").await.ok();
    assert_eq!(versions["unstable_features"]["org.matrix.msc4140"], true);
    let soon = delay(&alice, &room, "1", "soon", 200).await;
    let never = delay(&alice, &room, "2", "never", 3_600_000).await;
    let now = delay(&alice, &room, "3", "now", 3_600_000).await;
    assert_eq!(delay(&alice, &room, "2", "never", 3_600_000).await, never);
    eventually("the event is sent", async || {
        bodies(&alice, &room).await.contains(&"soon".to_owned()).then_some(())
    })
    .await;
    let since = alice.sync("timeout=0").await;
    let events = since["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    let sent = events.iter().find(|event| event["content"]["body"] == "soon").unwrap();
    assert_eq!(sent["unsigned"]["transaction_id"], "1");
    let one = eventually("it is over", async || {
        let one = alice.get(&format!("{BASE}/delayed_events/{soon}")).await.ok();
        one["event_id"].is_string().then_some(one)
    })
    .await;
    assert_eq!(one["event_id"], sent["event_id"]);
    let ids: Vec<_> = waiting(&alice).await.iter().map(|event| event["delay_id"].clone()).collect();
    assert_eq!(ids, [json!(never), json!(now)]);
    let before = waiting(&alice).await[0]["running_since"].as_u64().unwrap();
    eventually("a restart counts from then on", async || {
        // Whoever knows the ID may.
        act(&server.anonymous(), &never, "restart").await.ok();
        let event = alice.get(&format!("{BASE}/delayed_events/{never}")).await.ok();
        (event["running_since"].as_u64().unwrap() > before).then_some(())
    })
    .await;
    act(&alice, &never, "cancel").await.ok();
    act(&alice, &never, "cancel").await.ok();
    act(&alice, &never, "restart").await.is(404, "M_NOT_FOUND");
    act(&alice, &never, "send").await.is(404, "M_NOT_FOUND");
    alice.post(&format!("{BASE}/delayed_events/{now}/send"), &json!({})).await.ok();
    act(&alice, &now, "send").await.ok();
    act(&alice, &now, "cancel").await.is(404, "M_NOT_FOUND");
    assert_eq!(bodies(&alice, &room).await, ["soon", "now"]);
    assert!(waiting(&alice).await.is_empty());
    act(&alice, "nonsense", "send").await.is(404, "M_NOT_FOUND");
    act(&alice, &now, "explode").await.is(400, "M_INVALID_PARAM");
}

/// By the names of the present draft, and in lists as matrix-js-sdk reads them.
#[tokio::test]
async fn a_list_says_what_waits_and_what_became_of_the_rest() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let soon = delay(&alice, &room, "1", "soon", 1).await;
    let over = eventually("the event is sent", async || {
        let one = alice.get(&format!("{BASE}/delayed_events/{soon}")).await.ok();
        one["finalised"].is_object().then_some(one)
    })
    .await;
    assert!(
        over["finalised"]["event_id"].is_string() && over["finalised"]["finalised_ts"].is_u64(),
        "{over}"
    );
    let waits = delay(&alice, &room, "2", "waits", 3_600_000).await;
    let now = delay(&alice, &room, "3", "now", 3_600_000).await;
    let never = delay(&alice, &room, "4", "never", 3_600_000).await;
    act(&alice, &now, "send").await.ok();
    act(&alice, &never, "cancel").await.ok();
    let list = async |query: &str| alice.get(&format!("{BASE}/delayed_events{query}")).await.ok();
    let all = list("").await;
    let [waiting] = &all["scheduled"].as_array().unwrap()[..] else { panic!("{all}") };
    assert_eq!((&waiting["delay_id"], &waiting["delay_ms"]), (&json!(waits), &json!(3_600_000)));
    assert!(waiting["delayed_since_ts"].is_u64() && waiting["finalised"].is_null(), "{waiting}");
    assert_eq!(all["delayed_events"], all["scheduled"]);
    let ends = all["finalised"].as_array().unwrap();
    for (id, outcome, reason) in
        [(&soon, "send", "delay"), (&now, "send", "action"), (&never, "cancel", "action")]
    {
        let end = ends.iter().find(|end| end["delayed_event"]["delay_id"] == *id).unwrap();
        assert_eq!((&end["outcome"], &end["reason"]), (&json!(outcome), &json!(reason)), "{end}");
        assert_eq!(end["event_id"].is_string(), outcome == "send", "{end}");
    }
    assert_eq!(ends.len(), 3);
    let scheduled = list("?status=scheduled").await;
    assert_eq!((&scheduled["scheduled"], &scheduled["finalised"]), (&all["scheduled"], &Value::Null));
    let finalised = list("?status=finalised").await;
    assert_eq!((&finalised["scheduled"], &finalised["finalised"]), (&Value::Null, &all["finalised"]));
    alice.get(&format!("{BASE}/delayed_events?status=lost")).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_older_endpoints_and_state_events_work() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let query = "?org.matrix.msc4140.delay=3600000";
    let message = json!({ "msgtype": "m.text", "body": "later" });
    let path = Client::room(&room, &format!("send/m.room.message/1{query}"));
    let id = alice.put(&path, &message).await.ok()["delay_id"].as_str().unwrap().to_owned();
    let name = |name: &str| json!({ "name": name });
    let path = Client::room(&room, &format!("state/m.room.name/{query}"));
    let first = alice.put(&path, &name("first")).await.ok()["delay_id"].as_str().unwrap().to_owned();
    let path = later(&room, "m.room.topic", "1");
    let topic = json!({ "delay": 3_600_000, "state_key": "", "content": { "topic": "t" } });
    let second = alice.put(&path, &topic).await.ok()["delay_id"].as_str().unwrap().to_owned();
    let third = alice.put(&later(&room, "m.room.topic", "2"), &topic).await.ok();
    let third = third["delay_id"].as_str().unwrap().to_owned();
    act(&alice, &id, "send").await.ok();
    act(&alice, &first, "send").await.ok();
    assert_eq!(alice.state(&room, "m.room.name", "").await.ok(), name("first"));
    act(&alice, &second, "send").await.ok();
    assert_eq!(alice.state(&room, "m.room.topic", "").await.ok()["topic"], "t");
    let levels = alice.state(&room, "m.room.power_levels", "").await.ok();
    let mut levels = levels.as_object().unwrap().clone();
    levels.insert("state_default".to_owned(), 0.into());
    levels.insert("events".to_owned(), json!({}));
    alice.set_state(&room, "m.room.power_levels", "", &levels.into()).await.ok();
    bob.set_state(&room, "m.room.topic", "", &json!({ "topic": "bob's" })).await.ok();
    // Another user has set it since: theirs stays.
    act(&alice, &third, "send").await.is(403, "M_FORBIDDEN");
    assert_eq!(alice.state(&room, "m.room.topic", "").await.ok()["topic"], "bob's");
    let over = alice.get(&format!("{BASE}/delayed_events/{third}")).await.ok();
    assert!(over["error"].is_object() && over["event_id"].is_null(), "{over}");
    assert!(over["finalised"]["error"].is_object(), "{over}");
    let list = alice.get(&format!("{BASE}/delayed_events?status=finalised")).await.ok();
    let ends = list["finalised"].as_array().unwrap();
    let end = ends.iter().find(|end| end["delayed_event"]["delay_id"] == third).unwrap();
    assert_eq!((&end["outcome"], &end["reason"]), (&json!("cancel"), &json!("error")));
    assert_eq!(bodies(&alice, &room).await, ["later"]);
    bob.get(&format!("{BASE}/delayed_events/{third}")).await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_may_not_be_sent_is_not_and_limits_hold() {
    let server = Server::start_with("[delayed_events]\nmax_delay = \"1 min\"").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let content = json!({ "msgtype": "m.text", "body": "?" });
    let path = later(&room, "m.room.message", "1");
    let long = alice.put(&path, &json!({ "delay": 60_001, "content": content })).await;
    long.is(400, "M_UNKNOWN");
    assert_eq!(long.body["org.matrix.msc4140.errcode"], "M_MAX_DELAY_EXCEEDED");
    assert_eq!(long.body["org.matrix.msc4140.max_delay"], 60_000);
    alice.put(&path, &json!({ "content": content })).await.is(400, "M_MISSING_PARAM");
    alice.put(&path, &json!({ "delay": -1, "content": content })).await.is(400, "M_BAD_JSON");
    alice.put(&path, &json!({ "delay": 1, "content": [] })).await.is(400, "M_BAD_JSON");
    let query = Client::room(&room, "send/m.room.message/1?org.matrix.msc4140.delay=x");
    alice.put(&query, &content).await.is(400, "M_INVALID_PARAM");
    let request = json!({ "delay": 60_000, "content": content });
    bob.put(&path, &request).await.is(403, "M_FORBIDDEN");
    server.anonymous().put(&path, &request).await.is(401, "M_MISSING_TOKEN");
    bob.join(&room).await.ok();
    let id = bob.put(&path, &request).await.ok()["delay_id"].as_str().unwrap().to_owned();
    alice.moderate("ban", &room, &bob.user_id).await.ok();
    act(&bob, &id, "send").await.is(403, "M_FORBIDDEN");
    assert!(waiting(&bob).await.is_empty());
    for txn in 0..100 {
        let path = later(&room, "m.room.message", &format!("many{txn}"));
        alice.put(&path, &request).await.ok();
    }
    let many = alice.put(&later(&room, "m.room.message", "one more"), &request).await;
    many.is(400, "M_UNKNOWN");
    assert_eq!(many.body["org.matrix.msc4140.errcode"], "M_MAX_DELAYED_EVENTS_EXCEEDED");
}

#[tokio::test]
async fn delayed_events_survive_a_kill() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let later = delay(&alice, &room, "1", "later", 3_600_000).await;
    delay(&alice, &room, "2", "while it was down", 100).await;
    server.kill();
    server.restart().await;
    eventually("the event is sent after the restart", async || {
        let bodies = bodies(&alice, &room).await;
        assert!(bodies.len() < 2, "it is sent once: {bodies:?}");
        (bodies == ["while it was down"]).then_some(())
    })
    .await;
    let ids: Vec<_> = waiting(&alice).await.iter().map(|event| event["delay_id"].clone()).collect();
    assert_eq!(ids, [json!(later)]);
    act(&alice, &later, "send").await.ok();
    assert_eq!(bodies(&alice, &room).await, ["while it was down", "later"]);
}
