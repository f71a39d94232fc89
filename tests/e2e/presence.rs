//! Presence.

use serde_json::json;
use tests::{Server, segment};

fn path(user_id: &str) -> String {
    format!("/_matrix/client/v3/presence/{}/status", segment(user_id))
}

#[tokio::test]
async fn presence_is_seen_by_those_who_share_a_room() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.token_of_sync().await;
    alice.put(&path(&alice.user_id), &json!({ "presence": "online", "status_msg": "tea" })).await.ok();
    let status = bob.get(&path(&alice.user_id)).await.ok();
    assert_eq!((&status["presence"], &status["status_msg"]), (&json!("online"), &json!("tea")));
    mallory.get(&path(&alice.user_id)).await.is(403, "M_FORBIDDEN");
    let find = |sync: &serde_json::Value| {
        let mut events = sync["presence"]["events"].as_array().into_iter().flatten();
        events.any(|event| event["sender"] == alice.user_id && event["content"]["status_msg"] == "tea")
    };
    bob.sync_until(&since, find).await;
    let offline = json!({ "presence": "unavailable" });
    alice.put(&path(&alice.user_id), &offline).await.ok();
    assert_eq!(bob.get(&path(&alice.user_id)).await.ok()["presence"], "unavailable");
    let unknown = json!({ "presence": "asleep" });
    assert_eq!(alice.put(&path(&alice.user_id), &unknown).await.status, 400);
}

#[tokio::test]
async fn a_sync_sets_presence_unless_told_otherwise() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    alice.sync("timeout=0&set_presence=unavailable").await;
    assert_eq!(alice.get(&path(&alice.user_id)).await.ok()["presence"], "unavailable");
    alice.sync("timeout=0").await;
    assert_eq!(alice.get(&path(&alice.user_id)).await.ok()["presence"], "online");
    alice.put(&path(&alice.user_id), &json!({ "presence": "unavailable" })).await.ok();
    alice.sync("timeout=0&set_presence=offline").await;
    assert_eq!(alice.get(&path(&alice.user_id)).await.ok()["presence"], "unavailable");
}

/// Neither's presence changes any more; both learn of it since they come to share a room.
#[tokio::test]
async fn presence_comes_with_a_room_that_is_shared_from_now_on() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for (client, status) in [(&alice, "tea"), (&bob, "coffee")] {
        let online = json!({ "presence": "online", "status_msg": status });
        client.put(&path(&client.user_id), &online).await.ok();
    }
    let (hers, his) = (alice.token_of_sync().await, bob.token_of_sync().await);
    bob.join(&room).await.ok();
    for (client, since, other, status) in [(&bob, his, &alice, "tea"), (&alice, hers, &bob, "coffee")] {
        let query = |since: &str| format!("since={since}&timeout=0&set_presence=offline");
        let sync = client.sync(&query(&since)).await;
        let events = sync["presence"]["events"].as_array().into_iter().flatten();
        let told: Vec<_> =
            events.map(|event| (event["sender"].clone(), event["content"]["status_msg"].clone())).collect();
        assert_eq!(told, [(json!(other.user_id), json!(status))]);
        let next = client.sync(&query(sync["next_batch"].as_str().unwrap())).await;
        assert!(next["presence"].is_null(), "{next}");
    }
}

/// Spec: "Events on Change of Profile Information".
#[tokio::test]
async fn presence_has_the_name_and_avatar_and_tells_of_new_ones() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.put(&path(&alice.user_id), &json!({ "presence": "online" })).await.ok();
    for (field, value) in [("displayname", "Alice"), ("avatar_url", "mxc://localhost/face")] {
        let since = bob.token_of_sync().await;
        let profile = format!("/_matrix/client/v3/profile/{}/{field}", segment(&alice.user_id));
        alice.put(&profile, &json!({ field: value })).await.ok();
        let is_told = |sync: &serde_json::Value| {
            let mut events = sync["presence"]["events"].as_array().into_iter().flatten();
            events.any(|event| {
                let content = &event["content"];
                event["sender"] == alice.user_id && content["presence"] == "online" && content[field] == value
            })
        };
        bob.sync_until(&since, is_told).await;
    }
    let first = bob.sync("timeout=0").await;
    let mut events = first["presence"]["events"].as_array().unwrap().iter();
    let of_alice = events.find(|event| event["sender"] == alice.user_id).unwrap();
    assert_eq!(of_alice["content"]["displayname"], "Alice");
    assert_eq!(of_alice["content"]["avatar_url"], "mxc://localhost/face");
}
