//! The published crate `matrix-sdk` with its own cryptography, on one server and across two.

use std::time::Duration;

use matrix_sdk::{
    Client,
    config::SyncSettings,
    encryption::{
        CrossSigningStatus,
        verification::{SasVerification, Verification, VerificationRequest},
    },
    ruma::{
        DeviceId, OwnedEventId, RoomId, UserId,
        events::room::message::{OriginalSyncRoomMessageEvent, RoomMessageEventContent},
    },
};
use serde_json::json;
use tests::{Server, Synapse};

use crate::federation::{User, eventually};

/// A client of its own on a new device of the user.
pub(super) async fn log_in(url: &str, user: &tests::Client) -> Client {
    let client = Client::builder().homeserver_url(url).build().await.unwrap();
    client.matrix_auth().login_username(&user.user_id, &user.password()).send().await.unwrap();
    client.encryption().wait_for_e2ee_initialization_tasks().await;
    sync(&client).await;
    client
}

pub(super) async fn sync(client: &Client) {
    client.sync_once(SyncSettings::new().timeout(Duration::ZERO)).await.unwrap();
}

pub(super) async fn say(client: &Client, room: &RoomId, text: &str) -> OwnedEventId {
    let content = RoomMessageEventContent::text_plain(text);
    client.get_room(room).unwrap().send(content).await.unwrap().response.event_id
}

async fn read(client: &Client, room: &RoomId, event: &OwnedEventId) -> Option<String> {
    let event = client.get_room(room)?.event(event, None).await.ok()?;
    let message = event.raw().deserialize_as_unchecked::<OriginalSyncRoomMessageEvent>().ok()?;
    Some(message.content.body().to_owned())
}

/// Says something, which the others come to read.
async fn is_read(speaker: &Client, room: &RoomId, text: &str, readers: &[&Client]) -> OwnedEventId {
    let event = say(speaker, room, text).await;
    for reader in readers {
        comes_to_read(reader, room, &event, text).await;
    }
    event
}

pub(super) async fn comes_to_read(reader: &Client, room: &RoomId, event: &OwnedEventId, text: &str) {
    eventually(&format!("{text:?} is read by {}", reader.user_id().unwrap()), async || {
        sync(reader).await;
        (read(reader, room, event).await.as_deref() == Some(text)).then_some(())
    })
    .await;
}

/// An encrypted room that the user makes.
async fn encrypted_room(user: &tests::Client) -> String {
    user.create_room(json!({
        "preset": "public_chat",
        "room_version": "11",
        "initial_state": [{
            "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" },
        }],
    }))
    .await
}

/// The session that a message was encrypted with.
async fn session_of(user: &tests::Client, room: &RoomId, event: &OwnedEventId) -> String {
    let raw = user.get(&tests::Client::room(room.as_str(), &format!("event/{event}"))).await.ok();
    assert_eq!(raw["type"], "m.room.encrypted");
    raw["content"]["session_id"].as_str().unwrap().to_owned()
}

pub(super) async fn request(client: &Client, user: &UserId, flow: &str) -> VerificationRequest {
    eventually("the verification request comes", async || {
        sync(client).await;
        client.encryption().get_verification_request(user, flow).await
    })
    .await
}

pub(super) async fn sas(client: &Client, user: &UserId, flow: &str) -> SasVerification {
    eventually("the verification begins", async || {
        sync(client).await;
        match client.encryption().get_verification(user, flow).await {
            Some(Verification::SasV1(sas)) => Some(sas),
            _ => None,
        }
    })
    .await
}

/// Two clients compare emoji.
pub(super) async fn verify(asker: &Client, asked: &Client) {
    let (asker_id, asked_id) = (asker.user_id().unwrap(), asked.user_id().unwrap());
    let device_id: &DeviceId = asked.device_id().unwrap();
    let device = eventually("the device is known", async || {
        asker.encryption().request_user_identity(asked_id).await.unwrap();
        asker.encryption().get_device(asked_id, device_id).await.unwrap()
    })
    .await;
    // The one that is asked has to know who asks.
    asked.encryption().request_user_identity(asker_id).await.unwrap();
    let asks = device.request_verification().await.unwrap();
    let flow = asks.flow_id().to_owned();
    request(asked, asker_id, &flow).await.accept().await.unwrap();
    eventually("the request is accepted", async || {
        sync(asker).await;
        asks.is_ready().then_some(())
    })
    .await;
    let one = asks.start_sas().await.unwrap().expect("both know emoji");
    let two = sas(asked, asker_id, &flow).await;
    two.accept().await.unwrap();
    let [first, second] = [(asker, &one), (asked, &two)];
    let shown = async || {
        sync(first.0).await;
        sync(second.0).await;
        Some((first.1.emoji()?, second.1.emoji()?))
    };
    let (left, right) = eventually("emoji are shown", shown).await;
    let symbols = |emoji: [matrix_sdk::encryption::verification::Emoji; 7]| emoji.map(|emoji| emoji.symbol);
    assert_eq!(symbols(left), symbols(right));
    one.confirm().await.unwrap();
    two.confirm().await.unwrap();
    eventually("the verification is done", async || {
        sync(asker).await;
        sync(asked).await;
        (one.is_done() && two.is_done()).then_some(())
    })
    .await;
}

/// Waits until a client has its own signature on a user's keys back from the server.
pub(super) async fn trusts(client: &Client, user: &UserId) {
    eventually(&format!("{} trusts {user}", client.user_id().unwrap()), async || {
        sync(client).await;
        let identity = client.encryption().get_user_identity(user).await.unwrap()?;
        identity.is_verified().then_some(())
    })
    .await;
}

/// Verification, messages both ways, a further device, and the rotation when a device goes.
async fn converse(
    (alice, alice_url): (&tests::Client, &str),
    (bob, bob_url): (&tests::Client, &str),
) -> (Client, Client, matrix_sdk::ruma::OwnedRoomId) {
    let (one, two) = (log_in(alice_url, alice).await, log_in(bob_url, bob).await);
    one.encryption().bootstrap_cross_signing(None).await.unwrap();
    two.encryption().bootstrap_cross_signing(None).await.unwrap();
    let room = encrypted_room(alice).await;
    User(bob.clone()).join(&room, alice.server_name()).await;
    User(alice.clone()).sees(&room, &User(bob.clone()), "join").await;
    let room = RoomId::parse(room).unwrap();
    sync(&one).await;
    sync(&two).await;
    is_read(&one, &room, "hello bob", &[&two]).await;
    is_read(&two, &room, "hello alice", &[&one]).await;

    verify(&one, &two).await;
    let (alice_id, bob_id) = (one.user_id().unwrap(), two.user_id().unwrap());
    trusts(&one, bob_id).await;
    trusts(&two, alice_id).await;

    let phone = log_in(bob_url, bob).await;
    eventually("the phone is known", async || {
        sync(&one).await;
        one.encryption().get_device(bob_id, phone.device_id().unwrap()).await.unwrap()
    })
    .await;
    let first = is_read(&one, &room, "to both devices", &[&two, &phone]).await;
    phone.logout().await.unwrap();
    eventually("the phone is gone", async || {
        sync(&one).await;
        let device = one.encryption().get_device(bob_id, phone.device_id().unwrap()).await.unwrap();
        device.is_none().then_some(())
    })
    .await;
    let second = is_read(&one, &room, "not to the phone", &[&two]).await;
    assert_ne!(
        session_of(alice, &room, &first).await,
        session_of(alice, &room, &second).await,
        "whoever has the phone must not read on"
    );
    (one, two, room)
}

#[tokio::test]
async fn clients_verify_each_other_and_a_lost_device_gets_no_more_keys() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let url = server.url();
    let (one, two, room) = converse((&alice, &url), (&bob, &url)).await;
    // A third client: alice's new device is verified by her old one, which gives it her secrets.
    let new = log_in(&url, &alice).await;
    verify(&one, &new).await;
    eventually("the secrets come", async || {
        sync(&one).await;
        sync(&new).await;
        new.encryption().cross_signing_status().await.filter(CrossSigningStatus::is_complete)
    })
    .await;
    // What it signs counts with bob, who has verified alice.
    eventually("bob trusts the new device", async || {
        sync(&two).await;
        let alice_id = one.user_id().unwrap();
        let device = two.encryption().get_device(alice_id, new.device_id().unwrap()).await.unwrap()?;
        device.is_verified().then_some(())
    })
    .await;
    is_read(&two, &room, "to all of alice", &[&one, &new]).await;
    is_read(&new, &room, "from the new device", &[&one, &two]).await;
}

#[tokio::test]
async fn clients_read_each_other_in_an_encrypted_room_and_a_new_device_reads_the_backup() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let url = server.url();
    let (one, two) = (log_in(&url, &alice).await, log_in(&url, &bob).await);
    let room = encrypted_room(&alice).await;
    bob.join(&room).await.ok();
    let room = RoomId::parse(room).unwrap();
    sync(&one).await;
    sync(&two).await;
    is_read(&one, &room, "hello bob", &[&two]).await;
    let answer = is_read(&two, &room, "hello alice", &[&one]).await;

    let key = one.encryption().recovery().enable().wait_for_backups_to_upload().await.unwrap();
    let new = log_in(&url, &alice).await;
    assert_eq!(read(&new, &room, &answer).await, None);
    new.encryption().recovery().recover(&key).await.unwrap();
    new.encryption().backups().download_room_keys_for_room(&room).await.unwrap();
    assert_eq!(read(&new, &room, &answer).await.as_deref(), Some("hello alice"));
}

#[tokio::test]
async fn an_encrypted_room_spans_ganglion_and_synapse() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (server.client("alice").await, synapse.client("bob").await);
    converse((&alice, &server.url()), (&bob, &synapse.url())).await;
    let (carol, dave) = (synapse.client("carol").await, server.client("dave").await);
    converse((&carol, &synapse.url()), (&dave, &server.url())).await;
}

#[tokio::test]
async fn an_encrypted_room_spans_two_ganglions_of_which_one_is_killed() {
    let (mut here, mut there) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (here.client("alice").await, there.client("bob").await);
    let (one, two, room) = converse((&alice, &here.url()), (&bob, &there.url())).await;
    there.kill();
    // A new session: its keys have to wait for bob's server, and outlive a crash of this one.
    one.get_room(&room).unwrap().discard_room_key().await.unwrap();
    let first = say(&one, &room, "are you there?").await;
    here.kill();
    here.restart().await;
    let second = say(&one, &room, "still not?").await;
    there.restart().await;
    comes_to_read(&two, &room, &first, "are you there?").await;
    comes_to_read(&two, &room, &second, "still not?").await;
    is_read(&two, &room, "back again", &[&one]).await;
}
