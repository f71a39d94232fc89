//! Push rules, and the counts of unread messages that follow from them.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

const RULES: &str = "/_matrix/client/v3/pushrules";

/// The counts of one room in an initial sync: notifications, highlights.
async fn counts(client: &Client, room: &str) -> (u64, u64) {
    let sync = client.sync("timeout=0").await;
    let counts = &sync["rooms"]["join"][room]["unread_notifications"];
    let count = |key: &str| counts[key].as_u64().unwrap_or_else(|| panic!("no {key}: {counts}"));
    (count("notification_count"), count("highlight_count"))
}

#[tokio::test]
async fn a_new_user_has_the_predefined_rules() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let all = alice.get(&format!("{RULES}/")).await.ok();
    let global = alice.get(&format!("{RULES}/global/")).await.ok();
    assert_eq!(all["global"], global);
    let ids = |kind: &str| -> Vec<&str> {
        global[kind].as_array().unwrap().iter().map(|rule| rule["rule_id"].as_str().unwrap()).collect()
    };
    let expected = [
        ".m.rule.master",
        ".m.rule.suppress_notices",
        ".m.rule.invite_for_me",
        ".m.rule.member_event",
        ".m.rule.is_user_mention",
        ".m.rule.is_room_mention",
        ".m.rule.tombstone",
        ".m.rule.reaction",
        ".m.rule.room.server_acl",
        ".m.rule.suppress_edits",
    ];
    for id in expected {
        assert!(ids("override").contains(&id), "{id} is missing: {:?}", ids("override"));
    }
    for id in [".m.rule.call", ".m.rule.message", ".m.rule.room_one_to_one", ".m.rule.encrypted"] {
        assert!(ids("underride").contains(&id), "{id} is missing: {:?}", ids("underride"));
    }
    let master = alice.get(&format!("{RULES}/global/override/.m.rule.master")).await.ok();
    assert_eq!((&master["enabled"], &master["default"]), (&json!(false), &json!(true)));
    let sync = alice.sync("timeout=0").await;
    let events = sync["account_data"]["events"].as_array().unwrap();
    let rules = events.iter().find(|event| event["type"] == "m.push_rules").unwrap();
    for kind in ["override", "content", "room", "sender", "underride"] {
        assert!(global[kind].is_array(), "{kind}");
        assert_eq!(rules["content"]["global"][kind], global[kind]);
    }
}

#[tokio::test]
async fn rules_are_added_ordered_changed_and_removed() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let content = format!("{RULES}/global/content");
    let rule = |pattern: &str| json!({ "pattern": pattern, "actions": ["notify"] });
    alice.put(&format!("{content}/tea"), &rule("tea")).await.ok();
    alice.put(&format!("{content}/milk?after=tea"), &rule("milk")).await.ok();
    alice.put(&format!("{content}/cake?before=tea"), &rule("cake")).await.ok();
    let global = alice.get(&format!("{RULES}/global/")).await.ok();
    let ids: Vec<_> = global["content"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["default"] == false)
        .map(|rule| rule["rule_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["cake", "tea", "milk"]);
    let tea = alice.get(&format!("{content}/tea")).await.ok();
    let expected = json!({ "rule_id": "tea", "default": false, "enabled": true, "pattern": "tea", "actions": ["notify"] });
    assert_eq!(tea, expected);
    alice.put(&format!("{content}/tea/enabled"), &json!({ "enabled": false })).await.ok();
    assert_eq!(alice.get(&format!("{content}/tea/enabled")).await.ok(), json!({ "enabled": false }));
    let highlight = json!({ "actions": ["notify", { "set_tweak": "highlight" }] });
    alice.put(&format!("{content}/tea/actions"), &highlight).await.ok();
    assert_eq!(alice.get(&format!("{content}/tea/actions")).await.ok(), highlight);
    alice.delete(&format!("{content}/tea"), &json!({})).await.ok();
    for rest in ["", "/enabled", "/actions"] {
        alice.get(&format!("{content}/tea{rest}")).await.is(404, "M_NOT_FOUND");
    }
    alice.delete(&format!("{content}/tea"), &json!({})).await.is(404, "M_NOT_FOUND");
    // A rule without conditions always matches.
    let always = format!("{RULES}/global/override/always");
    alice.put(&always, &json!({ "actions": ["notify"] })).await.ok();
    assert_eq!(alice.get(&always).await.ok()["conditions"], json!([]));
}

#[tokio::test]
async fn what_is_no_rule_is_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let rule = json!({ "pattern": "tea", "actions": ["notify"] });
    for path in ["content/.tea", "content/te%2Fa", "content/te%5Ca", "nothing/tea"] {
        let answer = alice.put(&format!("{RULES}/global/{path}"), &rule).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
    }
    let no_actions = alice.put(&format!("{RULES}/global/content/tea"), &json!({ "pattern": "tea" })).await;
    assert_eq!(no_actions.status, 400, "{no_actions:?}");
    let missing = alice.put(&format!("{RULES}/global/content/tea?before=nothing"), &rule).await;
    missing.is(400, "M_UNKNOWN");
    let predefined = format!("{RULES}/global/override/.m.rule.master");
    let answer = alice.delete(&predefined, &json!({})).await;
    assert!([400, 404].contains(&answer.status), "{answer:?}");
    alice.get(&predefined).await.ok();
}

#[tokio::test]
async fn messages_are_counted_as_the_rules_say() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    let last = bob.say(&room, "start", "here").await;
    let receipt = Client::room(&room, &format!("receipt/m.read/{}", segment(&last)));
    bob.post(&receipt, &json!({})).await.ok();
    assert_eq!(counts(&bob, &room).await, (0, 0));
    alice.say(&room, "1", "one").await;
    assert_eq!(counts(&bob, &room).await, (1, 0));
    let notice = json!({ "msgtype": "m.notice", "body": "beep" });
    alice.send(&room, "m.room.message", "2", &notice).await.ok();
    assert_eq!(counts(&bob, &room).await, (1, 0), "notices do not count");
    let reaction = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": last, "key": "x" } });
    alice.send(&room, "m.reaction", "3", &reaction).await.ok();
    assert_eq!(counts(&bob, &room).await, (1, 0), "reactions do not count");
    let mention = json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [bob.user_id] } });
    alice.send(&room, "m.room.message", "4", &mention).await.ok();
    assert_eq!(counts(&bob, &room).await, (2, 1));
    assert_eq!(counts(&carol, &room).await.1, 0, "the mention was of another user");
    let everybody = json!({ "msgtype": "m.text", "body": "all", "m.mentions": { "room": true } });
    alice.send(&room, "m.room.message", "5", &everybody).await.ok();
    assert_eq!(counts(&bob, &room).await, (3, 2));
    carol.send(&room, "m.room.message", "6", &everybody).await.ok();
    assert_eq!(counts(&bob, &room).await, (4, 2), "only who has the power may mention a room");
    let keyword = json!({ "pattern": "tea", "actions": ["notify", { "set_tweak": "highlight" }] });
    bob.put(&format!("{RULES}/global/content/tea"), &keyword).await.ok();
    let tea = alice.say(&room, "7", "a cup of TEA, please").await;
    assert_eq!(counts(&bob, &room).await, (5, 3));
    let team = alice.say(&room, "8", "a team").await;
    assert_eq!(counts(&bob, &room).await, (6, 3), "a keyword is a whole word");
    let receipt = Client::room(&room, &format!("receipt/m.read/{}", segment(&tea)));
    bob.post(&receipt, &json!({})).await.ok();
    assert_eq!(counts(&bob, &room).await, (1, 0));
    let receipt = Client::room(&room, &format!("receipt/m.read/{}", segment(&team)));
    bob.post(&receipt, &json!({})).await.ok();
    let mute = json!({ "actions": [] });
    bob.put(&format!("{RULES}/global/room/{}", segment(&room)), &mute).await.ok();
    alice.say(&room, "9", "into the void").await;
    assert_eq!(counts(&bob, &room).await, (0, 0));
}

/// Spec: "Receipts", threads, and `unread_thread_notifications` of `/sync`.
#[tokio::test]
async fn threads_are_counted_apart_where_the_filter_asks() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "1", "root").await;
    let in_thread = |body: &str| {
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        json!({ "msgtype": "m.text", "body": body, "m.relates_to": relation })
    };
    alice.send(&room, "m.room.message", "2", &in_thread("a")).await.ok();
    let second = alice.send(&room, "m.room.message", "3", &in_thread("b")).await.ok();
    let filter = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
    let query = format!("timeout=0&filter={}", segment(&filter.to_string()));
    let counts = async |query: &str| -> (Value, Value) {
        let sync = bob.sync(query).await;
        let joined = &sync["rooms"]["join"][&room];
        let threads = joined["unread_thread_notifications"][&root]["notification_count"].clone();
        (joined["unread_notifications"]["notification_count"].clone(), threads)
    };
    assert_eq!(counts(&query).await, (json!(1), json!(2)));
    assert_eq!(counts("timeout=0").await, (json!(3), Value::Null));
    let last = second["event_id"].as_str().unwrap();
    let receipt = Client::room(&room, &format!("receipt/m.read/{}", segment(last)));
    bob.post(&receipt, &json!({ "thread_id": root })).await.ok();
    let (main, thread) = counts(&query).await;
    assert_eq!(main, json!(1));
    assert!(thread.is_null() || thread == json!(0), "{thread}");
}

#[tokio::test]
async fn rules_are_no_more_work_than_they_should_be() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let content = format!("{RULES}/global/content/word");
    let rule = |pattern: &str| json!({ "pattern": pattern, "actions": ["notify"] });
    alice.put(&content, &rule(&"?".repeat(1025))).await.is(400, "M_INVALID_PARAM");
    alice.put(&content, &rule(&"?".repeat(1024))).await.ok();
    let over = format!("{RULES}/global/override/many");
    let conditional = |conditions: usize, pattern: &str| {
        let condition = json!({ "kind": "event_match", "key": "content.body", "pattern": pattern });
        json!({ "conditions": vec![condition; conditions], "actions": [] })
    };
    alice.put(&over, &conditional(65, "a")).await.is(400, "M_INVALID_PARAM");
    alice.put(&over, &conditional(1, &"a".repeat(1025))).await.is(400, "M_INVALID_PARAM");
    alice.put(&over, &conditional(64, "a")).await.ok();
}
