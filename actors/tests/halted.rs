//! A server that cannot store something, for a while or for good: it neither keeps anybody waiting in vain nor forgets what is due.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actors::{
    delayed::Delayed,
    directory::ClassConfig,
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::{RoomError, Send},
    session::NewAccount,
    sync::{SyncError, SyncRequest},
};
use async_trait::async_trait;
use bytes::Bytes;
use engine::{
    id::Position,
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, user_id};
use serde_json::{Map, json, value::to_raw_value};
use storage::{
    Batch, Durability, MemoryStore, Refused, Storage, Store, StoreError, schema,
    store::{Row, Scan, Sync},
};

/// A store that counts how often it is read.
#[derive(Default)]
struct Counted {
    inner: MemoryStore,
    reads: AtomicUsize,
}

#[async_trait]
impl Store for Counted {
    async fn read(&self, table: schema::TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read(table, keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.scan(scan).await
    }

    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        self.inner.commit(batches, sync).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync().await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.inner.size().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

/// A server with a room of Alice's.
async fn server() -> (Homeserver, Arc<Counted>, Storage, OwnedRoomId) {
    let clock = Arc::new(TokioClock::new(1_700_000_000_000));
    let config = HomeserverConfig {
        server_name: "example.org".try_into().unwrap(),
        signing_key: Arc::new(SigningKey::new(&[1; 32], "test").unwrap()),
        old_keys: Vec::new(),
        federation: None,
        default_room_version: room_version::DEFAULT,
        room_memory: 64 << 20,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: MediaConfig::default(),
        conversation: ConversationConfig {
            delay_max: Duration::from_secs(60),
            ..ConversationConfig::default()
        },
        push: Arc::new(actors::push::NoPushGateways),
        search: None,
        services: actors::appservice::Services::default(),
    };
    let store = Arc::new(Counted::default());
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let env = Env { clock, entropy: Arc::new(SeededEntropy::new(1)) };
    let homeserver = Homeserver::start(config, env, storage.clone()).await;
    let account = NewAccount { user_id: alice(), password_hash: None, is_guest: false, is_admin: false };
    homeserver.register(account).await.unwrap();
    let new = NewRoom {
        version: room_version::DEFAULT,
        creator: alice(),
        creator_profile: Map::new(),
        preset: Preset::PrivateChat,
        creation_content: Map::new(),
        power_levels: Map::new(),
        alias: None,
        initial_state: Vec::new(),
        name: None,
        topic: None,
        invite: Vec::new(),
    };
    let room = homeserver.create_room(new, Vec::new(), false).await.unwrap();
    (homeserver, store, storage, room)
}

fn message() -> Draft {
    Draft {
        kind: "m.room.message".into(),
        state_key: None,
        content: to_raw_value(&json!({ "body": "tea" })).unwrap(),
        redacts: None,
        dated: None,
    }
}

async fn say(homeserver: &Homeserver, room_id: &RoomId) -> Result<(), RoomError> {
    let send = Send { sender: alice(), draft: message(), sent_by: None };
    homeserver.room(room_id).await?.send(send).await.map(drop)
}

fn sync(since: Option<Position>) -> SyncRequest {
    SyncRequest {
        user_id: alice(),
        device_id: "DEVICE".into(),
        since,
        inbox_since: None,
        takes_messages: true,
        filter: Arc::default(),
        full_state: false,
        use_state_after: false,
        timeout: Duration::ZERO,
    }
}

#[tokio::test(start_paused = true)]
async fn a_sync_does_not_wait_for_what_is_never_stored() {
    let (homeserver, store, storage, room) = server().await;
    homeserver.sync(&sync(None)).await.unwrap();
    let since = storage.watermark();
    // Something takes long to store, something after it is stored before it, and then nothing is any more.
    let earlier = storage.reserve(1);
    say(&homeserver, &room).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert!(matches!(homeserver.sync(&sync(Some(since))).await, Err(SyncError::Late)));
    assert!(begun.elapsed() >= Duration::from_secs(5), "a slow disk is no fault yet");
    store.inner.fail_next_commits(1);
    say(&homeserver, &room).await.unwrap_err();
    drop(earlier);
    let begun = tokio::time::Instant::now();
    assert!(matches!(homeserver.sync(&sync(Some(since))).await, Err(SyncError::Late)));
    assert!(begun.elapsed() < Duration::from_secs(1), "there is nothing to wait for");
}

#[tokio::test]
async fn what_cannot_be_sent_later_is_not_tried_without_a_pause() {
    let (homeserver, store, _, room) = server().await;
    let delay = Duration::from_millis(200);
    let delayed = Delayed {
        user_id: alice(),
        device_id: "DEVICE".into(),
        txn_id: None,
        room_id: room.clone(),
        draft: message(),
        delay,
    };
    homeserver.delay(delayed).await.unwrap();
    store.inner.fail_next_commits(1);
    say(&homeserver, &room).await.unwrap_err();
    tokio::time::sleep(2 * delay).await;
    let before = store.reads.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let reads = store.reads.load(Ordering::Relaxed) - before;
    assert!(reads < 20, "{reads} reads");
}

#[tokio::test]
async fn a_delayed_event_that_is_gone_holds_up_no_other() {
    let (homeserver, _, storage, room) = server().await;
    let mut batch = Batch::new();
    batch.put(&schema::DELAYED_DUE, &(1, "gone".to_owned()), &());
    storage.commit(batch).await.unwrap();
    let delayed = Delayed {
        user_id: alice(),
        device_id: "DEVICE".into(),
        txn_id: None,
        room_id: room,
        draft: message(),
        delay: Duration::from_millis(10),
    };
    let id = homeserver.delay(delayed).await.unwrap();
    let is_sent = async || {
        let events = homeserver.delayed_events(&alice()).await.unwrap();
        let (_, record) = events.into_iter().find(|(known, _)| *known == id).unwrap();
        matches!(record.stage, schema::DelayedStage::Sent { .. })
    };
    let sent = tokio::time::timeout(Duration::from_secs(10), async {
        while !is_sent().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    sent.await.unwrap();
    assert_eq!(storage.get(&schema::DELAYED_DUE, &(1, "gone".to_owned())).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_left_undone_is_taken_up_without_a_restart() {
    let (_homeserver, _, storage, _) = server().await;
    let key = ("profile".to_owned(), alice().to_string());
    let ticket = storage.reserve(1);
    let mut batch = Batch::new();
    batch.put(&schema::EFFECTS, &key, &ticket.last());
    storage.commit(batch).await.unwrap();
    drop(ticket);
    tokio::time::sleep(Duration::from_secs(11 * 60)).await;
    assert_eq!(storage.get(&schema::EFFECTS, &key).await.unwrap(), None);
}
