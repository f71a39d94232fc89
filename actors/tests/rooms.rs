//! Rooms under faults and under a small memory budget, over the memory store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use actors::{
    directory::ClassConfig,
    env::{Clock, Env, SeededEntropy, TokioClock},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::{PageDirection, PageQuery, RoomError, Send},
};
use engine::{
    id::TimelineIndex,
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{OwnedEventId, OwnedRoomId, RoomId, api::client::filter::RoomEventFilter, user_id};
use serde_json::{Map, json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};

/// A clock that panics once, when it is asked for the n-th time.
struct FaultyClock {
    inner: TokioClock,
    until_panic: AtomicU32,
}

impl Clock for FaultyClock {
    fn now_ms(&self) -> u64 {
        assert!(
            self.until_panic.fetch_sub(1, Ordering::Relaxed) != 1,
            "the clock breaks, as the test wants it"
        );
        self.inner.now_ms()
    }
}

async fn homeserver(room_memory: u64) -> (Homeserver, Arc<FaultyClock>) {
    let inner = TokioClock::new(1_700_000_000_000);
    let clock = Arc::new(FaultyClock { inner, until_panic: AtomicU32::new(u32::MAX) });
    let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(1)) };
    let config = HomeserverConfig {
        server_name: "example.org".try_into().unwrap(),
        signing_key: Arc::new(SigningKey::new(&[1; 32], "test").unwrap()),
        old_keys: Vec::new(),
        federation: None,
        default_room_version: room_version::DEFAULT,
        room_memory,
        rooms: ClassConfig::default(),
        sessions: ClassConfig::default(),
        media: MediaConfig::default(),
        conversation: ConversationConfig::default(),
        push: std::sync::Arc::new(actors::push::NoPushGateways),
        search: None,
        services: actors::appservice::Services::default(),
    };
    let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
    (Homeserver::start(config, env, storage).await, clock)
}

async fn create(homeserver: &Homeserver, name: &str) -> OwnedRoomId {
    let new = NewRoom {
        version: room_version::DEFAULT,
        creator: user_id!("@alice:example.org").to_owned(),
        creator_profile: Map::new(),
        preset: Preset::PrivateChat,
        creation_content: Map::from_iter([("test".to_owned(), json!(name))]),
        power_levels: Map::new(),
        alias: None,
        initial_state: Vec::new(),
        name: None,
        topic: None,
        invite: Vec::new(),
    };
    homeserver.create_room(new, Vec::new(), false).await.unwrap()
}

async fn say(homeserver: &Homeserver, room_id: &RoomId, body: &str) -> Result<OwnedEventId, RoomError> {
    let draft = Draft {
        kind: "m.room.message".into(),
        state_key: None,
        content: to_raw_value(&json!({ "body": body })).unwrap(),
        redacts: None,
        dated: None,
    };
    let sender = user_id!("@alice:example.org").to_owned();
    homeserver.room(room_id).await?.send(Send { sender, draft, sent_by: None }).await
}

/// The bodies of all messages of a room, oldest first, and their IDs.
async fn messages(homeserver: &Homeserver, room_id: &RoomId) -> Vec<(String, OwnedEventId)> {
    let room = homeserver.room(room_id).await.unwrap();
    let query = PageQuery {
        user_id: user_id!("@alice:example.org"),
        from: TimelineIndex(i64::MIN),
        to: None,
        direction: PageDirection::Forward,
        limit: 10_000,
        filter: &RoomEventFilter::default(),
    };
    let page = room.page(&query).await.unwrap();
    assert_eq!(page.end, None);
    let message = page.events.iter().filter(|event| event.pdu.kind() == "m.room.message");
    message
        .map(|event| {
            let content: serde_json::Value = serde_json::from_str(event.pdu.content().get()).unwrap();
            (content["body"].as_str().unwrap().to_owned(), event.pdu.event_id().clone())
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_burst_loses_nothing_that_was_acknowledged() {
    let (homeserver, clock) = homeserver(64 << 20).await;
    let room = create(&homeserver, "burst").await;
    let other = create(&homeserver, "other").await;
    let mut crashed = 0;
    let mut acknowledged = Vec::new();
    for burst in 0..5 {
        clock.until_panic.store(20 + burst, Ordering::Relaxed);
        let sends: Vec<_> = (0..60)
            .map(|number| {
                let (homeserver, room) = (homeserver.clone(), room.clone());
                let body = format!("{burst} {number}");
                tokio::spawn(async move { (say(&homeserver, &room, &body).await, body) })
            })
            .collect();
        for send in sends {
            match send.await.unwrap() {
                (Ok(event_id), body) => acknowledged.push((body, event_id)),
                (Err(RoomError::Crashed), _) => crashed += 1,
                (Err(error), body) => panic!("{body}: {error}"),
            }
        }
        say(&homeserver, &room, &format!("after {burst}")).await.unwrap();
        say(&homeserver, &other, "unaffected").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    }
    assert!(crashed > 0, "no send met the panic");
    let stored = messages(&homeserver, &room).await;
    let bodies: BTreeSet<_> = stored.iter().map(|(body, _)| body).collect();
    assert_eq!(bodies.len(), stored.len(), "a message is there twice");
    for message in &acknowledged {
        assert!(stored.contains(message), "{} was acknowledged and lost", message.0);
    }
    let place = |body: &str| stored.iter().position(|(stored, _)| stored == body).unwrap();
    for burst in 1..5 {
        assert!(place(&format!("after {}", burst - 1)) < place(&format!("after {burst}")), "out of order");
    }
    assert_eq!(messages(&homeserver, &other).await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_rooms_work_within_one_mebibyte() {
    let (homeserver, _) = homeserver(1 << 20).await;
    let mut rooms = Vec::new();
    for number in 0..200 {
        rooms.push(create(&homeserver, &number.to_string()).await);
    }
    for round in 0..5 {
        for room in &rooms {
            say(&homeserver, room, &round.to_string()).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    for room in &rooms {
        let bodies: Vec<_> = messages(&homeserver, room).await.into_iter().map(|(body, _)| body).collect();
        assert_eq!(bodies, ["0", "1", "2", "3", "4"]);
    }
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let stats = homeserver.room_stats();
    assert!(stats.passivated > 200, "{stats:?}");
    assert!(stats.bytes <= (1 << 20) * 6 / 10, "{stats:?}");
    assert!(stats.active < 100, "{stats:?}");
}
