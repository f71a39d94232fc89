//! The published crate `matrix-sdk` with its own cryptography.

use matrix_sdk::{
    Client,
    config::SyncSettings,
    ruma::{
        OwnedEventId, RoomId,
        events::room::message::{OriginalSyncRoomMessageEvent, RoomMessageEventContent},
    },
};
use serde_json::json;
use tests::Server;

async fn log_in(server: &Server, user: &tests::Client) -> Client {
    let client = Client::builder().homeserver_url(server.url()).build().await.unwrap();
    client.matrix_auth().login_username(&user.user_id, &user.password()).send().await.unwrap();
    client.encryption().wait_for_e2ee_initialization_tasks().await;
    sync(&client).await;
    client
}

async fn sync(client: &Client) {
    client.sync_once(SyncSettings::new().timeout(std::time::Duration::ZERO)).await.unwrap();
}

async fn say(client: &Client, room: &RoomId, text: &str) -> OwnedEventId {
    let content = RoomMessageEventContent::text_plain(text);
    client.get_room(room).unwrap().send(content).await.unwrap().response.event_id
}

async fn read(client: &Client, room: &RoomId, event: &OwnedEventId) -> Option<String> {
    let event = client.get_room(room).unwrap().event(event, None).await.unwrap();
    let message = event.raw().deserialize_as_unchecked::<OriginalSyncRoomMessageEvent>().ok()?;
    Some(message.content.body().to_owned())
}

#[tokio::test]
async fn clients_read_each_other_in_an_encrypted_room_and_a_new_device_reads_the_backup() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (one, two) = (log_in(&server, &alice).await, log_in(&server, &bob).await);
    let room = alice
        .create_room(json!({
            "preset": "public_chat",
            "initial_state": [{
                "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            }],
        }))
        .await;
    bob.join(&room).await.ok();
    let room = RoomId::parse(room).unwrap();
    sync(&one).await;
    sync(&two).await;
    let hello = say(&one, &room, "hello bob").await;
    sync(&two).await;
    assert_eq!(read(&two, &room, &hello).await.as_deref(), Some("hello bob"));
    let answer = say(&two, &room, "hello alice").await;
    sync(&one).await;
    assert_eq!(read(&one, &room, &answer).await.as_deref(), Some("hello alice"));
    let raw = alice.get(&tests::Client::room(room.as_str(), &format!("event/{hello}"))).await.ok();
    assert_eq!(raw["type"], "m.room.encrypted");

    let key = one.encryption().recovery().enable().wait_for_backups_to_upload().await.unwrap();
    let new = log_in(&server, &alice).await;
    assert_eq!(read(&new, &room, &answer).await, None);
    new.encryption().recovery().recover(&key).await.unwrap();
    new.encryption().backups().download_room_keys_for_room(&room).await.unwrap();
    assert_eq!(read(&new, &room, &answer).await.as_deref(), Some("hello alice"));
}
