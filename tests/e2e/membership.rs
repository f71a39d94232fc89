//! Joining, inviting, leaving, banning, knocking.

use serde_json::json;
use tests::{Client, Server, segment};

#[tokio::test]
async fn an_invite_lets_one_in_and_a_ban_keeps_one_out() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    bob.join(&room).await.is(403, "M_FORBIDDEN");
    bob.moderate("invite", &room, &alice.user_id).await.is(403, "M_FORBIDDEN");
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.join(&room).await.ok();
    bob.join(&room).await.ok();
    bob.moderate("kick", &room, &alice.user_id).await.is(403, "M_FORBIDDEN");
    alice.moderate("unban", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    alice.moderate("ban", &room, &bob.user_id).await.ok();
    bob.join(&room).await.is(403, "M_FORBIDDEN");
    alice.moderate("invite", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    bob.send(&room, "m.room.message", "1", &json!({ "body": "?" })).await.is(403, "M_FORBIDDEN");
    alice.moderate("unban", &room, &bob.user_id).await.ok();
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.leave(&room).await.ok();
    alice.moderate("kick", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    let joined = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"], json!([room]));
    let joined = bob.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"], json!([]));
}

#[tokio::test]
async fn a_knock_is_answered_by_an_invite() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice.create_room(json!({ "room_version": "11", "initial_state": [rule] })).await;
    bob.join(&room).await.is(403, "M_FORBIDDEN");
    let knock = format!("/_matrix/client/v3/knock/{}", segment(&room));
    bob.post(&knock, &json!({ "reason": "please" })).await.ok();
    let sync = bob.sync("timeout=0").await;
    let stripped = sync["rooms"]["knock"][&room]["knock_state"]["events"].as_array().unwrap().clone();
    assert!(stripped.iter().any(|event| event["type"] == "m.room.create"));
    let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!((&member["membership"], &member["reason"]), (&json!("knock"), &json!("please")));
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.join(&room).await.ok();
    let closed = alice.create_room(json!({})).await;
    let knock = format!("/_matrix/client/v3/knock/{}", segment(&closed));
    bob.post(&knock, &json!({})).await.is(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_restricted_room_lets_in_the_members_of_another() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let club = alice.create_room(json!({ "preset": "public_chat" })).await;
    for (version, rule) in [("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")] {
        let content =
            json!({ "join_rule": rule, "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let state = json!([{ "type": "m.room.join_rules", "content": content }]);
        let room = alice.create_room(json!({ "room_version": version, "initial_state": state })).await;
        bob.leave(&club).await;
        bob.join(&room).await.is(403, "M_FORBIDDEN");
        bob.join(&club).await.ok();
        bob.join(&room).await.ok();
        let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
        assert_eq!(member["join_authorised_via_users_server"], alice.user_id, "version {version}");
    }
}

#[tokio::test]
async fn who_left_sees_what_was_and_may_forget_it() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "before" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "for bob").await;
    bob.post(&Client::room(&room, "forget"), &json!({})).await.is(400, "M_INVALID_PARAM");
    bob.leave(&room).await.ok();
    alice.say(&room, "2", "not for bob").await;
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "after" })).await.ok();
    assert_eq!(bob.state(&room, "m.room.name", "").await.ok()["name"], "before");
    let messages = bob.all_messages(&room).await;
    let bodies: Vec<_> = messages.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    assert_eq!(bodies, ["for bob"]);
    bob.post(&Client::room(&room, "forget"), &json!({})).await.ok();
    bob.get(&Client::room(&room, "messages?dir=b")).await.is(403, "M_FORBIDDEN");
    let stranger = server.client("carol").await;
    stranger.get(&Client::room(&room, "messages?dir=b")).await.is(403, "M_FORBIDDEN");
    stranger.get(&Client::room(&room, "state")).await.is(403, "M_FORBIDDEN");
    stranger.get(&Client::room("!nowhere:localhost", "state")).await.is(403, "M_FORBIDDEN");
}
