//! Events that are missing between others: in which order they are taken in, and what of them is shown.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events", "Soft failure".

use std::{mem, sync::Arc};

use engine::pdu::Pdu;
use serde_json::{Value, json};
use tests::{Guest, Reply, Server, Stranger};

use super::{
    User, path,
    receiving::{give, ids, is_shown, raw, room_with_guest, text},
};

/// A message after some other event, of the depth that its server wants it to have.
fn at_depth(stranger: &Stranger, guest: &mut Guest, depth: u64, body: &str) -> Arc<Pdu> {
    let tips = guest.tips.clone();
    let mut event = raw(&stranger.event_after(guest, &tips, "m.room.message", None, &text(body)));
    event["depth"] = depth.into();
    let event = Arc::new(stranger.seal(event, guest.rules));
    guest.take(&event);
    event
}

#[tokio::test]
async fn missing_events_are_taken_in_by_the_graph_whatever_their_depths() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let first = at_depth(&stranger, &mut guest, 1000, "first");
    let second = at_depth(&stranger, &mut guest, 3, "second");
    let last = at_depth(&stranger, &mut guest, 50, "last");
    give(&stranger, &[&first, &second]);
    let results = stranger.send(&server, "last", &[&last]).await;
    assert_eq!(results[last.event_id().as_str()], json!({}), "{results}");
    for event in [&first, &second, &last] {
        assert!(is_shown(&alice, &room, event).await);
    }
}

/// What is missing before an event of somebody who is banned is not to be shown for being missing.
#[tokio::test]
async fn who_is_banned_is_not_heard_by_way_of_a_hole() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let state = ids(&guest.state.values().collect::<Vec<_>>());
    alice.0.post(&path(&room, "ban"), &json!({ "user_id": guest.user })).await.ok();
    let [first, second, third] =
        ["one", "two", "three"].map(|body| stranger.event(&mut guest, "m.room.message", None, &text(body)));
    stranger.on(move |heard| {
        let answer = || json!({ "pdu_ids": state, "auth_chain_ids": state });
        heard.uri.contains("/state_ids/").then(|| Reply::Json(200, answer()))
    });
    // From the newest back, so that each fills the hole before the next one.
    for (txn, event) in [("three", &third), ("two", &second), ("one", &first)] {
        let results = stranger.send(&server, txn, &[event]).await;
        assert_eq!(results[event.event_id().as_str()], json!({}), "{results}");
        assert!(!is_shown(&alice, &room, event).await, "{txn}");
    }
    let shown = alice.messages(&room).await;
    assert!(
        !shown
            .iter()
            .any(|event| event["sender"] == guest.user.as_str() && event["type"] == "m.room.message")
    );
}

#[tokio::test]
async fn a_redaction_in_a_hole_that_does_not_apply_is_not_shown() {
    let (founder, other) = (Stranger::start().await, Stranger::start().await);
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    founder.let_in(&mut room, &other, "mallory");
    let said =
        ["kept", "regretted"].map(|body| founder.event(&mut room, "m.room.message", None, &text(body)));
    let redacts = |event: &Pdu| json!({ "redacts": event.event_id() });
    let user = mem::replace(&mut room.user, format!("@mallory:{}", other.name()).try_into().unwrap());
    let void = other.event(&mut room, "m.room.redaction", None, &redacts(&said[0]));
    room.user = user;
    let good = founder.event(&mut room, "m.room.redaction", None, &redacts(&said[1]));
    founder.host(&room);
    let history = room.past.iter().chain(room.state.values()).chain(&said).chain([&void, &good]);
    let history: Vec<Value> = history.map(|event| raw(event)).collect();
    founder.on_first(move |heard| {
        heard.uri.contains("/backfill/").then(|| Reply::Json(200, json!({ "pdus": history })))
    });
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let shown = alice.messages(&id).await;
    let event = |wanted: &Pdu| shown.iter().find(|event| event["event_id"] == wanted.event_id().as_str());
    assert_eq!(event(&said[0]).unwrap()["content"]["body"], "kept");
    assert_eq!(event(&said[1]).unwrap()["content"], json!({}));
    assert!(event(&good).is_some() && event(&void).is_none(), "{shown:?}");
}
