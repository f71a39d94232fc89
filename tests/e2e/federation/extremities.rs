//! Rooms that fork: their ends are tied together, and what is hidden is no end.
//!
//! Spec: server-server API, "PDUs", "Soft failure".

use std::sync::Arc;

use engine::pdu::Pdu;
use serde_json::{Value, json};
use tests::{Guest, Server, Stranger, free_port, segment};

use super::{User, eventually, path};

fn text(text: &str) -> Value {
    json!({ "msgtype": "m.text", "body": text })
}

/// A metric without labels, as the server says now.
async fn metric(port: u16, name: &str) -> Option<u64> {
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.ok()?.text().await.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

async fn server_with_metrics() -> (Server, u16) {
    let mut server = Server::start_federating("").await;
    let port = free_port();
    server.set("listen.metrics", &format!("['127.0.0.1:{port}']"));
    server.set("logging.level", "warn,actors::room=debug");
    server.restart().await;
    (server, port)
}

/// The events before what a user says next, as a stranger gets it.
async fn prev_events(user: &User, room: &str, stranger: &Stranger, words: &str) -> Vec<String> {
    user.say(room, words).await;
    let sent = eventually("our event is sent", async || {
        stranger.received().into_iter().find(|event| event["content"]["body"] == words)
    })
    .await;
    serde_json::from_value(sent["prev_events"].clone()).unwrap()
}

#[tokio::test]
async fn many_forks_are_tied_together_and_clients_do_not_see_it() {
    let (server, metrics) = server_with_metrics().await;
    let stranger = Stranger::start().await;
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let guest = stranger.join(&server, &room, "mallory").await;
    let since = alice.sync_token().await;
    let mut ends: Vec<_> = (0..21)
        .map(|end| {
            stranger.event_after(&guest, &guest.tips, "m.room.message", None, &text(&format!("end {end}")))
        })
        .collect();
    stranger.send(&server, "ends", &ends.iter().map(|end| &**end).collect::<Vec<_>>()).await;
    eventually("they are tied together", async || {
        let is_done = metric(metrics, "ganglion_room_dummy_events_total").await? == 1;
        (is_done && metric(metrics, "ganglion_room_extremities_max").await? == 2).then_some(())
    })
    .await;
    let after = prev_events(&alice, &room, &stranger, "alice speaks").await;
    ends.retain(|end| !after.contains(&end.event_id().to_string()));
    assert_eq!((after.len(), ends.len()), (2, 20), "{after:?}");
    // Other servers get it when they ask, and not before.
    let mut tied = Vec::new();
    for id in &after {
        let answer =
            stranger.get(&server, &format!("/_matrix/federation/v1/event/{}", segment(id))).await.ok();
        let event = answer["pdus"][0].clone();
        if event["type"] == "org.matrix.dummy_event" {
            tied.push((id.clone(), event));
        }
    }
    let [(id, event)] = &tied[..] else { panic!("{tied:?}") };
    assert_eq!((&event["sender"], &event["content"]), (&json!(alice.id()), &json!({})));
    let mut prev: Vec<String> = serde_json::from_value(event["prev_events"].clone()).unwrap();
    let mut expected: Vec<_> = ends.iter().map(|end| end.event_id().to_string()).collect();
    prev.sort();
    expected.sort();
    assert_eq!(prev, expected);
    assert!(stranger.received().iter().all(|event| event["type"] != "org.matrix.dummy_event"));
    alice.0.get(&path(&room, &format!("event/{}", segment(id)))).await.is(404, "M_NOT_FOUND");
    let shown = alice.messages(&room).await;
    assert!(
        shown.len() > 21 && shown.iter().all(|event| event["type"] != "org.matrix.dummy_event"),
        "{shown:?}"
    );
    let filter = segment(r#"{"room":{"timeline":{"limit":100}}}"#);
    let sync =
        alice.0.get(&format!("/_matrix/client/v3/sync?filter={filter}&since={}", segment(&since))).await.ok();
    let told = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    assert_eq!(told.len(), 22, "{told:?}");
    assert!(told.iter().all(|event| event["type"] == "m.room.message"), "{told:?}");
}

#[tokio::test]
async fn forks_stay_where_nobody_here_may_tie_them_together() {
    let (server, metrics) = server_with_metrics().await;
    let stranger = Stranger::start().await;
    let mut room = stranger.found_room("founder");
    let levels = json!({ "users": { room.user.as_str(): 100 }, "events_default": 50 });
    stranger.event(&mut room, "m.room.power_levels", Some(""), &levels);
    stranger.host(&room);
    let alice = User(server.client("alice").await);
    let id = room.room_id.to_string();
    alice.join(&id, stranger.name()).await;
    let join = stranger.heard("/send_join/")[0].json();
    room.tips = vec![Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap())];
    let ends: Vec<_> = (0..15)
        .map(|end| {
            stranger.event_after(&room, &room.tips, "m.room.message", None, &text(&format!("end {end}")))
        })
        .collect();
    stranger.send(&server, "ends", &ends.iter().map(|end| &**end).collect::<Vec<_>>()).await;
    eventually("it is seen that nobody may", async || {
        server.log().contains("nobody here may tie forward extremities together").then_some(())
    })
    .await;
    assert_eq!(metric(metrics, "ganglion_room_extremities_max").await, Some(15));
    assert_eq!(metric(metrics, "ganglion_room_dummy_events_total").await, Some(0));
    let shown = alice.messages(&id).await;
    assert_eq!(shown.iter().filter(|event| event["type"] == "m.room.message").count(), 15, "{shown:?}");
}

#[tokio::test]
async fn a_soft_failed_event_is_no_end_and_what_comes_after_it_comes_after_what_came_before_it() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut carol = stranger.join(&server, &room, "carol").await;
    let mallory = stranger.join(&server, &room, "mallory").await;
    let fork = mallory.tips.clone();
    carol.tips.clone_from(&fork);
    let ban = json!({ "user_id": mallory.user });
    alice.0.post(&path(&room, "ban"), &ban).await.ok();
    let banned = eventually("the ban is sent", async || {
        let events = stranger.received();
        let is_ban = |event: &&Value| event["content"]["membership"] == "ban";
        let prev = events.iter().find(is_ban)?["prev_events"].clone();
        Some(prev)
    })
    .await;
    assert_eq!(banned, json!([fork[0].event_id()]));
    // Beside the ban: what carol said, what mallory said after it, and what carol said after that.
    let first = stranger.event(&mut carol, "m.room.message", None, &text("first"));
    let hidden =
        stranger.event_after(&mallory, std::slice::from_ref(&first), "m.room.message", None, &text("hidden"));
    let results = stranger.send(&server, "first", &[&first, &hidden]).await;
    assert_eq!(results[hidden.event_id().as_str()], json!({}), "{results}");
    alice
        .0
        .get(&path(&room, &format!("event/{}", segment(hidden.event_id().as_str()))))
        .await
        .is(404, "M_NOT_FOUND");
    let last =
        stranger.event_after(&carol, std::slice::from_ref(&hidden), "m.room.message", None, &text("last"));
    let results = stranger.send(&server, "last", &[&last]).await;
    assert_eq!(results[last.event_id().as_str()], json!({}), "{results}");
    let after = prev_events(&alice, &room, &stranger, "alice speaks").await;
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(after.contains(&last.event_id().to_string()), "{after:?}");
    assert!(
        !after.contains(&first.event_id().to_string()) && !after.contains(&hidden.event_id().to_string())
    );
}

/// The topic that a client has that applies what its syncs tell, in order.
#[derive(Default)]
struct Topic {
    since: String,
    event: String,
}

impl Topic {
    async fn sync(&mut self, user: &User, room: &str) {
        let since =
            if self.since.is_empty() { String::new() } else { format!("since={}", segment(&self.since)) };
        let sync = user.0.get(&format!("/_matrix/client/v3/sync?{since}")).await.ok();
        sync["next_batch"].as_str().unwrap().clone_into(&mut self.since);
        let told = &sync["rooms"]["join"][room];
        for part in ["state", "timeline"] {
            for event in told[part]["events"].as_array().into_iter().flatten() {
                if event["type"] == "m.room.topic" {
                    event["event_id"].as_str().unwrap().clone_into(&mut self.event);
                }
            }
        }
    }
}

/// Spec: client-server API, `GET /_matrix/client/v3/sync`, `state` and `timeline`.
#[tokio::test]
async fn a_client_is_told_of_state_that_state_resolution_alone_changed() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let bob = stranger.join(&server, &room, "bob").await;
    let mut mallory = stranger.join(&server, &room, "mallory").await;
    let mut levels = alice.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["users"][mallory.user.as_str()] = json!(50);
    levels["events"]["m.room.topic"] = json!(0);
    alice.set(&room, "m.room.power_levels", "", &levels).await;
    alice.set(&room, "m.room.topic", "", &json!({ "topic": "first" })).await;
    // The strangers learn of it.
    for kind in ["m.room.power_levels", "m.room.topic"] {
        let event = eventually("it is sent", async || {
            stranger
                .received()
                .into_iter()
                .find(|event| event["type"] == kind && event["sender"] == alice.id())
        })
        .await;
        mallory.take(&Arc::new(Pdu::parse(event.to_string().as_bytes(), mallory.rules).unwrap()));
    }
    let first = mallory.tips[0].event_id().to_string();
    let bob = Guest { user: bob.user.clone(), ..mallory.clone() };
    let (mut told, mut late) = (Topic::default(), Topic::default());
    told.sync(&alice, &room).await;
    late.sync(&alice, &room).await;
    assert_eq!(told.event, first);
    // A topic that loses to an older one because its sender was banned on the other side of a fork.
    let topic = stranger.event_after(&bob, &bob.tips, "m.room.topic", Some(""), &json!({ "topic": "bob" }));
    let ban = json!({ "membership": "ban" });
    let ban = stranger.event_after(&mallory, &mallory.tips, "m.room.member", Some(bob.user.as_str()), &ban);
    stranger.send(&server, "topic", &[&topic]).await;
    told.sync(&alice, &room).await;
    assert_eq!(told.event, topic.event_id().as_str());
    stranger.send(&server, "ban", &[&ban]).await;
    assert_eq!(alice.state(&room, "m.room.topic", "").await, Some(json!({ "topic": "first" })));
    told.sync(&alice, &room).await;
    assert_eq!(told.event, first);
    late.sync(&alice, &room).await;
    assert_eq!(late.event, first);
    // A topic that loses at once, since it is older than the one beside it.
    let older =
        stranger.event_after(&mallory, &[ban], "m.room.topic", Some(""), &json!({ "topic": "older" }));
    let mut older: Value = serde_json::from_slice(older.raw()).unwrap();
    older["origin_server_ts"] = json!(older["origin_server_ts"].as_u64().unwrap() - 60_000);
    let older = stranger.seal(older, mallory.rules);
    alice.set(&room, "m.room.topic", "", &json!({ "topic": "last" })).await;
    told.sync(&alice, &room).await;
    let last = told.event.clone();
    stranger.send(&server, "older", &[&older]).await;
    assert_eq!(alice.state(&room, "m.room.topic", "").await, Some(json!({ "topic": "last" })));
    for client in [&mut told, &mut late] {
        client.sync(&alice, &room).await;
        assert_eq!(client.event, last);
    }
    assert!(alice.messages(&room).await.iter().any(|event| event["event_id"] == older.event_id().as_str()));
}
