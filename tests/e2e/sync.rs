//! `/sync`.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"]["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[tokio::test]
async fn a_first_sync_has_everything_and_the_next_one_only_what_is_new() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "hello").await;
    let first = bob.sync("timeout=0").await;
    let joined = &first["rooms"]["join"][&room];
    assert_eq!(bodies(joined), ["hello"]);
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    let since = first["next_batch"].as_str().unwrap();
    let nothing = bob.sync(&format!("since={since}&timeout=0")).await;
    assert_eq!(nothing["rooms"]["join"][&room], Value::Null);
    alice.say(&room, "2", "again").await;
    let next = bob.sync(&format!("since={since}&timeout=5000")).await;
    assert_eq!(bodies(&next["rooms"]["join"][&room]), ["again"]);
    assert_eq!(next["rooms"]["join"][&room]["state"]["events"], json!([]));
}

/// As after the restore of a backup: the server does not know of what it told the client since.
#[tokio::test]
async fn a_token_from_the_future_begins_anew_and_acknowledges_nothing() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "hello").await;
    let messages = json!({ "messages": { &bob.user_id: { "*": { "text": "tea" } } } });
    alice.put("/_matrix/client/v3/sendToDevice/m.test/1", &messages).await.ok();
    let of_test =
        |events: &Value| events.as_array().is_some_and(|events| events[0]["content"]["text"] == "tea");
    for since in ["s1_9000000000000", "s2_9000000000000_8000000000000"] {
        let sync = bob.sync(&format!("since={since}&timeout=0")).await;
        assert_eq!(bodies(&sync["rooms"]["join"][&room]), ["hello"], "{since}");
        assert!(of_test(&sync["to_device"]["events"]), "{since}: {sync}");
    }
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let request = json!({ "extensions": { "to_device": { "enabled": true, "since": "s1_9000000000000" } } });
    let sync = bob.post(path, &request).await.ok();
    assert!(of_test(&sync["extensions"]["to_device"]["events"]), "{sync}");
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_a_message() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    let waiting = {
        let bob = bob.clone();
        let since = since.clone();
        tokio::spawn(async move { bob.sync_until(&since, |sync| sync["rooms"]["join"].is_object()).await })
    };
    alice.say(&room, "1", "wake up").await;
    assert_eq!(bodies(&waiting.await.unwrap()["rooms"]["join"][&room]), ["wake up"]);
}

#[tokio::test]
async fn a_limited_timeline_can_be_paged_back_without_a_gap() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "new" })).await.ok();
    for number in 0..30 {
        alice.say(&room, &number.to_string(), &number.to_string()).await;
    }
    let filter = segment(&json!({ "room": { "timeline": { "limit": 5 } } }).to_string());
    let sync = bob.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
    let joined = &sync["rooms"]["join"][&room];
    assert_eq!(bodies(joined), ["25", "26", "27", "28", "29"]);
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(joined["state"]["events"][0]["content"]["topic"], "new");
    let prev = joined["timeline"]["prev_batch"].as_str().unwrap();
    let page =
        bob.get(&Client::room(&room, &format!("messages?dir=b&from={prev}&to={since}&limit=100"))).await.ok();
    let older: Vec<_> =
        page["chunk"].as_array().unwrap().iter().filter_map(|e| e["content"]["body"].as_str()).collect();
    assert_eq!(older.len(), 25);
    assert_eq!((older[0], older[24]), ("24", "0"));
    let after = bob.sync(&format!("since={since}&timeout=0&filter={filter}&use_state_after=true")).await;
    let state = &after["rooms"]["join"][&room]["state_after"]["events"];
    assert_eq!(state[0]["content"]["topic"], "new");
}

/// Clients that want no messages at all are told that there are some.
#[tokio::test]
async fn a_timeline_of_no_events_is_limited() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.token_of_sync().await;
    alice.say(&room, "1", "hello").await;
    let filter = segment(&json!({ "room": { "timeline": { "limit": 0 } } }).to_string());
    let sync = bob.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
    let joined = &sync["rooms"]["join"][&room];
    assert_eq!((&joined["timeline"]["events"], &joined["timeline"]["limited"]), (&json!([]), &json!(true)));
    assert_eq!(joined["unread_notifications"]["notification_count"], 1);
}

#[tokio::test]
async fn a_ban_is_told_to_who_was_out_already() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.moderate("kick", &room, &bob.user_id).await.ok();
    for (verb, membership) in [("ban", "ban"), ("unban", "leave")] {
        let since = bob.token_of_sync().await;
        alice.moderate(verb, &room, &bob.user_id).await.ok();
        let sync = bob.sync(&format!("since={since}&timeout=0")).await;
        let left = &sync["rooms"]["leave"][&room]["timeline"]["events"];
        assert_eq!(left[0]["content"]["membership"], membership, "{sync}");
        assert_eq!(left.as_array().unwrap().len(), 1, "{sync}");
    }
}

#[tokio::test]
async fn invites_leaves_and_rejoins_are_told() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let since = bob.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    let room =
        alice.create_room(json!({ "preset": "private_chat", "name": "tea", "invite": [bob.user_id] })).await;
    let invited = bob.sync_until(&since, |sync| sync["rooms"]["invite"].is_object()).await;
    let stripped = invited["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap().clone();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "tea"));
    assert!(stripped.iter().any(|event| event["state_key"] == bob.user_id.as_str()));
    bob.join(&room).await.ok();
    let joined = bob.sync(&format!("since={}&timeout=1000", invited["next_batch"].as_str().unwrap())).await;
    let state = joined["rooms"]["join"][&room]["state"]["events"].as_array().unwrap().clone();
    let timeline = joined["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
    assert!(state.iter().chain(&timeline).any(|event| event["type"] == "m.room.create"));
    alice.moderate("kick", &room, &bob.user_id).await.ok();
    let left = bob.sync(&format!("since={}&timeout=1000", joined["next_batch"].as_str().unwrap())).await;
    let last =
        left["rooms"]["leave"][&room]["timeline"]["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["content"]["membership"], "leave");
    let since = left["next_batch"].as_str().unwrap();
    alice.say(&room, "1", "secret").await;
    let nothing = bob.sync(&format!("since={since}&timeout=0")).await;
    assert_eq!(nothing["rooms"], Value::Null);
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.join(&room).await.ok();
    let back = bob.sync(&format!("since={since}&timeout=1000")).await;
    assert!(back["rooms"]["join"][&room].is_object());
}

#[tokio::test]
async fn typing_receipts_and_counts_come_along() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    let said = alice.say(&room, "1", "hello bob").await;
    let typing = Client::room(&room, &format!("typing/{}", segment(&alice.user_id)));
    bob.put(&typing, &json!({ "typing": true, "timeout": 10000 })).await.is(403, "M_FORBIDDEN");
    alice.put(&typing, &json!({ "typing": true, "timeout": 10000 })).await.ok();
    let is_typing = |sync: &Value| {
        let ephemeral =
            sync["rooms"]["join"][&room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
        ephemeral.iter().any(|event| event["content"]["user_ids"] == json!([alice.user_id]))
    };
    let sync = bob.sync_until(&since, is_typing).await;
    assert_eq!(sync["rooms"]["join"][&room]["unread_notifications"]["notification_count"], 1);
    let receipt = Client::room(&room, &format!("receipt/m.read/{}", segment(&said)));
    bob.post(&receipt, &json!({})).await.ok();
    let has_receipt = |sync: &Value| {
        let ephemeral =
            sync["rooms"]["join"][&room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
        ephemeral.iter().any(|event| event["content"][&said]["m.read"][&bob.user_id]["ts"].is_number())
    };
    alice.sync_until(&since, has_receipt).await;
    let sync = bob.sync_until(sync["next_batch"].as_str().unwrap(), has_receipt).await;
    assert_eq!(sync["rooms"]["join"][&room]["unread_notifications"]["notification_count"], 0);
}

#[tokio::test]
async fn lazy_loading_sends_the_members_who_matter() {
    let server = Server::start().await;
    let (alice, bob, carol) =
        (server.client("alice").await, server.client("bob").await, server.client("carol").await);
    // A room with a name has no heroes, who would come along.
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    for number in 0..20 {
        bob.say(&room, &number.to_string(), "hello").await;
    }
    let filter = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 3 } } });
    let sync = alice.sync(&format!("timeout=0&filter={}", segment(&filter.to_string()))).await;
    let state = sync["rooms"]["join"][&room]["state"]["events"].as_array().unwrap();
    let members: Vec<_> = state
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .map(|event| event["state_key"].as_str().unwrap())
        .collect();
    assert_eq!(members, [alice.user_id.as_str(), bob.user_id.as_str()]);
}

/// Syncs from the beginning with a filter; gives the part of one joined room.
async fn joined_with(client: &Client, room: &str, filter: Value, more: &str) -> Value {
    let filter = segment(&filter.to_string());
    let sync = client.sync(&format!("timeout=0&filter={filter}{more}")).await;
    sync["rooms"]["join"][room].clone()
}

fn kinds(events: &Value) -> Vec<&str> {
    events.as_array().into_iter().flatten().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_filter_chooses_what_comes() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    let other = alice.create_room(json!({})).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "hers").await;
    bob.say(&room, "2", "his").await;
    let image = json!({ "msgtype": "m.image", "body": "picture", "url": "mxc://localhost/a" });
    bob.send(&room, "m.room.message", "3", &image).await.ok();
    let only_messages = |mut timeline: Value| {
        timeline["types"] = json!(["m.room.message"]);
        json!({ "room": { "timeline": timeline } })
    };
    for (timeline, expected) in [
        (json!({}), vec!["hers", "his", "picture"]),
        (json!({ "senders": [alice.user_id] }), vec!["hers"]),
        (json!({ "not_senders": [alice.user_id] }), vec!["his", "picture"]),
        (json!({ "contains_url": true }), vec!["picture"]),
        (json!({ "contains_url": false }), vec!["hers", "his"]),
        (json!({ "limit": 1 }), vec!["picture"]),
    ] {
        let joined = joined_with(&alice, &room, only_messages(timeline.clone()), "").await;
        assert_eq!(bodies(&joined), expected, "{timeline}");
    }
    let filter = json!({ "room": { "state": { "types": ["m.room.name"] }, "timeline": { "limit": 1 } } });
    let joined = joined_with(&alice, &room, filter, "").await;
    assert_eq!(kinds(&joined["state"]["events"]), ["m.room.name"]);
    for (filter, expected) in [
        (json!({ "room": { "rooms": [room] } }), [true, false]),
        (json!({ "room": { "not_rooms": [room] } }), [false, true]),
        (json!({ "room": { "rooms": [] } }), [false, false]),
    ] {
        let sync = alice.sync(&format!("timeout=0&filter={}", segment(&filter.to_string()))).await;
        let has = [&room, &other].map(|room| sync["rooms"]["join"][room].is_object());
        assert_eq!(has, expected, "{filter}");
    }
}

#[tokio::test]
async fn full_state_repeats_all_state() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "tea" })).await;
    let since = alice.token_of_sync().await;
    let nothing = alice.sync(&format!("since={since}&timeout=0")).await;
    assert!(nothing["rooms"]["join"][&room].is_null());
    let full = alice.sync(&format!("since={since}&timeout=0&full_state=true")).await;
    let state = &full["rooms"]["join"][&room]["state"]["events"];
    for kind in ["m.room.create", "m.room.member", "m.room.name", "m.room.power_levels"] {
        assert!(kinds(state).contains(&kind), "{kind}: {state}");
    }
}

/// Spec: `RoomSummary`: up to five heroes, first those who are in the room, never oneself.
#[tokio::test]
async fn a_room_without_a_name_has_heroes() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let request = json!({ "preset": "public_chat", "invite": [carol.user_id] });
    let room = alice.create_room(request).await;
    bob.join(&room).await.ok();
    let summary = alice.sync("timeout=0").await["rooms"]["join"][&room]["summary"].clone();
    assert_eq!(summary["m.joined_member_count"], 2);
    assert_eq!(summary["m.invited_member_count"], 1);
    assert_eq!(summary["m.heroes"], json!([carol.user_id, bob.user_id]), "in the order in which they came");
    let summary = carol.sync("timeout=0").await["rooms"]["invite"][&room].clone();
    assert!(summary.is_object(), "an invite has no heroes: {summary}");
    let lists = json!({ "a": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let sync = alice.post(path, &json!({ "lists": lists })).await.ok();
    let heroes = sync["rooms"][&room]["heroes"].as_array().unwrap();
    let heroes: Vec<_> = heroes.iter().map(|hero| &hero["user_id"]).collect();
    assert_eq!(heroes, [&carol.user_id, &bob.user_id]);
    let since = alice.token_of_sync().await;
    bob.leave(&room).await.ok();
    let sync = alice.sync_until(&since, |sync| sync["rooms"]["join"][&room].is_object()).await;
    assert_eq!(sync["rooms"]["join"][&room]["summary"]["m.joined_member_count"], 1);
    // Those who are gone stand in for a room that is empty.
    assert_eq!(sync["rooms"]["join"][&room]["summary"]["m.heroes"], json!([carol.user_id]));
    carol.leave(&room).await.ok();
    let summary = alice.sync("timeout=0").await["rooms"]["join"][&room]["summary"].clone();
    assert_eq!(summary["m.heroes"], json!([bob.user_id, carol.user_id]));
}

/// Clients that load members lazily could not say who they are.
#[tokio::test]
async fn heroes_come_with_their_membership() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    for number in 0..5 {
        alice.say(&room, &number.to_string(), "is anybody there").await;
    }
    let members = |joined: &Value, state: &str| -> Vec<String> {
        let events = joined[state]["events"].as_array().unwrap().iter();
        let members = events.filter(|event| event["type"] == "m.room.member");
        members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect()
    };
    let lazy = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 3 } } });
    let filter = segment(&lazy.to_string());
    for (more, state) in [("", "state"), ("&use_state_after=true", "state_after")] {
        let joined = joined_with(&alice, &room, lazy.clone(), more).await;
        assert_eq!(joined["summary"]["m.heroes"], json!([bob.user_id]));
        assert!(members(&joined, state).contains(&bob.user_id), "{joined}");
    }
    // Those who come later bring their events with them; the others are sent again.
    let since = alice.token_of_sync().await;
    alice.moderate("invite", &room, &carol.user_id).await.ok();
    let sync = alice.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
    let joined = &sync["rooms"]["join"][&room];
    assert_eq!(joined["summary"]["m.heroes"], json!([bob.user_id, carol.user_id]));
    assert!(!members(joined, "state").contains(&carol.user_id), "{joined}");
    // Nobody came or went: there is nothing to say of them.
    let since = alice.token_of_sync().await;
    alice.say(&room, "6", "hello").await;
    let sync = alice.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
    assert_eq!(sync["rooms"]["join"][&room]["summary"], json!({}));
    // A room that loses its name has heroes again.
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "tea" })).await.ok();
    let since = alice.token_of_sync().await;
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "" })).await.ok();
    let sync = alice.sync(&format!("since={since}&timeout=0")).await;
    let summary = &sync["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.user_id, carol.user_id]));
}

#[tokio::test]
async fn a_sender_recognises_the_own_message_and_others_do_not_see_how() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let (hers, his) = (alice.token_of_sync().await, bob.token_of_sync().await);
    let said = alice.say(&room, "a-txn-id", "hello").await;
    let is_it = |event: &Value| event["event_id"] == said;
    let own = alice.event_of_sync(&hers, &room, is_it).await;
    assert_eq!(own["unsigned"]["transaction_id"], "a-txn-id");
    let seen = bob.event_of_sync(&his, &room, is_it).await;
    assert!(seen["unsigned"]["transaction_id"].is_null(), "{seen}");
    assert!(seen["unsigned"]["age"].is_number() && seen["origin_server_ts"].is_number(), "{seen}");
    assert!(seen["room_id"].is_null() && seen["sender"] == alice.user_id.as_str(), "{seen}");
}

#[tokio::test]
async fn left_rooms_come_where_the_filter_asks() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "for bob").await;
    bob.leave(&room).await.ok();
    alice.say(&room, "2", "not for bob").await;
    let sync = bob.sync("timeout=0").await;
    assert!(sync["rooms"]["leave"][&room].is_null());
    let filter = segment(&json!({ "room": { "include_leave": true } }).to_string());
    let sync = bob.sync(&format!("timeout=0&filter={filter}")).await;
    let timeline = sync["rooms"]["leave"][&room]["timeline"]["events"].as_array().unwrap();
    let [.., message, leave] = timeline.as_slice() else { panic!("{sync}") };
    assert_eq!(message["content"]["body"], "for bob");
    assert_eq!(leave["content"]["membership"], "leave");
}

/// The user's other devices would keep the room for ever.
#[tokio::test]
async fn a_leave_is_told_although_the_room_is_forgotten() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let since = bob.token_of_sync().await;
    bob.leave(&room).await.ok();
    bob.post(&Client::room(&room, "forget"), &json!({})).await.ok();
    let sync = bob.sync(&format!("since={since}&timeout=0")).await;
    let left = &sync["rooms"]["leave"][&room];
    assert_eq!(left["timeline"]["events"][0]["content"]["membership"], "leave", "{sync}");
    assert_eq!(left["state"]["events"], json!([]));
    let next = sync["next_batch"].as_str().unwrap();
    let sync = bob.sync(&format!("since={next}&timeout=0&full_state=true")).await;
    assert!(sync["rooms"]["leave"][&room].is_null(), "{sync}");
}

#[tokio::test]
async fn a_refused_knock_is_told_with_its_refusal() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice.create_room(json!({ "room_version": "11", "initial_state": [rule] })).await;
    bob.post(&format!("/_matrix/client/v3/knock/{}", segment(&room)), &json!({})).await.ok();
    let since = bob.token_of_sync().await;
    alice.moderate("kick", &room, &bob.user_id).await.ok();
    let sync = bob.sync_until(&since, |sync| sync["rooms"]["leave"][&room].is_object()).await;
    let refusal = &sync["rooms"]["leave"][&room]["timeline"]["events"][0];
    assert_eq!((&refusal["sender"], &refusal["state_key"]), (&json!(alice.user_id), &json!(bob.user_id)));
    assert_eq!(refusal["content"]["membership"], "leave");
}

#[tokio::test]
async fn what_is_no_sync_is_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    for query in ["since=garbage", "timeout=soon", "filter=%7B%22room%22%3A1%7D"] {
        let answer = alice.get(&format!("/_matrix/client/v3/sync?{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
    }
}

/// Whoever comes after the history became secret is not shown that a hero left and came back.
#[tokio::test]
async fn heroes_come_as_they_are_and_not_as_the_timeline_has_them() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let secret =
        json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } });
    let room = alice.create_room(json!({ "preset": "public_chat", "initial_state": [secret] })).await;
    bob.join(&room).await.ok();
    alice.leave(&room).await.ok();
    alice.join(&room).await.ok();
    carol.join(&room).await.ok();
    let lazy = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 3 } } });
    let joined = joined_with(&carol, &room, lazy, "").await;
    assert_eq!(joined["summary"]["m.heroes"], json!([bob.user_id, alice.user_id]));
    let is_alice = |event: &&Value| event["state_key"] == json!(alice.user_id);
    let events = [&joined["state"]["events"], &joined["timeline"]["events"]];
    let told = events.into_iter().flat_map(|events| events.as_array().unwrap()).filter(is_alice);
    let told: Vec<_> = told.map(|event| &event["event_id"]).collect();
    let state = carol.get(&Client::room(&room, "state")).await.ok();
    let present = state.as_array().unwrap().iter().find(is_alice).unwrap();
    assert_eq!(told, [&present["event_id"]], "{joined}");
}

#[tokio::test]
async fn a_full_state_with_lazy_loading_has_the_members_who_changed() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    // A room with a name has no heroes, who would come along.
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    let since = alice.token_of_sync().await;
    bob.leave(&room).await.ok();
    alice.say(&room, "1", "one").await;
    alice.say(&room, "2", "two").await;
    let lazy = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 2 } } });
    let more = format!("&since={since}&full_state=true");
    for (after, state) in [("", "state"), ("&use_state_after=true", "state_after")] {
        let joined = joined_with(&alice, &room, lazy.clone(), &format!("{more}{after}")).await;
        let members = joined[state]["events"].as_array().unwrap().iter();
        let members = members.filter(|event| event["type"] == "m.room.member");
        let mut keys: Vec<_> = members.map(|event| event["state_key"].as_str().unwrap()).collect();
        keys.sort_unstable();
        // Nothing is new about Carol, who says nothing.
        assert_eq!(keys, [alice.user_id.as_str(), bob.user_id.as_str()], "{joined}");
    }
}
