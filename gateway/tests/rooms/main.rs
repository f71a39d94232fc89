//! The room side of the client-server API, on the assembled server over a memory store.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

#[expect(dead_code, reason = "rooms need only a part of what accounts do")]
#[path = "../account/server.rs"]
mod server;

use serde_json::{Value, json};
use server::{Client, Server, error};

async fn create(client: &Client<'_>, body: Value) -> String {
    let (status, body) = client.post("/createRoom", body).await;
    assert_eq!(status, 200, "{body}");
    body["room_id"].as_str().unwrap().to_owned()
}

async fn ok(answer: impl Future<Output = server::Answer>) -> Value {
    let (status, body) = answer.await;
    assert_eq!(status, 200, "{body}");
    body
}

fn members(body: &Value) -> Vec<&str> {
    let events = body["chunk"].as_array().unwrap().iter();
    events.map(|event| event["state_key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn who_left_does_not_learn_who_came_later_by_a_later_token() {
    let server = Server::open().await;
    let (alice, bob, carol) =
        (server.register("alice").await, server.register("bob").await, server.register("carol").await);
    let room = alice.room().await;
    ok(bob.post(&format!("/join/{room}"), json!({}))).await;
    ok(bob.post(&format!("/rooms/{room}/leave"), json!({}))).await;
    ok(carol.post(&format!("/join/{room}"), json!({}))).await;
    let now = ok(carol.get("/sync")).await["next_batch"].as_str().unwrap().to_owned();
    let path = format!("/rooms/{room}/members?membership=join&at={now}");
    assert_eq!(members(&ok(alice.get(&path)).await), [&*alice.user_id, &*carol.user_id]);
    assert_eq!(members(&ok(bob.get(&path)).await), [&*alice.user_id]);
}

#[tokio::test]
async fn a_narrow_filter_finds_what_is_far_back() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let room = alice.room().await;
    ok(alice.put(&format!("/rooms/{room}/send/org.example.rare/1"), json!({}))).await;
    for txn in 0..150 {
        ok(alice.put(&format!("/rooms/{room}/send/org.example.common/{txn}"), json!({}))).await;
    }
    let rare =
        format!("/rooms/{room}/messages?dir=b&limit=1&filter=%7B%22types%22:%5B%22org.example.rare%22%5D%7D");
    let page = ok(alice.get(&rare)).await;
    assert_eq!(page["chunk"][0]["type"], "org.example.rare");
    assert!(page["end"].is_string(), "older events remain: {page}");
    let elsewhere = format!("/rooms/{room}/messages?dir=b&filter=%7B%22not_rooms%22:%5B%22{room}%22%5D%7D");
    let page = ok(alice.get(&elsewhere)).await;
    assert_eq!((&page["chunk"], &page["end"]), (&json!([]), &Value::Null));
}

#[tokio::test]
async fn creators_keep_their_power_in_an_older_version() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let room = create(&alice, json!({ "room_version": "12" })).await;
    let upgraded = ok(alice.post(&format!("/rooms/{room}/upgrade"), json!({ "new_version": "11" }))).await;
    let new = upgraded["replacement_room"].as_str().unwrap();
    let levels = ok(alice.get(&format!("/rooms/{new}/state/m.room.power_levels"))).await;
    assert_eq!(levels["users"][&alice.user_id], 150);
    ok(alice.put(&format!("/rooms/{new}/state/m.room.power_levels"), levels)).await;
}

#[tokio::test]
async fn an_upgrade_keeps_levels_above_those_of_who_asks_and_mends_strings() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let levels = json!({
        "users": { &alice.user_id: "100", "@bob:a.example": "150" },
        "events": { "m.room.name": "60" },
    });
    let body = json!({ "room_version": "9", "power_level_content_override": levels });
    let room = create(&alice, body).await;
    let body = json!({ "new_version": "11", "additional_creators": ["@carol:a.example"] });
    let upgraded = ok(alice.post(&format!("/rooms/{room}/upgrade"), body)).await;
    let new = upgraded["replacement_room"].as_str().unwrap();
    let levels = ok(alice.get(&format!("/rooms/{new}/state/m.room.power_levels"))).await;
    assert_eq!(levels["users"], json!({ &alice.user_id: 100, "@bob:a.example": 150 }));
    assert_eq!(levels["events"]["m.room.name"], 60);
    let create = ok(alice.get(&format!("/rooms/{new}/state/m.room.create"))).await;
    assert_eq!(create["additional_creators"], Value::Null);
}

#[tokio::test]
async fn refusals_carry_the_specified_codes() {
    let server = Server::open().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.room().await;
    let forget = alice.post(&format!("/rooms/{room}/forget"), json!({})).await;
    assert_eq!(error(&forget), (400, "M_UNKNOWN"));
    for room in [&*room, "!none:a.example"] {
        assert_eq!(error(&bob.get(&format!("/rooms/{room}/aliases")).await), (403, "M_FORBIDDEN"));
        let alias = json!({ "alias": "#none:a.example" });
        let path = format!("/rooms/{room}/state/m.room.canonical_alias");
        assert_eq!(error(&bob.put(&path, alias).await), (403, "M_FORBIDDEN"));
    }
}

#[tokio::test]
async fn a_summary_is_for_those_who_may_know_of_a_room() {
    let server = Server::open().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let open = create(&alice, json!({ "preset": "public_chat", "name": "tea", "room_version": "11" })).await;
    let closed = create(&alice, json!({ "preset": "private_chat", "invite": [] })).await;
    let ask = async |client: &Client<'_>, room: &str| {
        let path = format!("/_matrix/client/v1/room_summary/{room}");
        server.call(http::Method::GET, &path, Some(&client.token), Value::Null).await
    };
    let summary = ok(ask(&bob, &open)).await;
    assert_eq!(
        (&summary["room_id"], &summary["name"], &summary["num_joined_members"]),
        (&json!(open), &json!("tea"), &json!(1))
    );
    // Absent would mean the same, but some clients compare.
    assert_eq!(summary["join_rule"], "public");
    assert_eq!((&summary["membership"], &summary["room_version"]), (&json!("leave"), &json!("11")));
    assert_eq!(error(&ask(&bob, &closed).await), (404, "M_NOT_FOUND"));
    assert_eq!(ok(ask(&alice, &closed)).await["membership"], "join");
    ok(alice.post(&format!("/rooms/{closed}/invite"), json!({ "user_id": bob.user_id }))).await;
    let summary = ok(ask(&bob, &closed)).await;
    assert_eq!((&summary["membership"], &summary["join_rule"]), (&json!("invite"), &json!("invite")));
}
