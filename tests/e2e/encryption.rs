//! Keys, to-device messages, device lists, cross-signing, key backups.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Server, by_password, segment};

const KEYS: &str = "/_matrix/client/v3/keys";
const BACKUP: &str = "/_matrix/client/v3/room_keys";

fn device_keys(user: &str, device: &str) -> Value {
    json!({
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): "ZWQ", format!("curve25519:{device}"): "Y3VydmU" },
        "signatures": {},
    })
}

fn key_object(key: &str) -> Value {
    json!({ "key": key, "signatures": {} })
}

async fn upload(client: &Client) -> Value {
    let body = json!({
        "device_keys": device_keys(&client.user_id, &client.device_id),
        "one_time_keys": {
            "signed_curve25519:AAAA": key_object("a"), "signed_curve25519:AAAB": key_object("b"),
        },
        "fallback_keys": { "signed_curve25519:FB": { "key": "f", "fallback": true, "signatures": {} } },
    });
    client.post(&format!("{KEYS}/upload"), &body).await.ok()
}

async fn claim(client: &Client, of: &Client) -> Value {
    let body = json!({ "one_time_keys": { &of.user_id: { &of.device_id: "signed_curve25519" } } });
    let answer = client.post(&format!("{KEYS}/claim"), &body).await.ok();
    answer["one_time_keys"][&of.user_id][&of.device_id].clone()
}

async fn query(client: &Client, user: &str) -> Value {
    client.post(&format!("{KEYS}/query"), &json!({ "device_keys": { user: [] } })).await.ok()
}

#[tokio::test]
async fn one_time_keys_are_claimed_once_and_then_the_fallback_key() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    assert_eq!(upload(&alice).await["one_time_key_counts"]["signed_curve25519"], 2);
    let first = alice.sync("timeout=0").await;
    assert_eq!(first["device_one_time_keys_count"]["signed_curve25519"], 2);
    assert_eq!(first["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
    assert_eq!(claim(&bob, &alice).await, json!({ "signed_curve25519:AAAA": key_object("a") }));
    assert_eq!(claim(&bob, &alice).await, json!({ "signed_curve25519:AAAB": key_object("b") }));
    for _ in 0..2 {
        let fallback = json!({ "signed_curve25519:FB": { "key": "f", "fallback": true, "signatures": {} } });
        assert_eq!(claim(&bob, &alice).await, fallback);
    }
    let since = first["next_batch"].as_str().unwrap();
    let next = alice.sync(&format!("since={since}&timeout=5000")).await;
    assert_eq!(next["device_one_time_keys_count"]["signed_curve25519"], 0);
    assert_eq!(next["device_unused_fallback_key_types"], json!([]));
    // The same key again is fine, another one under its name is not.
    let again = |key: &str| json!({ "one_time_keys": { "signed_curve25519:AAAC": { "key": key } } });
    alice.post(&format!("{KEYS}/upload"), &again("c")).await.ok();
    alice.post(&format!("{KEYS}/upload"), &again("c")).await.ok();
    alice.post(&format!("{KEYS}/upload"), &again("d")).await.is(400, "M_INVALID_PARAM");
}

/// Clients number their keys in a base that is not in the order of its digits' codes.
#[tokio::test]
async fn one_time_keys_are_given_in_the_order_of_their_upload_and_once_for_all() {
    let mut server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let ids = ["AAAAz", "AAAA0", "AAAAB", "AAAAa"];
    for id in ids {
        let body = json!({ "one_time_keys": { format!("signed_curve25519:{id}"): key_object(id) } });
        alice.post(&format!("{KEYS}/upload"), &body).await.ok();
    }
    for id in &ids[..2] {
        assert_eq!(claim(&bob, &alice).await, json!({ format!("signed_curve25519:{id}"): key_object(id) }));
    }
    server.kill();
    server.restart().await;
    // An upload that is tried again, since its answer was lost, does not bring back what was given away.
    for id in &ids[..2] {
        let body = json!({ "one_time_keys": { format!("signed_curve25519:{id}"): key_object(id) } });
        let counts = alice.post(&format!("{KEYS}/upload"), &body).await.ok();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 2);
    }
    for id in &ids[2..] {
        assert_eq!(claim(&bob, &alice).await, json!({ format!("signed_curve25519:{id}"): key_object(id) }));
    }
    let many: serde_json::Map<_, _> =
        (0..1001).map(|n| (format!("signed_curve25519:{n}"), key_object("x"))).collect();
    let body = json!({ "one_time_keys": many });
    alice.post(&format!("{KEYS}/upload"), &body).await.is(403, "M_FORBIDDEN");
    let huge = json!({ "one_time_keys": { "signed_curve25519:H": key_object(&"x".repeat(10_000)) } });
    alice.post(&format!("{KEYS}/upload"), &huge).await.is(400, "M_INVALID_PARAM");
}

/// Claims race with each other and with a kill: no key is given twice.
#[tokio::test]
async fn claims_that_race_and_a_kill_give_no_key_twice() {
    let mut server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let keys: serde_json::Map<_, _> =
        (0..60).map(|n| (format!("signed_curve25519:K{n}"), key_object(&n.to_string()))).collect();
    alice.post(&format!("{KEYS}/upload"), &json!({ "one_time_keys": keys })).await.ok();
    let body = json!({ "one_time_keys": { &alice.user_id: { &alice.device_id: "signed_curve25519" } } });
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (bob, body) = (bob.clone(), body.clone());
        claims.spawn(async move {
            let answer = bob.attempt(Method::POST, &format!("{KEYS}/claim"), Some(&body)).await;
            answer.ok().map(|answer| answer.body)
        });
    }
    let mut given = Vec::new();
    let name = |answer: &Value| {
        let keys = answer["one_time_keys"][&alice.user_id][&alice.device_id].as_object()?;
        keys.keys().next().cloned()
    };
    while let Some(answer) = claims.join_next().await {
        given.extend(answer.unwrap().as_ref().and_then(name));
        if given.len() == 10 {
            server.kill();
        }
    }
    server.restart().await;
    while let Some(key) = name(&bob.post(&format!("{KEYS}/claim"), &body).await.ok()) {
        given.push(key);
    }
    let told = given.len();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), told, "a key was given twice");
    assert!(told <= 60);
}

#[tokio::test]
async fn keys_are_found_by_others_and_go_with_their_device() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let phone = alice.another_device(&alice.password()).await;
    upload(&alice).await;
    upload(&phone).await;
    let found = query(&bob, &alice.user_id).await;
    assert_eq!(found["device_keys"][&alice.user_id].as_object().unwrap().len(), 2);
    let body = json!({ "device_keys": { &alice.user_id: [&phone.device_id], "@x:elsewhere.test": [] } });
    let found = bob.post(&format!("{KEYS}/query"), &body).await.ok();
    assert_eq!(found["device_keys"][&alice.user_id].as_object().unwrap().len(), 1);
    assert!(found["failures"]["elsewhere.test"].is_object(), "{found}");
    let forged = json!({ "device_keys": device_keys(&alice.user_id, "OTHER") });
    alice.post(&format!("{KEYS}/upload"), &forged).await.is(400, "M_INVALID_PARAM");
    bob.post(&format!("{KEYS}/query"), &json!({ "device_keys": 1 })).await.is(400, "M_BAD_JSON");

    phone.post("/_matrix/client/v3/logout", &json!({})).await.ok();
    let found = query(&bob, &alice.user_id).await;
    assert_eq!(found["device_keys"][&alice.user_id].as_object().unwrap().len(), 1);
    assert_eq!(claim(&bob, &phone).await, Value::Null);
    // Else clients ask for ever.
    let found = query(&bob, "@nobody:localhost").await;
    assert_eq!(found["device_keys"], json!({ "@nobody:localhost": {} }));
}

fn to_device(txn: &str) -> String {
    format!("/_matrix/client/v3/sendToDevice/m.test/{txn}")
}

fn bodies(response: &Value) -> Vec<u64> {
    let events = response["to_device"]["events"].as_array();
    events.into_iter().flatten().map(|event| event["content"]["n"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn messages_reach_each_device_once_and_in_order() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let phone = bob.another_device(&bob.password()).await;
    let since = bob.token_of_sync().await;
    let message = |device: &str, n: u64| json!({ "messages": { &bob.user_id: { device: { "n": n } } } });
    alice.put(&to_device("1"), &message("*", 1)).await.ok();
    alice.put(&to_device("1"), &message("*", 1)).await.ok();
    alice.put(&to_device("2"), &message(&bob.device_id, 2)).await.ok();
    alice.put(&to_device("3"), &message("NOBODY", 3)).await.ok();
    alice.put(&to_device("4"), &json!({ "messages": { &bob.user_id: 4 } })).await.is(400, "M_BAD_JSON");
    let got = bob.sync(&format!("since={since}&timeout=5000")).await;
    assert_eq!(bodies(&got), [1, 2]);
    assert_eq!(got["to_device"]["events"][0]["sender"], alice.user_id.as_str());
    assert_eq!(got["to_device"]["events"][0]["type"], "m.test");
    // A client that did not get the answer asks again.
    assert_eq!(bodies(&bob.sync(&format!("since={since}&timeout=0")).await), [1, 2]);
    let next = got["next_batch"].as_str().unwrap();
    assert!(bodies(&bob.sync(&format!("since={next}&timeout=0")).await).is_empty());
    assert_eq!(bodies(&phone.sync("timeout=0").await), [1]);
}

/// A transaction should have one message for each device; what is sent to all of them and to one gets there all the same.
#[tokio::test]
async fn a_message_to_all_devices_and_one_to_a_single_device_both_arrive() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let phone = bob.another_device(&bob.password()).await;
    let since = bob.token_of_sync().await;
    let messages = json!({ &bob.user_id: { "*": { "n": 1 }, &bob.device_id: { "n": 2 } } });
    alice.put(&to_device("both"), &json!({ "messages": messages })).await.ok();
    let got = bob.sync(&format!("since={since}&timeout=5000")).await;
    assert_eq!(bodies(&got), [1, 2]);
    assert_eq!(bodies(&phone.sync("timeout=0").await), [1]);
}

#[tokio::test]
async fn a_full_inbox_comes_in_pages() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for n in 0..130 {
        let body = json!({ "messages": { &bob.user_id: { "*": { "n": n } } } });
        alice.put(&to_device(&n.to_string()), &body).await.ok();
    }
    let first = bob.sync("timeout=0").await;
    let since = first["next_batch"].as_str().unwrap();
    let second = bob.sync(&format!("since={since}&timeout=0")).await;
    let mut all = bodies(&first);
    assert_eq!(all.len(), 100);
    all.extend(bodies(&second));
    assert_eq!(all, (0..130).collect::<Vec<_>>());
}

fn users(response: &Value, which: &str) -> Vec<String> {
    let users = response["device_lists"][which].as_array();
    users.into_iter().flatten().map(|user| user.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn messages_have_a_size_and_pages_of_them_too() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let mut since = bob.token_of_sync().await;
    let message = |n: usize, size: usize| json!({ "messages": { &bob.user_id: { "*": { "n": n, "text": "x".repeat(size) } } } });
    alice.put(&to_device("large"), &message(0, 70_000)).await.is(413, "M_TOO_LARGE");
    for n in 0..20 {
        alice.put(&to_device(&n.to_string()), &message(n, 60_000)).await.ok();
    }
    let mut got = Vec::new();
    while got.len() < 20 {
        let page = bob.sync_until(&since, |response| !bodies(response).is_empty()).await;
        assert!(bodies(&page).len() <= 17, "{} messages of 60 kB", bodies(&page).len());
        got.extend(bodies(&page));
        page["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    assert_eq!(got, (0..20).collect::<Vec<_>>());
    let everywhere: serde_json::Map<_, _> =
        (0..1001).map(|n| (format!("@user:server{n}.test"), json!({ "*": {} }))).collect();
    alice.put(&to_device("all"), &json!({ "messages": everywhere })).await.is(413, "M_TOO_LARGE");
}

#[tokio::test]
async fn signatures_on_keys_do_not_pile_up() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let signed = |name: &str| {
        let mut keys = device_keys(&alice.user_id, &alice.device_id);
        keys["signatures"] = json!({ &alice.user_id: { format!("ed25519:{name}"): "x".repeat(20_000) } });
        json!({ "device_keys": keys })
    };
    alice.post(&format!("{KEYS}/upload"), &signed("ONE")).await.ok();
    alice.post(&format!("{KEYS}/upload"), &signed("TWO")).await.is(413, "M_TOO_LARGE");
    alice.post(&format!("{KEYS}/upload"), &signed("ONE")).await.ok();
}

#[tokio::test]
async fn those_who_share_a_room_hear_of_device_changes() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let since = alice.token_of_sync().await;
    let carols = carol.token_of_sync().await;
    bob.join(&room).await.ok();
    let joined = alice.sync_until(&since, |response| !users(response, "changed").is_empty()).await;
    assert_eq!(users(&joined, "changed"), [bob.user_id.as_str()]);
    let since = joined["next_batch"].as_str().unwrap().to_owned();
    upload(&bob).await;
    let changed = alice.sync_until(&since, |response| !users(response, "changed").is_empty()).await;
    assert_eq!(users(&changed, "changed"), [bob.user_id.as_str()]);
    let since = changed["next_batch"].as_str().unwrap().to_owned();
    bob.leave(&room).await.ok();
    let left = alice.sync_until(&since, |response| !users(response, "left").is_empty()).await;
    assert_eq!(users(&left, "left"), [bob.user_id.as_str()]);
    let silent = carol.sync(&format!("since={carols}&timeout=0")).await;
    assert_eq!(silent["device_lists"], Value::Null);
    let to = left["next_batch"].as_str().unwrap();
    let changes = alice.get(&format!("{KEYS}/changes?from={since}&to={to}")).await.ok();
    assert_eq!(changes["left"], json!([bob.user_id]));
    alice.get(&format!("{KEYS}/changes?from=x&to={to}")).await.is(400, "M_INVALID_PARAM");
    alice.get(&format!("{KEYS}/changes?to={to}")).await.is(400, "M_MISSING_PARAM");
}

/// Whoever was away for a moment may have new devices that nobody was told of.
#[tokio::test]
async fn those_who_left_and_came_back_have_changed_devices() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = alice.token_of_sync().await;
    let rename = async |name: &str| {
        let path = format!("/_matrix/client/v3/profile/{}/displayname", segment(&bob.user_id));
        bob.put(&path, &json!({ "displayname": name })).await.ok();
        let is_it = |event: &Value| event["content"]["displayname"] == name;
        alice.event_of_sync(&since, &room, is_it).await;
    };
    rename("Rob").await;
    rename("Robert").await;
    let sync = alice.sync(&format!("since={since}&timeout=0")).await;
    assert!(sync["device_lists"].is_null(), "another name is no other device: {sync}");
    let since = sync["next_batch"].as_str().unwrap();
    bob.leave(&room).await.ok();
    bob.join(&room).await.ok();
    let sync = alice.sync(&format!("since={since}&timeout=0")).await;
    assert_eq!(users(&sync, "changed"), [bob.user_id.as_str()]);
    assert!(users(&sync, "left").is_empty(), "{sync}");
    let to = sync["next_batch"].as_str().unwrap();
    let changes = alice.get(&format!("{KEYS}/changes?from={since}&to={to}")).await.ok();
    assert_eq!(changes["changed"], json!([bob.user_id]));
}

#[tokio::test]
async fn inboxes_and_keys_and_device_changes_survive_a_kill() {
    let mut server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.token_of_sync().await;
    upload(&alice).await;
    let first = claim(&bob, &alice).await;
    let body = json!({ "messages": { &bob.user_id: { "*": { "n": 7 } } } });
    alice.put(&to_device("1"), &body).await.ok();
    server.kill();
    server.restart().await;
    let second = claim(&bob, &alice).await;
    assert_ne!(first, second, "a key that was given is not given again");
    alice.put(&to_device("1"), &body).await.ok();
    let response = bob.sync(&format!("since={since}&timeout=0")).await;
    assert_eq!(bodies(&response), [7]);
    assert_eq!(users(&response, "changed"), [alice.user_id.as_str()]);
}

fn version(algorithm: &str) -> Value {
    json!({ "algorithm": algorithm, "auth_data": { "public_key": "a2V5" } })
}

fn key(first: u64, is_verified: bool) -> Value {
    json!({
        "first_message_index": first,
        "forwarded_count": 0,
        "is_verified": is_verified,
        "session_data": { "ciphertext": "x" },
    })
}

#[tokio::test]
async fn backups_keep_the_better_key() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    alice.get(&format!("{BACKUP}/version")).await.is(404, "M_NOT_FOUND");
    let created = alice.post(&format!("{BACKUP}/version"), &version("m.test")).await.ok();
    assert_eq!(created["version"], "1");
    bob.get(&format!("{BACKUP}/version/1")).await.is(404, "M_NOT_FOUND");
    let room = "!room:example.org";
    let one = format!("{BACKUP}/keys/{}/{}?version=1", segment(room), segment("session+/="));
    let put = alice.put(&one, &key(5, false)).await.ok();
    assert_eq!(put["count"], 1);
    let etag = put["etag"].clone();
    assert_eq!(alice.put(&one, &key(9, false)).await.ok()["etag"], etag, "a worse key changes nothing");
    assert_ne!(alice.put(&one, &key(3, false)).await.ok()["etag"], etag);
    alice.put(&one, &key(9, true)).await.ok();
    assert_eq!(alice.get(&one).await.ok()["first_message_index"], 9);
    let of_room = format!("{BACKUP}/keys/{}?version=1", segment(room));
    alice.put(&of_room, &json!({ "sessions": { "second": key(0, false) } })).await.ok();
    let all = format!("{BACKUP}/keys?version=1");
    let body = json!({ "rooms": { "!other:example.org": { "sessions": { "third": key(0, false) } } } });
    assert_eq!(alice.put(&all, &body).await.ok()["count"], 3);
    assert_eq!(alice.get(&all).await.ok()["rooms"][room]["sessions"].as_object().unwrap().len(), 2);
    assert_eq!(alice.get(&of_room).await.ok()["sessions"].as_object().unwrap().len(), 2);
    alice.put(&all, &json!({ "rooms": 1 })).await.is(400, "M_BAD_JSON");
    alice.put(&one, &json!({ "first_message_index": 1 })).await.is(400, "M_BAD_JSON");
    alice.put(&format!("{BACKUP}/keys"), &body).await.is(400, "M_MISSING_PARAM");
    assert_eq!(alice.delete(&one, &json!({})).await.ok()["count"], 2);
    alice.get(&one).await.is(404, "M_NOT_FOUND");
    assert_eq!(alice.delete(&of_room, &json!({})).await.ok()["count"], 1);

    let mut other = version("m.test");
    other["auth_data"]["public_key"] = "b3RoZXI".into();
    alice.put(&format!("{BACKUP}/version/1"), &other).await.ok();
    alice.put(&format!("{BACKUP}/version/1"), &version("m.other")).await.is(400, "M_INVALID_PARAM");
    assert_eq!(alice.get(&format!("{BACKUP}/version")).await.ok()["auth_data"], other["auth_data"]);
    alice.post(&format!("{BACKUP}/version"), &version("m.test")).await.ok();
    let refused = alice.put(&all, &body).await;
    refused.is(403, "M_WRONG_ROOM_KEYS_VERSION");
    assert_eq!(refused.body["current_version"], "2");
    for _ in 0..2 {
        alice.delete(&format!("{BACKUP}/version/2"), &json!({})).await.ok();
    }
    alice.delete(&format!("{BACKUP}/version/3"), &json!({})).await.is(404, "M_NOT_FOUND");
    alice.get(&format!("{BACKUP}/version/2")).await.is(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&format!("{BACKUP}/version")).await.ok()["version"], "1");
    assert_eq!(alice.post(&format!("{BACKUP}/version"), &version("m.test")).await.ok()["version"], "3");
}

#[tokio::test]
async fn cross_signing_keys_are_replaced_only_with_the_password() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let path = format!("{KEYS}/device_signing/upload");
    let master = |public: &str| {
        json!({ "master_key": {
            "user_id": alice.user_id, "usage": ["master"], "keys": { format!("ed25519:{public}"): public },
        } })
    };
    alice
        .post(
            &format!("{KEYS}/upload"),
            &json!({ "device_keys": device_keys(&alice.user_id, &alice.device_id) }),
        )
        .await
        .ok();
    alice.post(&path, &master(&alice.device_id)).await.is(403, "M_FORBIDDEN");
    alice.post(&path, &master("Zmlyc3Q")).await.ok();
    alice.post(&path, &master("Zmlyc3Q")).await.ok();
    // Nor can a device take the name of a key.
    let mut login = by_password(&alice.user_id, &alice.password());
    login["device_id"] = "Zmlyc3Q".into();
    bob.post("/_matrix/client/v3/login", &login).await.is(403, "M_FORBIDDEN");
    assert_eq!(alice.post(&path, &master("c2Vjb25k")).await.status, 401);
    bob.post(&path, &master("Zmlyc3Q")).await.is(400, "M_INVALID_PARAM");
    let found = query(&bob, &alice.user_id).await;
    assert!(found["master_keys"][&alice.user_id]["keys"]["ed25519:Zmlyc3Q"].is_string(), "{found}");
    alice.with_password(Method::POST, &path, master("c2Vjb25k")).await.ok();
    let found = query(&bob, &alice.user_id).await;
    assert!(found["master_keys"][&alice.user_id]["keys"]["ed25519:c2Vjb25k"].is_string(), "{found}");
    let unsigned = json!({ "self_signing_key": {
        "user_id": alice.user_id, "usage": ["self_signing"], "keys": { "ed25519:c2VsZg": "c2VsZg" },
    } });
    alice.post(&path, &unsigned).await.is(400, "M_INVALID_SIGNATURE");
    let mut of_bob = unsigned.clone();
    of_bob["self_signing_key"]["user_id"] = bob.user_id.as_str().into();
    bob.post(&path, &of_bob).await.is(400, "M_MISSING_PARAM");
    upload(&alice).await;
    let mut signed = device_keys(&alice.user_id, &alice.device_id);
    signed["signatures"] = json!({ &alice.user_id: { "ed25519:c2Vjb25k": "bm90IGEgc2lnbmF0dXJl" } });
    let body = json!({ &alice.user_id: { &alice.device_id: signed, "UNKNOWN": {} } });
    let answer = alice.post(&format!("{KEYS}/signatures/upload"), &body).await.ok();
    let failures = &answer["failures"][&alice.user_id];
    assert_eq!(failures[&alice.device_id]["errcode"], "M_INVALID_SIGNATURE");
    assert_eq!(failures["UNKNOWN"]["errcode"], "M_NOT_FOUND");
}

#[tokio::test]
async fn sliding_sync_has_messages_and_key_counts() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    upload(&bob).await;
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let mut body = json!({ "extensions": { "to_device": { "enabled": true }, "e2ee": { "enabled": true } } });
    let first = bob.post(&format!("{path}?timeout=0"), &body).await.ok();
    assert_eq!(first["extensions"]["e2ee"]["device_one_time_keys_count"]["signed_curve25519"], 2);
    let message = json!({ "messages": { &bob.user_id: { "*": { "n": 1 } } } });
    alice.put(&to_device("1"), &message).await.ok();
    claim(&alice, &bob).await;
    body["extensions"]["to_device"]["since"] = first["extensions"]["to_device"]["next_batch"].clone();
    let pos = first["pos"].as_str().unwrap();
    let next = bob.post(&format!("{path}?timeout=5000&pos={pos}"), &body).await.ok();
    assert_eq!(bodies(&next["extensions"]), [1]);
    assert_eq!(next["extensions"]["e2ee"]["device_one_time_keys_count"]["signed_curve25519"], 1);
}

mod dehydrated;
mod federation;
mod js;
mod sdk;
mod signing;
