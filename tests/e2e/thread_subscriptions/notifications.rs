//! What subscriptions do to notifications.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use super::{SLIDING, SWITCH, in_a_thread, reply, subscribe, unsubscribe};

const RULES: &str = "/_matrix/client/v3/pushrules/global";
const KIND: &str = "io.element.msc4306.postcontent";
const SUBSCRIBED: &str = ".io.element.msc4306.rule.subscribed_thread";
const UNSUBSCRIBED: &str = ".io.element.msc4306.rule.unsubscribed_thread";

/// The unread counts of a room in a first sync: notifications, highlights.
async fn counts(client: &Client, room: &str) -> (u64, u64) {
    let sync = client.sync("timeout=0").await;
    let counts = &sync["rooms"]["join"][room]["unread_notifications"];
    (counts["notification_count"].as_u64().unwrap(), counts["highlight_count"].as_u64().unwrap())
}

/// The events that the server says it notified of, newest first.
async fn notified(client: &Client) -> Vec<String> {
    let list = client.get("/_matrix/client/v3/notifications").await.ok();
    let events = list["notifications"].as_array().unwrap().iter();
    events.filter_map(|one| one["event"]["content"]["body"].as_str().map(ToOwned::to_owned)).collect()
}

async fn mention(client: &Client, room: &str, root: &str, target: &Client) {
    let content = json!({
        "msgtype": "m.text", "body": "you there?", "m.mentions": { "user_ids": [target.user_id] },
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    client.send(room, "m.room.message", "mention", &content).await.ok();
}

async fn postcontent(client: &Client) -> Vec<Value> {
    let rules = client.get(&format!("{RULES}/")).await.ok();
    rules["postcontent"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn threads_notify_subscribers_and_nobody_else() {
    let server = Server::start_with_settings(&[SWITCH]).await;
    let (alice, bob, room, root) = in_a_thread(&server).await;
    let muted = format!("{RULES}/room/{}", segment(&room));
    reply(&bob, &room, &root, "1", "unheard").await;
    assert_eq!(counts(&alice, &room).await, (0, 0));
    mention(&bob, &room, &root, &alice).await;
    assert_eq!(counts(&alice, &room).await, (1, 1), "mentions are heard anyway");
    assert_eq!(notified(&alice).await, ["you there?"]);
    let rooms = json!({ "room_subscriptions": { &room: { "required_state": [], "timeline_limit": 1 } } });
    let first = alice.post(&format!("{SLIDING}?timeout=0"), &rooms).await.ok();
    assert_eq!(first["rooms"][&room]["notification_count"], 1);
    subscribe(&alice, &room, &root).await;
    let pos = first["pos"].as_str().unwrap();
    let news = alice.post(&format!("{SLIDING}?timeout=5000&pos={pos}"), &rooms).await.ok();
    let told = &news["rooms"][&room]["notification_count"];
    assert_eq!(told, 2, "what came before counts for who subscribes: {news}");
    alice.put(&muted, &json!({ "actions": [] })).await.ok();
    bob.say(&room, "aside", "in the main timeline").await;
    reply(&bob, &room, &root, "2", "heard in a muted room").await;
    assert_eq!(counts(&alice, &room).await, (3, 1));
    assert_eq!(notified(&alice).await, ["heard in a muted room", "you there?", "unheard"]);
    alice.delete(&muted, &json!({})).await.ok();
    assert_eq!(counts(&alice, &room).await, (4, 1));
    unsubscribe(&alice, &room, &root).await;
    assert_eq!(counts(&alice, &room).await, (2, 1));
}

#[tokio::test]
async fn the_rules_can_be_switched_off_but_not_joined_by_others() {
    let mut server = Server::start_with_settings(&[SWITCH]).await;
    let (alice, bob, room, root) = in_a_thread(&server).await;
    let rules = postcontent(&alice).await;
    let ids: Vec<_> = rules.iter().map(|rule| rule["rule_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [UNSUBSCRIBED, SUBSCRIBED]);
    let condition = json!([{ "kind": "io.element.msc4306.thread_subscription", "subscribed": false }]);
    assert_eq!((&rules[0]["conditions"], &rules[0]["actions"]), (&condition, &json!([])));
    let unsubscribed = format!("{RULES}/{KIND}/{UNSUBSCRIBED}");
    assert_eq!(alice.get(&unsubscribed).await.ok()["rule_id"], UNSUBSCRIBED);
    let rule = json!({ "actions": ["notify"], "conditions": [] });
    alice.put(&format!("{RULES}/{KIND}/mine"), &rule).await.is(400, "M_INVALID_PARAM");
    alice.delete(&unsubscribed, &json!({})).await.is(400, "M_INVALID_PARAM");
    reply(&bob, &room, &root, "1", "a reply").await;
    assert_eq!(counts(&alice, &room).await, (0, 0));
    alice.put(&format!("{unsubscribed}/enabled"), &json!({ "enabled": false })).await.ok();
    assert_eq!(counts(&alice, &room).await, (1, 0), "as any message of the room");
    let actions = json!({ "actions": ["notify", { "set_tweak": "highlight" }] });
    alice.put(&format!("{RULES}/{KIND}/{SUBSCRIBED}/actions"), &actions).await.ok();
    subscribe(&alice, &room, &root).await;
    server.restart().await;
    assert_eq!(counts(&alice, &room).await, (1, 1));
    assert_eq!(alice.get(&format!("{unsubscribed}/enabled")).await.ok()["enabled"], false);
    let rule = json!({ "actions": ["notify", { "set_tweak": "highlight" }], "conditions": condition });
    alice.put(&format!("{RULES}/override/mine"), &rule).await.ok();
    unsubscribe(&alice, &room, &root).await;
    assert_eq!(counts(&alice, &room).await, (1, 1), "the condition serves in other rules");
    server.set(SWITCH.0, "false");
    server.restart().await;
    assert_eq!(postcontent(&alice).await, [] as [Value; 0]);
    alice.get(&unsubscribed).await.is(404, "M_NOT_FOUND");
    alice.put(&format!("{RULES}/{KIND}/mine"), &rule).await.is(400, "M_INVALID_PARAM");
    assert_eq!(counts(&alice, &room).await, (1, 0), "nothing knows of threads any more");
}
