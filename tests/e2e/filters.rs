//! Filters in depth: what each part lets through, and in which form events come.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

/// A first sync with a filter.
async fn sync(client: &Client, filter: Value) -> Value {
    client.sync(&format!("timeout=0&filter={}", segment(&filter.to_string()))).await
}

/// One property of each event.
fn each<'a>(events: &'a Value, property: &str) -> Vec<&'a str> {
    events["events"].as_array().into_iter().flatten().filter_map(|event| event[property].as_str()).collect()
}

/// Alice and Bob in a room where both wrote something, the last of it with a link.
async fn conversation(server: &Server) -> (Client, Client, String) {
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "from alice").await;
    bob.say(&room, "1", "from bob").await;
    alice.send(&room, "org.example.note", "2", &json!({ "body": "note" })).await.ok();
    let linked = json!({ "msgtype": "m.image", "body": "picture", "url": "mxc://localhost/picture" });
    bob.send(&room, "m.room.message", "2", &linked).await.ok();
    (alice, bob, room)
}

#[tokio::test]
async fn timelines_are_chosen_by_type_sender_room_and_link() {
    let server = Server::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let other = alice.create_room(json!({})).await;
    let messages = json!(["m.room.message", "org.example.*"]);
    let alone = json!([alice.user_id]);
    for (filter, expected) in [
        (json!({ "types": messages }), vec!["from alice", "from bob", "note", "picture"]),
        (json!({ "types": ["*.note"] }), vec!["note"]),
        (json!({ "types": messages, "not_types": ["org.*"] }), vec!["from alice", "from bob", "picture"]),
        (json!({ "types": ["m.room.message"], "not_types": ["*"] }), vec![]),
        (json!({ "types": messages, "senders": alone }), vec!["from alice", "note"]),
        (json!({ "types": messages, "not_senders": alone }), vec!["from bob", "picture"]),
        (json!({ "types": messages, "senders": alone, "not_senders": alone }), vec![]),
        (json!({ "types": messages, "contains_url": true }), vec!["picture"]),
        (json!({ "types": messages, "contains_url": false }), vec!["from alice", "from bob", "note"]),
        (json!({ "types": messages, "limit": 2 }), vec!["note", "picture"]),
        (json!({ "types": messages, "rooms": [other] }), vec![]),
        (json!({ "types": messages, "rooms": [room, other], "not_rooms": [room] }), vec![]),
        (json!({ "types": messages, "rooms": [room], "limit": 1 }), vec!["picture"]),
    ] {
        let synced = sync(&bob, json!({ "room": { "timeline": filter } })).await;
        let events = synced["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
        let bodies: Vec<_> = events.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
        assert_eq!(bodies, expected, "{filter}");
        let query = format!("messages?dir=f&limit=100&filter={}", segment(&filter.to_string()));
        let page = bob.get(&Client::room(&room, &query)).await.ok();
        let paged =
            page["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str());
        // A page goes from the oldest on; a sync has the newest.
        if filter.get("limit").is_none() {
            assert_eq!(paged.collect::<Vec<_>>(), expected, "/messages with {filter}");
        }
    }
}

#[tokio::test]
async fn rooms_that_a_filter_leaves_out_are_not_synced_at_all() {
    let server = Server::start().await;
    let (alice, _, room) = conversation(&server).await;
    let other = alice.create_room(json!({})).await;
    let rooms = |synced: &Value| -> Vec<String> {
        synced["rooms"]["join"].as_object().into_iter().flatten().map(|(room, _)| room.clone()).collect()
    };
    assert_eq!(rooms(&sync(&alice, json!({ "room": { "rooms": [other] } })).await), [other.as_str()]);
    assert_eq!(rooms(&sync(&alice, json!({ "room": { "not_rooms": [other] } })).await), [room.as_str()]);
    let neither = json!({ "room": { "rooms": [room, other], "not_rooms": [room, other] } });
    assert!(rooms(&sync(&alice, neither).await).is_empty());
}

#[tokio::test]
async fn state_ephemeral_events_and_account_data_have_filters_of_their_own() {
    let server = Server::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let typing = Client::room(&room, &format!("typing/{}", segment(&alice.user_id)));
    alice.put(&typing, &json!({ "typing": true, "timeout": 60_000 })).await.ok();
    let said = bob.say(&room, "3", "read this").await;
    alice.post(&Client::room(&room, &format!("receipt/m.read/{}", segment(&said))), &json!({})).await.ok();
    let data = |rest: &str| format!("/_matrix/client/v3/user/{}/{rest}", segment(&bob.user_id));
    for kind in ["org.example.a", "org.example.b"] {
        bob.put(&data(&format!("account_data/{kind}")), &json!({ "is": "global" })).await.ok();
        let path = data(&format!("rooms/{}/account_data/{kind}", segment(&room)));
        bob.put(&path, &json!({ "is": "the room's" })).await.ok();
    }
    let joined = async |part: &str, filter: Value| {
        let timeline = json!({ "limit": 1 });
        let synced = sync(&bob, json!({ "room": { "timeline": timeline, part: filter } })).await;
        synced["rooms"]["join"][&room][part].clone()
    };
    let state = joined("state", json!({ "types": ["m.room.n*", "m.room.topic"] })).await;
    assert_eq!(each(&state, "type"), ["m.room.name"]);
    let state = joined("state", json!({ "types": ["m.room.member"], "senders": [bob.user_id] })).await;
    assert_eq!(each(&state, "state_key"), [bob.user_id.as_str()]);
    assert!(each(&joined("state", json!({ "not_rooms": [room] })).await, "type").is_empty());

    assert_eq!(each(&joined("ephemeral", json!({})).await, "type"), ["m.typing", "m.receipt"]);
    assert_eq!(each(&joined("ephemeral", json!({ "not_types": ["m.t*"] })).await, "type"), ["m.receipt"]);
    assert_eq!(each(&joined("ephemeral", json!({ "types": ["m.typing"] })).await, "type"), ["m.typing"]);
    assert!(each(&joined("ephemeral", json!({ "not_rooms": [room] })).await, "type").is_empty());

    let only_a = json!({ "types": ["org.example.*"], "not_types": ["*.b"] });
    assert_eq!(each(&joined("account_data", only_a.clone()).await, "type"), ["org.example.a"]);
    assert!(each(&joined("account_data", json!({ "rooms": ["!other:localhost"] })).await, "type").is_empty());
    let global = sync(&bob, json!({ "account_data": only_a })).await;
    assert_eq!(each(&global["account_data"], "type"), ["org.example.a"]);
}

#[tokio::test]
async fn presence_is_chosen_by_type_and_sender() {
    let server = Server::start().await;
    let (alice, bob, _) = conversation(&server).await;
    let status = |client: &Client| format!("/_matrix/client/v3/presence/{}/status", segment(&client.user_id));
    let since = bob.token_of_sync().await;
    alice.put(&status(&alice), &json!({ "presence": "unavailable", "status_msg": "tea" })).await.ok();
    let synced = bob.sync_until(&since, |sync| sync["presence"]["events"].is_array()).await;
    assert!(each(&synced["presence"], "sender").contains(&alice.user_id.as_str()), "{synced}");
    for filter in [
        json!({ "not_senders": [alice.user_id] }),
        json!({ "senders": ["@nobody:localhost"] }),
        json!({ "not_types": ["m.presence"] }),
    ] {
        let filter = segment(&json!({ "presence": filter }).to_string());
        let synced = bob.sync(&format!("since={since}&timeout=0&filter={filter}")).await;
        let senders = each(&synced["presence"], "sender");
        assert!(!senders.contains(&alice.user_id.as_str()), "{filter}: {synced}");
    }
}

#[tokio::test]
async fn a_client_gets_the_properties_that_it_asks_for() {
    let server = Server::start().await;
    let (_, bob, room) = conversation(&server).await;
    let fields = json!(["type", "content.body", "content.name"]);
    let timeline = json!({ "limit": 1 });
    let filter = json!({ "event_fields": fields, "room": { "timeline": timeline, "state": { "types": ["m.room.name"] } } });
    let joined = sync(&bob, filter.clone()).await["rooms"]["join"][&room].clone();
    let picture = json!({ "type": "m.room.message", "content": { "body": "picture" } });
    assert_eq!(joined["timeline"]["events"], json!([picture]));
    assert_eq!(joined["state"]["events"], json!([{ "type": "m.room.name", "content": { "name": "tea" } }]));
    // The same by the ID of a stored filter, and in a room that the user has left.
    let path = format!("/_matrix/client/v3/user/{}/filter", segment(&bob.user_id));
    let mut stored = filter;
    stored["room"]["include_leave"] = true.into();
    let id = bob.post(&path, &stored).await.ok()["filter_id"].as_str().unwrap().to_owned();
    bob.leave(&room).await.ok();
    let left = bob.sync(&format!("timeout=0&filter={}", segment(&id))).await["rooms"]["leave"][&room].clone();
    assert_eq!(left["timeline"]["events"], json!([{ "type": "m.room.member" }]));
}

#[tokio::test]
async fn a_client_gets_events_as_servers_send_them() {
    let server = Server::start().await;
    let (_, bob, room) = conversation(&server).await;
    let filter = json!({ "event_format": "federation", "room": { "timeline": { "limit": 1 } } });
    let joined = sync(&bob, filter).await["rooms"]["join"][&room].clone();
    let event = &joined["timeline"]["events"][0];
    for property in ["auth_events", "prev_events", "depth", "hashes", "signatures", "room_id"] {
        assert!(!event[property].is_null(), "{property}: {event}");
    }
    assert_eq!(event["content"]["body"], "picture");
    let id = event["event_id"].as_str().unwrap();
    let same = bob.get(&Client::room(&room, &format!("event/{}", segment(id)))).await.ok();
    assert_eq!(same["content"], event["content"]);
    assert!(same["hashes"].is_null());
    assert!(!joined["state"]["events"][0]["hashes"].is_null());
    let bad = segment(&json!({ "event_format": 7 }).to_string());
    assert_eq!(bob.get(&format!("/_matrix/client/v3/sync?filter={bad}")).await.status, 400);
}

#[tokio::test]
async fn context_is_filtered_around_the_event() {
    let server = Server::start().await;
    let (alice, _, room) = conversation(&server).await;
    let asked = alice.say(&room, "3", "asked for").await;
    alice.say(&room, "4", "after").await;
    let filter = json!({ "types": ["org.example.note", "m.room.message"], "not_senders": [alice.user_id] });
    let query = format!("context/{}?limit=10&filter={}", segment(&asked), segment(&filter.to_string()));
    let context = alice.get(&Client::room(&room, &query)).await.ok();
    assert_eq!(context["event"]["event_id"], asked, "the event itself comes whatever the filter says");
    let bodies = |part: &str| -> Vec<String> {
        let events = context[part].as_array().into_iter().flatten();
        events.filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned)).collect()
    };
    assert_eq!(bodies("events_before"), ["picture", "from bob"]);
    assert!(bodies("events_after").is_empty());
    assert!(context["state"].as_array().is_none_or(Vec::is_empty), "{context}");
    let filter = json!({ "types": ["m.room.member"], "not_senders": [alice.user_id] });
    let query = format!("context/{}?filter={}", segment(&asked), segment(&filter.to_string()));
    let context = alice.get(&Client::room(&room, &query)).await.ok();
    let state = context["state"].as_array().unwrap();
    assert!(!state.is_empty() && state.iter().all(|event| event["type"] == "m.room.member"), "{context}");
    assert!(state.iter().all(|event| event["sender"] != alice.user_id), "{context}");
}

#[tokio::test]
async fn a_stored_filter_is_returned_as_it_was_uploaded() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let path = format!("/_matrix/client/v3/user/{}/filter", segment(&alice.user_id));
    for filter in [
        json!({}),
        json!({
            "event_format": "client",
            "org.example.mine": { "of": [1, 2] },
            "room": { "include_leave": false, "state": { "lazy_load_members": false, "not_types": [] } },
        }),
    ] {
        let id = alice.post(&path, &filter).await.ok()["filter_id"].as_str().unwrap().to_owned();
        assert_eq!(alice.get(&format!("{path}/{}", segment(&id))).await.ok(), filter);
        alice.sync(&format!("timeout=0&filter={}", segment(&id))).await;
    }
    alice.post(&path, &json!({ "room": 1 })).await.is(400, "M_BAD_JSON");
    alice.get(&format!("{path}/other")).await.is(404, "M_NOT_FOUND");
}
