//! A server over the memory store, with a room, for the benchmarks of its parts.

use std::sync::Arc;

use actors::{
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{Homeserver, HomeserverConfig},
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
use serde_json::{json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};

/// Who makes the rooms.
pub(crate) fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

/// A server with one user.
pub(crate) async fn homeserver() -> Result<Homeserver> {
    let env =
        Env { clock: Arc::new(TokioClock::new(1_700_000_000_000)), entropy: Arc::new(SeededEntropy::new(1)) };
    let key = SigningKey::new(&[1; 32], "bench").context("the key's version is valid")?;
    let config = HomeserverConfig::alone("example.org".try_into()?, Arc::new(key));
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
        name: Some("bench".to_owned()),
        ..NewRoom::new(room_version::DEFAULT, alice(), Preset::PublicChat)
    };
    Ok(homeserver.create_room(new, Vec::new(), false).await?)
}

/// Sends a message.
pub(crate) async fn say(homeserver: &Homeserver, room_id: &OwnedRoomId, number: usize) -> Result<()> {
    let content = to_raw_value(&json!({ "msgtype": "m.text", "body": format!("message {number}") }))?;
    let draft = Draft::new("m.room.message".into(), None, content);
    homeserver.room(room_id).await?.send(Send { sender: alice(), draft, sent_by: None }).await?;
    Ok(())
}
