//! The published crate `matrix-sdk`, behind the commands of `tests/clients/README.md`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use matrix_sdk::{
    Client, Room, RoomState,
    config::SyncSettings,
    room::MessagesOptions,
    ruma::{
        OwnedEventId, RoomId, UserId,
        api::client::{
            account::register,
            push::{Pusher, PusherIds, get_pushers},
            receipt::create_receipt::v3::ReceiptType,
            room::create_room::v3::{Request as CreateRoom, RoomPreset},
            uiaa::{AuthData, Dummy},
        },
        events::{
            SyncStateEvent,
            reaction::{OriginalSyncReactionEvent, ReactionEventContent},
            receipt::{ReceiptThread, SyncReceiptEvent},
            relation::Annotation,
            room::{
                member::{MembershipState, StrippedRoomMemberEvent, SyncRoomMemberEvent},
                message::{
                    MessageType, OriginalSyncRoomMessageEvent, Relation, ReplacementMetadata,
                    RoomMessageEventContent,
                },
                redaction::SyncRoomRedactionEvent,
            },
            typing::SyncTypingEvent,
        },
        uint,
    },
};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

/// As for the other clients' commands.
const LIMIT: Duration = Duration::from_secs(90);

/// A client that syncs in the background, and what it saw.
pub(super) struct Sdk {
    client: Client,
    facts: Facts,
    syncing: Option<JoinHandle<()>>,
}

#[derive(Clone, Default)]
struct Facts {
    seen: Arc<Mutex<Vec<Value>>>,
    typing: Arc<Mutex<BTreeSet<(String, String)>>>,
    news: Arc<Notify>,
}

impl Facts {
    fn saw(&self, fact: Value) {
        self.seen.lock().unwrap().push(fact);
        self.news.notify_waiters();
    }

    fn saw_typing(&self, room: &Room, users: &[matrix_sdk::ruma::OwnedUserId]) {
        let room = room.room_id().to_string();
        let mut typing = self.typing.lock().unwrap();
        let before: BTreeSet<_> = typing.iter().filter(|(typed_in, _)| *typed_in == room).cloned().collect();
        let now: BTreeSet<_> = users.iter().map(|user| (room.clone(), user.to_string())).collect();
        for (changed, is_typing) in now
            .difference(&before)
            .map(|key| (key, true))
            .chain(before.difference(&now).map(|key| (key, false)))
        {
            let (room, user) = changed;
            self.saw(json!({ "what": "typing", "room_id": room, "user_id": user, "typing": is_typing }));
        }
        typing.retain(|key| !before.contains(key));
        typing.extend(now);
    }

    fn take(&self, fact: &Value) -> Option<Value> {
        let mut seen = self.seen.lock().unwrap();
        let wanted = fact.as_object().unwrap();
        let place = seen.iter().position(|seen| wanted.iter().all(|(key, value)| seen[key] == *value))?;
        Some(seen.remove(place))
    }

    async fn wait(&self, fact: &Value) -> Value {
        let mut news = std::pin::pin!(self.news.notified());
        loop {
            news.as_mut().enable(); // before looking, so that nothing comes in between
            if let Some(found) = self.take(fact) {
                return found;
            }
            news.as_mut().await;
            news.set(self.news.notified());
        }
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        if let Some(syncing) = &self.syncing {
            syncing.abort();
        }
    }
}

impl Sdk {
    pub(super) async fn new(url: &str) -> Self {
        let client = Client::builder().homeserver_url(url).build().await.unwrap();
        Self { client, facts: Facts::default(), syncing: None }
    }

    /// Runs a command; panics if it fails or takes too long.
    pub(super) async fn call(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = timeout(LIMIT, self.run(command, arguments)).await;
        answer.unwrap_or_else(|_| panic!("matrix-sdk takes longer than {LIMIT:?} for {command} {arguments}"))
    }

    async fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let text = |key: &str| arguments[key].as_str().unwrap();
        match command {
            "register" => {
                let mut request = register::v3::Request::new();
                request.username = Some(text("user").to_owned());
                request.password = Some(text("password").to_owned());
                request.auth = Some(AuthData::Dummy(Dummy::new()));
                self.client.matrix_auth().register(request).await.unwrap();
                self.start().await
            }
            "login" => {
                let auth = self.client.matrix_auth();
                auth.login_username(text("user"), text("password")).send().await.unwrap();
                self.start().await
            }
            "create_room" => {
                let mut request = CreateRoom::new();
                let is_public = arguments["public"] == true;
                request.preset =
                    Some(if is_public { RoomPreset::PublicChat } else { RoomPreset::PrivateChat });
                json!({ "room_id": self.client.create_room(request).await.unwrap().room_id() })
            }
            "join" => {
                let room = RoomId::parse(text("room_id")).unwrap();
                let room = self.client.join_room_by_id(&room).await.unwrap();
                assert_eq!(room.state(), RoomState::Joined);
                Value::Null
            }
            "wait" => self.facts.wait(&arguments["fact"]).await,
            "set_pusher" | "remove_pusher" | "pushers" => self.push(command, arguments).await,
            _ => self.in_room(command, arguments).await,
        }
    }

    async fn push(&self, command: &str, arguments: &Value) -> Value {
        let text = |key: &str| arguments[key].as_str().unwrap().to_owned();
        match command {
            "set_pusher" => {
                let pusher = serde_json::from_value::<Pusher>(arguments["pusher"].clone()).unwrap();
                self.client.pusher().set(pusher, false).await.unwrap();
            }
            "remove_pusher" => {
                let pusher = PusherIds::new(text("pushkey"), text("app_id"));
                self.client.pusher().delete(pusher).await.unwrap();
            }
            _ => {
                let answer = self.client.send(get_pushers::v3::Request::new()).await.unwrap();
                return json!({ "pushers": answer.pushers });
            }
        }
        Value::Null
    }

    async fn in_room(&self, command: &str, arguments: &Value) -> Value {
        let text = |key: &str| arguments[key].as_str().unwrap();
        let room = self.client.get_room(&RoomId::parse(text("room_id")).unwrap()).unwrap();
        let event = || OwnedEventId::try_from(text("event_id")).unwrap();
        let sent = match command {
            "send" => {
                room.send(RoomMessageEventContent::text_plain(text("body"))).await.unwrap().response.event_id
            }
            "edit" => {
                let replaced = ReplacementMetadata::new(event(), None);
                let content = RoomMessageEventContent::text_plain(text("body")).make_replacement(replaced);
                room.send(content).await.unwrap().response.event_id
            }
            "react" => {
                let content = ReactionEventContent::new(Annotation::new(event(), text("key").to_owned()));
                room.send(content).await.unwrap().response.event_id
            }
            "redact" => room.redact(&event(), None, None).await.unwrap().event_id,
            _ => return self.without_event(&room, command, arguments).await,
        };
        json!({ "event_id": sent })
    }

    async fn without_event(&self, room: &Room, command: &str, arguments: &Value) -> Value {
        let text = |key: &str| arguments[key].as_str().unwrap();
        match command {
            "invite" => {
                room.invite_user_by_id(&UserId::parse(text("user_id")).unwrap()).await.unwrap();
            }
            "leave" => room.leave().await.unwrap(),
            "typing" => room.typing_notice(arguments["typing"] == true).await.unwrap(),
            "receipt" => {
                let event = OwnedEventId::try_from(text("event_id")).unwrap();
                room.send_single_receipt(ReceiptType::Read, ReceiptThread::Unthreaded, event).await.unwrap();
            }
            "paginate" => {
                let limit = usize::try_from(arguments["limit"].as_u64().unwrap()).unwrap();
                return json!({ "bodies": page_back(room, limit).await });
            }
            _ => panic!("no command {command}"),
        }
        Value::Null
    }

    /// Syncs once, then on in the background.
    async fn start(&mut self) -> Value {
        self.watch();
        self.client.sync_once(SyncSettings::default()).await.unwrap();
        let client = self.client.clone();
        self.syncing = Some(tokio::spawn(async move {
            let ended = client.sync(SyncSettings::default().timeout(Duration::from_secs(5))).await;
            panic!("matrix-sdk ended its /sync: {ended:?}");
        }));
        json!({ "user_id": self.client.user_id().unwrap() })
    }

    fn watch(&self) {
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: OriginalSyncRoomMessageEvent, room: Room| {
            let (room, sender) = (room.room_id(), &event.sender);
            let fact = match &event.content.relates_to {
                Some(Relation::Replacement(replacement)) => json!({
                    "what": "edit", "room_id": room, "sender": sender,
                    "event_id": replacement.event_id, "body": replacement.new_content.msgtype.body(),
                }),
                _ => json!({
                    "what": "message", "room_id": room, "sender": sender,
                    "event_id": event.event_id, "body": event.content.body(),
                }),
            };
            facts.saw(fact);
        });
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: OriginalSyncReactionEvent, room: Room| {
            let Annotation { event_id, key, .. } = event.content.relates_to;
            let room = room.room_id();
            facts.saw(json!({ "what": "reaction", "room_id": room, "event_id": event_id, "sender": event.sender, "key": key }));
        });
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: SyncRoomRedactionEvent, room: Room| {
            let rules = room.clone_info().room_version_rules_or_default();
            let redacted = event.redacts(&rules.redaction);
            facts.saw(json!({ "what": "redaction", "room_id": room.room_id(), "event_id": redacted }));
        });
        self.watch_members();
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: SyncTypingEvent, room: Room| {
            facts.saw_typing(&room, &event.content.user_ids);
        });
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: SyncReceiptEvent, room: Room| {
            for (event_id, receipts) in event.content.iter() {
                for user in receipts.values().flat_map(|users| users.keys()) {
                    let room = room.room_id();
                    facts.saw(
                        json!({ "what": "receipt", "room_id": room, "event_id": event_id, "user_id": user }),
                    );
                }
            }
        });
    }

    fn watch_members(&self) {
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: SyncRoomMemberEvent, room: Room| {
            let SyncStateEvent::Original(event) = event else { return };
            let membership = event.content.membership.as_str();
            let room = room.room_id();
            facts.saw(json!({ "what": "member", "room_id": room, "user_id": event.state_key, "membership": membership }));
        });
        let facts = self.facts.clone();
        self.client.add_event_handler(async move |event: StrippedRoomMemberEvent, room: Room| {
            if event.content.membership == MembershipState::Invite && event.state_key == room.own_user_id() {
                facts.saw(json!({ "what": "invite", "room_id": room.room_id() }));
            }
        });
    }
}

/// The bodies of text messages, newest first.
async fn page_back(room: &Room, limit: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    let mut from = None;
    while bodies.len() < limit {
        let mut options = MessagesOptions::backward().from(from.as_deref());
        options.limit = uint!(100);
        let page = room.messages(options).await.unwrap();
        for event in page.chunk {
            if let Ok(message) = event.raw().deserialize_as_unchecked::<OriginalSyncRoomMessageEvent>()
                && let MessageType::Text(text) = message.content.msgtype
            {
                bodies.push(text.body);
            }
        }
        from = page.end;
        if from.is_none() {
            break;
        }
    }
    bodies.truncate(limit);
    bodies
}
