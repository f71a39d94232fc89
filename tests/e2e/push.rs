//! Push notifications, against a small push gateway.

pub(crate) mod gateway;

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use self::gateway::Gateway;

const SET: &str = "/_matrix/client/v3/pushers/set";
const PUSHERS: &str = "/_matrix/client/v3/pushers";
const RULES: &str = "/_matrix/client/v3/pushrules/global";

async fn server() -> Server {
    Server::start_with_settings(&[("push.allow_private_addresses", "true")]).await
}

fn pusher(pushkey: &str, url: &str) -> Value {
    json!({
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": { "url": url, "default_payload": { "aps": {} } },
    })
}

async fn pushkeys(client: &Client) -> Vec<String> {
    let answer = client.get(PUSHERS).await.ok();
    let pushers = answer["pushers"].as_array().unwrap().iter();
    pushers.map(|pusher| pusher["pushkey"].as_str().unwrap().to_owned()).collect()
}

async fn read(client: &Client, room: &str, event: &str, kind: &str) {
    let path = Client::room(room, &format!("receipt/{kind}/{}", segment(event)));
    client.post(&path, &json!({})).await.ok();
}

fn text(body: &str, more: &Value) -> Value {
    let mut content = json!({ "msgtype": "m.text", "body": body });
    content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    content
}

#[tokio::test]
async fn pushers_are_set_listed_replaced_and_deleted() {
    let server = server().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let url = "https://push.example.org/_matrix/push/v1/notify";
    assert_eq!(alice.get(PUSHERS).await.ok(), json!({ "pushers": [] }));
    let mut wanted = pusher("one", url);
    wanted["profile_tag"] = "tag".into();
    assert_eq!(alice.post(SET, &wanted).await.ok(), json!({}));
    assert_eq!(alice.get(PUSHERS).await.ok(), json!({ "pushers": [wanted] }));
    wanted["lang"] = "de".into();
    wanted.as_object_mut().unwrap().remove("profile_tag");
    alice.post(SET, &wanted).await.ok();
    assert_eq!(alice.get(PUSHERS).await.ok(), json!({ "pushers": [wanted] }));

    let mut appended = pusher("one", url);
    appended["append"] = true.into();
    bob.post(SET, &appended).await.ok();
    assert_eq!(
        (pushkeys(&alice).await, pushkeys(&bob).await),
        (vec!["one".to_owned()], vec!["one".to_owned()])
    );
    bob.post(SET, &pusher("one", url)).await.ok();
    assert!(pushkeys(&alice).await.is_empty());
    alice.post(SET, &pusher("two", url)).await.ok();
    let gone = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "one" });
    alice.post(SET, &gone).await.ok();
    assert_eq!(
        (pushkeys(&alice).await, pushkeys(&bob).await),
        (vec!["two".to_owned()], vec!["one".to_owned()])
    );
    bob.post(SET, &gone).await.ok();
    assert!(pushkeys(&bob).await.is_empty());
}

#[tokio::test]
async fn what_is_no_pusher_is_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let url = "https://push.example.org/_matrix/push/v1/notify";
    server.anonymous().get(PUSHERS).await.is(401, "M_MISSING_TOKEN");
    server.anonymous().post(SET, &pusher("one", url)).await.is(401, "M_MISSING_TOKEN");
    for name in ["kind", "app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data"] {
        let mut body = pusher("one", url);
        body.as_object_mut().unwrap().remove(name);
        alice.post(SET, &body).await.is(400, "M_MISSING_PARAM");
    }
    let with = |name: &str, value: Value| {
        let mut body = pusher("one", url);
        body[name] = value;
        body
    };
    alice.post(SET, &with("data", json!({}))).await.is(400, "M_MISSING_PARAM");
    alice.post(SET, &with("data", json!({ "url": 3 }))).await.is(400, "M_BAD_JSON");
    alice.post(SET, &with("lang", json!(3))).await.is(400, "M_BAD_JSON");
    alice.post(SET, &with("append", json!("yes"))).await.is(400, "M_BAD_JSON");
    for (name, value) in [
        ("pushkey", "p".repeat(513).into()),
        ("app_id", "a".repeat(65).into()),
        ("kind", "carrier pigeon".into()),
        ("kind", "email".into()),
        ("lang", "l".repeat(2000).into()),
        ("data", json!({ "url": url, "more": "m".repeat(20_000) })),
    ] {
        alice.post(SET, &with(name, value)).await.is(400, "M_INVALID_PARAM");
    }
    for bad in [
        "http://push.example.org/_matrix/push/v1/notify",
        "https://push.example.org/notify",
        "https://127.0.0.1/_matrix/push/v1/notify",
        "https://10.1.2.3/_matrix/push/v1/notify",
        "nonsense",
    ] {
        alice.post(SET, &pusher("one", bad)).await.is(400, "M_INVALID_PARAM");
    }
    assert!(pushkeys(&alice).await.is_empty());
    for number in 0..32 {
        alice.post(SET, &pusher(&number.to_string(), url)).await.ok();
    }
    alice.post(SET, &pusher("one too many", url)).await.is(403, "M_FORBIDDEN");
    alice.post(SET, &pusher("3", url)).await.ok();
}

/// Spec: devices take their pushers with them.
#[tokio::test]
async fn pushers_go_with_their_devices() {
    let server = server().await;
    let mut alice = server.client("alice").await;
    let url = "https://push.example.org/_matrix/push/v1/notify";
    let password = alice.password();
    let phone = alice.another_device(&password).await;
    let tablet = alice.another_device(&password).await;
    for (client, key) in [(&alice, "desk"), (&phone, "phone"), (&tablet, "tablet")] {
        client.post(SET, &pusher(key, url)).await.ok();
    }
    phone.post("/_matrix/client/v3/logout", &json!({})).await.ok();
    assert_eq!(pushkeys(&alice).await, ["desk", "tablet"]);
    let change = json!({ "new_password": "another one" });
    alice.with_password(reqwest::Method::POST, "/_matrix/client/v3/account/password", change).await.ok();
    assert_eq!(pushkeys(&alice).await, ["desk"]);
    alice.post("/_matrix/client/v3/logout/all", &json!({})).await.ok();
    let again = alice.another_device("another one").await;
    alice.token = again.token;
    assert!(pushkeys(&alice).await.is_empty());
}

#[tokio::test]
async fn notifications_say_what_happened_and_how_much_is_unread() {
    let server = server().await;
    let mut gateway = Gateway::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let profile = format!("/_matrix/client/v3/profile/{}/displayname", segment(&alice.user_id));
    alice.put(&profile, &json!({ "displayname": "Alice" })).await.ok();
    let room = json!({ "preset": "public_chat", "name": "Tea", "room_alias_name": "tea" });
    let room = alice.create_room(room).await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    alice.say(&room, "0", "before there was a pusher").await;
    let before = bob.say(&room, "0", "my own").await;
    read(&bob, &room, &before, "m.read").await;
    bob.post(SET, &pusher("full", &gateway.url())).await.ok();

    let first = alice.say(&room, "1", "hello").await;
    let told = gateway.next_event().await;
    let device = &told["devices"][0];
    assert_eq!(told["event_id"], json!(first));
    assert_eq!(told["room_id"], json!(room));
    assert_eq!(told["type"], "m.room.message");
    assert_eq!(told["sender"], json!(alice.user_id));
    assert_eq!(told["sender_display_name"], "Alice");
    assert_eq!((&told["room_name"], &told["room_alias"]), (&json!("Tea"), &json!("#tea:localhost")));
    assert_eq!(told["content"], json!({ "msgtype": "m.text", "body": "hello" }));
    assert_eq!(told["counts"], json!({ "unread": 1 }));
    assert_eq!(told["prio"], "low");
    assert_eq!((&device["app_id"], &device["pushkey"]), (&json!("org.example.app"), &json!("full")));
    assert_eq!(device["data"], json!({ "default_payload": { "aps": {} } }));
    assert!(device["pushkey_ts"].as_u64().is_some_and(|seconds| seconds > 1_600_000_000));
    assert!(told.get("user_is_target").is_none());

    let mention = text("bob!", &json!({ "m.mentions": { "user_ids": [bob.user_id] } }));
    alice.send(&room, "m.room.message", "2", &mention).await.ok();
    let told = gateway.next_event().await;
    assert_eq!((&told["prio"], &told["counts"]), (&json!("high"), &json!({ "unread": 2 })));
    let tweaks = &told["devices"][0]["tweaks"];
    assert_eq!((&tweaks["highlight"], &tweaks["sound"]), (&json!(true), &json!("default")));

    let mut short = pusher("short", &gateway.url());
    short["data"]["format"] = "event_id_only".into();
    let full = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "full" });
    bob.post(SET, &full).await.ok();
    bob.post(SET, &short).await.ok();
    let third = alice.say(&room, "3", "secret").await;
    let told = gateway.next_event().await;
    assert_eq!(told["devices"][0]["data"]["format"], "event_id_only");
    assert_eq!((&told["event_id"], &told["counts"]), (&json!(third), &json!({ "unread": 3 })));
    let names: Vec<_> = told.as_object().unwrap().keys().collect();
    assert_eq!(names, ["counts", "devices", "event_id", "prio", "room_id"]);

    read(&bob, &room, &first, "m.read").await;
    let told = gateway.next().await;
    assert_eq!((&told["counts"], told.get("event_id")), (&json!({ "unread": 2 }), None));
    read(&bob, &room, &third, "m.read.private").await;
    let told = gateway.next().await;
    assert_eq!((&told["counts"], told.get("event_id")), (&json!({ "unread": 0 }), None));

    alice.send(&room, "m.call.invite", "4", &json!({ "call_id": "1", "version": 0 })).await.ok();
    let told = gateway.next_event().await;
    assert_eq!(told["counts"], json!({ "unread": 1, "missed_calls": 1 }));
    bob.send(&room, "m.call.answer", "5", &json!({ "call_id": "1", "version": 0 })).await.ok();
    alice.say(&room, "6", "good to hear you").await;
    let told = gateway.next_event().await;
    assert_eq!(told["counts"], json!({ "unread": 1 }), "whoever answers has seen the call");
}

/// Each thing that must not notify is followed by something that does: that one must come next.
#[tokio::test]
async fn only_what_the_rules_say_notifies() {
    let server = server().await;
    let mut gateway = Gateway::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    bob.post(SET, &pusher("key", &gateway.url())).await.ok();
    let invited = alice.create_room(json!({ "name": "Cake", "invite": [bob.user_id] })).await;
    let told = gateway.next_event().await;
    assert_eq!((&told["type"], &told["room_id"]), (&json!("m.room.member"), &json!(invited)));
    assert_eq!((&told["user_is_target"], &told["room_name"]), (&json!(true), &json!("Cake")));

    let ignore = json!({ "ignored_users": { mallory.user_id.clone(): {} } });
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&bob.user_id));
    bob.put(&path, &ignore).await.ok();
    mallory.create_room(json!({ "invite": [bob.user_id] })).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let muted = alice.create_room(json!({ "preset": "public_chat" })).await;
    for user in [&bob, &mallory] {
        user.join(&room).await.ok();
        user.join(&muted).await.ok();
    }
    bob.put(&format!("{RULES}/room/{}", segment(&muted)), &json!({ "actions": [] })).await.ok();
    let shout = |body: &str| text(body, &json!({ "m.mentions": { "room": true } }));
    let mut number = 0;
    let mut loud = async |gateway: &mut Gateway, why: &str| {
        number += 1;
        let event = alice.say(&room, &format!("loud {number}"), "loud").await;
        assert_eq!(gateway.next_event().await["event_id"], json!(event), "{why}");
    };
    loud(&mut gateway, "an invite of an ignored user").await;
    mallory.send(&room, "m.room.message", "1", &shout("listen!")).await.ok();
    loud(&mut gateway, "a message of an ignored user").await;
    alice.say(&muted, "1", "hush").await;
    loud(&mut gateway, "a message in a muted room").await;
    bob.say(&room, "1", "my own").await;
    loud(&mut gateway, "a message of one's own").await;
    let notice = json!({ "msgtype": "m.notice", "body": "beep" });
    alice.send(&room, "m.room.message", "2", &notice).await.ok();
    loud(&mut gateway, "a notice").await;

    let everybody = alice.send(&room, "m.room.message", "3", &shout("all")).await.ok();
    let told = gateway.next_event().await;
    assert_eq!((&told["event_id"], &told["prio"]), (&everybody["event_id"], &json!("high")));
    let encrypted = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "…" });
    alice.send(&room, "m.room.encrypted", "4", &encrypted).await.ok();
    let told = gateway.next_event().await;
    assert_eq!((&told["type"], &told["prio"]), (&json!("m.room.encrypted"), &json!("high")));
    assert_eq!(told["content"], encrypted);

    let root = alice.say(&room, "5", "root").await;
    gateway.next_event().await;
    read(&bob, &room, &root, "m.read").await;
    let relation = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    let in_thread = alice.send(&room, "m.room.message", "6", &text("in it", &relation)).await.ok();
    let told = gateway.next_event().await;
    assert_eq!((&told["event_id"], &told["counts"]), (&in_thread["event_id"], &json!({ "unread": 1 })));

    bob.leave(&room).await.ok();
    alice.say(&room, "7", "gone").await;
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&other).await.ok();
    let here = alice.say(&other, "1", "here").await;
    assert_eq!(gateway.next_event().await["event_id"], json!(here), "a message in a room that was left");
}

/// Whatever a gateway does not take is tried again, also by the next process; what it took does not come again.
#[tokio::test]
async fn a_gateway_that_fails_is_told_later_also_after_a_kill() {
    let mut server = server().await;
    let mut gateway = Gateway::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    bob.post(SET, &pusher("key", &gateway.url())).await.ok();
    let mut sent = vec![alice.say(&room, "0", "0").await];
    assert_eq!(gateway.next_event().await["event_id"], json!(sent[0]));
    gateway.fail(true).await;
    for number in 1..4 {
        sent.push(alice.say(&room, &number.to_string(), "later").await);
    }
    server.kill();
    gateway.fail(false).await;
    server.restart().await;
    for event in &sent[1..] {
        assert_eq!(gateway.next_event().await["event_id"], json!(event));
    }
    // One that is read meanwhile is not told any more.
    gateway.fail(true).await;
    let stale = alice.say(&room, "4", "stale").await;
    read(&bob, &room, &stale, "m.read").await;
    let fresh = alice.say(&room, "5", "fresh").await;
    gateway.fail(false).await;
    assert_eq!(gateway.next_event().await["event_id"], json!(fresh));
    // Only the last notification may come twice: have it be one of counts.
    read(&bob, &room, &fresh, "m.read").await;
    assert!(gateway.next().await.get("event_id").is_none());
    server.kill();
    server.restart().await;
    let last = alice.say(&room, "6", "last").await;
    assert_eq!(gateway.next_event().await["event_id"], json!(last), "nothing comes twice");
}

#[tokio::test]
async fn a_rejected_pushkey_loses_its_pusher() {
    let server = server().await;
    let mut gateway = Gateway::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    for key in ["bad", "good"] {
        bob.post(SET, &pusher(key, &gateway.url())).await.ok();
    }
    gateway.reject("bad").await;
    alice.say(&room, "1", "hello").await;
    gateway.next_event().await;
    gateway.next_event().await;
    for _ in 0..200 {
        if pushkeys(&bob).await.len() == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(pushkeys(&bob).await, ["good"]);
    alice.say(&room, "2", "again").await;
    let told = gateway.next_that(|told| told["content"]["body"] == "again").await;
    assert_eq!(told["devices"][0]["pushkey"], "good");
    assert!(gateway.rest().is_empty());
}

#[tokio::test]
async fn past_notifications_are_listed_in_pages() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let path = "/_matrix/client/v3/notifications";
    assert_eq!(bob.get(path).await.ok(), json!({ "notifications": [] }));
    let mut rooms = Vec::new();
    for _ in 0..2 {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        alice.say(&room, "before", "before bob came").await;
        bob.join(&room).await.ok();
        rooms.push(room);
    }
    let mut sent = Vec::new();
    for number in 0..6 {
        let room = &rooms[number % 2];
        let mentions = json!({ "m.mentions": { "user_ids": if number == 3 { json!([bob.user_id]) } else { json!([]) } } });
        let content = text(&number.to_string(), &mentions);
        let event = alice.send(room, "m.room.message", &number.to_string(), &content).await.ok();
        sent.push(event["event_id"].as_str().unwrap().to_owned());
        // With it what came before is read.
        if number < 2 {
            bob.say(room, &number.to_string(), "my own").await;
        }
    }
    read(&bob, &rooms[0], &sent[2], "m.read").await;
    let mut listed = Vec::new();
    let mut from = String::new();
    loop {
        let page = bob.get(&format!("{path}?limit=2{from}")).await.ok();
        listed.extend(page["notifications"].as_array().unwrap().iter().cloned());
        match page["next_token"].as_str() {
            Some(token) => from = format!("&from={token}"),
            None => break,
        }
    }
    let ids: Vec<_> = listed.iter().map(|item| item["event"]["event_id"].as_str().unwrap()).collect();
    let expected: Vec<_> = sent.iter().rev().map(String::as_str).collect();
    assert_eq!(ids, expected);
    let reads: Vec<_> = listed.iter().map(|item| item["read"].as_bool().unwrap()).collect();
    assert_eq!(reads, [false, false, false, true, true, true]);
    assert_eq!(listed[0]["room_id"], json!(rooms[1]));
    assert!(listed[0]["event"].get("room_id").is_none());
    assert!(listed[0]["ts"].is_u64());
    assert_eq!(listed[0]["actions"][0], "notify");
    let highlights = bob.get(&format!("{path}?only=highlight")).await.ok();
    let highlights = highlights["notifications"].as_array().unwrap();
    assert_eq!((highlights.len(), &highlights[0]["event"]["event_id"]), (1, &json!(sent[3])));
    alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let newest = bob.get(&format!("{path}?limit=1")).await.ok();
    assert_eq!(newest["notifications"][0]["event"]["type"], "m.room.member");
    bob.get(&format!("{path}?from=x")).await.is(400, "M_INVALID_PARAM");
    bob.get(&format!("{path}?limit=x")).await.is(400, "M_INVALID_PARAM");
    server.anonymous().get(path).await.is(401, "M_MISSING_TOKEN");
}
