//! A server made by hand: it says what a test makes it say, true or not.

use std::{collections::BTreeMap, future::Ready, sync::Arc};

use engine::{
    auth,
    canonical::Json,
    pdu::{self, BuildContext, Draft, Pdu, SigningKey},
    room_version::{self, RoomVersion},
};
use http::Method;
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId,
    RoomVersionId, UInt,
    canonical_json::CanonicalJsonValue,
    serde::{Base64, base64::Standard},
    signatures::{KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::{
    Answer, Server, segment,
    tls::{Heard, Reply, TlsListener, TlsPort, Trust},
};

/// The secret of every stranger's key; their names differ.
const SECRET: [u8; 32] = [7; 32];

type Handler = Box<dyn FnMut(&Heard) -> Option<Reply> + Send>;

#[derive(Default)]
struct Script {
    handler: Option<Handler>,
    heard: Vec<Heard>,
}

/// A server made by hand.
pub struct Stranger {
    name: OwnedServerName,
    key: Arc<SigningKey>,
    script: Arc<Mutex<Script>>,
    listener: Option<TlsListener>,
    http: reqwest::Client,
}

/// What a stranger that was there is from now on.
#[derive(Clone, Copy, Debug)]
pub enum Presence {
    /// Its port refuses connections.
    Refusing,
    /// It answers with a certificate that nobody vouches for.
    Untrusted,
    /// It answers as at first.
    Answering,
}

impl Stranger {
    /// Starts a server that publishes its key, takes all transactions, and knows nothing else.
    pub async fn start() -> Self {
        Self::called(|port| format!("localhost:{port}")).await
    }

    /// A server of this name, which leads nobody to it.
    pub async fn astray(name: &str) -> Self {
        Self::called(|_| name.to_owned()).await
    }

    async fn called(name: impl FnOnce(u16) -> String) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let key = Arc::new(SigningKey::new(&SECRET, "stranger").expect("the version is good"));
        let port = TlsPort::hold(0).await;
        let name = OwnedServerName::try_from(name(port.number)).expect("it is a server name");
        let answer = answering(script.clone(), key.clone(), name.clone());
        let listener = Some(port.listen(Trust::Trusted, answer));
        Self { name, key, script, listener, http: reqwest::Client::new() }
    }

    /// Ends all connections, and is something else for those who come then.
    pub async fn becomes(&mut self, presence: Presence) {
        let port = self.listener.take().expect("there is one at any time").stop().await;
        let answer = answering(self.script.clone(), self.key.clone(), self.name.clone());
        self.listener = Some(match presence {
            Presence::Refusing => port.refuse(),
            Presence::Untrusted => port.listen(Trust::Untrusted, answer),
            Presence::Answering => port.listen(Trust::Trusted, answer),
        });
    }

    /// What it publishes of its keys.
    pub fn published_keys(&self) -> Value {
        published_keys(self.name(), &self.key)
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The key that it signs with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Answers requests with what `handler` says, and as usual where it says nothing.
    pub fn on(&self, handler: impl FnMut(&Heard) -> Option<Reply> + Send + 'static) {
        self.script.lock().handler = Some(Box::new(handler));
    }

    /// Has `handler` answer requests from now on; where it says nothing they are answered as before.
    pub fn on_first(&self, mut handler: impl FnMut(&Heard) -> Option<Reply> + Send + 'static) {
        let mut script = self.script.lock();
        let mut before = script.handler.take();
        script.handler = Some(Box::new(move |heard| {
            handler(heard).or_else(|| before.as_mut().and_then(|before| before(heard)))
        }));
    }

    /// The requests so far whose path contains something.
    pub fn heard(&self, part: &str) -> Vec<Heard> {
        self.script.lock().heard.iter().filter(|heard| heard.uri.contains(part)).cloned().collect()
    }

    /// The events that came in transactions so far.
    pub fn received(&self) -> Vec<Value> {
        let transactions = self.heard("/_matrix/federation/v1/send/");
        let pdus = transactions.iter().filter_map(|heard| heard.json()["pdus"].as_array().cloned());
        pdus.flatten().collect()
    }

    /// A request to a server, signed.
    pub async fn request(&self, server: &Server, method: Method, uri: &str, body: Option<Value>) -> Answer {
        let authorization = self.authorization(server.name(), &method, uri, body.as_ref());
        let mut request = self.http.request(method, format!("{}{uri}", server.url()));
        request = request.header("Authorization", authorization);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request.send().await.expect("the server answers");
        let status = response.status().as_u16();
        let text = response.text().await.expect("the answer can be read");
        Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    fn authorization(&self, destination: &str, method: &Method, uri: &str, body: Option<&Value>) -> String {
        let mut object = json!({
            "destination": destination, "method": method.as_str(), "origin": self.name, "uri": uri,
        });
        if let Some(body) = body {
            object["content"] = body.clone();
        }
        // It may say what it must not.
        let object = object.to_string();
        let object = Json::parse(object.as_bytes()).expect("it is JSON");
        let object = serde_json::to_vec(&object).expect("it can be written");
        let signature = Base64::<Standard, _>::new(self.key.sign(&object).as_bytes()).encode();
        let (name, key) = (&self.name, self.key.id());
        format!(r#"X-Matrix origin="{name}",destination="{destination}",key="{key}",sig="{signature}""#)
    }

    /// `GET`
    pub async fn get(&self, server: &Server, uri: &str) -> Answer {
        self.request(server, Method::GET, uri, None).await
    }

    /// `PUT`
    pub async fn put(&self, server: &Server, uri: &str, body: Value) -> Answer {
        self.request(server, Method::PUT, uri, Some(body)).await
    }

    /// Sends a transaction; returns what the server says of each event.
    pub async fn send(&self, server: &Server, txn: &str, pdus: &[&Pdu]) -> Value {
        let pdus: Vec<Value> = pdus.iter().map(|pdu| value(pdu)).collect();
        let body = json!({ "origin": self.name, "origin_server_ts": 1, "pdus": pdus, "edus": [] });
        let answer = self.put(server, &format!("/_matrix/federation/v1/send/{txn}"), body).await.ok();
        answer["pdus"].clone()
    }

    /// Joins a room of a server as a user of this one.
    pub async fn join(&self, server: &Server, room_id: &str, localpart: &str) -> Guest {
        let user: OwnedUserId = format!("@{localpart}:{}", self.name).try_into().expect("it is a user ID");
        let versions: Vec<_> =
            room_version::SUPPORTED.iter().map(|version| format!("ver={version}")).collect();
        let uri = format!(
            "/_matrix/federation/v1/make_join/{}/{}?{}",
            segment(room_id),
            segment(user.as_str()),
            versions.join("&")
        );
        let template = self.get(server, &uri).await.ok();
        let version = RoomVersionId::try_from(template["room_version"].as_str().expect("a version"));
        let rules = version.ok().and_then(|version| room_version::rules(&version)).expect("it is supported");
        let join = self.seal(template["event"].clone(), rules);
        let uri = format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            segment(room_id),
            segment(join.event_id().as_str())
        );
        let joined = self.put(server, &uri, value(&join)).await.ok();
        let join = parse(&joined["event"], rules);
        let mut state = BTreeMap::new();
        for event in joined["state"].as_array().expect("a state") {
            let event = parse(event, rules);
            let key = (event.kind().to_owned(), event.state_key().expect("a state event").to_owned());
            state.insert(key, Arc::new(event));
        }
        let join = Arc::new(join);
        state.insert(("m.room.member".to_owned(), user.to_string()), join.clone());
        let room_id = OwnedRoomId::try_from(room_id).expect("it is a room ID");
        Guest { room_id, user, rules, state, past: Vec::new(), tips: vec![join] }
    }

    /// Makes a public room of version 11 with a user of this server in it, which nobody else knows of.
    pub fn found_room(&self, localpart: &str) -> Guest {
        let user: OwnedUserId = format!("@{localpart}:{}", self.name).try_into().expect("it is a user ID");
        let room_id = format!("!founded{}:{}", next(), self.name).try_into().expect("it is a room ID");
        let rules = room_version::rules(&RoomVersionId::V11).expect("it is supported");
        let mut room = Guest {
            room_id,
            user: user.clone(),
            rules,
            state: BTreeMap::new(),
            past: Vec::new(),
            tips: Vec::new(),
        };
        self.event(&mut room, "m.room.create", Some(""), &json!({ "room_version": "11" }));
        self.event(&mut room, "m.room.member", Some(user.as_str()), &json!({ "membership": "join" }));
        let levels = json!({ "users": { user.as_str(): 100 } });
        self.event(&mut room, "m.room.power_levels", Some(""), &levels);
        self.event(&mut room, "m.room.join_rules", Some(""), &json!({ "join_rule": "public" }));
        room
    }

    /// Lets a user of another stranger into a room that this one founded.
    pub fn let_in(&self, room: &mut Guest, other: &Self, localpart: &str) {
        let user: OwnedUserId = format!("@{localpart}:{}", other.name).try_into().expect("it is a user ID");
        let founder = std::mem::replace(&mut room.user, user.clone());
        other.event(room, "m.room.member", Some(user.as_str()), &json!({ "membership": "join" }));
        room.user = founder;
    }

    /// Answers those who want to join a room that this server founded.
    pub fn host(&self, room: &Guest) {
        let template = template(room);
        let state = values(room.state.values());
        let chain = values(room.past.iter().chain(room.state.values()));
        self.on(move |heard| {
            if let Some(reply) = template(heard) {
                return Some(reply);
            }
            let joined = json!({ "state": state, "auth_chain": chain, "event": heard.json(), "members_omitted": false });
            heard.uri.contains("/send_join/").then_some(Reply::Json(200, joined))
        });
    }

    /// Answers those who want to join a room that this server founded, without its members; of these it tells once the
    /// switch that is returned is on.
    pub fn host_without_members(&self, room: &Guest) -> Arc<Mutex<bool>> {
        let past = &room.past;
        let template = template(room);
        let is_member = |event: &&Arc<Pdu>| event.kind() == "m.room.member";
        let lean = values(room.state.values().filter(|event| !is_member(event)));
        let chain = values(past.iter().chain(room.state.values().filter(is_member)));
        // What authorises the state without its members.
        let founder = room.state.values().filter(is_member).filter(|event| *event.sender() == *room.user);
        let lean_chain = values(past.iter().chain(founder));
        let state = values(room.state.values());
        let ids: Vec<_> = room.state.values().map(|event| event.event_id().to_string()).collect();
        let chain_ids: Vec<_> = past.iter().map(|event| event.event_id().to_string()).collect();
        let events: BTreeMap<String, Value> = past
            .iter()
            .chain(room.state.values())
            .map(|event| (segment(event.event_id().as_str()), value(event)))
            .collect();
        let name = self.name.clone();
        let is_whole = Arc::new(Mutex::new(false));
        let whole = is_whole.clone();
        self.on(move |heard| {
            if let Some(reply) = template(heard) {
                return Some(reply);
            }
            if heard.uri.contains("/send_join/") {
                let joined = json!({
                    "state": lean, "auth_chain": lean_chain, "event": heard.json(), "members_omitted": true,
                    "servers_in_room": [name],
                });
                return Some(Reply::Json(200, joined));
            }
            if heard.uri.contains("/event_auth/") {
                return Some(Reply::Json(200, json!({ "auth_chain": chain })));
            }
            if heard.uri.contains("/v1/event/") {
                let event = events.get(heard.uri.rsplit('/').next()?)?;
                return Some(Reply::Json(200, json!({ "pdus": [event] })));
            }
            if !heard.uri.contains("/v1/state") {
                return None;
            }
            if !*whole.lock() {
                let busy = json!({ "errcode": "M_UNKNOWN", "error": "the members come later" });
                return Some(Reply::Json(503, busy));
            }
            Some(Reply::Json(
                200,
                if heard.uri.contains("/v1/state_ids/") {
                    json!({ "pdu_ids": ids, "auth_chain_ids": chain_ids })
                } else {
                    json!({ "pdus": state, "auth_chain": chain })
                },
            ))
        });
        is_whole
    }

    /// Hashes and signs an event as it is.
    pub fn seal(&self, event: Value, rules: &'static RoomVersion) -> Pdu {
        let mut object: CanonicalJsonObject = serde_json::from_value(event).expect("it is canonical");
        object.remove("signatures");
        object.remove("hashes");
        if rules.event_format.require_event_id && !object.contains_key("event_id") {
            let id = format!("${:x}:{}", object.len() + next(), self.name);
            object.insert("event_id".to_owned(), id.into());
        }
        pdu::seal(object, &self.key, &self.name, rules).expect("it can be signed")
    }

    /// An event of a guest, after the newest that the guest knows, authorised by the state that the guest knows.
    ///
    /// The guest knows it from now on.
    pub fn event(&self, guest: &mut Guest, kind: &str, state_key: Option<&str>, content: &Value) -> Arc<Pdu> {
        let event = self.event_after(guest, &guest.tips, kind, state_key, content);
        guest.take(&event);
        event
    }

    /// An event after some others; the guest does not take note of it.
    pub fn event_after(
        &self,
        guest: &Guest,
        prev_events: &[Arc<Pdu>],
        kind: &str,
        state_key: Option<&str>,
        content: &Value,
    ) -> Arc<Pdu> {
        let content = serde_json::value::to_raw_value(content).expect("it is JSON");
        let draft = Draft::new(kind.into(), state_key.map(ToOwned::to_owned), content);
        let keys = auth::auth_keys(&draft.kind, &guest.user, state_key, &draft.content, guest.rules);
        let auth_events: Vec<_> = keys
            .expect("the content is good")
            .into_iter()
            .filter_map(|(kind, key)| guest.state.get(&(kind.to_string(), key)).cloned())
            .collect();
        let context = BuildContext {
            room_id: Some(&guest.room_id),
            sender: &guest.user,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(now_ms())),
            prev_events,
            auth_events: &auth_events,
            event_id_localpart: &format!("s{}", next()),
            rules: guest.rules,
            key: &self.key,
            server_name: &self.name,
        };
        Arc::new(pdu::build(draft, &context).expect("the event can be built"))
    }

    /// Adds this server's signature to an event of another one, as for an invite.
    pub fn countersign(&self, event: &Value, rules: &'static RoomVersion) -> Value {
        let signed = pdu::countersign(&parse(event, rules), &self.key, &self.name, rules);
        value(&signed.expect("it can be signed"))
    }

    /// Signs a JSON object.
    pub fn sign(&self, object: &Value) -> Value {
        sign(object, self.name(), &self.key)
    }
}

/// A user of a stranger in a room, and what that server knows of the room.
#[derive(Clone)]
pub struct Guest {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The user.
    pub user: OwnedUserId,
    /// The rules of the room's version.
    pub rules: &'static RoomVersion,
    /// The state.
    pub state: BTreeMap<(String, String), Arc<Pdu>>,
    /// Events that were part of the state.
    pub past: Vec<Arc<Pdu>>,
    /// The newest events.
    pub tips: Vec<Arc<Pdu>>,
}

impl Guest {
    /// Takes note of an event that comes after all that the guest knew.
    pub fn take(&mut self, event: &Arc<Pdu>) {
        if let Some(key) = event.state_key() {
            let key = (event.kind().to_owned(), key.to_owned());
            self.past.extend(self.state.insert(key, event.clone()));
        }
        self.tips = vec![event.clone()];
    }
}

/// Answers `make_join` for a room as it is now.
fn template(room: &Guest) -> impl Fn(&Heard) -> Option<Reply> + Send + use<> {
    let id =
        |kind: &str| room.state.get(&(kind.to_owned(), String::new())).map(|event| event.event_id().clone());
    let auth: Vec<_> =
        ["m.room.create", "m.room.power_levels", "m.room.join_rules"].into_iter().filter_map(id).collect();
    let prev: Vec<_> = room.tips.iter().map(|tip| tip.event_id().clone()).collect();
    let depth = room.tips.iter().map(|tip| tip.depth()).max().unwrap_or(0) + 1;
    let room_id = room.room_id.clone();
    move |heard| {
        if !heard.uri.contains("/make_join/") {
            return None;
        }
        let user = heard.uri.split('?').next()?.rsplit('/').next()?.replace("%40", "@").replace("%3A", ":");
        let event = json!({
            "type": "m.room.member", "room_id": room_id, "sender": user, "state_key": user, "depth": depth,
            "content": { "membership": "join" }, "origin_server_ts": now_ms(), "prev_events": prev,
            "auth_events": auth,
        });
        Some(Reply::Json(200, json!({ "room_version": "11", "event": event })))
    }
}

fn values<'a>(events: impl Iterator<Item = &'a Arc<Pdu>>) -> Vec<Value> {
    events.map(|event| value(event)).collect()
}

/// An event as JSON.
pub(crate) fn value(pdu: &Pdu) -> Value {
    serde_json::from_slice(pdu.raw()).expect("events are JSON")
}

fn parse(event: &Value, rules: &RoomVersion) -> Pdu {
    let mut event = event.clone();
    event.as_object_mut().expect("an event is an object").remove("unsigned");
    Pdu::parse(event.to_string().as_bytes(), rules).expect("the server sends good events")
}

fn sign(object: &Value, name: &str, key: &SigningKey) -> Value {
    let mut object: CanonicalJsonObject = serde_json::from_value(object.clone()).expect("it is canonical");
    sign_json(name, key, &mut object).expect("it can be signed");
    serde_json::to_value(CanonicalJsonValue::Object(object)).expect("it is JSON")
}

/// Answers as the script says, and notes what was asked.
fn answering(
    script: Arc<Mutex<Script>>,
    key: Arc<SigningKey>,
    name: OwnedServerName,
) -> impl Fn(Heard) -> Ready<Reply> + Send + Sync + 'static {
    move |heard| {
        let mut script = script.lock();
        let scripted = script.handler.as_mut().and_then(|handler| handler(&heard));
        let reply = scripted.unwrap_or_else(|| usual(&heard, name.as_str(), &key));
        script.heard.push(heard);
        std::future::ready(reply)
    }
}

/// What a server publishes of its keys.
fn published_keys(name: &str, key: &SigningKey) -> Value {
    let keys = json!({
        "server_name": name,
        "valid_until_ts": now_ms() + 24 * 3600 * 1000,
        "verify_keys": { key.id(): { "key": key.public_key().encode() } },
        "old_verify_keys": {},
    });
    sign(&keys, name, key)
}

/// What a server that knows nothing answers.
fn usual(heard: &Heard, name: &str, key: &SigningKey) -> Reply {
    if heard.uri.starts_with("/_matrix/key/v2/server") {
        return Reply::Json(200, published_keys(name, key));
    }
    if heard.uri.starts_with("/_matrix/federation/v1/send/") {
        return Reply::Json(200, json!({ "pdus": {} }));
    }
    Reply::Json(404, json!({ "errcode": "M_UNRECOGNIZED", "error": "a stranger does not know this" }))
}

/// The time, in milliseconds since the epoch.
fn now_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "strangers live in the real world")]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// A number that was not used yet.
fn next() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
