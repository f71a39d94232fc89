//! Finding users, and the rooms that one shares with them.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use crate::federation::eventually;

async fn search(client: &Client, term: &str) -> Value {
    let body = json!({ "search_term": term });
    client.post("/_matrix/client/v3/user_directory/search", &body).await.ok()
}

async fn found(client: &Client, term: &str) -> Vec<String> {
    let answer = search(client, term).await;
    let results = answer["results"].as_array().unwrap().iter();
    results.map(|user| user["user_id"].as_str().unwrap().to_owned()).collect()
}

/// The directory is a little behind the rooms: a search waits for it, but not for long on a busy machine.
async fn finds(client: &Client, term: &str, expected: &[&Client]) {
    let expected: Vec<&str> = expected.iter().map(|user| user.user_id.as_str()).collect();
    let is_found = async || (found(client, term).await == expected).then_some(());
    eventually(&format!("{term:?} finds {expected:?}"), is_found).await;
}

async fn rename(client: &Client, name: &str) {
    let path = format!("/_matrix/client/v3/profile/{}/displayname", segment(&client.user_id));
    client.put(&path, &json!({ "displayname": name })).await.ok();
}

#[tokio::test]
async fn users_are_found_by_those_who_share_a_room_or_if_they_are_in_a_public_one() {
    let mut server = Server::start().await;
    let (alice, bob, carol) =
        (server.client("alice").await, server.client("bob").await, server.client("carol").await);
    rename(&bob, "Robert Tables").await;
    finds(&alice, "bob", &[]).await;
    let shared = alice.create_room(json!({})).await;
    alice.moderate("invite", &shared, &bob.user_id).await.ok();
    finds(&alice, "bob", &[]).await;
    bob.join(&shared).await.ok();
    for term in ["bob", "BO", "@bob", &bob.user_id, "tab", "Robert T"] {
        finds(&alice, term, &[&bob]).await;
    }
    for term in ["ables", "robert x", "", "@robert"] {
        finds(&alice, term, &[]).await;
    }
    finds(&carol, "bob", &[]).await;
    let first = &search(&alice, "bob").await["results"][0];
    assert_eq!(first["display_name"], "Robert Tables");

    rename(&bob, "Bobby").await;
    finds(&alice, "bobby", &[&bob]).await;
    finds(&alice, "tables", &[]).await;

    let public = bob.create_room(json!({ "preset": "public_chat" })).await;
    finds(&carol, "bob", &[&bob]).await;
    server.kill();
    server.restart().await;
    finds(&carol, "bob", &[&bob]).await;
    bob.set_state(&public, "m.room.join_rules", "", &json!({ "join_rule": "invite" })).await.ok();
    finds(&carol, "bob", &[]).await;
    let readable = json!({ "history_visibility": "world_readable" });
    bob.set_state(&public, "m.room.history_visibility", "", &readable).await.ok();
    finds(&carol, "bob", &[&bob]).await;
    let shared_only = json!({ "history_visibility": "shared" });
    bob.set_state(&public, "m.room.history_visibility", "", &shared_only).await.ok();
    finds(&carol, "bob", &[]).await;
    bob.leave(&shared).await.ok();
    finds(&alice, "bob", &[]).await;
}

/// The name that a local user has in one room is that room's business.
#[tokio::test]
async fn local_users_are_found_and_shown_by_their_profile() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    rename(&bob, "Robert").await;
    let avatar = format!("/_matrix/client/v3/profile/{}/avatar_url", segment(&bob.user_id));
    bob.put(&avatar, &json!({ "avatar_url": "mxc://localhost/face" })).await.ok();
    let room = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    bob.join(&room).await.ok();
    let mask = json!({ "membership": "join", "displayname": "Zorro", "avatar_url": "mxc://localhost/mask" });
    bob.set_state(&room, "m.room.member", &bob.user_id, &mask).await.ok();
    finds(&alice, "zorro", &[]).await;
    for term in ["robert", "bob"] {
        finds(&alice, term, &[&bob]).await;
        let found = &search(&alice, term).await["results"][0];
        assert_eq!(
            (&found["display_name"], &found["avatar_url"]),
            (&json!("Robert"), &json!("mxc://localhost/face"))
        );
    }
    let carol = server.client("carol").await;
    finds(&carol, "robert", &[]).await;
}

#[tokio::test]
async fn a_search_returns_no_more_than_it_is_asked_for() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for name in ["tea1", "tea2", "tea3"] {
        server.client(name).await.join(&room).await.ok();
    }
    let path = "/_matrix/client/v3/user_directory/search";
    let some = alice.post(path, &json!({ "search_term": "tea", "limit": 2 })).await.ok();
    assert_eq!((some["results"].as_array().unwrap().len(), &some["limited"]), (2, &json!(true)));
    let all = alice.post(path, &json!({ "search_term": "tea", "limit": 3 })).await.ok();
    assert_eq!((all["results"].as_array().unwrap().len(), &all["limited"]), (3, &json!(false)));
    alice.post(path, &json!({})).await.is(400, "M_BAD_JSON");
}

#[tokio::test]
async fn mutual_rooms_are_those_that_both_are_in() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let mut both = Vec::new();
    for _ in 0..2 {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await.ok();
        both.push(room);
    }
    alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let path = |user: &str| format!("/_matrix/client/v1/mutual_rooms?user_id={}", segment(user));
    let mutual = alice.get(&path(&bob.user_id)).await.ok();
    assert_eq!(mutual, json!({ "joined": both, "count": 2 }));
    let unstable = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms?user_id=";
    let mutual = bob.get(&format!("{unstable}{}", segment(&alice.user_id))).await.ok();
    assert_eq!(mutual["joined"], json!(both));
    assert_eq!(alice.get(&path("@nobody:localhost")).await.ok()["joined"], json!([]));
    assert_eq!(alice.get(&path("@nobody:example.org")).await.ok()["joined"], json!([]));
    alice.get(&path(&alice.user_id)).await.is(400, "M_INVALID_PARAM");
    alice.get(&path("nobody")).await.is(400, "M_INVALID_PARAM");
    alice.get("/_matrix/client/v1/mutual_rooms").await.is(400, "M_INVALID_PARAM");
    alice.get(&format!("{}&from=x", path(&bob.user_id))).await.is(400, "M_INVALID_PARAM");
}

/// A room that is left while one pages moves none of the others.
#[tokio::test]
async fn many_mutual_rooms_come_in_pages() {
    const ROOMS: usize = 102;
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let mut both = Vec::new();
    for _ in 0..ROOMS {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await.ok();
        both.push(room);
    }
    let path = format!("/_matrix/client/v1/mutual_rooms?user_id={}", segment(&bob.user_id));
    let first = alice.get(&path).await.ok();
    assert_eq!((&first["joined"], &first["count"]), (&json!(both[..100]), &json!(ROOMS)));
    bob.leave(&both[7]).await.ok();
    let next = first["next_batch"].as_str().unwrap();
    let second = alice.get(&format!("{path}&from={next}")).await.ok();
    assert_eq!(second, json!({ "joined": both[100..], "count": ROOMS - 1 }));
}
