//! A server that cannot store something, for a while or for good: it neither keeps anybody waiting in vain nor forgets what is due.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actors::{
    delayed::Delayed,
    directory::ClassConfig,
    env::TokioClock,
    federation::{
        FederationClient, FederationConfig, FederationError, FederationRequest, FederationResponse,
    },
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    session::NewAccount,
    sync::{SyncError, SyncRequest},
};
use async_trait::async_trait;
use bytes::Bytes;
use engine::id::Position;
use futures_util::future::BoxFuture;
use ruma::{OwnedRoomId, ServerName, server_name};
use serde_json::json;
use storage::{
    Batch, Durability, MemoryStore, Refused, Storage, Store, StoreError, schema,
    store::{Row, Scan, Sync},
};

use crate::server::{alice, create, message, say};

/// A store that counts how often it is read, and that may refuse it.
#[derive(Default)]
struct Counted {
    inner: MemoryStore,
    reads: AtomicUsize,
    /// Whether all but what is yet to be done is kept back.
    refuses: AtomicBool,
}

impl Counted {
    fn check(&self, table: schema::TableId) -> Result<(), StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let is_open = [schema::META.id(), schema::STAGED.id(), schema::EFFECTS.id()].contains(&table);
        if is_open || !self.refuses.load(Ordering::Relaxed) { Ok(()) } else { Err(StoreError::Closed) }
    }
}

#[async_trait]
impl Store for Counted {
    async fn read(&self, table: schema::TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.check(table)?;
        self.inner.read(table, keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.check(scan.table)?;
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

/// Other servers, none of which can be reached.
struct Unreachable;

impl FederationClient for Unreachable {
    fn request<'a>(
        &'a self,
        _destination: &'a ServerName,
        _request: FederationRequest,
    ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
        Box::pin(std::future::ready(Err(FederationError::Timeout)))
    }
}

/// A server over a store.
async fn started(store: &Arc<Counted>, federation: Option<FederationConfig>) -> (Homeserver, Storage) {
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let delay_max = Duration::from_secs(60);
    let conversation = ConversationConfig { delay_max, ..ConversationConfig::default() };
    let config = HomeserverConfig { conversation, federation, ..server::config() };
    let clock = Arc::new(TokioClock::new(1_700_000_000_000));
    (server::start(config, clock, storage.clone()).await, storage)
}

/// A server with a room of Alice's.
async fn server() -> (Homeserver, Arc<Counted>, Storage, OwnedRoomId) {
    let store = Arc::new(Counted::default());
    let (homeserver, storage) = started(&store, None).await;
    let account = NewAccount { user_id: alice(), password_hash: None, is_guest: false, is_admin: false };
    homeserver.register(account).await.unwrap();
    let room = create(&homeserver, "room").await;
    (homeserver, store, storage, room)
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
    say(&homeserver, &room, "tea").await.unwrap();
    let begun = tokio::time::Instant::now();
    assert!(matches!(homeserver.sync(&sync(Some(since))).await, Err(SyncError::Late)));
    assert!(begun.elapsed() >= Duration::from_secs(5), "a slow disk is no fault yet");
    store.inner.fail_next_commits(1);
    say(&homeserver, &room, "tea").await.unwrap_err();
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
        draft: message("tea"),
        delay,
    };
    homeserver.delay(delayed).await.unwrap();
    store.inner.fail_next_commits(1);
    say(&homeserver, &room, "tea").await.unwrap_err();
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
        draft: message("tea"),
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

#[tokio::test(start_paused = true)]
async fn received_events_that_could_not_be_dealt_with_are_taken_up_again() {
    let (homeserver, store, _, room) = server().await;
    let create = homeserver.room(&room).await.unwrap().current("m.room.create", "").await.unwrap().unwrap();
    homeserver.shutdown().await;
    // What a crash left: an event that was received, here one that is known already.
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let ticket = storage.reserve(1);
    let key = (room, ticket.last(), server_name!("other.org").to_owned());
    let mut batch = Batch::new();
    let event = json!({ "room_id": key.0, "event_id": create.pdu.event_id(), "type": "m.room.create" });
    batch.put(&schema::STAGED, &key, &event.to_string().into());
    storage.commit(batch).await.unwrap();
    drop(ticket);
    storage.close().await.unwrap();
    // The next server cannot read the room, neither at its start nor when it tries again.
    store.refuses.store(true, Ordering::Relaxed);
    let federation = FederationConfig {
        client: Arc::new(Unreachable),
        trusted_key_servers: Vec::new(),
        destinations: ClassConfig::default(),
        shares_device_names: false,
        sends_presence: false,
    };
    let (_homeserver, storage) = started(&store, Some(federation)).await;
    tokio::time::sleep(Duration::from_secs(11 * 60)).await;
    assert!(storage.get(&schema::STAGED, &key).await.unwrap().is_some(), "it is kept");
    store.refuses.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(storage.get(&schema::STAGED, &key).await.unwrap(), None, "it is dealt with without a restart");
}
