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
    directory::ClassConfig,
    env::{ManualClock, SeededEntropy},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    room::{MembershipAction, MembershipChange, Receipt, Send},
};

const START_MS: u64 = 1_700_000_000_000;

struct World {
    homeserver: Homeserver,
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

impl World {
    async fn new() -> Self {
        Self::over(Arc::new(MemoryStore::new()), Arc::new(ManualClock::new(START_MS))).await
    }

    async fn over(store: Arc<MemoryStore>, clock: Arc<ManualClock>) -> Self {
        let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
        let config = HomeserverConfig {
            server_name: "a".try_into().unwrap(),
            signing_key: Arc::new(SigningKey::new(&[7; 32], "1").unwrap()),
            old_keys: Vec::new(),
            federation: None,
            default_room_version: room_version::DEFAULT,
            room_memory: 16 << 20,
            rooms: ClassConfig::default(),
            sessions: ClassConfig::default(),
            media: MediaConfig::default(),
            conversation: ConversationConfig::default(),
            push: std::sync::Arc::new(crate::push::NoPushGateways),
            search: None,
            services: crate::appservice::Services::default(),
        };
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(clock_seed(&clock))) };
        Self { homeserver: Homeserver::start(config, env, storage).await, clock, store }
    }

    /// The same server after a crash: what was not durable is lost.
    async fn restarted(self) -> Self {
        self.store.lose_unsynced_writes();
        self.clock.advance(1000);
        Self::over(self.store, self.clock).await
    }

    async fn account(&self, user_id: &UserId) -> SessionHandle {
        let new = NewAccount {
            user_id: user_id.to_owned(),
            password_hash: Some("hash".to_owned()),
            is_guest: false,
            is_admin: false,
        };
        self.homeserver.register(new).await.unwrap()
    }

    async fn session(&self, user_id: &UserId) -> SessionHandle {
        self.homeserver.session(user_id).await.unwrap()
    }

    async fn room(&self, creator: &UserId, others: &[&UserId]) -> OwnedRoomId {
        let new = NewRoom {
            version: room_version::DEFAULT,
            creator: creator.to_owned(),
            creator_profile: Map::new(),
            preset: Preset::PublicChat,
            creation_content: Map::new(),
            power_levels: Map::new(),
            alias: None,
            initial_state: Vec::new(),
            name: None,
            topic: None,
            invite: Vec::new(),
        };
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

    async fn say(&self, sender: &UserId, room_id: &RoomId, content: Value) -> OwnedEventId {
        let draft = Draft {
            kind: "m.room.message".into(),
            state_key: None,
            content: serde_json::value::to_raw_value(&content).unwrap(),
            redacts: None,
            dated: None,
        };
        let room = self.homeserver.room(room_id).await.unwrap();
        room.send(Send { sender: sender.to_owned(), draft, sent_by: None }).await.unwrap()
    }

    async fn receipt(&self, user: &UserId, room_id: &RoomId, event: &OwnedEventId) -> Receipt {
        let room = self.homeserver.room(room_id).await.unwrap();
        let index = room.event(event).await.unwrap().unwrap().index.unwrap();
        Receipt {
            user_id: user.to_owned(),
            thread: None,
            event_id: event.clone(),
            index,
            ts: self.homeserver.env().clock.now(),
            position: Position(0),
        }
    }

    async fn unread(&self, user: &UserId, room_id: &RoomId) -> Unread {
        let room = self.homeserver.room(room_id).await.unwrap();
        self.session(user).await.unread(&room).await.unwrap()
    }

    async fn authenticate(&self, token: &str) -> Result<OwnedUserId, AuthenticationFailure> {
        Ok(self.homeserver.authenticate(token, None).await?.user_id)
    }
}

fn clock_seed(clock: &ManualClock) -> u64 {
    use crate::env::Clock;
    clock.now_ms()
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn with_refresh() -> Login {
    Login { wants_refresh_token: true, ..Login::default() }
}

fn alice_id() -> &'static UserId {
    user_id!("@alice:a")
}

fn bob_id() -> &'static UserId {
    user_id!("@bob:a")
}

#[tokio::test]
async fn a_user_id_is_registered_once() {
    let world = World::new().await;
    let new = |user: &UserId| NewAccount {
        user_id: user.to_owned(),
        password_hash: None,
        is_guest: false,
        is_admin: false,
    };
    assert!(matches!(world.homeserver.session(alice_id()).await, Err(SessionError::NotFound)));
    let (first, second) =
        tokio::join!(world.homeserver.register(new(alice_id())), world.homeserver.register(new(alice_id())));
    assert!(first.is_ok());
    assert!(matches!(second, Err(SessionError::UserInUse)));
    assert!(matches!(world.homeserver.check_free(alice_id()).await, Err(SessionError::UserInUse)));
    for wrong in ["@Alice:a", "@alice:b", "@al ice:a", "@:a"] {
        let wrong = <&UserId>::try_from(wrong).unwrap();
        let refused = world.homeserver.register(new(wrong)).await;
        assert!(matches!(refused, Err(SessionError::InvalidUsername(_))), "{wrong}");
    }
    assert!(matches!(world.homeserver.session(user_id!("@x:b")).await, Err(SessionError::NotFound)));
}

#[tokio::test]
async fn a_device_is_logged_in_until_it_is_logged_out() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = Login { display_name: Some("phone".to_owned()), ..Login::default() };
    let first = alice.log_in(login).await.unwrap();
    assert_eq!(world.authenticate(&first.access_token).await.unwrap(), alice_id());
    assert!(matches!(world.authenticate("nonsense").await, Err(AuthenticationFailure::UnknownToken)));

    // Again on the same device: the former token is no good any more, the name stays.
    let again = Login { device_id: Some(first.device_id.clone()), ..Login::default() };
    let second = alice.log_in(again).await.unwrap();
    assert!(world.authenticate(&first.access_token).await.is_err());
    assert_eq!(alice.data().device(&first.device_id).unwrap().display_name.as_deref(), Some("phone"));

    let world = world.restarted().await;
    assert_eq!(world.authenticate(&second.access_token).await.unwrap(), alice_id());
    world.session(alice_id()).await.delete_devices(vec![second.device_id]).await.unwrap();
    assert!(world.authenticate(&second.access_token).await.is_err());
    assert_eq!(world.session(alice_id()).await.data().devices().count(), 0);
}

#[tokio::test]
async fn an_expired_token_is_refreshed() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let first = alice.log_in(with_refresh()).await.unwrap();
    let refresh = first.refresh_token.unwrap();
    assert!(matches!(world.authenticate(&refresh).await, Err(AuthenticationFailure::UnknownToken)));
    world.clock.advance(u64::try_from(first.expires_in.unwrap().as_millis()).unwrap());
    assert!(matches!(world.authenticate(&first.access_token).await, Err(AuthenticationFailure::Expired)));

    let lost = world.homeserver.refresh(&refresh).await.unwrap();
    // The answer got lost: the old token still works, and takes the place of the lost ones.
    let second = world.homeserver.refresh(&refresh).await.unwrap();
    assert_eq!(second.device_id, first.device_id);
    assert!(world.authenticate(&lost.access_token).await.is_err());
    assert!(world.homeserver.refresh(&lost.refresh_token.unwrap()).await.is_err());

    assert_eq!(world.authenticate(&second.access_token).await.unwrap(), alice_id());
    // Noting the use is not waited for; a change behind it is.
    alice.rename_device(second.device_id.clone(), None).await.unwrap();
    let used = world.homeserver.refresh(&refresh).await;
    assert!(matches!(used, Err(SessionError::UnknownRefreshToken)), "the new token was used");
    assert!(world.homeserver.refresh(&second.refresh_token.unwrap()).await.is_ok());
}

#[tokio::test]
async fn the_use_of_a_device_is_noted_now_and_then() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = alice.log_in(Login::default()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        world.clock.advance(2 * 60 * 1000);
        world.homeserver.authenticate(&login.access_token, Some("192.0.2.1")).await.unwrap();
        alice.rename_device(login.device_id.clone(), None).await.unwrap();
        seen.push(alice.data().device(&login.device_id).unwrap().last_seen);
    }
    assert_eq!((seen[0], seen[2]), (seen[1], seen[3]), "written at every other use only");
    assert_ne!(seen[1], seen[2]);
    let ip = alice.data().device(&login.device_id).unwrap().last_seen_ip.clone();
    assert_eq!(ip.as_deref(), Some("192.0.2.1"));
}

#[tokio::test]
async fn a_password_change_logs_out_the_other_devices() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let kept = alice.log_in(Login::default()).await.unwrap();
    let other = alice.log_in(Login::default()).await.unwrap();
    alice.set_password("new".to_owned(), LogOut::Nobody).await.unwrap();
    assert!(world.authenticate(&other.access_token).await.is_ok());
    alice.set_password("newer".to_owned(), LogOut::Others(Some(kept.device_id))).await.unwrap();
    assert!(world.authenticate(&other.access_token).await.is_err());
    assert!(world.authenticate(&kept.access_token).await.is_ok());
    assert_eq!(alice.data().account().password_hash.as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_deactivated_account_is_empty_and_stays_taken() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let login = alice.log_in(Login::default()).await.unwrap();
    let room_id = world.room(alice_id(), &[]).await;
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Alice")))).await.unwrap();
    let root = owned_event_id!("$root");
    alice.change_thread(room_id.clone(), root.clone(), ThreadWish::Subscribe).await.unwrap();
    assert_eq!(alice.data().threads().subscription(&room_id, &root), Some(false));
    world.homeserver.deactivate(alice_id(), true).await.unwrap();
    world.homeserver.session_shared().finish_background().await;
    assert!(world.authenticate(&login.access_token).await.is_err());
    assert!(matches!(alice.log_in(Login::default()).await, Err(SessionError::Deactivated)));
    assert!(matches!(world.homeserver.check_free(alice_id()).await, Err(SessionError::UserInUse)));
    assert!(matches!(world.homeserver.profile(alice_id()).await, Err(SessionError::NotFound)));
    assert_eq!(alice.view().room(&room_id).unwrap().membership, "leave");
    let world = world.restarted().await;
    let data = world.session(alice_id()).await.data();
    assert!(data.account().is_deactivated && data.account().is_erased);
    assert_eq!((data.devices().count(), data.profile().fields().count()), (0, 0));
    let threads = data.threads().changes(Position(0), Position(u64::MAX), 1);
    assert!(threads.changes.is_empty() && threads.rest.is_none());
}

#[tokio::test]
async fn a_profile_change_reaches_the_rooms() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let rooms = [world.room(alice_id(), &[]).await, world.room(alice_id(), &[]).await];
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Al")))).await.unwrap();
    world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!("Alice")))).await.unwrap();
    world.homeserver.session_shared().finish_background().await;
    for room_id in &rooms {
        let room = world.homeserver.room(room_id).await.unwrap();
        let member = room.current("m.room.member", alice_id().as_str()).await.unwrap().unwrap();
        let content: Value = serde_json::from_str(member.pdu.content().get()).unwrap();
        assert_eq!(content, json!({ "membership": "join", "displayname": "Alice" }));
    }
}

#[tokio::test]
async fn a_profile_has_limits() {
    let world = World::new().await;
    let set = async |name: &str, value: Value| {
        world.homeserver.set_profile_field(alice_id(), name, Some(raw(&value))).await
    };
    assert!(matches!(set("displayname", json!("Alice")).await, Err(SessionError::NotFound)));
    let alice = world.account(alice_id()).await;
    set("org.example.large", json!("x".repeat(60 * 1024))).await.unwrap();
    let refused = set("org.example.more", json!("x".repeat(5 * 1024))).await;
    assert!(matches!(refused, Err(SessionError::ProfileTooLarge)));
    assert!(alice.data().profile().get("org.example.more").is_none());
    let long = format!("org.{}", "x".repeat(256));
    assert!(matches!(set(&long, json!(1)).await, Err(SessionError::ProfileKeyTooLarge)));
    assert!(matches!(set("displayname", json!(1)).await, Err(SessionError::Invalid(_))));
    assert!(matches!(set("Nickname", json!(1)).await, Err(SessionError::InvalidProfileKey)));
    world.homeserver.set_profile_field(alice_id(), "org.example.large", None).await.unwrap();
    set("org.example.more", json!({ "deep": [1, 2] })).await.unwrap();
    let world = world.restarted().await;
    let profile = world.homeserver.profile(alice_id()).await.unwrap();
    assert_eq!(profile.get("org.example.more").unwrap().get(), r#"{"deep":[1,2]}"#);
}

#[tokio::test]
async fn account_data_is_told_since_a_position() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let room_id = world.room(alice_id(), &[]).await;
    let kinds = |session: &SessionHandle, room: Option<&RoomId>, since| -> Vec<String> {
        let data = session.data();
        data.account_data_since(room, since).map(|(kind, _)| kind.to_owned()).collect()
    };
    assert_eq!(kinds(&alice, None, Position(0)), ["m.push_rules"]);
    alice.set_account_data(None, "org.example.one".to_owned(), raw(&json!({}))).await.unwrap();
    let between = world.homeserver.storage().watermark();
    assert!(alice.view().latest() <= between);
    alice.set_account_data(None, "org.example.two".to_owned(), raw(&json!({ "a": 1 }))).await.unwrap();
    alice
        .set_account_data(Some(room_id.clone()), "org.example.room".to_owned(), raw(&json!({})))
        .await
        .unwrap();
    for _ in 0..2 {
        alice.set_account_data(None, "org.example.one".to_owned(), raw(&json!({ "b": 2 }))).await.unwrap();
    }
    assert_eq!(kinds(&alice, None, between), ["org.example.two", "org.example.one"]);
    assert_eq!(kinds(&alice, Some(&room_id), between), ["org.example.room"]);
    assert_eq!(alice.view().rooms_changed(between).len(), 1);
    for kind in ["m.fully_read", "m.push_rules"] {
        let refused = alice.set_account_data(None, kind.to_owned(), raw(&json!({}))).await;
        assert!(matches!(refused, Err(SessionError::ServerManaged(_))), "{kind}");
    }
    drop(alice);
    let world = world.restarted().await;
    let alice = world.session(alice_id()).await;
    assert_eq!(kinds(&alice, None, between), ["org.example.two", "org.example.one"]);
    assert_eq!(alice.view().rooms_changed(between).len(), 1, "a restart loses no mark");
    assert!(alice.view().latest() > between);
}

#[tokio::test]
async fn a_change_wakes_those_who_wait() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let mut waiting = alice.view().subscribe();
    waiting.see();
    alice.set_account_data(None, "org.example".to_owned(), raw(&json!({}))).await.unwrap();
    assert!(waiting.has_changed());
    waiting.see();
    alice.log_in(Login::default()).await.unwrap();
    assert!(!waiting.has_changed(), "a login is no news to /sync");
}

#[tokio::test]
async fn tags_are_room_account_data() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let room_id = world.room(alice_id(), &[]).await;
    let set = async |tag: &str, info: Value| {
        alice.change(SessionChange::SetTag(room_id.clone(), tag.to_owned(), raw(&info).into())).await
    };
    set("m.favourite", json!({ "order": 0.5 })).await.unwrap();
    set("u.work", json!({})).await.unwrap();
    assert!(set(&"x".repeat(256), json!({})).await.is_err());
    alice.change(SessionChange::RemoveTag(room_id.clone(), "u.work".to_owned())).await.unwrap();
    assert_eq!(Value::Object(alice.tags(&room_id)), json!({ "m.favourite": { "order": 0.5 } }));
    let data = alice.data();
    let stored = data.account_data(Some(&room_id), "m.tag").unwrap().get();
    assert_eq!(stored, r#"{"tags":{"m.favourite":{"order":0.5}}}"#);
}

#[tokio::test]
async fn push_rules_keep_their_places() {
    use ruma::push::{NewConditionalPushRule, NewPushRule, RuleKind};
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let rule =
        |id: &str| NewPushRule::Override(NewConditionalPushRule::new(id.to_owned(), Vec::new(), Vec::new()));
    let text = |id: &str| Some(id.to_owned());
    alice.set_push_rule(rule("one"), None, None).await.unwrap();
    alice.set_push_rule(rule("two"), None, None).await.unwrap();
    alice.enable_push_rule(RuleKind::Override, "one".to_owned(), false).await.unwrap();
    let order = |session: &SessionHandle| -> Vec<String> {
        let data = session.data();
        let own = data.push_rules().override_.iter().filter(|rule| !rule.default);
        own.map(|rule| format!("{}{}", rule.rule_id, if rule.enabled { "" } else { "-" })).collect()
    };
    assert_eq!(order(&alice), ["two", "one-"]);
    alice.set_push_rule(rule("two"), text("one"), None).await.unwrap();
    assert_eq!(order(&alice), ["one-", "two"]);
    alice.set_push_rule(rule("two"), None, text("one")).await.unwrap();
    assert_eq!(order(&alice), ["two", "one-"]);
    // After the last one: the rule that moves is counted once.
    let last = alice.data().push_rules().override_.iter().next_back().unwrap().rule_id.clone();
    assert!(alice.set_push_rule(rule("two"), Some(last), None).await.is_err(), "not next to predefined ones");
    assert!(alice.set_push_rule(rule("two"), text("two"), None).await.is_err());
    assert!(alice.set_push_rule(rule(".mine"), None, None).await.is_err());
    let refused = alice.remove_push_rule(RuleKind::Override, ".m.rule.master".to_owned()).await;
    assert!(matches!(refused, Err(SessionError::PredefinedPushRule)));
    let refused = alice.remove_push_rule(RuleKind::Override, "three".to_owned()).await;
    assert!(matches!(refused, Err(SessionError::PushRuleNotFound)));
    alice.enable_push_rule(RuleKind::Override, ".m.rule.master".to_owned(), true).await.unwrap();
    drop(alice);
    let world = world.restarted().await;
    let alice = world.session(alice_id()).await;
    assert_eq!(order(&alice), ["two", "one-"]);
    let data = alice.data();
    let master = data.push_rules().get(RuleKind::Override, ".m.rule.master").unwrap().enabled();
    assert!(master, "a predefined rule stays as it was set");
    let content = data.account_data(None, "m.push_rules").unwrap().get();
    assert!(content.contains(r#""rule_id":"two""#));
}

#[tokio::test]
async fn filters_are_kept_once() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let Value::Object(filter) = json!({ "room": { "include_leave": true, "org.example": 1 } }) else {
        return;
    };
    let id = alice.add_filter(filter.clone()).await.unwrap();
    assert_eq!(alice.add_filter(filter.clone()).await.unwrap(), id);
    let uploaded = alice.filter_as_uploaded(&id).await.unwrap().unwrap();
    assert_eq!(uploaded.get(), Value::Object(filter).to_string());
    assert!(alice.filter(&id).await.unwrap().unwrap().room.include_leave);
    assert!(alice.filter("other").await.unwrap().is_none());
    assert!(world.account(bob_id()).await.filter(&id).await.unwrap().is_none());
}

#[tokio::test]
async fn an_openid_token_works_for_a_while() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let token = alice.open_id_token().await.unwrap();
    let user = async |token: &str| world.homeserver.open_id_user(token).await.unwrap();
    assert_eq!(user(&token.token).await.as_deref(), Some(alice_id()));
    assert_eq!(user(&token.token.replace("got_1", "got_9")).await, None, "the expiry cannot be made up");
    world.clock.advance(u64::try_from(token.expires_in.as_millis()).unwrap());
    assert_eq!(user(&token.token).await, None);
    world.clock.advance(1);
    alice.open_id_token().await.unwrap();
    let all = storage::KeyRange::all();
    let rows = world.homeserver.storage();
    let rows = rows.range(&storage::schema::OPENID_TOKENS, all, storage::Direction::Ascending, 10).await;
    assert_eq!(rows.unwrap().len(), 1, "the expired token is gone");
}

#[tokio::test]
async fn unread_counts_follow_receipts_and_rules() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let third = user_id!("@carol:a");
    world.account(third).await;
    let room_id = world.room(alice_id(), &[bob_id(), third]).await;
    let total = async || world.unread(bob_id(), &room_id).await.total();
    assert_eq!(total().await.notification_count, 0, "joins do not notify");
    world.say(alice_id(), &room_id, text("zero")).await;
    world.say(bob_id(), &room_id, text("own, which reads what came before")).await;
    let first = world.say(alice_id(), &room_id, text("one")).await;
    let mention = json!({ "msgtype": "m.text", "body": "hi", "m.mentions": { "user_ids": [bob_id()] } });
    let second = world.say(alice_id(), &room_id, mention).await;
    assert_eq!(total().await, UnreadCounts { highlight_count: 1, notification_count: 2 });

    let receipt = world.receipt(bob_id(), &room_id, &first).await;
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    assert_eq!(total().await, UnreadCounts { highlight_count: 1, notification_count: 1 });
    assert_eq!(bob.private_receipts(&room_id, Position(0)).len(), 1);

    let receipt = world.receipt(bob_id(), &room_id, &second).await;
    world.homeserver.room(&room_id).await.unwrap().set_receipt(receipt).await.unwrap();
    assert_eq!(total().await, UnreadCounts::default());

    let thread = json!({
        "msgtype": "m.text", "body": "aside",
        "m.relates_to": { "rel_type": "m.thread", "event_id": first },
    });
    let aside = world.say(alice_id(), &room_id, thread).await;
    let three = world.say(alice_id(), &room_id, text("three")).await;
    let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
    assert_eq!((main.notification_count, threads[first.as_str()].notification_count), (1, 1));
    let receipt =
        Receipt { thread: Some(first.to_string()), ..world.receipt(bob_id(), &room_id, &aside).await };
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
    assert_eq!((main.notification_count, threads.len()), (1, 0));

    let master = ".m.rule.master".to_owned();
    bob.enable_push_rule(ruma::push::RuleKind::Override, master.clone(), true).await.unwrap();
    assert_eq!(total().await, UnreadCounts::default(), "everything is muted");
    bob.enable_push_rule(ruma::push::RuleKind::Override, master, false).await.unwrap();
    assert_eq!(total().await.notification_count, 1);

    let redaction = Draft {
        kind: "m.room.redaction".into(),
        state_key: None,
        content: serde_json::value::to_raw_value(&json!({})).unwrap(),
        redacts: Some(three),
        dated: None,
    };
    let room = world.homeserver.room(&room_id).await.unwrap();
    room.send(Send { sender: alice_id().to_owned(), draft: redaction, sent_by: None }).await.unwrap();
    let (counted, anew) = (total().await, Unread::default().total());
    assert_eq!(counted, anew, "what is redacted does not count any more");
}

#[tokio::test]
async fn what_relates_to_an_event_of_a_thread_is_unread_in_that_thread() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let room_id = world.room(alice_id(), &[bob_id()]).await;
    let root = world.say(alice_id(), &room_id, text("root")).await;
    let related = |rel_type: &str, event_id: &OwnedEventId| {
        let relates_to = json!({ "rel_type": rel_type, "event_id": event_id });
        json!({ "msgtype": "m.text", "body": "aside", "m.relates_to": relates_to })
    };
    world.say(alice_id(), &room_id, related("m.reference", &root)).await;
    let mut last = world.say(alice_id(), &room_id, related("m.thread", &root)).await;
    for _ in 0..3 {
        last = world.say(alice_id(), &room_id, related("m.reference", &last)).await;
    }
    let by_thread = async || {
        let (main, threads) = world.unread(bob_id(), &room_id).await.by_thread();
        let in_thread = threads.get(root.as_str()).copied().unwrap_or_default();
        (main.notification_count, in_thread.notification_count, threads.len())
    };
    assert_eq!(by_thread().await, (2, 4, 1), "what relates to a root is not in its thread");
    world.say(alice_id(), &room_id, related("m.reference", &last)).await;
    assert_eq!(by_thread().await, (3, 4, 1), "three hops are followed");
    world.say(alice_id(), &room_id, related("m.reference", &owned_event_id!("$elsewhere"))).await;
    assert_eq!(by_thread().await, (4, 4, 1), "of an unknown event no thread is known");

    let receipt = world.receipt(bob_id(), &room_id, &last).await;
    bob.set_private_receipt(room_id.clone(), Receipt { thread: Some(root.to_string()), ..receipt })
        .await
        .unwrap();
    assert_eq!(by_thread().await, (4, 0, 0));
}

#[tokio::test]
async fn a_long_unread_stretch_is_counted_in_pages() {
    let world = World::new().await;
    world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let room_id = world.room(alice_id(), &[bob_id()]).await;
    let mut middle = None;
    for number in 0..150 {
        let event = world.say(alice_id(), &room_id, text(&number.to_string())).await;
        if number == 99 {
            middle = Some(event);
        }
    }
    let total = async |world: &World| world.unread(bob_id(), &room_id).await.total().notification_count;
    assert_eq!(total(&world).await, 150);
    let receipt = world.receipt(bob_id(), &room_id, &middle.unwrap()).await;
    bob.set_private_receipt(room_id.clone(), receipt).await.unwrap();
    assert_eq!(total(&world).await, 50);
    world.say(alice_id(), &room_id, text("more")).await;
    assert_eq!(total(&world).await, 51);
    drop(bob);
    let world = world.restarted().await;
    assert_eq!(world.unread(bob_id(), &room_id).await.total().notification_count, 51, "counted anew");
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
async fn presence_is_told_to_those_who_share_a_room() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    let bob = world.account(bob_id()).await;
    let stranger = world.account(user_id!("@mallory:a")).await;
    world.room(alice_id(), &[bob_id()]).await;
    let since = world.homeserver.storage().watermark();
    assert!(bob.presence_since(Position(0)).is_empty());
    alice.set_presence(PresenceState::Online, Some("here".to_owned()));
    let seen = bob.presence_since(since);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].state.clone(), seen[0].status_msg.as_deref()), (PresenceState::Online, Some("here")));
    assert_eq!(bob.presence_since(Position(0)).len(), 1);
    assert!(stranger.presence_since(since).is_empty() && stranger.presence_since(Position(0)).is_empty());
    assert!(world.homeserver.shares_room(&bob, alice_id()).await.unwrap());
    assert!(!world.homeserver.shares_room(&stranger, alice_id()).await.unwrap());
    let since = world.homeserver.storage().watermark();
    alice.set_presence(PresenceState::Online, Some("here".to_owned()));
    assert!(bob.presence_since(since).is_empty(), "no change, no news");
    let rename = async |name: &str| {
        world.homeserver.set_profile_field(alice_id(), "displayname", Some(raw(&json!(name)))).await.unwrap();
    };
    rename("Alice").await;
    let seen = bob.presence_since(since);
    assert_eq!(seen.len(), 1);
    let event: Value = serde_json::from_str(world.homeserver.presence_event(&seen[0]).get()).unwrap();
    assert_eq!(event["content"]["displayname"], "Alice");
    alice.set_presence(PresenceState::Offline, None);
    let since = world.homeserver.storage().watermark();
    rename("Al").await;
    assert!(bob.presence_since(since).is_empty(), "nobody hears of who is away");
    world.homeserver.session_shared().finish_background().await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_goes_away_is_offline_after_a_while() {
    let world = World::new().await;
    let alice = world.account(alice_id()).await;
    world.room(alice_id(), &[]).await;
    let connected = alice.connect(&PresenceState::Online).unwrap();
    assert_eq!(alice.presence().state, PresenceState::Online);
    drop(connected);
    assert!(alice.connect(&PresenceState::Offline).is_none());
    let since = world.homeserver.storage().watermark();
    let mut changes = alice.view().subscribe();
    changes.see();
    // The manual clock jumps at once; the timer comes when tokio's paused clock gets there.
    world.clock.advance(31_000);
    tokio::time::timeout(Duration::from_secs(120), changes.changed()).await.unwrap();
    let seen = alice.presence_since(since);
    assert_eq!(seen.iter().map(|seen| seen.state.clone()).collect::<Vec<_>>(), [PresenceState::Offline]);
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

#[tokio::test]
async fn account_data_have_a_budget_and_what_is_there_can_be_made_smaller() {
    let world = World::new().await;
    let alice = world.account(user_id!("@alice:a")).await;
    let large = raw(&json!({ "text": "x".repeat(1_000_000) }));
    let set = async |number: usize, content: &RawValue| {
        alice.set_account_data(None, format!("org.example.{number}"), content.to_owned()).await
    };
    for number in 0..33 {
        set(number, &large).await.unwrap();
    }
    assert!(matches!(set(33, &large).await, Err(SessionError::TooMany(_))));
    set(0, &large).await.unwrap();
    set(1, &raw(&json!({}))).await.unwrap();
    set(33, &large).await.unwrap();
    let long = alice.set_account_data(None, "x".repeat(256), raw(&json!({}))).await;
    assert!(matches!(long, Err(SessionError::Invalid(_))));
}
