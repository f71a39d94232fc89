//! A server with rooms of Alice's, as the tests need it.

use std::sync::Arc;

use actors::{
    env::{Clock, Env, SeededEntropy},
    homeserver::{Homeserver, HomeserverConfig},
    room::{RoomError, Send},
};
use engine::{
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, user_id};
use serde_json::{Map, json, value::to_raw_value};
use storage::Storage;

pub(crate) fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

pub(crate) fn config() -> HomeserverConfig {
    let key = SigningKey::new(&[1; 32], "test").unwrap();
    HomeserverConfig::alone("example.org".try_into().unwrap(), Arc::new(key))
}

pub(crate) async fn start(config: HomeserverConfig, clock: Arc<dyn Clock>, storage: Storage) -> Homeserver {
    let env = Env { clock, entropy: Arc::new(SeededEntropy::new(1)) };
    Homeserver::start(config, env, storage).await
}

/// A room of Alice's. Those of the same moment have the same ID, unless their names differ.
pub(crate) async fn create(homeserver: &Homeserver, name: &str) -> OwnedRoomId {
    let new = NewRoom {
        creation_content: Map::from_iter([("test".to_owned(), json!(name))]),
        ..NewRoom::new(room_version::DEFAULT, alice(), Preset::PrivateChat)
    };
    homeserver.create_room(new, Vec::new(), false).await.unwrap()
}

pub(crate) fn message(body: &str) -> Draft {
    Draft::new("m.room.message".into(), None, to_raw_value(&json!({ "body": body })).unwrap())
}

pub(crate) async fn say(
    homeserver: &Homeserver,
    room_id: &RoomId,
    body: &str,
) -> Result<OwnedEventId, RoomError> {
    let send = Send { sender: alice(), draft: message(body), sent_by: None };
    homeserver.room(room_id).await?.send(send).await
}
