//! Invites from other servers, as they should be and as they should not.
//!
//! Spec: server-server API, "Inviting to a room".

use std::sync::Arc;

use engine::{pdu::Pdu, room_version};
use serde_json::json;
use tests::{Answer, Server, Stranger, segment};

use super::{User, receiving::raw};

/// Invites a user of a server, who is not in the room.
async fn invite(stranger: &Stranger, server: &Server, version: &str, invite: &Pdu) -> Answer {
    let (room, event) = (segment(invite.room_id().as_str()), segment(invite.event_id().as_str()));
    let body = json!({ "room_version": version, "event": raw(invite), "invite_room_state": [] });
    stranger.put(server, &format!("/_matrix/federation/v2/invite/{room}/{event}"), body).await
}

/// Anybody can make up an invite to any room, and say anything of it.
#[tokio::test]
async fn an_invite_that_lies_about_the_version_keeps_nobody_out() {
    let (founder, forger) = (Stranger::start().await, Stranger::start().await);
    let mut server = Server::start_federating("").await;
    let (alice, bob) = (User(server.client("alice").await), User(server.client("bob").await));
    let room = founder.found_room("founder");
    founder.host(&room);
    let id = room.room_id.to_string();
    let rules = room_version::rules(&"10".try_into().unwrap()).unwrap();
    let forged = |user: &User| {
        let event = json!({
            "type": "m.room.member", "room_id": id, "sender": format!("@mallory:{}", forger.name()),
            "state_key": user.id(), "content": { "membership": "invite" }, "origin_server_ts": 1, "depth": 9,
            "prev_events": [], "auth_events": [],
        });
        forger.seal(event, rules)
    };
    invite(&forger, &server, "10", &forged(&alice)).await.ok();
    alice.join(&id, founder.name()).await;
    server.restart().await;
    let create = alice.state(&id, "m.room.create", "").await.unwrap();
    assert_eq!(create["room_version"], "11");
    alice.say(&id, "here").await;
    // By now the version is known.
    assert_eq!(invite(&forger, &server, "10", &forged(&bob)).await.status, 400);
}

#[tokio::test]
async fn an_invite_that_comes_again_keeps_its_place_in_the_graph() {
    let (server, founder) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(server.client("bob").await));
    let mut room = founder.found_room("founder");
    founder.host(&room);
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    room.take(&Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap()));
    let event = founder.event(&mut room, "m.room.member", Some(bob.id()), &json!({ "membership": "invite" }));
    founder.send(&server, "invite", &[&event]).await;
    bob.is_invited(&id).await;
    let state = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        segment(&id),
        segment(event.event_id().as_str())
    );
    let before = founder.get(&server, &state).await.ok();
    alice.leave(&id).await;
    invite(&founder, &server, "11", &event).await.ok();
    bob.is_invited(&id).await;
    assert_eq!(founder.get(&server, &state).await.ok(), before);
}
