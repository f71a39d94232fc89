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
    alice.moderate("unban", &room, &bob.user_id).await.is(403, "M_BAD_STATE");
    alice.moderate("ban", &room, &bob.user_id).await.ok();
    bob.join(&room).await.is(403, "M_FORBIDDEN");
    alice.moderate("invite", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    bob.send(&room, "m.room.message", "1", &json!({ "msgtype": "m.text", "body": "?" }))
        .await
        .is(403, "M_FORBIDDEN");
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
async fn who_cannot_be_let_in_here_is_told_what_the_client_api_says() {
    let server = Server::start().await;
    let [alice, boss, mallory] = server.clients(["alice", "boss", "mallory"]).await;
    let club = alice.create_room(json!({ "preset": "public_chat" })).await;
    mallory.join(&club).await.ok();
    let restricted = |room: &str| {
        let allow = json!([{ "type": "m.room_membership", "room_id": room }]);
        json!([{ "type": "m.room.join_rules", "content": { "join_rule": "restricted", "allow": allow } }])
    };
    // Nobody here knows who is in that room.
    let state = restricted("!elsewhere:example.org");
    let unknown = alice.create_room(json!({ "room_version": "11", "initial_state": state })).await;
    mallory.join(&unknown).await.is(403, "M_FORBIDDEN");
    // Nobody who is left may invite.
    let state = restricted(&club);
    let lost = boss.create_room(json!({ "room_version": "11", "initial_state": state })).await;
    alice.join(&club).await.ok();
    boss.moderate("invite", &lost, &alice.user_id).await.ok();
    alice.join(&lost).await.ok();
    let mut levels = boss.state(&lost, "m.room.power_levels", "").await.ok();
    levels["invite"] = json!(100);
    boss.set_state(&lost, "m.room.power_levels", "", &levels).await.ok();
    boss.leave(&lost).await.ok();
    mallory.join(&lost).await.is(403, "M_FORBIDDEN");
}

/// Spec: "Events on Change of Profile Information".
#[tokio::test]
async fn memberships_that_are_sent_as_state_have_the_profile_too() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let name = json!({ "displayname": "Bob" });
    let profile = format!("/_matrix/client/v3/profile/{}/displayname", segment(&bob.user_id));
    bob.put(&profile, &name).await.ok();
    let state = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = alice.create_room(json!({ "initial_state": state })).await;
    for (client, membership) in [(&bob, "knock"), (&alice, "invite"), (&bob, "join")] {
        let content = json!({ "membership": membership });
        client.set_state(&room, "m.room.member", &bob.user_id, &content).await.ok();
        let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
        assert_eq!(member, json!({ "membership": membership, "displayname": "Bob" }));
    }
    // What the event says stands.
    let content = json!({ "membership": "join", "displayname": "Bob of this room" });
    bob.set_state(&room, "m.room.member", &bob.user_id, &content).await.ok();
    assert_eq!(alice.state(&room, "m.room.member", &bob.user_id).await.ok(), content);
    let content = json!({ "membership": "leave" });
    bob.set_state(&room, "m.room.member", &bob.user_id, &content).await.ok();
    assert_eq!(alice.state(&room, "m.room.member", &bob.user_id).await.ok(), content);
}

#[tokio::test]
async fn who_left_sees_what_was_and_may_forget_it() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "before" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "for bob").await;
    bob.post(&Client::room(&room, "forget"), &json!({})).await.is(400, "M_UNKNOWN");
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

#[tokio::test]
async fn a_reason_is_kept_with_each_change() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let act = async |client: &Client, verb: &str, user: Option<&Client>| {
        let mut body = json!({ "reason": format!("why {verb}") });
        if let Some(user) = user {
            body["user_id"] = json!(user.user_id);
        }
        client.post(&Client::room(&room, verb), &body).await.ok();
        let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
        assert_eq!(member["reason"], format!("why {verb}"));
        member["membership"].as_str().unwrap().to_owned()
    };
    assert_eq!(act(&alice, "invite", Some(&bob)).await, "invite");
    assert_eq!(act(&bob, "join", None).await, "join");
    assert_eq!(act(&alice, "kick", Some(&bob)).await, "leave");
    assert_eq!(act(&alice, "ban", Some(&bob)).await, "ban");
    assert_eq!(act(&alice, "unban", Some(&bob)).await, "leave");
    assert_eq!(act(&alice, "invite", Some(&bob)).await, "invite");
    assert_eq!(act(&bob, "leave", None).await, "leave");
}

#[tokio::test]
async fn nobody_is_invited_from_servers_that_cannot_be_reached() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let foreign = "@bob:example.org";
    alice.moderate("invite", &room, foreign).await.is(403, "M_FORBIDDEN");
    let create = "/_matrix/client/v3/createRoom";
    alice.post(create, &json!({ "invite": [foreign] })).await.is(403, "M_FORBIDDEN");
    let invite = json!({ "membership": "invite" });
    alice.set_state(&room, "m.room.member", foreign, &invite).await.is(403, "M_FORBIDDEN");
    // Some rooms are closed to those who may come one day.
    alice.moderate("ban", &room, foreign).await.ok();
}

/// Clients that try again must not ring twice.
#[tokio::test]
async fn the_same_again_is_no_event() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let event = async || {
        let path = format!("state/m.room.member/{}?format=event", segment(&bob.user_id));
        alice.get(&Client::room(&room, &path)).await.ok()["event_id"].clone()
    };
    for verb in ["invite", "ban"] {
        alice.moderate(verb, &room, &bob.user_id).await.ok();
        let first = event().await;
        alice.moderate(verb, &room, &bob.user_id).await.ok();
        assert_eq!(event().await, first, "{verb}");
        let body = json!({ "user_id": bob.user_id, "reason": "really" });
        alice.post(&Client::room(&room, verb), &body).await.ok();
        assert_ne!(event().await, first, "{verb}: there is a reason now");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.moderate("invite", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    alice.moderate("unban", &room, &bob.user_id).await.is(403, "M_BAD_STATE");
    bob.leave(&room).await.ok();
    alice.moderate("kick", &room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    for verb in ["invite", "kick", "ban", "unban"] {
        let path = Client::room(&room, verb);
        let missing = alice.post(&path, &json!({})).await;
        assert_eq!(missing.status, 400, "{verb}: {missing:?}");
        let nonsense = alice.post(&path, &json!({ "user_id": "bob" })).await;
        assert_eq!(nonsense.status, 400, "{verb}: {nonsense:?}");
    }
    let unknown = alice.join(&format!("!nowhere:{}", alice.server_name())).await;
    assert!([403, 404].contains(&unknown.status), "{unknown:?}");
    let alias = format!("/_matrix/client/v3/join/{}", segment(&format!("#nowhere:{}", alice.server_name())));
    alice.post(&alias, &json!({})).await.is(404, "M_NOT_FOUND");
    let nonsense = alice.post("/_matrix/client/v3/join/nonsense", &json!({})).await;
    assert_eq!(nonsense.status, 400, "{nonsense:?}");
}

#[tokio::test]
async fn members_are_listed_as_they_are_and_as_they_were() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "invite": [carol.user_id] })).await;
    let then = alice.token_of_sync().await;
    bob.join(&room).await.ok();
    let members = async |query: &str| {
        let path = Client::room(&room, &format!("members?{query}"));
        let answer = alice.get(&path).await.ok();
        let mut users: Vec<String> = answer["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["state_key"].as_str().unwrap().to_owned())
            .collect();
        users.sort();
        users
    };
    let (alice_id, bob_id, carol_id) = (&alice.user_id, &bob.user_id, &carol.user_id);
    assert_eq!(members("").await, [alice_id.clone(), bob_id.clone(), carol_id.clone()]);
    assert_eq!(members("membership=join").await, [alice_id.clone(), bob_id.clone()]);
    assert_eq!(members("not_membership=join").await, vec![carol_id.clone()]);
    // Either condition is enough.
    let all = [alice_id.clone(), bob_id.clone(), carol_id.clone()];
    assert_eq!(members("membership=join&not_membership=ban").await, all);
    assert_eq!(members("membership=invite&not_membership=join").await, vec![carol_id.clone()]);
    assert!(members("membership=ban&not_membership=invite").await.len() == 2);
    assert_eq!(members(&format!("membership=join&at={then}")).await, vec![alice_id.clone()]);
    let joined = alice.get(&Client::room(&room, "joined_members")).await.ok();
    let mut users: Vec<_> = joined["joined"].as_object().unwrap().keys().cloned().collect();
    users.sort();
    assert_eq!(users, [alice_id.clone(), bob_id.clone()]);
}

#[tokio::test]
async fn an_invite_is_declined_and_a_room_forgotten() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat", "invite": [bob.user_id] })).await;
    let since = bob.token_of_sync().await;
    bob.leave(&room).await.ok();
    let sync = bob.sync_until(&since, |sync| sync["rooms"]["leave"][&room].is_object()).await;
    assert!(sync["rooms"]["invite"][&room].is_null());
    bob.join(&room).await.is(403, "M_FORBIDDEN");
    bob.post(&Client::room(&room, "forget"), &json!({})).await.ok();
    let filter = segment(&json!({ "room": { "include_leave": true } }).to_string());
    let sync = bob.sync(&format!("timeout=0&filter={filter}")).await;
    assert!(sync["rooms"]["leave"][&room].is_null(), "{sync}");
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.join(&room).await.ok();
}
