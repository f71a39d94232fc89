//! Locked and suspended accounts, and what administrators learn of them.

use serde_json::{Value, json};
use tests::{Client, Server, by_password, segment};

/// An administrator, made from the command line.
pub(crate) async fn administrator(server: &Server, name: &str) -> Client {
    let output = server.command(&["user", "create", name, "--admin"], "secret").await;
    assert!(output.status.success(), "{output:?}");
    let mut client = server.anonymous();
    client.user_id = format!("@{name}:{}", server.name());
    client.another_device("secret").await
}

fn path(action: &str, user: &str) -> String {
    format!("/_matrix/client/v1/admin/{action}/{}", segment(user))
}

#[tokio::test]
async fn a_locked_account_keeps_its_devices_but_cannot_use_them() {
    let server = Server::start().await;
    let root = administrator(&server, "root").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let lock = path("lock", &alice.user_id);
    assert_eq!(root.get(&lock).await.ok(), json!({ "locked": false }));
    assert_eq!(root.put(&lock, &json!({ "locked": true })).await.ok(), json!({ "locked": true }));
    assert_eq!(root.get(&lock).await.ok(), json!({ "locked": true }));
    for path in ["/_matrix/client/v3/sync", "/_matrix/client/v3/account/whoami"] {
        let refused = alice.get(path).await;
        refused.is(401, "M_USER_LOCKED");
        assert_eq!(refused.body["soft_logout"], true);
    }
    let log_in = by_password("alice", &alice.password());
    alice.post("/_matrix/client/v3/login", &log_in).await.is(401, "M_USER_LOCKED");
    alice.post("/_matrix/client/v3/login", &by_password("alice", "?")).await.is(403, "M_FORBIDDEN");
    root.put(&lock, &json!({ "locked": false })).await.ok();
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    root.put(&lock, &json!({ "locked": true })).await.ok();
    alice.post("/_matrix/client/v3/logout", &json!({})).await.ok();
    alice.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    bob.get(&lock).await.is(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_suspended_account_reads_leaves_and_takes_back() {
    let server = Server::start().await;
    let root = administrator(&server, "root").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = bob.create_room(json!({ "preset": "public_chat" })).await;
    let other = bob.create_room(json!({ "preset": "public_chat" })).await;
    let invited = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    alice.join(&room).await.ok();
    let said = alice.say(&room, "1", "something bad").await;
    let answer = bob.say(&room, "1", "oh").await;
    let levels = bob.state(&room, "m.room.power_levels", "").await.ok();
    let mut levels = levels.as_object().unwrap().clone();
    levels.insert("users".to_owned(), json!({ bob.user_id.clone(): 100, alice.user_id.clone(): 60 }));
    levels["users"].as_object_mut().unwrap().remove(&bob.user_id);
    bob.set_state(&room, "m.room.power_levels", "", &Value::Object(levels)).await.ok();
    let suspend = path("suspend", &alice.user_id);
    assert_eq!(root.get(&suspend).await.ok(), json!({ "suspended": false }));
    root.put(&suspend, &json!({ "suspended": true })).await.ok();
    let text = json!({ "msgtype": "m.text", "body": "more" });
    alice.send(&room, "m.room.message", "2", &text).await.is(403, "M_USER_SUSPENDED");
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "x" })).await.is(403, "M_USER_SUSPENDED");
    alice.join(&other).await.is(403, "M_USER_SUSPENDED");
    alice.join(&invited).await.is(403, "M_USER_SUSPENDED");
    alice.moderate("invite", &room, &root.user_id).await.is(403, "M_USER_SUSPENDED");
    let name = format!("/_matrix/client/v3/profile/{}/displayname", segment(&alice.user_id));
    alice.put(&name, &json!({ "displayname": "x" })).await.is(403, "M_USER_SUSPENDED");
    let redact = |event: &str, txn: &str| Client::room(&room, &format!("redact/{}/{txn}", segment(event)));
    alice.put(&redact(&answer, "3"), &json!({})).await.is(403, "M_USER_SUSPENDED");
    alice.put(&redact(&said, "4"), &json!({})).await.ok();
    let again = alice.another_device(&alice.password()).await;
    assert!(again.sync("timeout=0").await["rooms"]["join"][&room].is_object());
    again.leave(&invited).await.ok();
    again.leave(&room).await.ok();
    root.put(&suspend, &json!({ "suspended": false })).await.ok();
    alice.join(&room).await.ok();
}

#[tokio::test]
async fn only_administrators_moderate_and_not_each_other() {
    let server = Server::start().await;
    let root = administrator(&server, "root").await;
    let boss = administrator(&server, "boss").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for (action, field) in [("lock", "locked"), ("suspend", "suspended")] {
        let on = json!({ field: true });
        for user in [&bob.user_id, &root.user_id, "@nobody:localhost", "nonsense"] {
            alice.get(&path(action, user)).await.is(403, "M_FORBIDDEN");
            alice.put(&path(action, user), &on).await.is(403, "M_FORBIDDEN");
        }
        root.get(&path(action, &boss.user_id)).await.is(403, "M_FORBIDDEN");
        root.put(&path(action, &boss.user_id), &on).await.is(403, "M_FORBIDDEN");
        root.put(&path(action, &root.user_id), &on).await.is(403, "M_FORBIDDEN");
        root.get(&path(action, "@nobody:localhost")).await.is(404, "M_NOT_FOUND");
        root.put(&path(action, "@bob:elsewhere.example"), &on).await.is(400, "M_INVALID_PARAM");
        root.put(&path(action, "nonsense"), &on).await.is(400, "M_INVALID_PARAM");
        root.put(&path(action, &bob.user_id), &json!({})).await.is(400, "M_MISSING_PARAM");
        root.put(&path(action, &bob.user_id), &json!({ field: 1 })).await.is(400, "M_BAD_JSON");
        let anonymous = server.anonymous();
        anonymous.put(&path(action, &bob.user_id), &on).await.is(401, "M_MISSING_TOKEN");
    }
    let able = root.get("/_matrix/client/v3/capabilities").await.ok();
    assert_eq!(able["capabilities"]["m.account_moderation"], json!({ "lock": true, "suspend": true }));
    let unable = alice.get("/_matrix/client/v3/capabilities").await.ok();
    assert!(unable["capabilities"]["m.account_moderation"].is_null());
}

#[tokio::test]
async fn whois_tells_users_of_themselves_and_administrators_of_all() {
    let server = Server::start().await;
    let root = administrator(&server, "root").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let whois = |user: &str| format!("/_matrix/client/v3/admin/whois/{}", segment(user));
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    for asker in [&alice, &root] {
        let answer = asker.get(&whois(&alice.user_id)).await.ok();
        assert_eq!(answer["user_id"], alice.user_id);
        assert!(answer["devices"][&alice.device_id]["sessions"].is_array(), "{answer}");
    }
    bob.get(&whois(&alice.user_id)).await.is(403, "M_FORBIDDEN");
    root.get(&whois("@nobody:localhost")).await.is(404, "M_NOT_FOUND");
    root.get(&whois("@bob:elsewhere.example")).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn accounts_are_locked_and_suspended_from_the_command_line() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let run = async |server: &Server, command: &str| {
        let output = server.command(&["user", command, "alice"], "").await;
        assert!(output.status.success(), "{command}: {output:?}");
    };
    run(&server, "lock").await;
    alice.get("/_matrix/client/v3/account/whoami").await.is(401, "M_USER_LOCKED");
    run(&server, "suspend").await;
    server.stop().await;
    run(&server, "unlock").await;
    server.restart().await;
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    alice.post("/_matrix/client/v3/createRoom", &json!({})).await.is(403, "M_USER_SUSPENDED");
    let list = server.command(&["user", "list"], "").await;
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), "@alice:localhost (suspended)");
    run(&server, "unsuspend").await;
    alice.post("/_matrix/client/v3/createRoom", &json!({})).await.ok();
    let output = server.command(&["user", "lock", "nobody"], "").await;
    assert!(!output.status.success());
}
