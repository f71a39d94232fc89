//! Guests, and rooms that everyone may read without joining.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Answer, Client, Server, segment};

async fn with_guests() -> Server {
    Server::start_with_settings(&[("registration.guests", "true")]).await
}

async fn guest(server: &Server) -> Client {
    let mut guest = server.anonymous();
    guest.log_in_as(&guest.post("/_matrix/client/v3/register?kind=guest", &json!({})).await.ok());
    guest
}

fn open_to_guests(rest: &Value) -> Value {
    let access = json!({ "type": "m.room.guest_access", "content": { "guest_access": "can_join" } });
    let mut state = vec![access];
    state.extend(rest.as_array().into_iter().flatten().cloned());
    json!({ "preset": "public_chat", "initial_state": state })
}

async fn until_membership(of: &Client, as_seen_by: &Client, room: &str, expected: &str) {
    let since = as_seen_by.token_of_sync().await;
    let is_so = async || {
        let member = as_seen_by.state(room, "m.room.member", &of.user_id).await;
        member.body["membership"] == expected
    };
    let mut since = since;
    for _ in 0..20 {
        if is_so().await {
            return;
        }
        let next = as_seen_by.sync(&format!("since={since}&timeout=1000")).await;
        next["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    panic!("the membership of {} does not become {expected}", of.user_id);
}

#[tokio::test]
async fn guests_choose_nothing_but_the_name_of_their_device() {
    let server = with_guests().await;
    let path = "/_matrix/client/v3/register?kind=guest";
    let body = json!({
        "username": "alice",
        "password": "secret",
        "device_id": "MINE",
        "initial_device_display_name": "kiosk",
        "inhibit_login": true,
        "refresh_token": true,
    });
    let answer = server.anonymous().post(path, &body).await.ok();
    assert_ne!(answer["user_id"], "@alice:localhost");
    assert!(answer["device_id"].is_string() && answer["device_id"] != "MINE", "{answer}");
    assert!(answer["access_token"].is_string() && answer.get("refresh_token").is_none(), "{answer}");
    let mut guest = server.anonymous();
    guest.log_in_as(&answer);
    let device = format!("/_matrix/client/v3/devices/{}", segment(&guest.device_id));
    assert_eq!(guest.get(&device).await.ok()["display_name"], "kiosk");
}

#[tokio::test]
async fn guests_search_the_directory_and_see_what_belongs_to_messages() {
    let server = with_guests().await;
    let alice = server.client("alice").await;
    let guest = guest(&server).await;
    let mut request = open_to_guests(&json!([]));
    request["visibility"] = json!("public");
    request["name"] = json!("tea");
    let room = alice.create_room(request).await;
    let search = json!({ "filter": { "generic_search_term": "tea" } });
    let found = guest.post("/_matrix/client/v3/publicRooms", &search).await.ok();
    assert_eq!(found["chunk"][0]["room_id"], room);
    guest.join(&room).await.ok();
    let said = alice.say(&room, "1", "hello").await;
    let path = format!("/_matrix/client/v1/rooms/{}/relations/{}", segment(&room), segment(&said));
    assert_eq!(guest.get(&path).await.ok()["chunk"], json!([]));
    let path = format!("/_matrix/client/v1/rooms/{}/hierarchy", segment(&room));
    assert_eq!(guest.get(&path).await.ok()["rooms"][0]["name"], "tea");
}

#[tokio::test]
async fn guests_leave_a_room_that_closes_to_them() {
    let mut server = with_guests().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (first, second) = (guest(&server).await, guest(&server).await);
    let room = alice.create_room(open_to_guests(&json!([]))).await;
    let other = alice.create_room(open_to_guests(&json!([]))).await;
    for client in [&bob, &first, &second] {
        client.join(&room).await.ok();
        client.join(&other).await.ok();
    }
    let closed = json!({ "guest_access": "forbidden" });
    alice.set_state(&room, "m.room.guest_access", "", &closed).await.ok();
    until_membership(&first, &alice, &room, "leave").await;
    until_membership(&second, &alice, &room, "leave").await;
    let left = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!(left["membership"], "join", "who is no guest stays");
    first.join(&room).await.is(403, "M_GUEST_ACCESS_FORBIDDEN");
    first.say(&other, "1", "another room is another matter").await;
    // A crash right after the room closed does not let them stay.
    alice.set_state(&other, "m.room.guest_access", "", &closed).await.ok();
    server.kill();
    server.restart().await;
    until_membership(&first, &alice, &other, "leave").await;
    until_membership(&second, &alice, &other, "leave").await;
}

#[tokio::test]
async fn a_redaction_closes_a_room_to_guests() {
    let server = with_guests().await;
    let alice = server.client("alice").await;
    let guest = guest(&server).await;
    let room = alice.create_room(open_to_guests(&json!([]))).await;
    guest.join(&room).await.ok();
    let path = Client::room(&room, "state/m.room.guest_access?format=event");
    let access = alice.get(&path).await.ok();
    let redact = format!("redact/{}/1", segment(access["event_id"].as_str().unwrap()));
    alice.put(&Client::room(&room, &redact), &json!({})).await.ok();
    until_membership(&guest, &alice, &room, "leave").await;
}

#[tokio::test]
async fn guests_do_not_join_by_a_state_event_where_they_may_not() {
    let server = with_guests().await;
    let alice = server.client("alice").await;
    let guest = guest(&server).await;
    let closed = alice.create_room(json!({ "preset": "public_chat" })).await;
    let open = alice.create_room(open_to_guests(&json!([]))).await;
    let join = json!({ "membership": "join" });
    let refused = guest.set_state(&closed, "m.room.member", &guest.user_id, &join).await;
    refused.is(403, "M_GUEST_ACCESS_FORBIDDEN");
    guest.set_state(&open, "m.room.member", &guest.user_id, &join).await.ok();
}

#[tokio::test]
async fn guests_may_do_what_the_table_says_and_nothing_else() {
    let server = with_guests().await;
    let alice = server.client("alice").await;
    let guest = guest(&server).await;
    let room = alice.create_room(open_to_guests(&json!([]))).await;
    guest.join(&room).await.ok();
    let said = guest.say(&room, "1", "hello").await;
    let in_room = |rest: &str| Client::room(&room, rest);
    let v3 = |rest: &str| format!("/_matrix/client/v3/{rest}");
    let own = |rest: &str| v3(&format!("{rest}/{}", segment(&guest.user_id)));
    let call = async |method: &str, path: String, body: Value| -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let body = (method != Method::GET).then_some(body);
        guest.attempt(method, &path, body.as_ref()).await.unwrap()
    };
    let keys = json!({ "device_keys": { guest.user_id.clone(): [] } });
    for (method, path, body) in [
        ("GET", in_room("state"), json!({})),
        ("GET", in_room("state/m.room.create"), json!({})),
        ("GET", in_room(&format!("context/{}", segment(&said))), json!({})),
        ("GET", in_room(&format!("event/{}", segment(&said))), json!({})),
        ("GET", in_room("messages?dir=b"), json!({})),
        ("GET", in_room("members"), json!({})),
        ("GET", in_room("initialSync"), json!({})),
        ("GET", v3("sync?timeout=0"), json!({})),
        ("GET", v3("events?timeout=0"), json!({})),
        ("GET", v3("account/whoami"), json!({})),
        ("GET", v3("devices"), json!({})),
        ("GET", v3(&format!("devices/{}", segment(&guest.device_id))), json!({})),
        ("PUT", v3(&format!("devices/{}", segment(&guest.device_id))), json!({ "display_name": "kiosk" })),
        ("PUT", own("profile") + "/displayname", json!({ "displayname": "Somebody" })),
        ("DELETE", own("profile") + "/displayname", json!({})),
        ("PUT", in_room("send/org.example.any/2"), json!({})),
        ("PUT", v3("sendToDevice/org.example/1"), json!({ "messages": {} })),
        ("POST", v3("keys/upload"), json!({})),
        ("POST", v3("keys/query"), keys),
        ("POST", v3("keys/claim"), json!({ "one_time_keys": {} })),
        ("POST", v3("publicRooms"), json!({})),
    ] {
        let answer = call(method, path.clone(), body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
    }
    // Allowed to guests, refused by the room.
    call("PUT", in_room("state/m.room.name/"), json!({ "name": "mine" })).await.is(403, "M_FORBIDDEN");
    for (method, path, body) in [
        ("PUT", own("profile") + "/avatar_url", json!({ "avatar_url": "mxc://localhost/a" })),
        ("POST", v3("createRoom"), json!({})),
        ("POST", in_room("invite"), json!({ "user_id": alice.user_id })),
        ("POST", in_room("kick"), json!({ "user_id": alice.user_id })),
        ("PUT", in_room(&format!("redact/{}/1", segment(&said))), json!({})),
        ("POST", in_room(&format!("receipt/m.read/{}", segment(&said))), json!({})),
        ("PUT", v3("directory/room/%23tea%3Alocalhost"), json!({ "room_id": room })),
        ("PUT", own("user") + "/account_data/org.example", json!({})),
        ("POST", own("user") + "/filter", json!({})),
        ("POST", v3("account/password"), json!({})),
        ("POST", v3("account/deactivate"), json!({})),
        ("POST", v3("user_directory/search"), json!({ "search_term": "alice" })),
        ("GET", v3("pushrules/"), json!({})),
    ] {
        let answer = call(method, path.clone(), body).await;
        assert_eq!(
            (answer.status, &answer.body["errcode"]),
            (403, &"M_GUEST_ACCESS_FORBIDDEN".into()),
            "{method} {path}"
        );
    }
    call("POST", in_room("leave"), json!({})).await.ok();
}

/// Everyone may look into a world-readable room, joined or not, and into no other.
#[tokio::test]
async fn a_world_readable_room_is_read_without_joining() {
    let server = with_guests().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let guest = guest(&server).await;
    let readable = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } }]);
    let open = alice.create_room(open_to_guests(&readable)).await;
    let closed = alice.create_room(open_to_guests(&json!([]))).await;
    for room in [&open, &closed] {
        let said = segment(&alice.say(room, "1", "hello").await);
        let old = |rest: &str| Client::room(room, rest);
        let v1 = |rest: &str| format!("/_matrix/client/v1/rooms/{}/{rest}", segment(room));
        let for_all = [
            old("state"),
            old("state/m.room.create"),
            old("members"),
            old("messages?dir=b"),
            old("initialSync"),
            old(&format!("event/{said}")),
            old(&format!("context/{said}")),
            format!("/_matrix/client/v3/events?room_id={}&timeout=0", segment(room)),
        ];
        let for_users =
            [v1(&format!("relations/{said}")), v1("threads"), v1("timestamp_to_event?ts=0&dir=f")];
        let by_guest = for_all.iter().map(|path| (&guest, path));
        let by_user = for_all.iter().chain(&for_users).map(|path| (&bob, path));
        for (client, path) in by_guest.chain(by_user) {
            let answer = client.get(path).await;
            if room == &open {
                assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            } else {
                assert!([403, 404].contains(&answer.status), "{path}: {}", answer.body);
            }
        }
    }
    // Reading is not taking part.
    bob.get(&Client::room(&open, "joined_members")).await.is(403, "M_FORBIDDEN");
    bob.send(&open, "m.room.message", "1", &json!({ "msgtype": "m.text", "body": "?" }))
        .await
        .is(403, "M_FORBIDDEN");
    guest
        .send(&open, "m.room.message", "1", &json!({ "msgtype": "m.text", "body": "?" }))
        .await
        .is(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_peek_waits_for_what_comes() {
    let server = with_guests().await;
    let alice = server.client("alice").await;
    let guest = guest(&server).await;
    let readable = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } }]);
    let room = alice.create_room(open_to_guests(&readable)).await;
    let path = format!("/_matrix/client/v3/events?room_id={}", segment(&room));
    let start = guest.get(&format!("{path}&timeout=0")).await.ok();
    let from = start["end"].as_str().unwrap().to_owned();
    let waiting = {
        let (guest, path) = (guest.clone(), format!("{path}&from={from}&timeout=20000"));
        tokio::spawn(async move { guest.get(&path).await.ok() })
    };
    let said = alice.say(&room, "1", "hello, whoever you are").await;
    let news = waiting.await.unwrap();
    assert_eq!(news["chunk"][0]["event_id"], said);
    assert_ne!(news["end"], from.as_str());
}
