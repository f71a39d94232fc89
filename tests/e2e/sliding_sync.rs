//! Simplified sliding sync, MSC4186.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server};
use tokio::time::Instant;

const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// A connection as a client keeps it.
struct Connection<'a> {
    client: &'a Client,
    pos: String,
}

impl<'a> Connection<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, pos: String::new() }
    }

    async fn wait(&mut self, body: &Value, timeout_ms: u64) -> Value {
        let path = format!("{PATH}?timeout={timeout_ms}&pos={}", self.pos);
        let answer = self.client.post(&path, body).await.ok();
        answer["pos"].as_str().unwrap().clone_into(&mut self.pos);
        answer
    }

    async fn ask(&mut self, body: &Value) -> Value {
        self.wait(body, 0).await
    }
}

fn list(range: [u64; 2], filters: &Value) -> Value {
    json!({ "lists": { "all": {
        "ranges": [range], "timeline_limit": 5, "filters": filters,
        "required_state": [["m.room.create", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]],
    } } })
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"].as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn state_keys(room: &Value) -> Vec<(&str, &str)> {
    let events = room["required_state"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut keys: Vec<_> = events
        .iter()
        .map(|event| (event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap()))
        .collect();
    keys.sort_unstable();
    keys
}

fn sorted(mut ids: Vec<&str>) -> Vec<&str> {
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn a_connection_sends_rooms_and_then_what_changed() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "hello").await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    let first = connection.ask(&body).await;
    assert_eq!(first["lists"]["all"]["count"], 1);
    let joined = &first["rooms"][&room];
    assert_eq!((&joined["initial"], &joined["name"]), (&json!(true), &json!("tea")));
    assert_eq!((&joined["joined_count"], &joined["invited_count"]), (&json!(2), &json!(0)));
    assert_eq!(bodies(joined), ["hello"]);
    assert_eq!((&joined["limited"], &joined["num_live"]), (&json!(true), &json!(0)));
    assert_eq!(joined["notification_count"], 1);
    assert!(joined["bump_stamp"].as_u64().unwrap() > 0);
    let keys = [
        ("m.room.create", ""),
        ("m.room.member", alice.user_id.as_str()),
        ("m.room.member", bob.user_id.as_str()),
    ];
    assert_eq!(state_keys(joined), keys);
    let nothing = connection.ask(&body).await;
    assert_eq!(nothing["rooms"], json!({}));
    alice.say(&room, "2", "again").await;
    let next = connection.wait(&body, 5000).await;
    let joined = &next["rooms"][&room];
    assert_eq!(bodies(joined), ["again"]);
    assert_eq!(
        (&joined["initial"], &joined["name"], &joined["num_live"]),
        (&Value::Null, &Value::Null, &json!(1))
    );
    assert_eq!((&joined["limited"], &joined["notification_count"]), (&json!(false), &json!(2)));
    assert_eq!(state_keys(joined), []);
    alice.set_state(&room, "m.room.name", "", &json!({ "name": "coffee" })).await.ok();
    let next = connection.ask(&body).await;
    assert_eq!(next["rooms"][&room]["name"], "coffee");
    // Clients take a count that is left out for none.
    assert_eq!(next["rooms"][&room]["notification_count"], 2);
    alice.set_state(&room, "m.room.name", "", &json!({})).await.ok();
    let next = connection.ask(&body).await;
    assert_eq!(next["rooms"][&room].get("name"), Some(&Value::Null));
    assert_eq!(next["rooms"][&room]["heroes"][0]["user_id"], alice.user_id.as_str());
}

#[tokio::test]
async fn a_limited_timeline_goes_on_in_messages() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&alice);
    connection.ask(&body).await;
    let since = connection.pos.clone();
    for number in 0..9 {
        alice.say(&room, &number.to_string(), &number.to_string()).await;
    }
    let next = connection.ask(&body).await;
    let joined = &next["rooms"][&room];
    assert_eq!(bodies(joined), ["4", "5", "6", "7", "8"]);
    assert_eq!((&joined["limited"], &joined["num_live"]), (&json!(true), &json!(5)));
    let prev = joined["prev_batch"].as_str().unwrap();
    let page = Client::room(&room, &format!("messages?dir=b&from={prev}&to={since}"));
    let page = alice.get(&page).await.ok();
    assert_eq!(page["chunk"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn ranges_follow_activity() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let mut rooms = Vec::new();
    for _ in 0..4 {
        rooms.push(alice.create_room(json!({})).await);
    }
    let (narrow, wide) = (list([0, 1], &json!({})), list([0, 9], &json!({})));
    let mut connection = Connection::new(&alice);
    let first = connection.ask(&narrow).await;
    assert_eq!(first["lists"]["all"]["count"], 4);
    assert_eq!(sorted(ids(&first)), sorted(vec![&rooms[2], &rooms[3]]));
    alice.say(&rooms[0], "1", "up").await;
    let next = connection.ask(&narrow).await;
    assert_eq!(ids(&next), [&rooms[0]]);
    assert_eq!(
        (&next["rooms"][&rooms[0]]["initial"], &next["rooms"][&rooms[0]]["num_live"]),
        (&json!(true), &json!(1))
    );
    // Out of sight, room 2 changes and is told of once it is looked at again.
    alice.set_state(&rooms[2], "m.room.topic", "", &json!({ "topic": "unseen" })).await.ok();
    alice.say(&rooms[1], "1", "up").await;
    alice.say(&rooms[0], "2", "up").await;
    let next = connection.ask(&narrow).await;
    assert_eq!(sorted(ids(&next)), sorted(vec![&rooms[0], &rooms[1]]));
    let next = connection.ask(&wide).await;
    assert_eq!(ids(&next), [&rooms[2]]);
    assert_eq!(next["rooms"][&rooms[2]]["initial"], Value::Null);
    assert_eq!(next["rooms"][&rooms[2]]["timeline"][0]["type"], "m.room.topic");
    assert_eq!(connection.ask(&wide).await["rooms"], json!({}));
}

#[tokio::test]
async fn subscriptions_add_and_grow() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    for number in 0..6 {
        alice.say(&room, &number.to_string(), &number.to_string()).await;
    }
    let subscribe = |limit: u64, state: Value| json!({ "room_subscriptions": { &room: { "timeline_limit": limit, "required_state": state } } });
    let mut connection = Connection::new(&alice);
    let first = connection.ask(&subscribe(1, json!([]))).await;
    assert_eq!(bodies(&first["rooms"][&room]), ["5"]);
    assert_eq!(state_keys(&first["rooms"][&room]), []);
    let more = connection.wait(&subscribe(3, json!([["m.room.join_rules", ""]])), 30_000).await;
    let more = &more["rooms"][&room];
    assert_eq!(bodies(more), ["3", "4", "5"]);
    assert_eq!((&more["unstable_expanded_timeline"], &more["num_live"]), (&json!(true), &json!(0)));
    assert_eq!(state_keys(more), [("m.room.join_rules", "")]);
    let all = connection.ask(&subscribe(3, json!([["*", "*"]]))).await;
    let keys = state_keys(&all["rooms"][&room]);
    assert!(keys.contains(&("m.room.create", "")) && !keys.contains(&("m.room.join_rules", "")), "{keys:?}");
    // Who is not in the room gets nothing of it, nor an error.
    let mut stranger = Connection::new(&bob);
    assert_eq!(stranger.ask(&subscribe(3, json!([["*", "*"]]))).await["rooms"], json!({}));
}

#[tokio::test]
async fn filters_choose_rooms() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let plain = alice.create_room(json!({})).await;
    let space = alice.create_room(json!({ "creation_content": { "type": "m.space" } })).await;
    let encryption =
        json!({ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
    let secret = alice.create_room(json!({ "initial_state": [encryption] })).await;
    let invite = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    let user = format!("/_matrix/client/v3/user/{}", alice.user_id);
    let direct = json!({ &bob.user_id: [secret] });
    alice.put(&format!("{user}/account_data/m.direct"), &direct).await.ok();
    alice.put(&format!("{user}/rooms/{plain}/tags/m.favourite"), &json!({})).await.ok();
    alice.set_state(&space, "m.space.child", &plain, &json!({ "via": ["here"] })).await.ok();
    let all = [&plain, &space, &secret, &invite];
    for (filters, expected) in [
        (json!({}), vec![&plain, &space, &secret, &invite]),
        (json!({ "is_dm": true }), vec![&secret]),
        (json!({ "is_dm": false }), vec![&plain, &space, &invite]),
        (json!({ "is_encrypted": true }), vec![&secret]),
        (json!({ "is_encrypted": false }), vec![&plain, &space, &invite]),
        (json!({ "is_invite": true }), vec![&invite]),
        (json!({ "is_invite": false }), vec![&plain, &space, &secret]),
        (json!({ "room_types": ["m.space"] }), vec![&space]),
        (json!({ "room_types": [null] }), vec![&plain, &secret, &invite]),
        (json!({ "not_room_types": ["m.space"] }), vec![&plain, &secret, &invite]),
        (json!({ "tags": ["m.favourite"] }), vec![&plain]),
        (json!({ "not_tags": ["m.favourite"] }), vec![&space, &secret, &invite]),
        (json!({ "spaces": [space] }), vec![&plain]),
        (json!({ "is_dm": false, "not_room_types": ["m.space"], "is_invite": false }), vec![&plain]),
    ] {
        let answer = Connection::new(&alice).ask(&list([0, 9], &filters)).await;
        let expected: Vec<_> = expected.into_iter().map(String::as_str).collect();
        assert_eq!(sorted(ids(&answer)), sorted(expected.clone()), "{filters} of {all:?}");
        assert_eq!(answer["lists"]["all"]["count"], expected.len());
    }
    // A room that becomes encrypted changes lists.
    let mut connection = Connection::new(&alice);
    let body = list([0, 9], &json!({ "is_encrypted": true }));
    connection.ask(&body).await;
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.set_state(&plain, "m.room.encryption", "", &algorithm).await.ok();
    assert_eq!(ids(&connection.wait(&body, 5000).await), [&plain]);
}

#[tokio::test]
async fn invites_leaves_and_rejoins() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    connection.ask(&body).await;
    let room = alice.create_room(json!({ "name": "tea", "invite": [bob.user_id] })).await;
    let answer = connection.wait(&body, 5000).await;
    let invited = &answer["rooms"][&room];
    assert_eq!((&invited["membership"], &invited["initial"]), (&json!("invite"), &json!(true)));
    let stripped = invited["invite_state"].as_array().unwrap();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "tea"));
    assert_eq!(invited["timeline"], Value::Null);
    bob.join(&room).await.ok();
    let answer = connection.wait(&body, 5000).await;
    let joined = &answer["rooms"][&room];
    assert_eq!((&joined["membership"], &joined["initial"]), (&json!("join"), &json!(true)));
    assert_eq!(joined["invite_state"], Value::Null);
    bob.leave(&room).await.ok();
    alice.say(&room, "1", "not for bob").await;
    let answer = connection.wait(&body, 5000).await;
    let left = &answer["rooms"][&room];
    assert_eq!((&left["membership"], &left["joined_count"]), (&json!("leave"), &Value::Null));
    assert_eq!(bodies(left), Vec::<&str>::new());
    assert!(state_keys(left).contains(&("m.room.member", &bob.user_id)));
    assert_eq!(connection.ask(&body).await["rooms"], json!({}));
    // Another connection does not hear of it: bob knows that he left.
    let mut other = body.clone();
    other["conn_id"] = json!("other");
    assert_eq!(Connection::new(&bob).ask(&other).await["lists"]["all"]["count"], 0);
    alice.moderate("invite", &room, &bob.user_id).await.ok();
    bob.join(&room).await.ok();
    let answer = connection.ask(&body).await;
    assert_eq!(answer["rooms"][&room]["initial"], true);
    alice.moderate("ban", &room, &bob.user_id).await.ok();
    let answer = connection.ask(&body).await;
    assert_eq!(answer["rooms"][&room]["membership"], "ban");
    let anew = Connection::new(&bob).ask(&other).await;
    assert_eq!(anew["rooms"][&room]["membership"], "ban");
    // A room that is left and forgotten at once is left all the same.
    let room = bob.create_room(json!({})).await;
    assert_eq!(connection.ask(&body).await["rooms"][&room]["membership"], "join");
    bob.leave(&room).await.ok();
    bob.post(&Client::room(&room, "forget"), &json!({})).await.ok();
    assert_eq!(connection.ask(&body).await["rooms"][&room]["membership"], "leave");
    assert_eq!(connection.ask(&body).await["rooms"], json!({}));
}

#[tokio::test]
async fn a_lost_response_is_given_again() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    connection.ask(&body).await;
    let pos = connection.pos.clone();
    alice.say(&room, "1", "once").await;
    let new_room = bob.create_room(json!({})).await;
    for _ in 0..3 {
        connection.pos.clone_from(&pos);
        let answer = connection.ask(&body).await;
        assert_eq!(bodies(&answer["rooms"][&room]), ["once"]);
        assert_eq!(answer["rooms"][&new_room]["initial"], true);
    }
    assert_eq!(connection.ask(&body).await["rooms"], json!({}));
}

#[tokio::test]
async fn a_connection_survives_a_restart() {
    let mut server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let quiet = bob.create_room(json!({})).await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    assert_eq!(connection.ask(&body).await["rooms"].as_object().unwrap().len(), 2);
    let before = connection.pos.clone();
    alice.say(&room, "1", "before").await;
    connection.ask(&body).await;
    server.kill();
    server.restart().await;
    alice.say(&room, "2", "after").await;
    let answer = connection.ask(&body).await;
    assert_eq!(ids(&answer), [&room]);
    assert_eq!(answer["rooms"][&room]["initial"], Value::Null);
    assert_eq!(bodies(&answer["rooms"][&room]), ["after"]);
    let mut retried = Connection { client: &bob, pos: before };
    let answer = retried.ask(&body).await;
    assert_eq!(bodies(&answer["rooms"][&room]), ["before", "after"]);
    assert_eq!(answer["rooms"][&quiet], Value::Null);
}

#[tokio::test]
async fn a_pos_of_nobody_or_of_others_is_refused() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    alice.create_room(json!({})).await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&alice);
    connection.ask(&body).await;
    let pos = connection.pos.clone();
    let with = |pos: &str| format!("{PATH}?pos={pos}");
    for wrong in ["x", "p1_0_1", "s1_5", &format!("{pos}999")] {
        alice.post(&with(wrong), &body).await.is(400, "M_UNKNOWN_POS");
    }
    bob.post(&with(&pos), &body).await.is(400, "M_UNKNOWN_POS");
    let phone = alice.another_device(&alice.password()).await;
    phone.post(&with(&pos), &body).await.is(400, "M_UNKNOWN_POS");
    let mut other = body.clone();
    other["conn_id"] = json!("other");
    alice.post(&with(&pos), &other).await.is(400, "M_UNKNOWN_POS");
    // Connections do not disturb each other; a new one of the same name replaces the old one.
    let mut second = Connection::new(&alice);
    assert_eq!(second.ask(&other).await["rooms"].as_object().unwrap().len(), 1);
    alice.post(&with(&pos), &body).await.ok();
    Connection::new(&alice).ask(&body).await;
    alice.post(&with(&pos), &body).await.is(400, "M_UNKNOWN_POS");
    alice.post(&with(&second.pos), &other).await.ok();
    server.anonymous().post(PATH, &body).await.is(401, "M_MISSING_TOKEN");
    alice.post(PATH, &json!({ "lists": [] })).await.is(400, "M_BAD_JSON");
    alice.post(PATH, &list([3, 1], &json!({}))).await.is(400, "M_INVALID_PARAM");
    alice.post(&format!("{PATH}?timeout=soon"), &body).await.is(400, "M_INVALID_PARAM");
    alice.post(&format!("{PATH}?set_presence=asleep"), &body).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_waiting_request_is_woken_by_what_it_is_about() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    connection.ask(&body).await;
    let started = Instant::now();
    let say = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        alice.say(&room, "1", "wake up").await;
    };
    let (answer, ()) = tokio::join!(connection.wait(&body, 60_000), say);
    assert_eq!(bodies(&answer["rooms"][&room]), ["wake up"]);
    assert!(started.elapsed() < Duration::from_secs(30));
    let started = Instant::now();
    let answer = connection.wait(&body, 300).await;
    assert_eq!(answer["rooms"], json!({}));
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn extensions_send_account_data_receipts_and_typing() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let event = alice.say(&room, "1", "hello").await;
    let user = format!("/_matrix/client/v3/user/{}", bob.user_id);
    bob.put(&format!("{user}/account_data/org.example"), &json!({ "a": 1 })).await.ok();
    bob.put(&format!("{user}/rooms/{room}/tags/m.favourite"), &json!({})).await.ok();
    alice.post(&Client::room(&room, &format!("receipt/m.read/{event}")), &json!({})).await.ok();
    let mut body = list([0, 9], &json!({}));
    let on = json!({ "enabled": true });
    body["extensions"] = json!({ "account_data": on, "receipts": on, "typing": on });
    let mut connection = Connection::new(&bob);
    let first = connection.ask(&body).await["extensions"].clone();
    let global = first["account_data"]["global"].as_array().unwrap();
    assert!(global.iter().any(|event| event["type"] == "org.example"));
    assert!(global.iter().any(|event| event["type"] == "m.push_rules"));
    assert_eq!(first["account_data"]["rooms"][&room][0]["type"], "m.tag");
    let readers = &first["receipts"]["rooms"][&room]["content"][&event]["m.read"];
    assert!(readers[&alice.user_id]["ts"].is_u64(), "{first}");
    assert_eq!(first["typing"], Value::Null);
    assert_eq!(connection.ask(&body).await["extensions"], json!({}));
    let path = Client::room(&room, &format!("typing/{}", alice.user_id));
    alice.put(&path, &json!({ "typing": true, "timeout": 30_000 })).await.ok();
    let next = connection.wait(&body, 10_000).await;
    assert_eq!(next["extensions"]["typing"]["rooms"][&room]["content"]["user_ids"], json!([alice.user_id]));
    assert_eq!(next["rooms"], json!({}));
    bob.post(&Client::room(&room, &format!("receipt/m.read.private/{event}")), &json!({})).await.ok();
    let next = connection.wait(&body, 10_000).await;
    let readers = &next["extensions"]["receipts"]["rooms"][&room]["content"][&event]["m.read.private"];
    assert!(readers[&bob.user_id].is_object());
    assert_eq!(next["rooms"][&room]["notification_count"], 0);
    body["extensions"]["typing"] = json!({ "enabled": true, "lists": [], "rooms": [] });
    alice.put(&path, &json!({ "typing": false })).await.ok();
    assert_eq!(connection.ask(&body).await["extensions"]["typing"], Value::Null);
}

#[tokio::test]
async fn extensions_send_messages_to_devices_and_keys() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let with_since = |since: Value| {
        let to_device = json!({ "enabled": true, "since": since });
        json!({ "conn_id": "e2ee", "extensions": { "e2ee": { "enabled": true }, "to_device": to_device } })
    };
    let mut connection = Connection::new(&bob);
    let first = connection.ask(&with_since(Value::Null)).await["extensions"].clone();
    assert!(first["e2ee"]["device_one_time_keys_count"].is_object());
    let since = first["to_device"]["next_batch"].clone();
    let send = async |txn: &str| {
        let messages = json!({ "messages": { &bob.user_id: { &bob.device_id: { "number": txn } } } });
        let path = format!("/_matrix/client/v3/sendToDevice/org.example/{txn}");
        alice.put(&path, &messages).await.ok();
    };
    let numbers = |answer: &Value| {
        let events = answer["extensions"]["to_device"]["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["content"]["number"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    send("1").await;
    let next = connection.wait(&with_since(since.clone()), 10_000).await;
    assert_eq!(numbers(&next), ["1"]);
    // What is not acknowledged comes again, whatever `pos` says.
    assert_eq!(numbers(&connection.ask(&with_since(since)).await), ["1"]);
    let since = next["extensions"]["to_device"]["next_batch"].clone();
    assert_eq!(numbers(&connection.ask(&with_since(since.clone())).await), Vec::<String>::new());
    send("2").await;
    assert_eq!(numbers(&connection.ask(&with_since(since.clone())).await), ["2"]);
    // Another device of a neighbour is news.
    let phone = alice.another_device(&alice.password()).await;
    let keys = json!({
        "user_id": phone.user_id, "device_id": phone.device_id, "algorithms": [], "signatures": {},
        "keys": { format!("ed25519:{}", phone.device_id): "c2VjcmV0" },
    });
    phone.post("/_matrix/client/v3/keys/upload", &json!({ "device_keys": keys })).await.ok();
    let body = with_since(since);
    let changed = connection.ask(&body).await["extensions"]["e2ee"]["device_lists"]["changed"].clone();
    assert!(changed.as_array().unwrap().contains(&json!(alice.user_id)), "{changed}");
    let path = format!("{PATH}?pos={}", connection.pos);
    bob.post(&path, &with_since(json!("mine"))).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_accepted_form_is_answered_in_its_own_words() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea", "topic": "t" })).await;
    let invite = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    bob.join(&room).await.ok();
    let config = |limit: u32| {
        json!({ "timeline_limit": limit, "required_state": {
            "include": [{}],
            "exclude": [{ "type": "m.room.topic" }, { "state_key": bob.user_id }],
            "lazy_members": true,
        } })
    };
    let mut list = config(1);
    list["range"] = json!([0, 9]);
    let mut body = json!({ "lists": { "all": list }, "timeout": 0, "set_presence": "offline" });
    let path = "/_matrix/client/v4/sync";
    let first = bob.post(path, &body).await.ok();
    assert_eq!(first["lists"]["all"]["count"], 2);
    let told = &first["rooms"][&room];
    assert_eq!(
        (&told["name"], &told["membership"], &told["lists"]),
        (&json!("tea"), &json!("join"), &json!(["all"]))
    );
    assert!(told["notification_count"].is_null() && told["initial"] == true, "{told}");
    let kinds: Vec<_> = state_keys(told).into_iter().map(|(kind, _)| kind).collect();
    assert!(kinds.contains(&"m.room.name") && !kinds.contains(&"m.room.topic"), "{kinds:?}");
    let told = &first["rooms"][&invite];
    assert!(told["stripped_state"].is_array() && told["invite_state"].is_null(), "{told}");
    body["pos"] = first["pos"].clone();
    body["room_subscriptions"] = json!({ (room.clone()): config(5) });
    let second = bob.post(path, &body).await.ok();
    assert_eq!(second["rooms"][&room]["expanded_timeline"], true);
    assert!(second["rooms"][&invite].is_null(), "{second}");
    let page = Client::room(&room, &format!("messages?dir=b&from={}", second["pos"].as_str().unwrap()));
    bob.get(&page).await.ok();
    alice.say(&room, "1", "hello").await;
    body["pos"] = second["pos"].clone();
    body["timeout"] = json!(10_000);
    let third = bob.post(path, &body).await.ok();
    assert_eq!(bodies(&third["rooms"][&room]), ["hello"]);
    body["pos"] = json!("p1_0000_1");
    bob.post(path, &body).await.is(400, "M_UNKNOWN_POS");
    bob.post(path, &json!({ "set_presence": "asleep" })).await.is(400, "M_INVALID_PARAM");
    let many: serde_json::Map<_, _> = (0..101).map(|n| (format!("!{n}:localhost"), config(1))).collect();
    bob.post(path, &json!({ "room_subscriptions": many })).await.is(400, "M_INVALID_PARAM");
    let pairs = json!({ "lists": { "a": { "timeline_limit": 1, "required_state": [["*", "*"]] } } });
    bob.post(path, &pairs).await.is(400, "M_BAD_JSON");
}

#[tokio::test]
async fn sliding_sync_is_advertised() {
    let server = Server::start().await;
    let versions = server.anonymous().get("/_matrix/client/versions").await.ok();
    assert_eq!(versions["unstable_features"]["org.matrix.simplified_msc3575"], true);
}

/// A user in many rooms gets the first of them, then all, then only what changed; also after a restart.
///
/// Prints how long that takes. `GANGLION_SLIDING_ROOMS=1000` makes a measurement of it.
#[tokio::test]
async fn filters_know_after_a_restart_what_a_room_is_now() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let first = alice.create_room(json!({})).await;
    let second = alice.create_room(json!({})).await;
    let space = alice.create_room(json!({ "creation_content": { "type": "m.space" } })).await;
    let found = async |filters: Value| {
        let answer = Connection::new(&alice).ask(&list([0, 9], &filters)).await;
        sorted(ids(&answer)).into_iter().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let rooms = |rooms: &[&String]| {
        let mut rooms: Vec<String> = rooms.iter().map(|room| (*room).clone()).collect();
        rooms.sort();
        rooms
    };
    let of_type = |kind: &str| json!({ "room_types": [kind] });
    assert_eq!(found(json!({ "is_encrypted": true })).await, rooms(&[]));
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.set_state(&second, "m.room.encryption", "", &encryption).await.ok();
    for _ in 0..2 {
        server.restart().await;
        assert_eq!(found(json!({ "is_encrypted": true })).await, rooms(&[&second]));
        assert_eq!(found(json!({ "is_encrypted": false })).await, rooms(&[&first, &space]));
        assert_eq!(found(of_type("m.space")).await, rooms(&[&space]));
    }
}

#[tokio::test]
async fn the_first_response_for_a_user_in_many_rooms() {
    let rooms = std::env::var("GANGLION_SLIDING_ROOMS").ok().and_then(|text| text.parse::<u64>().ok());
    let rooms = rooms.unwrap_or(40);
    let mut server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let mut last = String::new();
    for number in 0..rooms {
        last = alice.create_room(json!({ "preset": "public_chat", "name": format!("room {number}") })).await;
    }
    bob.join(&last).await.ok();
    let filters = json!({ "not_room_types": ["m.space"] });
    for moment in ["warm", "after a restart"] {
        for conn in ["first", "second"] {
            let mut body = list([0, 19], &filters);
            body["conn_id"] = json!(conn);
            let mut connection = Connection::new(&alice);
            let started = Instant::now();
            let first = connection.ask(&body).await;
            println!("{moment}, {conn} connection: {:?}", started.elapsed());
            assert_eq!(first["lists"]["all"]["count"], rooms);
            assert_eq!(ids(&first).len(), 20);
            let started = Instant::now();
            let mut body = list([0, rooms - 1], &filters);
            body["conn_id"] = json!(conn);
            let rest = connection.ask(&body).await;
            println!("{moment}, {conn} connection, all rooms: {:?}", started.elapsed());
            assert_eq!(ids(&rest).len() as u64, rooms - 20, "only those that it has not sent");
            bob.say(&last, &format!("{moment}{conn}"), "news").await;
            let started = Instant::now();
            let next = connection.ask(&body).await;
            println!("{moment}, {conn} connection, one change: {:?}", started.elapsed());
            assert_eq!(ids(&next), [&last]);
        }
        server.restart().await;
    }
}

mod former;
mod gone;
