//! Makes a data directory with one old, large room, for `loadtest goals --grown` or a look with a profiler.
//!
//! The room is made through the room actor, without HTTP: 100,000 joins take about a minute.

use std::{path::PathBuf, sync::Arc, time::Duration};

use actors::{
    directory::ClassConfig,
    env::{Clock, Env, SeededEntropy},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::{MembershipAction, MembershipChange, Send},
    session::{Login, NewAccount},
};
use anyhow::{Context, Result};
use clap::Parser;
use engine::{
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, json, value::to_raw_value};
use storage::{Backend, Durability, Files, Storage};

/// Calls under way at a time.
const AT_A_TIME: usize = 64;

/// Makes a data directory with one old, large room.
#[derive(Parser)]
struct Arguments {
    /// Where to put it; a folder that is not there yet.
    #[arg(long)]
    data_dir: PathBuf,
    /// Joined members.
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Messages.
    #[arg(long, default_value_t = 10_000)]
    events: usize,
}

/// A clock that shows the same time always.
struct Stopped;

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        1_760_000_000_000
    }
}

fn user(name: &str) -> Result<OwnedUserId> {
    Ok(UserId::parse(format!("@{name}:localhost"))?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir(&arguments.data_dir).context("the folder must not be there yet")?;
    let key = SigningKey::new(&[1; 32], "grown").context("the key's version is valid")?;
    let secret = ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(key.secret().to_vec());
    std::fs::write(arguments.data_dir.join("signing.key"), format!("ed25519 grown {}", secret.encode()))?;
    let files = Files { path: arguments.data_dir.join("store"), cache_bytes: 256 << 20 };
    let store = Backend::Sled(files).open().await?;
    let storage = Storage::open(store, Durability::Interval(Duration::from_secs(1))).await?;
    let homeserver = Homeserver::start(config(key)?, environment(), storage).await;
    let alice = user("alice")?;
    let account =
        NewAccount { user_id: alice.clone(), password_hash: None, is_guest: false, is_admin: false };
    let session = homeserver.register(account).await?;
    let tokens = session.log_in(Login::default()).await?;
    let room_id = homeserver.create_room(new_room(&alice), Vec::new(), true).await?;
    let joins = stream::iter(0..arguments.members).map(|number| join(&homeserver, &room_id, number));
    joins.buffer_unordered(AT_A_TIME).try_collect::<()>().await?;
    let messages = stream::iter(0..arguments.events).map(|number| say(&homeserver, &room_id, &alice, number));
    messages.buffer_unordered(AT_A_TIME).try_collect::<()>().await?;
    homeserver.shutdown().await;
    let about = json!({
        "room_id": room_id, "user_id": alice, "access_token": tokens.access_token,
        "members": arguments.members, "events": arguments.events,
    });
    std::fs::write(arguments.data_dir.join("grown.json"), serde_json::to_vec_pretty(&about)?)?;
    Ok(())
}

fn environment() -> Env {
    Env { clock: Arc::new(Stopped), entropy: Arc::new(SeededEntropy::new(1)) }
}

fn config(key: SigningKey) -> Result<HomeserverConfig> {
    Ok(HomeserverConfig {
        server_name: "localhost".try_into()?,
        signing_key: Arc::new(key),
        old_keys: Vec::new(),
        federation: None,
        default_room_version: room_version::DEFAULT,
        room_memory: 512 << 20,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: MediaConfig::default(),
        conversation: ConversationConfig::default(),
        push: Arc::new(actors::push::NoPushGateways),
        search: None,
        services: actors::appservice::Services::default(),
    })
}

fn new_room(creator: &UserId) -> NewRoom {
    NewRoom {
        version: room_version::DEFAULT,
        creator: creator.to_owned(),
        creator_profile: Map::new(),
        preset: Preset::PublicChat,
        creation_content: Map::new(),
        power_levels: Map::new(),
        alias: None,
        initial_state: Vec::new(),
        name: Some("an old room".to_owned()),
        topic: None,
        invite: Vec::new(),
    }
}

async fn join(homeserver: &Homeserver, room_id: &OwnedRoomId, number: usize) -> Result<()> {
    let member = user(&format!("member{number:06}"))?;
    let change = MembershipChange {
        sender: member.clone(),
        target: member,
        action: MembershipAction::Join { meets_allow_rule: None },
        content: Map::new(),
    };
    homeserver.room(room_id).await?.change_membership(change).await?;
    Ok(())
}

async fn say(homeserver: &Homeserver, room_id: &OwnedRoomId, sender: &UserId, number: usize) -> Result<()> {
    let content = to_raw_value(&json!({ "msgtype": "m.text", "body": format!("message number {number}") }))?;
    let draft = Draft { kind: "m.room.message".into(), state_key: None, content, redacts: None, dated: None };
    homeserver.room(room_id).await?.send(Send { sender: sender.to_owned(), draft, sent_by: None }).await?;
    Ok(())
}
