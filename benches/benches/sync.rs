//! A `/sync` response, from the request to its JSON, over the memory store.

use std::{hint::black_box, sync::Arc, time::Duration};

use actors::{
    directory::ClassConfig,
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::Send,
    session::NewAccount,
    sync::SyncRequest,
};
use anyhow::{Context, Result};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use engine::{
    id::Position,
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{OwnedRoomId, OwnedUserId, user_id};
use serde_json::{Map, json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};
use tokio::runtime::Runtime;

/// Messages in each room.
const MESSAGES: usize = 20;

fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

async fn homeserver() -> Result<Homeserver> {
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
        push: std::sync::Arc::new(actors::push::NoPushGateways),
        search: None,
    };
    let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await?;
    let homeserver = Homeserver::start(config, env, storage).await;
    let account = NewAccount { user_id: alice(), password_hash: None, is_guest: false, is_admin: false };
    homeserver.register(account).await?;
    Ok(homeserver)
}

async fn room(homeserver: &Homeserver) -> Result<OwnedRoomId> {
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
    let room_id = homeserver.create_room(new, Vec::new(), false).await?;
    for number in 0..MESSAGES {
        say(homeserver, &room_id, number).await?;
    }
    Ok(room_id)
}

async fn say(homeserver: &Homeserver, room_id: &OwnedRoomId, number: usize) -> Result<()> {
    let content = to_raw_value(&json!({ "msgtype": "m.text", "body": format!("message {number}") }))?;
    let draft = Draft { kind: "m.room.message".into(), state_key: None, content, redacts: None };
    homeserver.room(room_id).await?.send(Send { sender: alice(), draft, sent_by: None }).await?;
    Ok(())
}

fn request(since: Option<Position>) -> SyncRequest {
    SyncRequest {
        user_id: alice(),
        device_id: "DEVICE".into(),
        inbox_since: None,
        since,
        filter: Arc::default(),
        full_state: false,
        use_state_after: false,
        timeout: Duration::ZERO,
    }
}

async fn response(homeserver: &Homeserver, request: &SyncRequest) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&homeserver.sync(request).await?)?)
}

fn sync(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("sync");
    group.sample_size(20);
    for rooms in [1, 10, 100] {
        let (homeserver, since) = runtime.block_on(async {
            let homeserver = homeserver().await.expect("a server");
            let mut last = None;
            for _ in 0..rooms {
                last = Some(room(&homeserver).await.expect("a room"));
            }
            let before = homeserver.sync(&request(None)).await.expect("a response");
            let since = before.next_batch.strip_prefix('s').and_then(|token| token.split('_').next());
            let since = Position(since.and_then(|number| number.parse().ok()).expect("a sync token"));
            say(&homeserver, &last.expect("there is a room"), 0).await.expect("a message");
            (homeserver, since)
        });
        for (name, since) in [("initial", None), ("one message", Some(since))] {
            let request = request(since);
            group.bench_function(BenchmarkId::new(name, rooms), |bencher| {
                bencher.to_async(&runtime).iter(|| response(&homeserver, black_box(&request)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sync);
criterion_main!(benches);
