//! Rooms in which more happened than is looked at, or held, at a time; over the memory store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use actors::{
    env::{Env, SeededEntropy, TokioClock},
    homeserver::{Homeserver, HomeserverConfig},
    room::{MembershipAction, MembershipChange, PageDirection, RoomHandle, Send, Viewer},
};
use engine::{
    pdu::{Draft, SigningKey, client::RoomIdField},
    room::create::{InitialState, NewRoom, Preset},
    room_version,
};
use futures_util::{StreamExt, stream};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, UInt, UserId, user_id};
use serde_json::{Map, Value, json, value::to_raw_value};
use storage::{Durability, MemoryStore, Storage};

/// Messages that are sent at a time.
const AT_A_TIME: usize = 64;

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

fn carol() -> &'static UserId {
    user_id!("@carol:example.org")
}

async fn homeserver(store: &Arc<MemoryStore>) -> Homeserver {
    let clock = Arc::new(TokioClock::new(1_700_000_000_000));
    let env = Env { clock, entropy: Arc::new(SeededEntropy::new(1)) };
    let key = SigningKey::new(&[1; 32], "test").unwrap();
    let config = HomeserverConfig::alone("example.org".try_into().unwrap(), Arc::new(key));
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    Homeserver::start(config, env, storage).await
}

struct World {
    store: Arc<MemoryStore>,
    room_id: OwnedRoomId,
    room: RoomHandle,
    _homeserver: Homeserver,
}

impl World {
    /// A room of Alice's that anybody may join, and that they see as long as they are there.
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let homeserver = homeserver(&store).await;
        let new = NewRoom {
            version: room_version::DEFAULT,
            creator: alice().to_owned(),
            creator_profile: Map::new(),
            preset: Preset::PublicChat,
            creation_content: Map::new(),
            power_levels: Map::new(),
            alias: None,
            initial_state: vec![InitialState {
                kind: "m.room.history_visibility".into(),
                state_key: String::new(),
                content: to_raw_value(&json!({ "history_visibility": "joined" })).unwrap(),
            }],
            name: None,
            topic: None,
            invite: Vec::new(),
        };
        let room_id = homeserver.create_room(new, Vec::new(), false).await.unwrap();
        let room = homeserver.room(&room_id).await.unwrap();
        Self { store, room_id, room, _homeserver: homeserver }
    }

    /// The same room of a server that has nothing at hand.
    async fn reloaded(&self) -> Self {
        let store = Arc::new(self.store.fork());
        let homeserver = homeserver(&store).await;
        let room = homeserver.room(&self.room_id).await.unwrap();
        Self { store, room_id: self.room_id.clone(), room, _homeserver: homeserver }
    }

    async fn change(&self, user: &UserId, action: MembershipAction) {
        let (sender, target) = (user.to_owned(), user.to_owned());
        let change = MembershipChange { sender, target, action, content: Map::new() };
        self.room.change_membership(change).await.unwrap();
    }

    async fn join(&self, user: &UserId) {
        self.change(user, MembershipAction::Join { meets_allow_rule: None }).await;
    }

    async fn leave(&self, user: &UserId) {
        self.change(user, MembershipAction::Leave).await;
    }

    async fn say(&self, user: &UserId, content: Value) -> OwnedEventId {
        let content = to_raw_value(&content).unwrap();
        let draft =
            Draft { kind: "m.room.message".into(), state_key: None, content, redacts: None, dated: None };
        self.room.send(Send { sender: user.to_owned(), draft, sent_by: None }).await.unwrap()
    }

    async fn redact(&self, user: &UserId, event: &EventId) {
        let content = to_raw_value(&json!({ "redacts": event })).unwrap();
        let draft = Draft {
            kind: "m.room.redaction".into(),
            state_key: None,
            content,
            redacts: Some(event.to_owned()),
            dated: None,
        };
        self.room.send(Send { sender: user.to_owned(), draft, sent_by: None }).await.unwrap();
    }

    /// Alice says something many times, no matter in which order.
    async fn say_often(&self, times: usize, content: &Value) {
        let all = stream::iter(0..times).map(|_| self.say(alice(), content.clone()));
        assert_eq!(all.buffer_unordered(AT_A_TIME).count().await, times);
    }

    async fn bundle(&self, user: &UserId, event: &EventId) -> Value {
        let event = self.room.event(event).await.unwrap().unwrap();
        let viewer = Viewer { user_id: user.to_owned(), device_id: None };
        let rendered = self.room.render(&[event], &viewer, RoomIdField::Present).await.unwrap();
        let event: Value = serde_json::from_str(rendered[0].get()).unwrap();
        event["unsigned"]["m.relations"].clone()
    }

    /// The count of a thread, and whether the user takes part in it.
    async fn thread(&self, user: &UserId, root: &EventId) -> (u64, bool) {
        let thread = self.bundle(user, root).await["m.thread"].clone();
        (thread["count"].as_u64().unwrap(), thread["current_user_participated"].as_bool().unwrap())
    }

    async fn sent_ms(&self, event: &EventId) -> u64 {
        u64::from(self.room.event(event).await.unwrap().unwrap().pdu.origin_server_ts().get())
    }

    async fn near(&self, user: &UserId, ms: u64, direction: PageDirection) -> Option<OwnedEventId> {
        let moment = MilliSecondsSinceUnixEpoch(UInt::try_from(ms).unwrap());
        let event = self.room.event_near(user, moment, direction).await.unwrap();
        event.map(|event| event.pdu.event_id().clone())
    }
}

fn reply(root: &EventId) -> Value {
    json!({ "body": "reply", "m.relates_to": { "rel_type": "m.thread", "event_id": root } })
}

#[tokio::test]
async fn a_long_thread_keeps_its_edit_its_count_and_its_members() {
    const REPLIES: usize = 4200;
    let room = World::new().await;
    room.join(bob()).await;
    room.join(carol()).await;
    let root = room.say(alice(), json!({ "body": "rot" })).await;
    let edit = json!({
        "body": "root", "m.new_content": { "body": "root" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": root },
    });
    let edit = room.say(alice(), edit).await;
    let reference = json!({ "m.relates_to": { "rel_type": "m.reference", "event_id": root } });
    let reference = room.say(bob(), reference).await;
    let of_carol = room.say(carol(), reply(&root)).await;
    let of_bob = room.say(bob(), reply(&root)).await;
    room.say_often(10, &reply(&root)).await;
    room.leave(bob()).await;
    room.say_often(REPLIES, &reply(&root)).await;
    let check = async |room: &World, count: u64| {
        let bundle = room.bundle(carol(), &root).await;
        assert_eq!(bundle["m.replace"]["event_id"], edit.as_str());
        assert_eq!(bundle["m.reference"]["chunk"], json!([{ "event_id": reference }]));
        assert_eq!(room.thread(carol(), &root).await, (count, true));
    };
    let all = 12 + REPLIES as u64;
    check(&room, all).await;
    let reloaded = room.reloaded().await;
    check(&reloaded, all).await;
    assert_eq!(room.thread(bob(), &root).await, (12, true), "as long as he was there");
    assert_eq!(reloaded.thread(bob(), &root).await, (12, true), "as long as he was there");
    let threads = reloaded.room.threads(carol(), true, None, 10).await.unwrap();
    assert_eq!(threads.events.len(), 1);
    // Newer and older ones are counted in and out as they come and go.
    reloaded.say(alice(), reply(&root)).await;
    check(&reloaded, all + 1).await;
    reloaded.redact(alice(), &of_bob).await;
    check(&reloaded, all).await;
    assert_eq!(reloaded.thread(bob(), &root).await, (11, false));
    reloaded.redact(carol(), &of_carol).await;
    assert_eq!(reloaded.thread(carol(), &root).await, (all - 1, false));
    assert_eq!(reloaded.reloaded().await.thread(carol(), &root).await, (all - 1, false));
}

#[tokio::test]
async fn a_page_of_threads_that_comes_to_nothing_says_where_to_go_on() {
    let room = World::new().await;
    room.join(bob()).await;
    let own = room.say(bob(), json!({ "body": "mine" })).await;
    room.say(alice(), reply(&own)).await;
    let others = stream::iter(0..2200).map(async |_| {
        let root = room.say(alice(), json!({ "body": "root" })).await;
        room.say(alice(), reply(&root)).await;
    });
    others.buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;
    let first = room.room.threads(bob(), true, None, 5).await.unwrap();
    assert!(first.events.is_empty(), "the only one is too far away for one page");
    let second = room.room.threads(bob(), true, first.end, 5).await.unwrap();
    let found: Vec<_> = second.events.iter().map(|event| event.pdu.event_id()).collect();
    assert_eq!((found, second.end), (vec![&own], None));
}

#[tokio::test]
async fn a_moment_leads_past_whatever_a_user_may_not_see() {
    let room = World::new().await;
    room.join(bob()).await;
    room.leave(bob()).await;
    let first = room.say(alice(), json!({ "body": "hidden" })).await;
    let left_ms = room.sent_ms(&first).await;
    room.say_often(2300, &json!({ "body": "hidden" })).await;
    let hidden = room.say(alice(), json!({ "body": "hidden" })).await;
    let hidden_ms = room.sent_ms(&hidden).await;
    let leave = room.near(bob(), hidden_ms, PageDirection::Backward).await;
    let leave = room.room.event(&leave.unwrap()).await.unwrap().unwrap();
    assert_eq!((leave.pdu.kind(), leave.pdu.sender()), ("m.room.member", bob()));
    // Nothing is to be seen from then on, until he is back.
    assert_eq!(room.near(bob(), hidden_ms, PageDirection::Forward).await, None);
    room.join(bob()).await;
    let join = room.near(bob(), left_ms + 1, PageDirection::Forward).await.unwrap();
    let join = room.room.event(&join).await.unwrap().unwrap();
    assert_eq!((join.pdu.kind(), join.pdu.sender()), ("m.room.member", bob()));
}

#[tokio::test]
async fn a_thread_shows_the_newest_message_that_its_reader_may_see() {
    let room = World::new().await;
    room.join(bob()).await;
    let root = room.say(alice(), json!({ "body": "root" })).await;
    let edit = |text: &str| {
        json!({
            "body": text, "m.new_content": { "body": text },
            "m.relates_to": { "rel_type": "m.replace", "event_id": root },
        })
    };
    let seen = room.say(alice(), reply(&root)).await;
    let seen_edit = room.say(alice(), edit("seen")).await;
    room.leave(bob()).await;
    room.say_often(300, &reply(&root)).await;
    room.say_often(30, &edit("hidden")).await;
    room.join(bob()).await;
    for room in [&room, &room.reloaded().await] {
        let bundle = room.bundle(bob(), &root).await;
        assert_eq!(bundle["m.thread"]["latest_event"]["event_id"], seen.as_str());
        assert_eq!(bundle["m.replace"]["event_id"], seen_edit.as_str());
        assert_eq!(room.room.threads(bob(), false, None, 5).await.unwrap().events.len(), 1);
    }
}

#[tokio::test]
async fn references_are_listed_by_the_hundred_and_the_newest_always() {
    let room = World::new().await;
    let root = room.say(alice(), json!({ "body": "poll" })).await;
    let reference = json!({ "m.relates_to": { "rel_type": "m.reference", "event_id": root } });
    room.say_often(998, &reference).await;
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(json!({ "event_id": room.say(alice(), reference.clone()).await }));
    }
    for room in [&room, &room.reloaded().await] {
        let bundle = room.bundle(alice(), &root).await;
        let chunk = bundle["m.reference"]["chunk"].as_array().unwrap();
        assert_eq!((chunk.len(), &chunk[997..]), (1000, &expected[..]));
    }
}
