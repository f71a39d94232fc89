//! A server over the memory store, with a room, for the benchmarks of its parts.

use std::sync::Arc;

use actors::{
    directory::ClassConfig,
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    push::NoPushGateways,
    room::Send,
    session::NewAccount,
};
use anyhow::{Context, Result};
use engine::{
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{OwnedRoomId, OwnedUserId, user_id};
use serde_json::{Map, json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};

/// Who makes the rooms.
pub(crate) fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

/// A server with one user.
pub(crate) async fn homeserver() -> Result<Homeserver> {
    let env =
        Env { clock: Arc::new(TokioClock::new(1_700_000_000_000)), entropy: Arc::new(SeededEntropy::new(1)) };
    let config = HomeserverConfig {
        server_name: "example.org".try_into()?,
        signing_key: Arc::new(SigningKey::new(&[1; 32], "bench").context("the key's version is valid")?),
        old_keys: Vec::new(),
        federation: None,
        default_room_version: room_version::DEFAULT,
        room_memory: 64 << 20,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: MediaConfig::default(),
        conversation: ConversationConfig::default(),
        push: Arc::new(NoPushGateways),
        search: None,
        services: actors::appservice::Services::default(),
    };
    let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await?;
    let homeserver = Homeserver::start(config, env, storage).await;
    register(&homeserver, alice()).await?;
    Ok(homeserver)
}

/// Adds a user.
pub(crate) async fn register(homeserver: &Homeserver, user_id: OwnedUserId) -> Result<()> {
    let account = NewAccount { user_id, password_hash: None, is_guest: false, is_admin: false };
    homeserver.register(account).await?;
    Ok(())
}

/// An empty public room.
pub(crate) async fn room(homeserver: &Homeserver) -> Result<OwnedRoomId> {
    let new = NewRoom {
        version: room_version::DEFAULT,
        creator: alice(),
        creator_profile: Map::new(),
        preset: Preset::PublicChat,
        creation_content: Map::new(),
        power_levels: Map::new(),
        alias: None,
        initial_state: Vec::new(),
        name: Some("bench".to_owned()),
        topic: None,
        invite: Vec::new(),
    };
    Ok(homeserver.create_room(new, Vec::new(), false).await?)
}

/// Sends a message.
pub(crate) async fn say(homeserver: &Homeserver, room_id: &OwnedRoomId, number: usize) -> Result<()> {
    let content = to_raw_value(&json!({ "msgtype": "m.text", "body": format!("message {number}") }))?;
    let draft = Draft { kind: "m.room.message".into(), state_key: None, content, redacts: None, dated: None };
    homeserver.room(room_id).await?.send(Send { sender: alice(), draft, sent_by: None }).await?;
    Ok(())
}
