mod account;
mod data;
mod devices;
mod presence;

use std::{sync::Arc, time::Duration};

use engine::{
    id::Position,
    pdu::{Draft, SigningKey},
    room::create::{NewRoom, Preset},
    room_version,
};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, owned_event_id, presence::PresenceState, user_id,
};
use serde_json::{Map, Value, json, value::RawValue};
use storage::{Durability, MemoryStore, Storage};

use super::*;
use crate::{
    env::{ManualClock, SeededEntropy},
    homeserver::{Homeserver, HomeserverConfig},
    room::{MembershipAction, MembershipChange, Send},
};

mod keys;
mod push_rules;
mod to_device;
mod upgrade;

const START_MS: u64 = 1_700_000_000_000;

pub(super) struct World {
    pub(super) homeserver: Homeserver,
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::over(Arc::new(MemoryStore::new()), Arc::new(ManualClock::new(START_MS))).await
    }

    async fn over(store: Arc<MemoryStore>, clock: Arc<ManualClock>) -> Self {
        let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
        let key = SigningKey::new(&[7; 32], "1").unwrap();
        let config = HomeserverConfig::alone("a".try_into().unwrap(), Arc::new(key));
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(clock_seed(&clock))) };
        Self { homeserver: Homeserver::start(config, env, storage).await, clock, store }
    }

    /// The same server after a crash: what was not durable is lost.
    pub(super) async fn restarted(self) -> Self {
        self.store.lose_unsynced_writes();
        self.clock.advance(1000);
        Self::over(self.store, self.clock).await
    }

    pub(super) async fn account(&self, user_id: &UserId) -> SessionHandle {
        let new = NewAccount {
            user_id: user_id.to_owned(),
            password_hash: Some("hash".to_owned()),
            is_guest: false,
            is_admin: false,
        };
        self.homeserver.register(new).await.unwrap()
    }

    pub(super) async fn session(&self, user_id: &UserId) -> SessionHandle {
        self.homeserver.session(user_id).await.unwrap()
    }

    pub(super) async fn room(&self, creator: &UserId, others: &[&UserId]) -> OwnedRoomId {
        let new = NewRoom::new(room_version::DEFAULT, creator.to_owned(), Preset::PublicChat);
        // Rooms that are created alike at the same moment would have the same ID since version 12.
        self.clock.advance(1);
        let room_id = self.homeserver.create_room(new, Vec::new(), false).await.unwrap();
        for user in others {
            self.join(user, &room_id).await;
        }
        room_id
    }

    async fn join(&self, user: &UserId, room_id: &RoomId) {
        let join = MembershipChange {
            sender: user.to_owned(),
            target: user.to_owned(),
            action: MembershipAction::Join { meets_allow_rule: Some(false) },
            content: Map::new(),
        };
        self.homeserver.room(room_id).await.unwrap().change_membership(join).await.unwrap();
    }

    pub(super) async fn say(&self, sender: &UserId, room_id: &RoomId, content: Value) -> OwnedEventId {
        let draft = Draft::new("m.room.message".into(), None, raw(&content));
        let room = self.homeserver.room(room_id).await.unwrap();
        room.send(Send { sender: sender.to_owned(), draft, sent_by: None }).await.unwrap()
    }

    async fn authenticate(&self, token: &str) -> Result<OwnedUserId, AuthenticationFailure> {
        Ok(self.homeserver.authenticate(token, None).await?.user_id)
    }
}

fn clock_seed(clock: &ManualClock) -> u64 {
    use crate::env::Clock;
    clock.now_ms()
}

pub(super) fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn with_refresh() -> Login {
    Login { wants_refresh_token: true, ..Login::default() }
}

pub(super) fn alice_id() -> &'static UserId {
    user_id!("@alice:a")
}

pub(super) fn bob_id() -> &'static UserId {
    user_id!("@bob:a")
}

#[tokio::test]
async fn a_session_that_was_passivated_comes_back_as_it_was() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let room_id = world.room(alice_id(), &[]).await;
    let login = alice.log_in(Login::default()).await.unwrap();
    alice.set_account_data(None, "org.example".to_owned(), raw(&json!({ "a": 1 }))).await.unwrap();
    let latest = alice.view().latest();
    drop(alice);
    let shared = world.homeserver.session_shared();
    let actor = shared.published.get(alice_id()).unwrap().actor.clone();
    actor.drain_and_wait(None).await.unwrap();
    assert!(shared.hub().session(alice_id()).is_none() && shared.published.is_empty());
    assert!(world.authenticate(&login.access_token).await.is_ok());
    assert!(world.homeserver.profile(alice_id()).await.is_ok());
    let world = world.restarted().await;
    let alice = world.session(alice_id()).await;
    assert!(alice.view().latest() >= latest);
    assert_eq!(alice.data().account_data(None, "org.example").unwrap().get(), r#"{"a":1}"#);
    let mut waiting = alice.view().subscribe();
    waiting.see();
    let since = world.homeserver.storage().watermark();
    world.say(alice_id(), &room_id, text("hi")).await;
    assert!(waiting.has_changed());
    assert_eq!(alice.view().rooms_changed(since).len(), 1);
}

#[tokio::test]
async fn a_failed_commit_is_seen_by_nobody() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    world.store.fail_next_commits(1);
    let refused = alice.set_account_data(None, "org.example".to_owned(), raw(&json!({}))).await;
    assert!(matches!(refused, Err(SessionError::Commit(_))));
    assert!(alice.data().account_data(None, "org.example").is_none());
}
