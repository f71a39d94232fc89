//! Who may call what: tables over all endpoints.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Server, segment};

/// Endpoints that need an access token, below `/_matrix/client`; `{room}`, `{event}` and `{user}` are filled in.
const WITH_TOKEN: &[(&str, &str)] = &[
    ("GET", "/v3/account/whoami"),
    ("GET", "/v3/account/3pid"),
    ("GET", "/v3/capabilities"),
    ("POST", "/v3/logout"),
    ("POST", "/v3/logout/all"),
    ("GET", "/v3/devices"),
    ("GET", "/v3/devices/DEVICE"),
    ("PUT", "/v3/devices/DEVICE"),
    ("DELETE", "/v3/devices/DEVICE"),
    ("POST", "/v3/delete_devices"),
    ("PUT", "/v3/profile/{user}/displayname"),
    ("PUT", "/v3/profile/{user}/avatar_url"),
    ("DELETE", "/v3/profile/{user}/displayname"),
    ("GET", "/v3/presence/{user}/status"),
    ("PUT", "/v3/presence/{user}/status"),
    ("GET", "/v3/pushrules/"),
    ("GET", "/v3/pushrules/global/"),
    ("GET", "/v3/pushrules/global/override/.m.rule.master"),
    ("PUT", "/v3/pushrules/global/content/tea"),
    ("DELETE", "/v3/pushrules/global/content/tea"),
    ("GET", "/v3/pushrules/global/override/.m.rule.master/enabled"),
    ("PUT", "/v3/pushrules/global/override/.m.rule.master/enabled"),
    ("GET", "/v3/pushrules/global/override/.m.rule.master/actions"),
    ("PUT", "/v3/pushrules/global/override/.m.rule.master/actions"),
    ("POST", "/v3/user/{user}/filter"),
    ("GET", "/v3/user/{user}/filter/0"),
    ("POST", "/v3/user/{user}/openid/request_token"),
    ("GET", "/v3/user/{user}/account_data/org.example"),
    ("PUT", "/v3/user/{user}/account_data/org.example"),
    ("GET", "/v3/user/{user}/rooms/{room}/account_data/org.example"),
    ("PUT", "/v3/user/{user}/rooms/{room}/account_data/org.example"),
    ("GET", "/v3/user/{user}/rooms/{room}/tags"),
    ("PUT", "/v3/user/{user}/rooms/{room}/tags/m.favourite"),
    ("DELETE", "/v3/user/{user}/rooms/{room}/tags/m.favourite"),
    ("GET", "/v3/sync"),
    ("GET", "/v3/events"),
    ("GET", "/v3/initialSync"),
    ("GET", "/v3/rooms/{room}/initialSync"),
    ("POST", "/v3/createRoom"),
    ("GET", "/v3/joined_rooms"),
    ("POST", "/v3/join/{room}"),
    ("POST", "/v3/knock/{room}"),
    ("POST", "/v3/publicRooms"),
    ("PUT", "/v3/directory/room/%23tea:localhost"),
    ("DELETE", "/v3/directory/room/%23tea:localhost"),
    ("PUT", "/v3/directory/list/room/{room}"),
    ("POST", "/v3/rooms/{room}/join"),
    ("POST", "/v3/rooms/{room}/invite"),
    ("POST", "/v3/rooms/{room}/leave"),
    ("POST", "/v3/rooms/{room}/forget"),
    ("POST", "/v3/rooms/{room}/kick"),
    ("POST", "/v3/rooms/{room}/ban"),
    ("POST", "/v3/rooms/{room}/unban"),
    ("POST", "/v3/rooms/{room}/upgrade"),
    ("PUT", "/v3/rooms/{room}/send/m.room.message/1"),
    ("PUT", "/v3/rooms/{room}/redact/{event}/1"),
    ("GET", "/v3/rooms/{room}/state"),
    ("GET", "/v3/rooms/{room}/state/m.room.name"),
    ("PUT", "/v3/rooms/{room}/state/m.room.name"),
    ("GET", "/v3/rooms/{room}/state/m.room.member/{user}"),
    ("PUT", "/v3/rooms/{room}/state/m.room.member/{user}"),
    ("GET", "/v3/rooms/{room}/event/{event}"),
    ("GET", "/v3/rooms/{room}/members"),
    ("GET", "/v3/rooms/{room}/joined_members"),
    ("GET", "/v3/rooms/{room}/messages?dir=b"),
    ("GET", "/v3/rooms/{room}/context/{event}"),
    ("GET", "/v1/rooms/{room}/timestamp_to_event?ts=0&dir=f"),
    ("GET", "/v1/rooms/{room}/relations/{event}"),
    ("GET", "/v1/rooms/{room}/relations/{event}/m.thread"),
    ("GET", "/v1/rooms/{room}/relations/{event}/m.thread/m.room.message"),
    ("GET", "/v1/rooms/{room}/threads"),
    ("GET", "/unstable/org.matrix.msc4143/rtc/transports"),
    ("GET", "/unstable/org.matrix.msc3814.v1/dehydrated_device/DEVICE/events"),
    ("POST", "/v3/user_directory/search"),
    ("GET", "/v1/mutual_rooms?user_id={user}"),
    ("GET", "/v1/rooms/{room}/hierarchy"),
    ("GET", "/v3/rooms/{room}/aliases"),
    ("POST", "/v3/rooms/{room}/receipt/m.read/{event}"),
    ("POST", "/v3/rooms/{room}/read_markers"),
    ("PUT", "/v3/rooms/{room}/typing/{user}"),
];

/// What a user who is not in a private room may not do there, with a body that is right otherwise.
fn in_room(user_id: &str, event: &str) -> Vec<(Method, String, Option<Value>)> {
    let (user, event) = (segment(user_id), segment(event));
    let post = |path: &str, body: Value| (Method::POST, path.to_owned(), Some(body));
    let put = |path: String, body: Value| (Method::PUT, path, Some(body));
    let get = |path: String| (Method::GET, path, None);
    let somebody = json!({ "user_id": user_id });
    vec![
        post("join", json!({})),
        post("invite", json!({ "user_id": "@stranger:localhost" })),
        post("kick", somebody.clone()),
        post("ban", somebody.clone()),
        post("unban", somebody),
        post("upgrade", json!({ "new_version": "12" })),
        put("send/m.room.message/1".to_owned(), json!({ "msgtype": "m.text", "body": "let me in" })),
        put(format!("redact/{event}/2"), json!({})),
        put("state/m.room.name".to_owned(), json!({ "name": "mine now" })),
        put("state/m.room.name/".to_owned(), json!({ "name": "mine now" })),
        put(format!("state/m.room.member/{user}"), json!({ "membership": "join" })),
        get("state".to_owned()),
        get("state/m.room.create".to_owned()),
        get("members".to_owned()),
        get("joined_members".to_owned()),
        get("messages?dir=b".to_owned()),
        get("aliases".to_owned()),
        put(format!("typing/{user}"), json!({ "typing": true, "timeout": 1000 })),
    ]
}

#[tokio::test]
async fn everything_but_a_few_endpoints_needs_an_access_token() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let nobody = server.anonymous();
    let mut impostor = server.anonymous();
    impostor.token = Some("made-up".to_owned());
    for (method, path) in WITH_TOKEN {
        let path = path
            .replace("{room}", &segment(&room))
            .replace("{event}", &segment("$event"))
            .replace("{user}", &segment(&alice.user_id));
        let (method, path) = (method.parse::<Method>().unwrap(), format!("/_matrix/client{path}"));
        let body = (method != Method::GET).then(|| json!({}));
        for (client, errcode) in [(&nobody, "M_MISSING_TOKEN"), (&impostor, "M_UNKNOWN_TOKEN")] {
            let answer = client.attempt(method.clone(), &path, body.as_ref()).await.unwrap();
            let got = (answer.status, answer.body["errcode"].as_str());
            assert_eq!(got, (401, Some(errcode)), "{method} {path}: {}", answer.body);
            assert!(answer.body["error"].is_string(), "{method} {path}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_stranger_can_do_nothing_in_a_private_room() {
    let server = Server::start().await;
    let [alice, mallory] = server.clients(["alice", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let said = alice.say(&room, "1", "between us").await;
    for (method, rest, body) in in_room(&mallory.user_id, &said) {
        let path = Client::room(&room, &rest);
        let answer = mallory.attempt(method.clone(), &path, body.as_ref()).await.unwrap();
        let got = (answer.status, answer.body["errcode"].as_str());
        assert_eq!(got, (403, Some("M_FORBIDDEN")), "{method} {rest}: {}", answer.body);
    }
    // Where an event is named, the specification has a stranger not find it.
    for rest in [format!("event/{}", segment(&said)), format!("context/{}", segment(&said))] {
        let answer = mallory.get(&Client::room(&room, &rest)).await;
        assert!([403, 404].contains(&answer.status), "{rest}: {answer:?}");
    }
    let messages = alice.all_messages(&room).await;
    assert_eq!(messages.last().unwrap()["event_id"], said, "nothing happened");
}

#[tokio::test]
async fn nobody_touches_what_belongs_to_another_user() {
    let server = Server::start().await;
    let [alice, mallory] = server.clients(["alice", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    mallory.join(&room).await.ok();
    let (user, room_id) = (segment(&alice.user_id), segment(&room));
    let cases = [
        ("PUT", format!("/v3/profile/{user}/displayname"), json!({ "displayname": "Mallory's friend" })),
        ("PUT", format!("/v3/profile/{user}/avatar_url"), json!({ "avatar_url": "mxc://localhost/a" })),
        ("PUT", format!("/v3/profile/{user}/org.example.field"), json!({ "org.example.field": 1 })),
        ("DELETE", format!("/v3/profile/{user}/displayname"), json!({})),
        ("PUT", format!("/v3/presence/{user}/status"), json!({ "presence": "offline" })),
        ("POST", format!("/v3/user/{user}/filter"), json!({})),
        ("POST", format!("/v3/user/{user}/openid/request_token"), json!({})),
        ("PUT", format!("/v3/user/{user}/account_data/org.example"), json!({})),
        ("GET", format!("/v3/user/{user}/account_data/org.example"), Value::Null),
        ("PUT", format!("/v3/user/{user}/rooms/{room_id}/account_data/org.example"), json!({})),
        ("GET", format!("/v3/user/{user}/rooms/{room_id}/account_data/org.example"), Value::Null),
        ("GET", format!("/v3/user/{user}/rooms/{room_id}/tags"), Value::Null),
        ("PUT", format!("/v3/user/{user}/rooms/{room_id}/tags/u.x"), json!({ "order": 0.5 })),
        ("DELETE", format!("/v3/user/{user}/rooms/{room_id}/tags/u.x"), json!({})),
        ("PUT", format!("/v3/rooms/{room_id}/typing/{user}"), json!({ "typing": true, "timeout": 1000 })),
    ];
    for (method, path, body) in cases {
        let path = format!("/_matrix/client{path}");
        let body = (!body.is_null()).then_some(&body);
        let answer = mallory.attempt(method.parse().unwrap(), &path, body).await.unwrap();
        let got = (answer.status, answer.body["errcode"].as_str());
        assert_eq!(got, (403, Some("M_FORBIDDEN")), "{method} {path}: {}", answer.body);
    }
}

#[tokio::test]
async fn power_decides_who_may_do_what() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "room_version": "11" })).await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    let forbidden = [
        ("m.room.name", json!({ "name": "bob's" })),
        ("m.room.topic", json!({ "topic": "bob's" })),
        ("m.room.power_levels", json!({ "users": { bob.user_id.clone(): 100 } })),
        ("m.room.join_rules", json!({ "join_rule": "invite" })),
        ("m.room.history_visibility", json!({ "history_visibility": "joined" })),
        ("m.room.tombstone", json!({ "body": "moved", "replacement_room": "!x:localhost" })),
        ("m.room.server_acl", json!({ "allow": ["*"] })),
        ("m.room.create", json!({ "room_version": "11" })),
    ];
    for (kind, content) in &forbidden {
        bob.set_state(&room, kind, "", content).await.is(403, "M_FORBIDDEN");
    }
    bob.set_state(&room, "org.example.mine", &alice.user_id, &json!({})).await.is(403, "M_FORBIDDEN");
    for verb in ["kick", "ban"] {
        bob.moderate(verb, &room, &carol.user_id).await.is(403, "M_FORBIDDEN");
    }

    let mut levels = alice.state(&room, "m.room.power_levels", "").await.ok();
    levels["users"][&bob.user_id] = json!(50);
    alice.set_state(&room, "m.room.power_levels", "", &levels).await.ok();
    bob.set_state(&room, "m.room.name", "", &json!({ "name": "bob's" })).await.ok();
    bob.moderate("kick", &room, &carol.user_id).await.ok();
    bob.moderate("ban", &room, &carol.user_id).await.ok();
    bob.moderate("kick", &room, &alice.user_id).await.is(403, "M_FORBIDDEN");
    bob.moderate("ban", &room, &alice.user_id).await.is(403, "M_FORBIDDEN");
    for (user, level) in [(&bob, 100), (&carol, 60), (&alice, 0)] {
        let mut more = levels.clone();
        more["users"][&user.user_id] = json!(level);
        more["events"]["m.room.power_levels"] = json!(50);
        bob.set_state(&room, "m.room.power_levels", "", &more).await.is(403, "M_FORBIDDEN");
    }
    levels["events_default"] = json!(51);
    alice.set_state(&room, "m.room.power_levels", "", &levels).await.ok();
    let muted = bob.send(&room, "m.room.message", "1", &json!({ "msgtype": "m.text", "body": "?" })).await;
    muted.is(403, "M_FORBIDDEN");

    // Who has left may not even repeat what they said before.
    bob.post(&Client::room(&room, "leave"), &json!({})).await.ok();
    bob.set_state(&room, "m.room.name", "", &json!({ "name": "bob's" })).await.is(403, "M_FORBIDDEN");
}
