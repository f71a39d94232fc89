//! Spaces: which rooms of the tree a user sees, in which order.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

fn hierarchy(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/hierarchy{rest}", segment(room))
}

async fn space(client: &Client, name: &str) -> String {
    let content = json!({ "type": "m.space" });
    client.create_room(json!({ "name": name, "preset": "public_chat", "creation_content": content })).await
}

async fn add(client: &Client, space: &str, child: &str, more: Value) {
    let mut content = json!({ "via": [client.server_name()] });
    for (name, value) in more.as_object().unwrap() {
        content[name] = value.clone();
    }
    client.set_state(space, "m.space.child", child, &content).await.ok();
}

fn rooms(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_array().unwrap().iter().map(|room| room["room_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_space_is_walked_depth_first_in_its_order() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let (top, inner) = (space(&alice, "top").await, space(&alice, "inner").await);
    let mut names = Vec::new();
    for name in ["ordered", "early", "late", "deep"] {
        names.push(alice.create_room(json!({ "name": name, "preset": "public_chat" })).await);
    }
    let [ordered, early, late, deep] = &names[..] else { unreachable!() };
    add(&alice, &top, early, json!({ "order": "in\u{7f}valid" })).await;
    add(&alice, &top, late, json!({ "suggested": true })).await;
    add(&alice, &top, ordered, json!({ "order": "b" })).await;
    add(&alice, &top, &inner, json!({ "order": "a", "suggested": true })).await;
    add(&alice, &inner, deep, json!({})).await;
    add(&alice, &inner, &top, json!({})).await;
    alice.set_state(&top, "m.space.child", "!gone:localhost", &json!({ "via": [] })).await.ok();
    let all = alice.get(&hierarchy(&top, "")).await.ok();
    let expected: Vec<&str> = vec![&top, &inner, deep, ordered, early, late];
    assert_eq!(rooms(&all), expected);
    assert_eq!(all["next_batch"], Value::Null);
    let root = &all["rooms"][0];
    assert_eq!(root["join_rule"], "public", "the usual rule is said, too");
    assert_eq!(root["room_type"], "m.space");
    let children = root["children_state"].as_array().unwrap();
    let keys: Vec<_> = children.iter().map(|child| child["state_key"].as_str().unwrap()).collect();
    assert_eq!(keys, [&inner, ordered, early, late]);
    assert!(children.iter().all(|child| child["origin_server_ts"].is_u64() && child["event_id"].is_null()));
    assert_eq!(all["rooms"][2]["children_state"], json!([]));

    let mut paged = Vec::new();
    let mut from = String::new();
    loop {
        let page = alice.get(&hierarchy(&top, &format!("?limit=4{from}"))).await.ok();
        paged.extend(rooms(&page).into_iter().map(ToOwned::to_owned));
        match page["next_batch"].as_str() {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    assert_eq!(paged, expected);
    let shallow = alice.get(&hierarchy(&top, "?max_depth=1")).await.ok();
    assert_eq!(rooms(&shallow), [&top, &inner, ordered, early, late]);
    assert_eq!(rooms(&alice.get(&hierarchy(&top, "?max_depth=0")).await.ok()), [&top]);
    let suggested = alice.get(&hierarchy(&top, "?suggested_only=true")).await.ok();
    assert_eq!(rooms(&suggested), [&top, &inner, late]);
    assert_eq!(suggested["rooms"][0]["children_state"].as_array().unwrap().len(), 2);
    let first = alice.get(&hierarchy(&top, "?limit=1&max_depth=1")).await.ok();
    let next = first["next_batch"].as_str().unwrap();
    alice.get(&hierarchy(&top, &format!("?from={next}"))).await.is(400, "M_INVALID_PARAM");
    alice.get(&hierarchy(&top, "?limit=0")).await.is(400, "M_INVALID_PARAM");
}

/// A room that is first met where the walk ends is gone into if a shorter way leads to it, too.
#[tokio::test]
async fn the_shortest_way_decides_how_deep_a_room_is() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let [top, a, b, shared] = [
        space(&alice, "top").await,
        space(&alice, "a").await,
        space(&alice, "b").await,
        space(&alice, "shared").await,
    ];
    let below = space(&alice, "below").await;
    let leaf = alice.create_room(json!({ "name": "leaf", "preset": "public_chat" })).await;
    for (parent, child, order) in [
        (&top, &a, "a"),
        (&top, &shared, "b"),
        (&a, &b, "a"),
        (&b, &shared, "a"),
        (&shared, &below, "a"),
        (&below, &leaf, "a"),
    ] {
        add(&alice, parent, child, json!({ "order": order })).await;
    }
    for (depth, expected) in [
        (1, vec![&top, &a, &shared]),
        (2, vec![&top, &a, &b, &shared, &below]),
        (3, vec![&top, &a, &b, &shared, &below, &leaf]),
        (4, vec![&top, &a, &b, &shared, &below, &leaf]),
    ] {
        let found = alice.get(&hierarchy(&top, &format!("?max_depth={depth}"))).await.ok();
        assert_eq!(rooms(&found), expected, "{depth}");
    }
    let mut paged = Vec::new();
    let mut from = String::new();
    loop {
        let page = alice.get(&hierarchy(&top, &format!("?max_depth=3&limit=2{from}"))).await.ok();
        paged.extend(rooms(&page).into_iter().map(ToOwned::to_owned));
        match page["next_batch"].as_str() {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    assert_eq!(paged, [top, a, b, shared, below, leaf]);
}

#[tokio::test]
async fn a_space_shows_the_rooms_that_a_user_may_know_of() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let top = space(&alice, "top").await;
    let rule = |content: Value| json!([{ "type": "m.room.join_rules", "state_key": "", "content": content }]);
    let secret = alice.create_room(json!({ "name": "secret" })).await;
    let invited = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let knock = alice.create_room(json!({ "initial_state": rule(json!({ "join_rule": "knock" })) })).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": top }]);
    let restricted = json!({ "join_rule": "restricted", "allow": allow });
    let members = alice.create_room(json!({ "initial_state": rule(restricted) })).await;
    let visibility = json!([{
        "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "world_readable" }
    }]);
    let readable = alice.create_room(json!({ "initial_state": visibility })).await;
    for child in [&secret, &invited, &knock, &members, &readable] {
        add(&alice, &top, child, json!({})).await;
    }
    add(&alice, &top, "!elsewhere:example.org", json!({})).await;
    let hers = alice.get(&hierarchy(&top, "")).await.ok();
    assert_eq!(rooms(&hers), [&top, &secret, &invited, &knock, &members, &readable]);
    let his = bob.get(&hierarchy(&top, "")).await.ok();
    assert_eq!(rooms(&his), [&top, &invited, &knock, &readable]);
    bob.join(&top).await.ok();
    let his = bob.get(&hierarchy(&top, "")).await.ok();
    assert_eq!(rooms(&his), [&top, &invited, &knock, &members, &readable]);
    assert_eq!(his["rooms"][3]["allowed_room_ids"], json!([top]));
    let rules: Vec<_> = his["rooms"].as_array().unwrap().iter().map(|room| &room["join_rule"]).collect();
    assert_eq!(rules, ["public", "invite", "knock", "restricted", "invite"]);
    let summary = |room: &str| format!("/_matrix/client/v1/room_summary/{}", segment(room));
    let told = bob.get(&summary(&top)).await.ok();
    assert_eq!((&told["join_rule"], &told["membership"]), (&json!("public"), &json!("join")));
    let former =
        bob.get(&format!("/_matrix/client/unstable/im.nheko.summary/summary/{}", segment(&top))).await.ok();
    assert_eq!(former["join_rule"], "public");
    assert_eq!(former["im.nheko.summary.room_version"], former["room_version"]);
    for banning in [&knock, &readable, &top] {
        alice.moderate("ban", banning, &bob.user_id).await.ok();
        let may_know = banning == &readable;
        let status = if may_know { (200, 200) } else { (403, 404) };
        let answers =
            (bob.get(&hierarchy(banning, "")).await.status, bob.get(&summary(banning)).await.status);
        assert_eq!(answers, status, "who is banned can neither join nor knock");
    }
    bob.get(&hierarchy(&secret, "")).await.is(403, "M_FORBIDDEN");
    bob.get(&hierarchy("!unknown:localhost", "")).await.is(403, "M_FORBIDDEN");
}
