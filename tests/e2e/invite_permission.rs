//! Users who want no invites.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use crate::federation::User;

async fn set(client: &Client, content: Value) {
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.invite_permission_config",
        segment(&client.user_id)
    );
    client.put(&path, &content).await.ok();
}

#[tokio::test]
async fn who_blocks_invites_gets_none() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let before = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let room = alice.create_room(json!({})).await;
    set(&bob, json!({ "default_action": "block" })).await;
    alice.moderate("invite", &room, &bob.user_id).await.is(403, "M_INVITE_BLOCKED");
    let member = json!({ "membership": "invite" });
    alice.set_state(&room, "m.room.member", &bob.user_id, &member).await.is(403, "M_INVITE_BLOCKED");
    let create = json!({ "invite": [bob.user_id] });
    alice.post("/_matrix/client/v3/createRoom", &create).await.is(403, "M_INVITE_BLOCKED");
    alice.state(&room, "m.room.member", &bob.user_id).await.is(404, "M_NOT_FOUND");
    let sync = bob.sync("timeout=0").await;
    assert!(sync["rooms"]["invite"][&before].is_null(), "{sync}");
    let list =
        json!({ "lists": { "all": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } } });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    assert_eq!(bob.post(path, &list).await.ok()["lists"]["all"]["count"], 0);
    // A join needs no invite to be shown.
    bob.join(&before).await.ok();
    set(&bob, json!({})).await;
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    let sync = bob.sync("timeout=0").await;
    assert!(sync["rooms"]["invite"][&room].is_object(), "{sync}");
}

#[tokio::test]
async fn another_servers_invite_is_blocked_too() {
    let (here, there) = tokio::join!(Server::start_federating(""), Server::start_federating(""));
    let (alice, bob) = (here.client("alice").await, there.client("bob").await);
    set(&bob, json!({ "default_action": "block" })).await;
    let room = alice.create_room(json!({})).await;
    alice.moderate("invite", &room, &bob.user_id).await.is(403, "M_INVITE_BLOCKED");
    set(&bob, json!({ "default_action": "allow" })).await;
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    User(bob).is_invited(&room).await;
}
