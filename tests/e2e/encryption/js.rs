//! matrix-js-sdk with its wasm cryptography: with itself, and with `matrix-sdk`.

use matrix_sdk::ruma::RoomId;
use serde_json::{Value, json};
use tests::{Client, Peer, PeerKind, Server};

use super::sdk;
use crate::federation::eventually;

/// matrix-js-sdk on a new device of the user; `limit` is how many events of a room it has at first.
async fn log_in(server: &Server, user: &Client, limit: u64) -> (Peer, String) {
    let mut peer = Peer::start(PeerKind::Js, &server.url());
    let arguments =
        json!({ "user": user.user_id, "password": user.password(), "encrypted": true, "limit": limit });
    let account = peer.call("login", arguments).await;
    let device_id = account["device_id"].as_str().unwrap().to_owned();
    (peer, device_id)
}

async fn wait(peer: &mut Peer, fact: Value) -> Value {
    peer.call("wait", json!({ "fact": fact })).await
}

async fn hears(peer: &mut Peer, room: &str, body: &str) {
    wait(peer, json!({ "what": "message", "room_id": room, "body": body })).await;
}

async fn say(peer: &mut Peer, room: &str, body: &str) -> String {
    let sent = peer.call("send", json!({ "room_id": room, "body": body })).await;
    sent["event_id"].as_str().unwrap().to_owned()
}

/// Two clients compare emoji.
async fn verify(asker: (&mut Peer, &Client), asked: (&mut Peer, &Client, &str)) {
    let [(one, one_user), (two, two_user)] = [asker, (asked.0, asked.1)];
    one.call("verify", json!({ "user_id": two_user.user_id, "device_id": asked.2 })).await;
    let left = wait(one, json!({ "what": "sas" })).await;
    let right = wait(two, json!({ "what": "sas" })).await;
    assert_eq!(left["emoji"], right["emoji"]);
    one.call("confirm", json!({})).await;
    two.call("confirm", json!({})).await;
    wait(one, json!({ "what": "verified", "user_id": two_user.user_id })).await;
    wait(two, json!({ "what": "verified", "user_id": one_user.user_id })).await;
}

async fn encrypted_room(peer: &mut Peer, other: &Client) -> String {
    let room = peer.call("create_room", json!({ "public": true, "encrypted": true })).await;
    let room = room["room_id"].as_str().unwrap().to_owned();
    other.join(&room).await.ok();
    let joined = json!({ "what": "member", "room_id": room, "user_id": other.user_id, "membership": "join" });
    wait(peer, joined).await;
    room
}

#[tokio::test]
async fn matrix_js_sdk_verifies_asks_its_other_device_for_keys_and_restores_a_backup() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (mut one, first_device) = log_in(&server, &alice, 20).await;
    let (mut two, bobs_device) = log_in(&server, &bob, 20).await;
    one.call("trust", json!({})).await;
    two.call("trust", json!({})).await;
    let room = encrypted_room(&mut one, &bob).await;
    wait(&mut two, json!({ "what": "member", "room_id": room, "user_id": bob.user_id })).await;
    let old = say(&mut one, &room, "hello bob").await;
    hears(&mut two, &room, "hello bob").await;
    say(&mut two, &room, "hello alice").await;
    hears(&mut one, &room, "hello alice").await;
    let raw = alice.get(&Client::room(&room, &format!("event/{old}"))).await.ok();
    assert_eq!(raw["type"], "m.room.encrypted");
    verify((&mut one, &alice), (&mut two, &bob, &bobs_device)).await;

    // What a new device has not seen it asks the old one for, which gives it to a verified device.
    alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "tea" })).await.ok();
    let (mut new, _) = log_in(&server, &alice, 1).await;
    verify((&mut new, &alice), (&mut one, &alice, &first_device)).await;
    let read = new.call("read", json!({ "room_id": room, "event_id": old })).await;
    assert_eq!(read["body"], "hello bob");

    let backup = one.call("backup", json!({})).await;
    alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "coffee" })).await.ok();
    let (mut newest, _) = log_in(&server, &alice, 1).await;
    newest.call("restore", json!({ "key": backup["key"] })).await;
    let read = newest.call("read", json!({ "room_id": room, "event_id": old })).await;
    assert_eq!(read["body"], "hello bob");
}

#[tokio::test]
async fn matrix_js_sdk_and_matrix_sdk_verify_and_read_each_other() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (mut one, _) = log_in(&server, &alice, 20).await;
    let two = sdk::log_in(&server.url(), &bob).await;
    one.call("trust", json!({})).await;
    two.encryption().bootstrap_cross_signing(None).await.unwrap();
    let room = encrypted_room(&mut one, &bob).await;
    sdk::sync(&two).await;
    let room_id = RoomId::parse(&room).unwrap();
    let hello = say(&mut one, &room, "hello bob").await;
    sdk::comes_to_read(&two, &room_id, &hello.try_into().unwrap(), "hello bob").await;
    sdk::say(&two, &room_id, "hello alice").await;
    hears(&mut one, &room, "hello alice").await;

    let (alice_id, bob_id) = (alice.user_id.as_str().try_into().unwrap(), two.user_id().unwrap());
    two.encryption().request_user_identity(alice_id).await.unwrap();
    let device_id = two.device_id().unwrap();
    let asked = one.call("verify", json!({ "user_id": bob_id, "device_id": device_id })).await;
    let flow = asked["flow"].as_str().unwrap();
    sdk::request(&two, alice_id, flow).await.accept().await.unwrap();
    let compared = sdk::sas(&two, alice_id, flow).await;
    compared.accept().await.unwrap();
    let emoji = eventually("emoji are shown", async || {
        sdk::sync(&two).await;
        compared.emoji()
    })
    .await;
    let emoji = emoji.map(|emoji| emoji.symbol).join(" ");
    assert_eq!(wait(&mut one, json!({ "what": "sas" })).await["emoji"], emoji);
    one.call("confirm", json!({})).await;
    compared.confirm().await.unwrap();
    eventually("the verification is done", async || {
        sdk::sync(&two).await;
        compared.is_done().then_some(())
    })
    .await;
    wait(&mut one, json!({ "what": "verified", "user_id": bob_id })).await;
    sdk::trusts(&two, alice_id).await;
}
