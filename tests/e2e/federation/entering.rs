//! Ways into rooms of other servers: templates of membership events, and who lets users in.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms"; client-server API, "Restricted
//! rooms".

use serde_json::{Value, json};
use tests::{Answer, Reply, Server, Stranger, segment};

use super::{User, eventually};

fn error(answer: &Answer) -> (u16, Option<&str>) {
    (answer.status, answer.body["errcode"].as_str())
}

#[tokio::test]
async fn who_knocked_may_knock_again() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let rule = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    let room = alice.create("11", json!({ "preset": "private_chat", "initial_state": [rule] })).await;
    let knock = format!("/_matrix/client/v3/knock/{}?via={}", segment(&room), segment(one.name()));
    for reason in ["tea", "more tea"] {
        bob.0.post(&knock, &json!({ "reason": reason })).await.ok();
        let member = eventually("the knock arrives", async || {
            let member = alice.state(&room, "m.room.member", bob.id()).await?;
            (member["reason"] == reason).then_some(member)
        })
        .await;
        assert_eq!(member["membership"], "knock");
    }
}

#[tokio::test]
async fn who_is_not_in_a_room_gets_no_template_of_a_leave() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut guest = stranger.join(&server, &room, "mallory").await;
    let user = guest.user.to_string();
    let make = |user: &str| format!("/_matrix/federation/v1/make_leave/{}/{}", segment(&room), segment(user));
    let template = stranger.get(&server, &make(&user)).await.ok();
    assert_eq!(template["event"]["content"]["membership"], "leave");
    let leave = stranger.event(&mut guest, "m.room.member", Some(&user), &json!({ "membership": "leave" }));
    stranger.send(&server, "leave", &[&leave]).await;
    let never = format!("@never:{}", stranger.name());
    for user in [user, never] {
        let answer = stranger.get(&server, &make(&user)).await;
        assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{user}: {}", answer.body);
    }
}

/// Spec: server-server API, `make_join`: "the `membership` field inside `content` is `join`".
#[tokio::test]
async fn a_template_of_another_membership_is_malformed() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = stranger.found_room("founder");
    let (id, user) = (room.room_id.to_string(), alice.id().to_owned());
    for content in [json!({ "membership": "leave" }), json!({}), json!(null)] {
        let template = json!({
            "type": "m.room.member", "room_id": id, "sender": user, "state_key": user, "depth": 9,
            "content": content, "origin_server_ts": 1, "prev_events": [], "auth_events": [],
        });
        stranger.on(move |heard| {
            let is_asked = heard.uri.contains("/v1/make_");
            is_asked.then(|| Reply::Json(200, json!({ "room_version": "11", "event": template })))
        });
        for way in ["join", "knock"] {
            let path = format!("/_matrix/client/v3/{way}/{}?via={}", segment(&id), segment(stranger.name()));
            alice.0.post(&path, &json!({})).await.is(502, "M_UNKNOWN");
        }
    }
    assert!(!stranger.heard("/v1/make_join/").is_empty() && !stranger.heard("/v1/make_knock/").is_empty());
    assert!(stranger.heard("/send_join/").is_empty() && stranger.heard("/send_knock/").is_empty());
}

/// A club, and a room that its members may join, in which alice says nothing for long, and whose creator has left.
async fn abandoned(
    boss: &User,
    alice: &User,
    (version, creation): (&str, Value),
    invite: i64,
) -> (String, String) {
    let club = boss.create(version, json!({})).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rules }]);
    let room = boss.create(version, json!({ "initial_state": rules, "creation_content": creation })).await;
    for room in [&club, &room] {
        alice.0.join(room).await.ok();
    }
    let mut levels = boss.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["invite"] = json!(invite);
    boss.set(&room, "m.room.power_levels", "", &levels).await;
    for number in 0..70 {
        boss.say(&room, &number.to_string()).await;
    }
    boss.leave(&room).await;
    (club, room)
}

#[tokio::test]
async fn any_member_who_may_invite_lets_users_into_a_restricted_room() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, boss) = (User(server.client("alice").await), User(server.client("boss").await));
    let creators = json!({ "additional_creators": [alice.id()] });
    for (what, version, invite, may) in [
        ("everyone may invite", ("11", json!({})), 0, true),
        ("a creator may invite", ("12", creators), 100, true),
        ("nobody may invite", ("11", json!({})), 1, false),
    ] {
        let number = version.0;
        let (club, room) = abandoned(&boss, &alice, version, invite).await;
        let guest = stranger.join(&server, &club, "mallory").await;
        let user = segment(guest.user.as_str());
        let uri = format!("/_matrix/federation/v1/make_join/{}/{user}?ver={number}", segment(&room));
        let answer = stranger.get(&server, &uri).await;
        if may {
            let template = answer.ok();
            let by = &template["event"]["content"]["join_authorised_via_users_server"];
            assert_eq!(by, alice.id(), "{what}");
            stranger.join(&server, &room, "mallory").await;
        } else {
            assert_eq!(error(&answer), (400, Some("M_UNABLE_TO_GRANT_JOIN")), "{what}");
        }
    }
}
