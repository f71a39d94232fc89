//! Profiles.

use serde_json::json;
use tests::{Server, segment};

fn path(user_id: &str, field: &str) -> String {
    format!("/_matrix/client/v3/profile/{}{field}", segment(user_id))
}

#[tokio::test]
async fn anybody_reads_a_profile_and_its_owner_changes_it() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let nobody = server.anonymous();
    let (name, avatar) = (path(&alice.user_id, "/displayname"), path(&alice.user_id, "/avatar_url"));
    alice.put(&name, &json!({ "displayname": "Alice" })).await.ok();
    alice.put(&avatar, &json!({ "avatar_url": "mxc://localhost/face" })).await.ok();
    assert_eq!(nobody.get(&name).await.ok(), json!({ "displayname": "Alice" }));
    assert_eq!(nobody.get(&avatar).await.ok(), json!({ "avatar_url": "mxc://localhost/face" }));
    let all = nobody.get(&path(&alice.user_id, "")).await.ok();
    assert_eq!(all, json!({ "displayname": "Alice", "avatar_url": "mxc://localhost/face" }));
    alice.delete(&avatar, &json!({})).await.ok();
    assert_eq!(nobody.get(&path(&alice.user_id, "")).await.ok(), json!({ "displayname": "Alice" }));
    nobody.get(&avatar).await.is(404, "M_NOT_FOUND");
    // Null does not remove, and is no string; an empty one is how clients of before v1.16 remove.
    alice.put(&name, &json!({ "displayname": null })).await.is(400, "M_INVALID_PARAM");
    alice.put(&avatar, &json!({ "avatar_url": null })).await.is(400, "M_INVALID_PARAM");
    assert_eq!(nobody.get(&name).await.ok(), json!({ "displayname": "Alice" }));
    alice.put(&name, &json!({ "displayname": "" })).await.ok();
    nobody.get(&name).await.is(404, "M_NOT_FOUND");
    for avatar_url in ["https://localhost/face", "mxc://localhost", "mxc://localhost/", "face"] {
        alice.put(&avatar, &json!({ "avatar_url": avatar_url })).await.is(400, "M_INVALID_PARAM");
    }
    alice.put(&avatar, &json!({ "avatar_url": "mxc://localhost/face" })).await.ok();
    alice.put(&avatar, &json!({ "avatar_url": "" })).await.ok();
    nobody.get(&avatar).await.is(404, "M_NOT_FOUND");
    for field in ["/nickname", "/BAD%20KEY"] {
        let field = path(&alice.user_id, field);
        alice.delete(&field, &json!({})).await.is(400, "M_INVALID_PARAM");
    }
    let unknown = format!("@nobody-at-all:{}", alice.server_name());
    nobody.get(&path(&unknown, "")).await.is(404, "M_NOT_FOUND");
    nobody.get(&path(&unknown, "/displayname")).await.is(404, "M_NOT_FOUND");
}

/// Spec: v1.16, "Profiles": custom fields, of at most 64 KiB for the whole profile.
#[tokio::test]
async fn a_profile_has_fields_of_any_kind_within_limits() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let field = path(&alice.user_id, "/org.example.language");
    alice.get(&field).await.is(404, "M_NOT_FOUND");
    let value = json!({ "org.example.language": { "spoken": ["en", "eo"] } });
    alice.put(&field, &value).await.ok();
    assert_eq!(server.anonymous().get(&field).await.ok(), value);
    let all = alice.get(&path(&alice.user_id, "")).await.ok();
    assert_eq!(all["org.example.language"], value["org.example.language"]);
    alice.put(&field, &json!({ "org.example.other": 1 })).await.is(400, "M_MISSING_PARAM");
    // Null is a value; only DELETE removes.
    alice.put(&field, &json!({ "org.example.language": null })).await.ok();
    assert_eq!(alice.get(&field).await.ok(), json!({ "org.example.language": null }));
    alice.put(&path(&alice.user_id, "/m.tz"), &json!({ "m.tz": null })).await.is(400, "M_INVALID_PARAM");
    alice.put(&field, &value).await.ok();
    let large = json!({ "org.example.language": "x".repeat(70_000) });
    alice.put(&field, &large).await.is(400, "M_PROFILE_TOO_LARGE");
    let long = format!("org.example.{}", "x".repeat(256));
    let path_of_long = path(&alice.user_id, &format!("/{long}"));
    alice.put(&path_of_long, &json!({ long: 1 })).await.is(400, "M_KEY_TOO_LARGE");
    alice.delete(&field, &json!({})).await.ok();
    alice.get(&field).await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn rooms_show_a_new_name_and_avatar() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.token_of_sync().await;
    alice.put(&path(&alice.user_id, "/displayname"), &json!({ "displayname": "Alice" })).await.ok();
    let change = bob.event_of_sync(&since, &room, |event| event["type"] == "m.room.member").await;
    assert_eq!(change["state_key"], alice.user_id);
    assert_eq!(change["content"]["displayname"], "Alice");
    assert_eq!(change["content"]["membership"], "join");
    let member = alice.state(&room, "m.room.member", &alice.user_id).await.ok();
    assert_eq!(member["displayname"], "Alice");
    let joined = bob.get(&tests::Client::room(&room, "joined_members")).await.ok();
    assert_eq!(joined["joined"][&alice.user_id]["display_name"], "Alice");
}
