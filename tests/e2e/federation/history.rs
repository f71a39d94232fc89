//! History that only another server has, or only this one.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use http::Method;
use serde_json::json;
use tests::{Link, Reply, Server, Stranger, Synapse, segment};

use super::{
    User, path,
    receiving::{ids, raw, room_with_guest, text},
};

/// Messages that are there before the join.
const MESSAGES: usize = 500;

#[tokio::test]
async fn five_hundred_messages_of_synapse_are_paged_back_through() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    let room = bob.create("11", json!({})).await;
    for number in 0..MESSAGES {
        bob.say(&room, &format!("message {number}")).await;
    }
    alice.join(&room, synapse.server_name()).await;
    // The beginning can be found by its time, though it is not here yet.
    let uri = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=0&dir=f", segment(&room));
    let first = alice.0.get(&uri).await.ok();
    let same = bob.0.get(&uri).await.ok();
    assert_eq!(first, same);
    let events = alice.0.all_messages(&room).await;
    let said: Vec<_> = events.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    let expected: Vec<_> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    assert_eq!(said, expected);
    assert_eq!(events[0]["type"], "m.room.create");
}

/// Nobody else may have what the leave of a server's last user comes after.
#[tokio::test]
async fn a_server_that_has_left_gives_what_it_has_to_those_who_were_in_the_room_with_it() {
    let server = Server::start_federating("").await;
    let (guest, outsider) = (Stranger::start().await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    guest.join(&server, &room, "mallory").await;
    let said = alice.say(&room, "last words").await;
    alice.0.post(&path(&room, "leave"), &json!({})).await.ok();
    let v1 = "/_matrix/federation/v1";
    let uri = format!("{v1}/event/{}", segment(&said));
    let given = guest.get(&server, &uri).await.ok();
    assert_eq!(given["pdus"][0]["content"]["body"], "last words");
    let query = json!({ "limit": 10, "earliest_events": [], "latest_events": [said] });
    let missing = format!("{v1}/get_missing_events/{}", segment(&room));
    let missing = guest.request(&server, Method::POST, &missing, Some(query)).await.ok();
    assert!(!missing["events"].as_array().unwrap().is_empty());
    assert_eq!(outsider.get(&server, &uri).await.status, 404);
    // There is nobody left who could let others in.
    let user = segment(&format!("@other:{}", guest.name()));
    let answer = guest.get(&server, &format!("{v1}/make_join/{}/{user}?ver=11", segment(&room))).await;
    assert_eq!(answer.status, 404);
}

/// Nobody can say who may see what has no place in the graph.
#[tokio::test]
async fn a_message_outside_the_graph_is_given_to_others_without_its_content() {
    let (server, stranger, other) =
        (Server::start_federating("").await, Stranger::start().await, Stranger::start().await);
    let (_alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    other.join(&server, &room, "carol").await;
    let state = ids(&guest.state.values().collect::<Vec<_>>());
    let lost = stranger.event(&mut guest, "m.room.message", None, &text("lost"));
    let last = stranger.event(&mut guest, "m.room.message", None, &text("last"));
    let event = raw(&lost);
    stranger.on(move |heard| {
        if heard.uri.contains("/state_ids/") {
            return Some(Reply::Json(200, json!({ "pdu_ids": state, "auth_chain_ids": state })));
        }
        heard.uri.contains("/v1/event/").then(|| Reply::Json(200, json!({ "pdus": [event] })))
    });
    stranger.send(&server, "last", &[&last]).await;
    for (event, content) in [(&lost, json!({})), (&last, text("last"))] {
        let uri = format!("/_matrix/federation/v1/event/{}", segment(event.event_id().as_str()));
        let given = other.get(&server, &uri).await.ok();
        assert_eq!(given["pdus"][0]["content"], content, "{given}");
    }
}

/// What happens after the leave comes after an event whose state lacks members.
#[tokio::test]
async fn what_happens_after_a_server_left_before_it_had_all_members_is_there_once_it_is_back() {
    let link = Link::start().await;
    let (server, other) = (Server::start_behind(&link).await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let room = alice.create("11", json!({})).await;
    link.hold("/state_ids/");
    bob.join(&room, server.name()).await;
    bob.leave(&room).await;
    alice.sees(&room, &bob, "leave").await;
    alice.say(&room, "bob is away").await;
    alice.say(&room, "still away").await;
    link.heal();
    bob.join(&room, server.name()).await;
    bob.hears(&room, "still away").await;
    bob.hears(&room, "bob is away").await;
    let events = bob.0.all_messages(&room).await;
    let said: Vec<_> = events.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    assert_eq!(said, ["bob is away", "still away"]);
}
