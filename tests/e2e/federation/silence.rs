//! Rooms with members of servers that are away, so that what they signed cannot be checked.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU", "Retrieving server keys".

use std::sync::Arc;

use engine::pdu::Pdu;
use serde_json::{Value, json};
use tests::{Guest, Presence, Reply, Server, Stranger, segment};

use super::{User, eventually, path};

async fn members(user: &User, room: &str) -> Vec<String> {
    let answer = user.0.get(&path(room, "members?membership=join")).await.ok();
    let members = answer["chunk"].as_array().unwrap().iter();
    let mut members: Vec<_> = members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
    members.sort();
    members
}

fn json_of(event: &Pdu) -> Value {
    serde_json::from_slice(event.raw()).unwrap()
}

/// A room of `founder` with a member of `away`, who does not answer when alice joins.
async fn joined_while_away(founder: &Stranger, away: &mut Stranger, alice: &User) -> Guest {
    let mut room = founder.found_room("founder");
    founder.let_in(&mut room, away, "ann");
    join_while_away(&mut room, founder, away, alice).await;
    room
}

/// Has alice join a room of `founder` while `away` does not answer.
async fn join_while_away(room: &mut Guest, founder: &Stranger, away: &mut Stranger, alice: &User) {
    founder.host(room);
    let held = room.past.iter().chain(room.state.values());
    let held: Vec<_> = held.map(|event| (event.event_id().to_string(), json_of(event))).collect();
    founder.on_first(move |heard| {
        let is_asked = |id: &str| heard.uri.ends_with(&format!("/v1/event/{}", segment(id)));
        let (_, event) = held.iter().find(|(id, _)| is_asked(id))?;
        Some(Reply::Json(200, json!({ "pdus": [event] })))
    });
    away.becomes(Presence::Refusing).await;
    alice.join(room.room_id.as_str(), founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    room.take(&Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap()));
}

/// Says something as the guest of a server that was away, once its keys are asked for again.
async fn say(away: &Stranger, server: &Server, room: &mut Guest, text: &str) {
    let ann = format!("@ann:{}", away.name()).try_into().unwrap();
    let founder = std::mem::replace(&mut room.user, ann);
    let event = away.event(room, "m.room.message", None, &json!({ "msgtype": "m.text", "body": text }));
    room.user = founder;
    let body = json!({ "origin": away.name(), "origin_server_ts": 1, "pdus": [json_of(&event)], "edus": [] });
    let uri = format!("/_matrix/federation/v1/send/{}", segment(text));
    let answer = eventually("its keys are asked for", async || {
        let answer = away.put(server, &uri, body.clone()).await;
        (answer.status == 200).then_some(answer.body)
    })
    .await;
    assert_eq!(answer["pdus"][event.event_id().as_str()], json!({}), "{answer}");
}

/// The server that was joined through told of the member. Her server was only silent for a moment.
#[tokio::test]
async fn who_could_not_be_checked_is_a_member_once_their_server_is_back() {
    for restarts in [false, true] {
        let (founder, mut away) = (Stranger::start().await, Stranger::start().await);
        let mut server = Server::start_federating("").await;
        let alice = User(server.client("alice").await);
        let mut room = joined_while_away(&founder, &mut away, &alice).await;
        let id = room.room_id.to_string();
        assert_eq!(members(&alice, &id).await.len(), 2, "nobody can say whether ann joined");
        let message = founder.event(&mut room, "m.room.message", None, &json!({ "body": "one" }));
        founder.send(&server, "t1", &[&message]).await;
        alice.hears(&id, "one").await;
        if restarts {
            server.restart().await;
        }
        away.becomes(Presence::Answering).await;
        say(&away, &server, &mut room, "ann speaks").await;
        alice.hears(&id, "ann speaks").await;
        let ann = format!("@ann:{}", away.name());
        assert!(members(&alice, &id).await.contains(&ann), "after a restart: {restarts}");
        // Also for those who do not know that she spoke.
        let state =
            alice.0.get(&path(&id, &format!("context/{}", segment(message.event_id().as_str())))).await;
        let state = state.ok()["state"].clone();
        assert!(state.as_array().unwrap().iter().any(|event| event["state_key"] == id_of(&ann)), "{state}");
    }
}

fn id_of(user: &str) -> Value {
    user.into()
}

/// A server that was away asks for something that needs no room.
async fn come_back(away: &mut Stranger, server: &Server, alice: &User) {
    away.becomes(Presence::Answering).await;
    eventually("its keys are asked for", async || {
        let uri = format!("/_matrix/federation/v1/query/profile?user_id={}", segment(alice.id()));
        (away.get(server, &uri).await.status == 200).then_some(())
    })
    .await;
}

/// Her server says something that needs no room: that is enough for her to be seen.
#[tokio::test]
async fn whose_keys_came_is_a_member_before_they_say_anything() {
    let (founder, mut away) = (Stranger::start().await, Stranger::start().await);
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let room = joined_while_away(&founder, &mut away, &alice).await;
    come_back(&mut away, &server, &alice).await;
    eventually("ann is a member", async || {
        (members(&alice, room.room_id.as_str()).await.len() == 3).then_some(())
    })
    .await;
}

/// The ban itself can be checked, but not the join that it ends.
#[tokio::test]
async fn a_ban_counts_once_what_authorises_it_can_be_checked() {
    let (founder, mut away) = (Stranger::start().await, Stranger::start().await);
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    founder.let_in(&mut room, &away, "ann");
    let ann = format!("@ann:{}", away.name());
    founder.event(&mut room, "m.room.member", Some(&ann), &json!({ "membership": "ban" }));
    join_while_away(&mut room, &founder, &mut away, &alice).await;
    let id = room.room_id.as_str();
    assert_eq!(alice.state(id, "m.room.member", &ann).await, None);
    come_back(&mut away, &server, &alice).await;
    eventually("ann is banned", async || {
        (alice.state(id, "m.room.member", &ann).await? == json!({ "membership": "ban" })).then_some(())
    })
    .await;
}
