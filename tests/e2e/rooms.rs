//! Creating, upgrading and finding rooms.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{Client, Server, segment};

#[tokio::test]
async fn rooms_of_every_version_are_created_and_talked_in() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    for version in 1..=12 {
        let request = json!({ "preset": "public_chat", "room_version": version.to_string(), "name": "tea" });
        let room = alice.create_room(request).await;
        let create = alice.state(&room, "m.room.create", "").await.ok();
        assert_eq!(create["room_version"], version.to_string());
        bob.join(&room).await.ok();
        let said = bob.say(&room, "1", "hello").await;
        let redaction =
            alice.put(&Client::room(&room, &format!("redact/{}/2", segment(&said))), &json!({})).await;
        redaction.ok();
        let event = alice.get(&Client::room(&room, &format!("event/{}", segment(&said)))).await.ok();
        assert_eq!(event["content"], json!({}), "version {version}");
        assert_eq!(event["unsigned"]["redacted_because"]["sender"], alice.user_id, "version {version}");
    }
    for unknown in ["99", "my_version", ""] {
        let request = json!({ "room_version": unknown });
        let answer = alice.post("/_matrix/client/v3/createRoom", &request).await;
        answer.is(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    let wrong = json!({ "room_version": 11 });
    alice.post("/_matrix/client/v3/createRoom", &wrong).await.is(400, "M_BAD_JSON");
}

/// Each is named by its create event in the newest version: alike ones of the same millisecond would be one.
#[tokio::test]
async fn rooms_that_are_created_at_once_are_different_ones() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    for version in ["11", "12"] {
        let request = json!({ "room_version": version, "name": "tea" });
        let rooms = join_all((0..20).map(|_| alice.create_room(request.clone()))).await;
        assert_eq!(rooms.iter().collect::<BTreeSet<_>>().len(), 20, "version {version}");
    }
}

#[tokio::test]
async fn of_rooms_that_are_created_at_once_with_one_alias_one_gets_it() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let elsewhere = alice.create_room(json!({})).await;
    for name in ["a", "b", "c"] {
        let request = json!({ "room_alias_name": name });
        let create = (0..10).map(|_| alice.post("/_matrix/client/v3/createRoom", &request));
        let alias = format!("/_matrix/client/v3/directory/room/{}", segment(&format!("#{name}:localhost")));
        let body = json!({ "room_id": elsewhere });
        let (created, put) = tokio::join!(join_all(create), alice.put(&alias, &body));
        assert!([200, 409].contains(&put.status), "{put:?}");
        let made = created.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(made, usize::from(put.status == 409), "{created:?}");
        for answer in created.into_iter().filter(|answer| answer.status != 200) {
            answer.is(400, "M_ROOM_IN_USE");
        }
    }
    assert!(!server.log().contains("crashed"));
}

#[tokio::test]
async fn what_a_request_names_becomes_state() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice
        .create_room(json!({
            "preset": "trusted_private_chat",
            "room_version": "11",
            "name": "tea",
            "topic": "biscuits",
            "room_alias_name": "tea",
            "invite": [bob.user_id],
            "is_direct": true,
            "creation_content": { "m.federate": false },
            "power_level_content_override": { "events_default": 5 },
            "initial_state": [{ "type": "m.room.guest_access", "content": { "guest_access": "forbidden" } }],
        }))
        .await;
    let state = async |kind: &str| alice.state(&room, kind, "").await.ok();
    assert_eq!(state("m.room.name").await["name"], "tea");
    assert_eq!(state("m.room.topic").await["topic"], "biscuits");
    assert_eq!(state("m.room.canonical_alias").await["alias"], "#tea:localhost");
    assert_eq!(state("m.room.join_rules").await["join_rule"], "invite");
    assert_eq!(state("m.room.guest_access").await["guest_access"], "forbidden");
    assert_eq!(state("m.room.create").await["m.federate"], false);
    let levels = state("m.room.power_levels").await;
    assert_eq!((&levels["events_default"], &levels["users"][&bob.user_id]), (&json!(5), &json!(100)));
    let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!((&member["membership"], &member["is_direct"]), (&json!("invite"), &json!(true)));
    let taken = json!({ "room_alias_name": "tea" });
    alice.post("/_matrix/client/v3/createRoom", &taken).await.is(400, "M_ROOM_IN_USE");
    // Who may replace a room of version 12 is not left to the default for state.
    for (levels, expected) in
        [(json!({ "events": { "m.x": 7 } }), 150), (json!({ "state_default": 200, "events": {} }), 201)]
    {
        let room =
            alice.create_room(json!({ "room_version": "12", "power_level_content_override": levels })).await;
        let levels = alice.state(&room, "m.room.power_levels", "").await.ok();
        assert_eq!(levels["events"]["m.room.tombstone"], expected, "{levels}");
    }
    let broken = json!({ "room_version": "11", "power_level_content_override": { "users": { alice.user_id.clone(): 0 } } });
    alice.post("/_matrix/client/v3/createRoom", &broken).await.is(400, "M_INVALID_ROOM_STATE");
}

#[tokio::test]
async fn aliases_are_made_found_and_removed_by_those_who_may() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let path = format!("/_matrix/client/v3/directory/room/{}", segment("#tea:localhost"));
    alice.get(&path).await.is(404, "M_NOT_FOUND");
    bob.put(&path, &json!({ "room_id": room })).await.is(403, "M_FORBIDDEN");
    alice.put(&path, &json!({ "room_id": room })).await.ok();
    assert_eq!(alice.put(&path, &json!({ "room_id": room })).await.status, 409);
    assert_eq!(bob.get(&path).await.ok()["room_id"], room);
    let joined =
        bob.post(&format!("/_matrix/client/v3/join/{}", segment("#tea:localhost")), &json!({})).await;
    assert_eq!(joined.ok()["room_id"], room);
    let aliases = alice.get(&Client::room(&room, "aliases")).await.ok();
    assert_eq!(aliases["aliases"], json!(["#tea:localhost"]));
    let lie = json!({ "alias": "#elsewhere:localhost" });
    alice.set_state(&room, "m.room.canonical_alias", "", &lie).await.is(400, "M_BAD_ALIAS");
    for (alias, errcode) in [("#tea:localhost", "M_BAD_ALIAS"), ("tea", "M_INVALID_PARAM")] {
        let alt = json!({ "alt_aliases": [alias] });
        let named = json!({ "type": "m.room.canonical_alias", "state_key": "", "content": alt });
        let request = json!({ "initial_state": [named], "room_alias_name": "coffee-and-tea" });
        alice.post("/_matrix/client/v3/createRoom", &request).await.is(400, errcode);
    }
    let alt = json!({ "alt_aliases": ["#milk:localhost"] });
    let named = json!({ "type": "m.room.canonical_alias", "state_key": "", "content": alt });
    alice.create_room(json!({ "initial_state": [named], "room_alias_name": "milk" })).await;
    let known_as = json!({ "alias": "#tea:localhost", "alt_aliases": ["#tea:localhost"], "org.example": 1 });
    alice.set_state(&room, "m.room.canonical_alias", "", &known_as).await.ok();
    bob.delete(&path, &json!({})).await.is(403, "M_FORBIDDEN");
    alice.delete(&path, &json!({})).await.ok();
    alice.get(&path).await.is(404, "M_NOT_FOUND");
    let known_as = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(known_as, json!({ "org.example": 1 }), "the room does not go by an alias that is gone");
    // Whoever made an alias may remove it, with or without the power to say so in the room.
    let his = format!("/_matrix/client/v3/directory/room/{}", segment("#coffee:localhost"));
    bob.put(&his, &json!({ "room_id": room })).await.ok();
    let known_as = json!({ "alias": "#coffee:localhost" });
    alice.set_state(&room, "m.room.canonical_alias", "", &known_as).await.ok();
    bob.delete(&his, &json!({})).await.ok();
    assert_eq!(alice.state(&room, "m.room.canonical_alias", "").await.ok(), known_as);
}

/// A redaction leaves the state as it is, but for what an event of it says.
#[tokio::test]
async fn the_directory_says_nothing_that_was_redacted() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "visibility": "public", "name": "Tea house" })).await;
    let slip = json!({ "topic": "a secret" });
    let slip = alice.set_state(&room, "m.room.topic", "", &slip).await.ok();
    let listed = async || {
        let list = server.anonymous().get("/_matrix/client/v3/publicRooms").await.ok();
        list["chunk"][0].clone()
    };
    for _ in 0..2 {
        assert_eq!(listed().await["topic"], "a secret");
    }
    let redact = format!("redact/{}/1", segment(slip["event_id"].as_str().unwrap()));
    alice.put(&Client::room(&room, &redact), &json!({})).await.ok();
    let after = listed().await;
    assert_eq!((&after["name"], &after["topic"]), (&json!("Tea house"), &Value::Null));
}

#[tokio::test]
async fn the_directory_lists_public_rooms() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let request = json!({ "visibility": "public", "name": "Tea house", "topic": "biscuits" });
    let tea = alice.create_room(request).await;
    let request =
        json!({ "visibility": "public", "name": "Space", "creation_content": { "type": "m.space" } });
    let space = alice.create_room(request).await;
    bob.join(&tea).await.ok();
    let all = server.anonymous().get("/_matrix/client/v3/publicRooms").await.ok();
    let ids = |list: &Value| -> Vec<String> {
        let rooms = list["chunk"].as_array().unwrap().iter();
        rooms.map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&all), [tea.clone(), space.clone()]);
    assert_eq!(all["chunk"][0]["num_joined_members"], 2);
    assert_eq!(all["chunk"][0]["join_rule"], "public", "the usual rule is said, too");
    let search = async |filter: Value| {
        bob.post("/_matrix/client/v3/publicRooms", &json!({ "filter": filter })).await.ok()
    };
    assert_eq!(ids(&search(json!({ "generic_search_term": "BISCUIT" })).await), std::slice::from_ref(&tea));
    assert_eq!(ids(&search(json!({ "room_types": ["m.space"] })).await), std::slice::from_ref(&space));
    assert_eq!(ids(&search(json!({ "room_types": [null] })).await), std::slice::from_ref(&tea));
    let page = server.anonymous().get("/_matrix/client/v3/publicRooms?limit=1").await.ok();
    let since = page["next_batch"].as_str().unwrap();
    let rest = server.anonymous().get(&format!("/_matrix/client/v3/publicRooms?since={since}")).await.ok();
    assert_eq!((ids(&page), ids(&rest)), (vec![tea.clone()], vec![space]));
    let visibility = format!("/_matrix/client/v3/directory/list/room/{}", segment(&tea));
    bob.put(&visibility, &json!({ "visibility": "private" })).await.is(403, "M_FORBIDDEN");
    alice.put(&visibility, &json!({ "visibility": "private" })).await.ok();
    assert_eq!(bob.get(&visibility).await.ok()["visibility"], "private");
    alice.put(&visibility, &json!({ "visibility": 1 })).await.is(400, "M_BAD_JSON");
    alice.put(&visibility, &json!({})).await.ok();
    assert_eq!(bob.get(&visibility).await.ok()["visibility"], "public", "what is not said otherwise");
    // Of third-party networks there are none, so that they have no rooms.
    let of_network = json!({ "third_party_instance_id": "irc" });
    assert_eq!(ids(&bob.post("/_matrix/client/v3/publicRooms", &of_network).await.ok()), [""; 0]);
    let of_none = json!({ "third_party_instance_id": "", "limit": 0 });
    assert_eq!(ids(&bob.post("/_matrix/client/v3/publicRooms", &of_none).await.ok()).len(), 2);
    let of_both = json!({ "third_party_instance_id": "irc", "include_all_networks": true });
    bob.post("/_matrix/client/v3/publicRooms", &of_both).await.is(400, "M_BAD_JSON");
    let of_all = json!({ "include_all_networks": true });
    assert_eq!(ids(&bob.post("/_matrix/client/v3/publicRooms", &of_all).await.ok()).len(), 2);
}

#[tokio::test]
async fn an_upgrade_moves_people_to_a_new_room() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let request =
        json!({ "preset": "public_chat", "room_version": "10", "name": "tea", "room_alias_name": "tea" });
    let old = alice.create_room(request).await;
    bob.join(&old).await.ok();
    let path = Client::room(&old, "upgrade");
    bob.post(&path, &json!({ "new_version": "12" })).await.is(403, "M_FORBIDDEN");
    for unknown in ["99", "my_version"] {
        let answer = alice.post(&path, &json!({ "new_version": unknown })).await;
        answer.is(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    for version in ["11", "12"] {
        let tombstoned = alice.create_room(json!({ "room_version": "9", "preset": "public_chat" })).await;
        let path = Client::room(&tombstoned, "upgrade");
        let answer = alice.post(&path, &json!({ "new_version": version })).await.ok();
        let new = answer["replacement_room"].as_str().unwrap();
        let create = alice.state(new, "m.room.create", "").await.ok();
        assert_eq!(create["predecessor"]["room_id"], tombstoned);
    }
    let answer = alice.post(&path, &json!({ "new_version": "12" })).await.ok();
    let new = answer["replacement_room"].as_str().unwrap();
    let tombstone = bob.state(&old, "m.room.tombstone", "").await.ok();
    assert_eq!(tombstone["replacement_room"], new);
    // A client that did not get the answer asks again.
    let again = alice.post(&path, &json!({ "new_version": "12" })).await.ok();
    assert_eq!(again["replacement_room"], new);
    bob.join(new).await.ok();
    assert_eq!(bob.state(new, "m.room.name", "").await.ok()["name"], "tea");
    let found = bob.get(&format!("/_matrix/client/v3/directory/room/{}", segment("#tea:localhost"))).await;
    assert_eq!(found.ok()["room_id"], new);
    let muted =
        bob.send(&old, "m.room.message", "1", &json!({ "msgtype": "m.text", "body": "still here?" })).await;
    muted.is(403, "M_FORBIDDEN");
}

/// Tags, push rules and direct chats follow their user into the new room, its name goes with it.
#[tokio::test]
async fn settings_and_names_follow_an_upgrade() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let request = json!({ "preset": "public_chat", "room_version": "10", "room_alias_name": "tea" });
    let old = alice.create_room(request).await;
    bob.join(&old).await.ok();
    let data =
        |user: &Client, path: &str| format!("/_matrix/client/v3/user/{}/{path}", segment(&user.user_id));
    let rule =
        |kind: &str, room: &str| format!("/_matrix/client/v3/pushrules/global/{kind}/{}", segment(room));
    for user in [&alice, &bob] {
        let tag = data(user, &format!("rooms/{}/tags/m.favourite", segment(&old)));
        user.put(&tag, &json!({ "order": 0.5 })).await.ok();
        user.put(&data(user, "account_data/m.direct"), &json!({ "@carol:localhost": [old] })).await.ok();
        user.put(&rule("room", &old), &json!({ "actions": ["notify"] })).await.ok();
        let muted = json!({
            "conditions": [{ "kind": "event_match", "key": "room_id", "pattern": old }], "actions": [],
        });
        user.put(&rule("override", &old), &muted).await.ok();
        user.put(&format!("{}/enabled", rule("override", &old)), &json!({ "enabled": false })).await.ok();
    }
    let answer = alice.post(&Client::room(&old, "upgrade"), &json!({ "new_version": "12" })).await.ok();
    let new = answer["replacement_room"].as_str().unwrap();
    bob.join(new).await.ok();
    for user in [&alice, &bob] {
        let tags = user.get(&data(user, &format!("rooms/{}/tags", segment(new)))).await.ok();
        assert_eq!(tags["tags"], json!({ "m.favourite": { "order": 0.5 } }));
        let direct = user.get(&data(user, "account_data/m.direct")).await.ok();
        assert_eq!(direct["@carol:localhost"], json!([old, new]));
        assert_eq!(user.get(&rule("room", new)).await.ok()["actions"], json!(["notify"]));
        let muted = user.get(&rule("override", new)).await.ok();
        assert_eq!((&muted["conditions"][0]["pattern"], &muted["enabled"]), (&json!(new), &json!(false)));
    }
    assert_eq!(alice.state(new, "m.room.canonical_alias", "").await.ok()["alias"], "#tea:localhost");
    assert_eq!(alice.state(&old, "m.room.canonical_alias", "").await.ok(), json!({}));
    // A room may call itself the successor of another; that makes it none.
    let creation = json!({ "predecessor": { "room_id": old, "event_id": "$any" } });
    let liar = alice.create_room(json!({ "preset": "public_chat", "creation_content": creation })).await;
    bob.join(&liar).await.ok();
    let tags = bob.get(&data(&bob, &format!("rooms/{}/tags", segment(&liar)))).await.ok();
    assert_eq!(tags["tags"], json!({}));
}

#[tokio::test]
async fn a_preset_decides_who_comes_in_and_who_sees_what() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    for (preset, join_rule, history, guests) in [
        ("private_chat", "invite", "shared", "can_join"),
        ("trusted_private_chat", "invite", "shared", "can_join"),
        ("public_chat", "public", "shared", "forbidden"),
    ] {
        let request = json!({ "preset": preset, "invite": [bob.user_id], "room_version": "11" });
        let room = alice.create_room(request).await;
        let state = async |kind: &str, key: &str| alice.state(&room, kind, "").await.ok()[key].clone();
        assert_eq!(state("m.room.join_rules", "join_rule").await, join_rule, "{preset}");
        assert_eq!(state("m.room.history_visibility", "history_visibility").await, history, "{preset}");
        let guest_access = alice.state(&room, "m.room.guest_access", "").await;
        match guest_access.status {
            404 => assert_eq!(guests, "forbidden", "{preset}"),
            _ => assert_eq!(guest_access.ok()["guest_access"], guests, "{preset}"),
        }
        let levels = alice.state(&room, "m.room.power_levels", "").await.ok();
        assert_eq!(levels["users"][&alice.user_id], 100, "{preset}");
        let trusted = preset == "trusted_private_chat";
        assert_eq!(levels["users"][&bob.user_id] == json!(100), trusted, "{preset}");
    }
    for (visibility, join_rule) in [("public", "public"), ("private", "invite")] {
        let room = alice.create_room(json!({ "visibility": visibility })).await;
        let rules = alice.state(&room, "m.room.join_rules", "").await.ok();
        assert_eq!(rules["join_rule"], join_rule, "a preset follows from the visibility {visibility}");
    }
}

/// Spec: room version 12: creators are above all power levels, the room's ID is its first event's.
#[tokio::test]
async fn the_creators_of_a_room_of_version_12_cannot_be_overruled() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let request = json!({
        "preset": "public_chat",
        "room_version": "12",
        "creation_content": { "additional_creators": [bob.user_id] },
    });
    let room = alice.create_room(request).await;
    assert!(!room.contains(':'), "{room}");
    let state = alice.get(&Client::room(&room, "state")).await.ok();
    let create = state.as_array().unwrap().iter().find(|event| event["type"] == "m.room.create").cloned();
    assert_eq!(create.unwrap()["event_id"].as_str().unwrap()[1..], room[1..]);
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    let levels = alice.state(&room, "m.room.power_levels", "").await.ok();
    assert!(levels["users"][&alice.user_id].is_null(), "creators have no entry: {levels}");
    let mut named = levels.clone();
    named["users"][&alice.user_id] = json!(100);
    let refused = alice.set_state(&room, "m.room.power_levels", "", &named).await;
    assert!([400, 403].contains(&refused.status), "{refused:?}");
    let mut promoted = levels.clone();
    promoted["users"][&carol.user_id] = json!(100);
    alice.set_state(&room, "m.room.power_levels", "", &promoted).await.ok();
    for creator in [&alice, &bob] {
        carol.moderate("kick", &room, &creator.user_id).await.is(403, "M_FORBIDDEN");
    }
    bob.moderate("kick", &room, &carol.user_id).await.ok();
}

#[tokio::test]
async fn state_is_read_by_type_and_key_and_as_a_whole() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "tea" })).await;
    let odd = "a/b c%?#ü";
    alice.set_state(&room, "org.example.odd", odd, &json!({ "n": 1 })).await.ok();
    assert_eq!(alice.state(&room, "org.example.odd", odd).await.ok(), json!({ "n": 1 }));
    alice.state(&room, "org.example.odd", "").await.is(404, "M_NOT_FOUND");
    alice.state(&room, "m.room.topic", "").await.is(404, "M_NOT_FOUND");
    let event = alice.get(&Client::room(&room, "state/m.room.name?format=event")).await.ok();
    assert_eq!((&event["type"], &event["content"]), (&json!("m.room.name"), &json!({ "name": "tea" })));
    let all = alice.get(&Client::room(&room, "state")).await.ok();
    let mut kinds: Vec<_> =
        all.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    for kind in ["m.room.create", "m.room.join_rules", "m.room.member", "m.room.name", "m.room.power_levels"]
    {
        assert_eq!(kinds.iter().filter(|other| **other == kind).count(), 1, "{kind}: {kinds:?}");
    }
    let sent = alice.set_state(&room, "m.room.name", "", &json!({ "name": "coffee" })).await.ok();
    let change = alice.get(&Client::room(&room, "state/m.room.name?format=event")).await.ok();
    assert_eq!(change["event_id"], sent["event_id"]);
    assert_eq!(change["unsigned"]["prev_content"], json!({ "name": "tea" }));
    let again = alice.set_state(&room, "m.room.name", "", &json!({ "name": "coffee" })).await.ok();
    assert_eq!(again["event_id"], sent["event_id"], "what changes nothing makes no event");
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let name = server.unique("tea");
    let room = alice.create_room(json!({ "preset": "public_chat", "room_alias_name": name })).await;
    let taken = bob.post("/_matrix/client/v3/createRoom", &json!({ "room_alias_name": name })).await;
    taken.is(400, "M_ROOM_IN_USE");
    let alias = format!("#{name}:{}", alice.server_name());
    let canonical = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(canonical["alias"], alias);
    let path = format!("/_matrix/client/v3/directory/room/{}", segment(&alias));
    let found = server.anonymous().get(&path).await.ok();
    assert_eq!(found["room_id"], room);
    assert_eq!(found["servers"], json!([alice.server_name()]));
    for wrong in ["#tea:elsewhere.example", "tea", "#tea"] {
        let path = format!("/_matrix/client/v3/directory/room/{}", segment(wrong));
        let answer = alice.put(&path, &json!({ "room_id": room })).await;
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
}
