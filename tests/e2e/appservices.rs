//! Application services, against a small one.

mod pushing;
mod service;

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use self::service::{Service, registration};

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// Registers a user of the service without logging in.
async fn ghost(service: &Client, name: &str) -> String {
    let body = json!({ "type": "m.login.application_service", "username": name, "inhibit_login": true });
    let answer = service.post(REGISTER, &body).await.ok();
    assert!(answer.get("access_token").is_none(), "{answer}");
    answer["user_id"].as_str().unwrap().to_owned()
}

/// A path, for a user of the service.
fn acting(path: &str, user_id: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}user_id={}", segment(user_id))
}

async fn join(service: &Client, user_id: &str, room: &str) {
    service.post(&acting(&Client::room(room, "join"), user_id), &json!({})).await.ok();
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

#[tokio::test]
async fn a_wrong_registration_keeps_the_server_from_starting() {
    let service = Service::start().await;
    let mut server = Server::start().await;
    server.stop().await;
    let mut wrong = registration(&service.url);
    wrong["namespaces"]["users"][0]["regex"] = "@_irc_(".into();
    server.set("appservices.registrations", &service.register(&wrong));
    for arguments in [&[][..], &["check"]] {
        let output = server.command(arguments, "").await;
        assert!(!output.status.success());
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.contains("irc.yaml") && told.contains("namespaces.users[0].regex"), "{told}");
    }
    server.set("appservices.registrations", &service.register(&registration(&service.url)));
    server.restart().await;
}

#[tokio::test]
async fn a_service_registers_its_users_and_acts_for_them() {
    let service = Service::start().await;
    let (server, client) = service.server().await;
    // Its own user is there from the start.
    let bot = client.get(WHOAMI).await.ok();
    assert_eq!(bot["user_id"], json!(format!("@irc_bot:{}", server.name())));
    assert!(bot.get("device_id").is_none(), "{bot}");
    let bob = ghost(&client, "_irc_bob").await;
    assert_eq!(client.get(&acting(WHOAMI, &bob)).await.ok()["user_id"], json!(bob));
    let again = json!({ "type": "m.login.application_service", "username": "_irc_bob" });
    client.post(REGISTER, &again).await.is(400, "M_USER_IN_USE");
    let outside = json!({ "type": "m.login.application_service", "username": "bob" });
    client.post(REGISTER, &outside).await.is(400, "M_EXCLUSIVE");
    let alice = server.client("alice").await;
    server.anonymous().post(REGISTER, &again).await.is(401, "M_MISSING_TOKEN");
    alice.post(REGISTER, &again).await.is(401, "M_UNKNOWN_TOKEN");

    client.get(&acting(WHOAMI, &alice.user_id)).await.is(403, "M_FORBIDDEN");
    client.get(&acting(WHOAMI, &format!("@_irc_nobody:{}", server.name()))).await.is(403, "M_FORBIDDEN");
    client.get(&acting(WHOAMI, "@_irc_bob:b.example")).await.is(403, "M_FORBIDDEN");
    client.get(&acting(WHOAMI, "bob")).await.is(400, "M_INVALID_PARAM");
    // A user of one's own is nothing that others can assert.
    assert_eq!(alice.get(&acting(WHOAMI, &bob)).await.ok()["user_id"], json!(alice.user_id));

    let flows = server.anonymous().get(LOGIN).await.ok();
    let kinds: Vec<_> = flows["flows"].as_array().unwrap().iter().map(|flow| flow["type"].clone()).collect();
    assert!(kinds.contains(&json!("m.login.application_service")), "{flows}");
    let as_bob = |user: &str| json!({ "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": user } });
    let mut device = server.anonymous();
    device.log_in_as(&client.post(LOGIN, &as_bob("_irc_bob")).await.ok());
    assert_eq!(device.get(WHOAMI).await.ok()["user_id"], json!(bob));
    client.post(LOGIN, &as_bob(&alice.user_id)).await.is(400, "M_EXCLUSIVE");
    server.anonymous().post(LOGIN, &as_bob("_irc_bob")).await.is(401, "M_MISSING_TOKEN");
    alice.post(LOGIN, &as_bob("_irc_bob")).await.is(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn what_is_exclusive_is_kept_from_others() {
    let service = Service::start().await;
    let (server, client) = service.server().await;
    let alice = server.client("alice").await;
    for name in ["_irc_carol", "irc_bot", "_IRC_dave"] {
        let body =
            json!({ "username": name, "password": "secret enough", "auth": { "type": "m.login.dummy" } });
        server.anonymous().post(REGISTER, &body).await.is(400, "M_EXCLUSIVE");
    }
    let available = "/_matrix/client/v3/register/available?username=_irc_carol";
    server.anonymous().get(available).await.is(400, "M_EXCLUSIVE");

    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let alias = |name: &str| {
        format!("/_matrix/client/v3/directory/room/{}", segment(&format!("#{name}:{}", server.name())))
    };
    let body = json!({ "room_id": room });
    alice.put(&alias("_irc_x"), &body).await.is(400, "M_EXCLUSIVE");
    let new = json!({ "room_alias_name": "_irc_y" });
    alice.post("/_matrix/client/v3/createRoom", &new).await.is(400, "M_EXCLUSIVE");
    client.put(&alias("y"), &body).await.is(400, "M_EXCLUSIVE");
    client.put(&alias("_irc_x"), &body).await.ok();
    alice.delete(&alias("_irc_x"), &json!({})).await.is(400, "M_EXCLUSIVE");
    client.delete(&alias("_irc_x"), &json!({})).await.ok();
    client.post("/_matrix/client/v3/createRoom", &new).await.ok();
}

#[tokio::test]
async fn a_service_has_devices_and_dates_events() {
    let service = Service::start().await;
    let (_server, client) = service.server().await;
    let bob = ghost(&client, "_irc_bob").await;
    let device = acting("/_matrix/client/v3/devices/BRIDGE", &bob);
    assert_eq!(client.put(&device, &json!({ "display_name": "Bridge" })).await.status, 201);
    assert_eq!(client.put(&device, &json!({ "display_name": "bridge" })).await.status, 200);
    assert_eq!(client.get(&device).await.ok()["display_name"], "bridge");
    let with_device = |path: &str, device: &str| format!("{}&device_id={device}", acting(path, &bob));
    assert_eq!(client.get(&with_device(WHOAMI, "BRIDGE")).await.ok()["device_id"], "BRIDGE");
    client.get(&with_device(WHOAMI, "OTHER")).await.is(400, "M_UNKNOWN_DEVICE");
    let upload = "/_matrix/client/v3/keys/upload";
    client.post(&acting(upload, &bob), &json!({})).await.is(400, "M_MISSING_PARAM");
    client.post(&with_device(upload, "BRIDGE"), &json!({})).await.ok();
    // No password is asked for.
    client.delete(&device, &json!({})).await.ok();
    client.get(&device).await.is(404, "M_NOT_FOUND");

    let room = client.create_room(json!({ "preset": "public_chat" })).await;
    join(&client, &bob, &room).await;
    let path = acting(&Client::room(&room, "send/m.room.message/1?ts=1234567890"), &bob);
    let event = client.put(&path, &text("long ago")).await.ok();
    let again = client.put(&path, &text("long ago")).await.ok();
    assert_eq!(event, again, "a transaction is done once");
    let event = segment(event["event_id"].as_str().unwrap());
    let event = client.get(&Client::room(&room, &format!("event/{event}"))).await.ok();
    assert_eq!((&event["origin_server_ts"], &event["sender"]), (&json!(1_234_567_890), &json!(bob)));
    let state = Client::room(&room, "state/m.room.topic/?ts=1234567891");
    client.put(&state, &json!({ "topic": "old" })).await.ok();
    client
        .put(&Client::room(&room, "send/m.room.message/2?ts=-1"), &text("never"))
        .await
        .is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_service_pings_itself_through_the_server() {
    let service = Service::start().await;
    let (server, client) = service.server().await;
    let path = "/_matrix/client/v1/appservice/irc/ping";
    let answer = client.post(path, &json!({ "transaction_id": "meow" })).await.ok();
    assert!(answer["duration_ms"].is_u64(), "{answer}");
    client.post("/_matrix/client/v1/appservice/other/ping", &json!({})).await.is(403, "M_FORBIDDEN");
    server.client("alice").await.post(path, &json!({})).await.is(403, "M_FORBIDDEN");
    service.answer("POST /_matrix/app/v1/ping", 403, json!({ "errcode": "M_FORBIDDEN" })).await;
    let refused = client.post(path, &json!({})).await;
    refused.is(502, "M_BAD_STATUS");
    assert_eq!(refused.body["status"], 403);
    assert_eq!(refused.body["body"], "{\"errcode\":\"M_FORBIDDEN\"}");
    drop(service);
    client.post(path, &json!({})).await.is(502, "M_CONNECTION_FAILED");
}

#[tokio::test]
async fn a_service_makes_what_is_looked_for() {
    let service = Service::start().await;
    let (server, client) = service.server().await;
    let alice = server.client("alice").await;
    let name = server.name();
    let profile = format!("/_matrix/client/v3/profile/{}", segment(&format!("@_irc_bob:{name}")));
    alice.get(&profile).await.is(404, "M_NOT_FOUND");
    let line = |kind: &str, id: &str| format!("GET /_matrix/app/v1/{kind}/{}", segment(id));
    let register = |name: &str| json!({ "type": "m.login.application_service", "username": name });
    let bob = line("users", &format!("@_irc_bob:{name}"));
    service.make(&bob, &client, REGISTER, register("_irc_bob")).await;
    assert_eq!(alice.get(&profile).await.ok(), json!({}));

    let carol = format!("@_irc_carol:{name}");
    service.make(&line("users", &carol), &client, REGISTER, register("_irc_carol")).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    alice.moderate("invite", &room, &carol).await.ok();
    join(&client, &carol, &room).await;

    let alias = format!("#_irc_x:{name}");
    let path = format!("/_matrix/client/v3/directory/room/{}", segment(&alias));
    alice.get(&path).await.is(404, "M_NOT_FOUND");
    service.make(&line("rooms", &alias), &client, &path, json!({ "room_id": room })).await;
    let dave = server.client("dave").await;
    dave.post(&format!("/_matrix/client/v3/join/{}", segment(&alias)), &json!({})).await.ok();
    alice.get("/_matrix/client/v3/profile/@nobody:localhost").await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn networks_of_services_are_looked_up_and_listed() {
    let mut service = Service::start().await;
    let (server, client) = service.server().await;
    let alice = server.client("alice").await;
    let thirdparty = "/_matrix/client/v3/thirdparty";
    assert_eq!(alice.get(&format!("{thirdparty}/protocols")).await.ok(), json!({}));
    let about = json!({
        "user_fields": ["nickname"], "location_fields": ["channel"], "icon": "mxc://a/b", "field_types": {},
        "instances": [{ "network_id": "freenode", "desc": "Freenode", "fields": {} }],
    });
    service.answer("GET /_matrix/app/v1/thirdparty/protocol/irc", 200, about).await;
    let protocols = alice.get(&format!("{thirdparty}/protocols")).await.ok();
    let instance = protocols["irc"]["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    assert_eq!(alice.get(&format!("{thirdparty}/protocol/irc")).await.ok(), protocols["irc"]);
    alice.get(&format!("{thirdparty}/protocol/smtp")).await.is(404, "M_NOT_FOUND");

    let location = json!({ "alias": "#_irc_x:localhost", "protocol": "irc", "fields": { "channel": "#x" } });
    let by_channel = "GET /_matrix/app/v1/thirdparty/location/irc?channel=%23x";
    service.answer(by_channel, 200, json!([location, { "alias": "half" }])).await;
    service.rest();
    let path = format!("{thirdparty}/location/irc?channel=%23x&access_token=no");
    assert_eq!(alice.get(&path).await.ok(), json!([location]));
    assert_eq!(service.next().await.line, by_channel);
    alice.get(&format!("{thirdparty}/location/irc?channel=y")).await.is(404, "M_NOT_FOUND");
    let user = json!({ "userid": "@_irc_bob:localhost", "protocol": "irc", "fields": { "nickname": "bob" } });
    let by_id = "GET /_matrix/app/v1/thirdparty/user?userid=%40_irc_bob%3Alocalhost";
    service.answer(by_id, 200, json!([user])).await;
    let path = format!("{thirdparty}/user?userid=%40_irc_bob%3Alocalhost");
    assert_eq!(alice.get(&path).await.ok(), json!([user]));
    alice.get(&format!("{thirdparty}/user")).await.is(400, "M_MISSING_PARAM");

    let room = client.create_room(json!({ "preset": "public_chat", "name": "bridged" })).await;
    let list = format!("/_matrix/client/v3/directory/list/appservice/freenode/{}", segment(&room));
    alice.put(&list, &json!({ "visibility": "public" })).await.is(403, "M_FORBIDDEN");
    client.put(&list, &json!({})).await.is(400, "M_BAD_JSON");
    client.put(&list, &json!({ "visibility": "public" })).await.ok();
    let rooms = async |query: Value| {
        let page = alice.post("/_matrix/client/v3/publicRooms", &query).await.ok();
        page["chunk"].as_array().unwrap().iter().map(|room| room["room_id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(rooms(json!({ "third_party_instance_id": instance })).await, [json!(room)]);
    assert_eq!(rooms(json!({ "include_all_networks": true })).await, [json!(room)]);
    assert!(rooms(json!({})).await.is_empty());
    assert!(rooms(json!({ "third_party_instance_id": "irc|other" })).await.is_empty());
    client.put(&list, &json!({ "visibility": "private" })).await.ok();
    assert!(rooms(json!({ "third_party_instance_id": instance })).await.is_empty());
}
