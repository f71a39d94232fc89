//! Joining rooms of other servers again.
//!
//! Spec: server-server API, "Joining Rooms"; room version 2, "State resolution".

use std::sync::Arc;

use engine::pdu::Pdu;
use ruma::OwnedEventId;
use serde_json::Value;
use tests::{Presence, Server, Stranger};

use super::{User, eventually, path};

async fn joined_count(user: &User, room: &str) -> usize {
    let answer = user.0.get(&path(room, "members?membership=join")).await.ok();
    answer["chunk"].as_array().unwrap().len()
}

/// A leave that nobody got, and a join after it through a server that still counts the user in.
#[tokio::test]
async fn a_leave_that_others_do_not_know_is_another_branch_than_the_join_after_it() {
    // With members, and without them the first time, so that the leaves come before they do.
    for (is_lean_at_first, is_lean) in [(false, false), (false, true), (true, true)] {
        let founder = Stranger::start().await;
        let server = Server::start_federating("").await;
        let alice = User(server.client("alice").await);
        let mut room = founder.found_room("founder");
        if is_lean_at_first {
            let _never_told = founder.host_without_members(&room);
        } else {
            founder.host(&room);
        }
        let id = room.room_id.to_string();
        alice.join(&id, founder.name()).await;
        let parse = |event: Value| Arc::new(Pdu::parse(event.to_string().as_bytes(), room.rules).unwrap());
        let first = parse(founder.heard("/send_join/")[0].json());
        room.take(&first);
        let bob = User(server.client("bob").await);
        // Nobody else joins a room whose members are not known.
        let last = if is_lean_at_first { &alice } else { &bob };
        if !is_lean_at_first {
            bob.join(&id, founder.name()).await;
            let joined = eventually("bob's join is sent", async || {
                founder.received().into_iter().find(|event| event["state_key"] == bob.id())
            })
            .await;
            room.take(&parse(joined));
            alice.leave(&id).await;
        }
        last.leave(&id).await;
        let leave = eventually("the last leave is sent", async || {
            let events = founder.received().into_iter();
            events
                .rev()
                .find(|event| event["state_key"] == last.id() && event["content"]["membership"] == "leave")
        })
        .await;
        // For all that this server tells, it never got one.
        if is_lean {
            *founder.host_without_members(&room).lock() = true;
        } else {
            founder.host(&room);
        }
        alice.join(&id, founder.name()).await;
        let again = founder.heard("/send_join/").pop().unwrap().json();
        assert_eq!(joined_count(&alice, &id).await, 2, "bob has left, whatever the founder says");
        alice.say(&id, "alice speaks").await;
        let sent = eventually("our event is sent", async || {
            founder.received().into_iter().find(|event| event["content"]["body"] == "alice speaks")
        })
        .await;
        let id_of = |event: &Value| {
            Pdu::parse(event.to_string().as_bytes(), room.rules).unwrap().event_id().to_owned()
        };
        let mut prev = [id_of(&leave), id_of(&again)];
        prev.sort();
        let mut sent = serde_json::from_value::<Vec<OwnedEventId>>(sent["prev_events"].clone()).unwrap();
        sent.sort();
        assert_eq!(sent, prev, "without members: {is_lean_at_first}, {is_lean}");
    }
}

/// Otherwise the leave would arrive after the join, as if it had come at the same time.
#[tokio::test]
async fn who_joins_again_first_tells_of_a_leave_that_did_not_arrive() {
    let mut founder = Stranger::start().await;
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    founder.host(&room);
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    room.take(&Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap()));
    founder.host(&room);
    founder.becomes(Presence::Refusing).await;
    alice.say(&id, "nobody hears this").await;
    alice.leave(&id).await;
    founder.becomes(Presence::Answering).await;
    alice.join(&id, founder.name()).await;
    let heard = founder.heard("/_matrix/federation/");
    let has_leave = |event: &Value| event["content"]["membership"] == "leave";
    let told = heard.iter().position(|heard| {
        heard.uri.contains("/send/") && heard.json()["pdus"].as_array().unwrap().iter().any(has_leave)
    });
    let asked = heard.iter().rposition(|heard| heard.uri.contains("/make_join/"));
    assert!(told.is_some() && told < asked, "{told:?}, {asked:?}");
}
