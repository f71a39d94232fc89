//! A peer that does not keep to the rules: it answers just enough to take part, and sends what no honest server would, or
//! what it should have sent to all to a few.

use std::sync::Arc;

use actors::federation::{FederationClient, FederationRequest};
use anyhow::{Context, Result};
use axum::{body::Body, response::Response};
use engine::{
    pdu::{self, Pdu, SigningKey},
    room_version::{self, RoomVersion},
};
use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId,
    RoomVersionId, ServerName, UserId, canonical_json::to_canonical_value, serde::Base64,
    signatures::KeyPair,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::encode,
    host::{Power, START_MS, signing_key},
    network::{Endpoint, Gone, Wire},
    world::World,
};

/// How long its own requests may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// What a hostile peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// An event signed with a key that is not its own.
    BadSignature,
    /// An event of another server's user, with its own signature.
    Impersonation,
    /// An event that names auth events which do not let it.
    WrongAuth,
    /// An event that claims to be the deepest there can be.
    ForgedDepth,
    /// Two events in the same place, one for each half of the servers.
    Equivocation,
    /// An event after one that it never gives.
    Withheld,
    /// An event over the size limit.
    Oversize,
    /// Power levels of its own, placed right after its join: if they won, the state would be reset.
    StateReset,
}

/// All attacks.
pub const ATTACKS: [Attack; 8] = [
    Attack::BadSignature,
    Attack::Impersonation,
    Attack::WrongAuth,
    Attack::ForgedDepth,
    Attack::Equivocation,
    Attack::Withheld,
    Attack::Oversize,
    Attack::StateReset,
];

/// A hostile peer.
pub struct Mallory {
    name: OwnedServerName,
    user: OwnedUserId,
    key: Arc<SigningKey>,
    wire: Wire,
    start: Instant,
    place: Mutex<Option<Place>>,
}

/// Where it stands in the room.
#[derive(Clone)]
struct Place {
    room: OwnedRoomId,
    rules: &'static RoomVersion,
    join: Pdu,
    /// The events that authorise its messages.
    auth: Vec<OwnedEventId>,
    count: u64,
    /// What comes before its next event: the deepest event that it was sent, with its depth.
    latest: (OwnedEventId, u64),
}

impl Mallory {
    /// A hostile peer on the network of a world.
    pub fn new(world: &World) -> Result<Arc<Self>> {
        let name = OwnedServerName::try_from("mallory")?;
        let key = signing_key(world.options().seed, &name, 0)?;
        let wire = Wire {
            network: world.network().clone(),
            own: name.clone(),
            key: key.clone(),
            power: Arc::new(Power::default()),
            budget: None,
        };
        let mallory = Arc::new(Self {
            user: UserId::parse("@mallory:mallory")?,
            key,
            wire,
            start: Instant::now(),
            place: Mutex::default(),
            name,
        });
        let endpoint: Arc<dyn Endpoint> = mallory.clone();
        world.network().attach(&mallory.name, Arc::downgrade(&endpoint));
        world.keep(endpoint);
        Ok(mallory)
    }

    /// Its user.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    fn now_ms(&self) -> u64 {
        START_MS + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }

    async fn ask(
        &self,
        to: &ServerName,
        method: Method,
        path: String,
        body: Option<&Value>,
    ) -> Result<Value> {
        let body = body.map(to_canonical_value).transpose()?;
        let body = body.map(|body| serde_json::to_vec(&body)).transpose()?.map(Into::into);
        let request = FederationRequest {
            method,
            path_and_query: path,
            body,
            timeout: TIMEOUT,
            max_response: 64 << 20,
        };
        Ok(serde_json::from_slice(&self.wire.request(to, request).await?.body)?)
    }

    /// Joins a room as anybody may.
    pub async fn join(&self, room: &OwnedRoomId, via: &ServerName) -> Result<()> {
        let (room_path, user) = (encode(room.as_str()), encode(self.user.as_str()));
        let versions: Vec<_> =
            room_version::SUPPORTED.iter().map(|version| format!("ver={version}")).collect();
        let path = format!("/_matrix/federation/v1/make_join/{room_path}/{user}?{}", versions.join("&"));
        let template = self.ask(via, Method::GET, path, None).await?;
        let version = RoomVersionId::try_from(template["room_version"].as_str().unwrap_or("1"))?;
        let rules = room_version::rules(&version).context("the version is supported")?;
        let mut event: CanonicalJsonObject = serde_json::from_value(template["event"].clone())?;
        event.insert("origin_server_ts".to_owned(), to_canonical_value(self.now_ms())?);
        let join = pdu::seal(event, &self.key, &self.name, rules)?;
        let event_path = encode(join.event_id().as_str());
        let path = format!("/_matrix/federation/v2/send_join/{room_path}/{event_path}");
        let body: Value = serde_json::from_slice(join.raw())?;
        let answer = self.ask(via, Method::PUT, path, Some(&body)).await?;
        let mut auth = vec![join.event_id().clone()];
        for event in answer["state"].as_array().into_iter().flatten() {
            let pdu = Pdu::parse(event.to_string().as_bytes(), rules)?;
            let is_create =
                pdu.kind() == "m.room.create" && !rules.authorization.room_create_event_id_as_room_id;
            if is_create || pdu.kind() == "m.room.power_levels" {
                auth.push(pdu.event_id().clone());
            }
        }
        let latest = (join.event_id().clone(), join.depth());
        *self.place.lock() = Some(Place { room: room.clone(), rules, join, auth, count: 0, latest });
        Ok(())
    }

    /// Attacks every server of the room; answers with the events that none of them may accept.
    pub async fn attack(&self, world: &World, attack: Attack) -> Result<Vec<OwnedEventId>> {
        let Some(place) = self.next_place() else { return Ok(Vec::new()) };
        world.trace().note(format_args!("mallory: {attack:?}"));
        let hosts: Vec<_> = world.hosts().iter().map(|host| host.name.clone()).collect();
        let wrong = signing_key(world.options().seed, &self.name, 1)?;
        let message = self.message(&place, "hello");
        let mut forged = Vec::new();
        let events: Vec<CanonicalJsonObject> = match attack {
            Attack::BadSignature => {
                let key = posing_as(&self.key, &wrong).context("the key's version is valid")?;
                let pdu = pdu::seal(message, &key, &self.name, place.rules)?;
                forged.push(pdu.event_id().clone());
                vec![pdu.to_object()?]
            }
            Attack::Impersonation => {
                let mut event = message;
                let victim = format!("@user0:{}", hosts[0]);
                event.insert("sender".to_owned(), victim.into());
                vec![self.seal(event, &place, &mut forged)?]
            }
            Attack::WrongAuth => {
                let mut event = message;
                event.insert("auth_events".to_owned(), to_canonical_value(json!([place.join.event_id()]))?);
                event.insert("type".to_owned(), "m.room.topic".into());
                event.insert("state_key".to_owned(), "".into());
                vec![self.seal(event, &place, &mut forged)?]
            }
            Attack::ForgedDepth => {
                let mut event = message;
                event.insert("depth".to_owned(), to_canonical_value((1_u64 << 53) - 1)?);
                vec![self.seal(event, &place, &mut Vec::new())?]
            }
            Attack::Equivocation => {
                let other = self.message(&place, "something else");
                let events = [message, other];
                for (number, host) in hosts.iter().enumerate() {
                    let event = self.seal(events[number % 2].clone(), &place, &mut Vec::new())?;
                    drop(self.send(host, &place, &[event]).await);
                }
                return Ok(Vec::new());
            }
            Attack::Withheld => {
                let mut missing = message.clone();
                missing.insert("content".to_owned(), to_canonical_value(json!({ "body": "never seen" }))?);
                let missing = pdu::seal(missing, &self.key, &self.name, place.rules)?;
                let mut event = message;
                event.insert("prev_events".to_owned(), to_canonical_value(json!([missing.event_id()]))?);
                vec![self.seal(event, &place, &mut forged)?]
            }
            Attack::Oversize => {
                let mut event = message;
                let body = "x".repeat(70_000);
                event.insert("content".to_owned(), to_canonical_value(json!({ "body": body }))?);
                event.insert("signatures".to_owned(), to_canonical_value(json!({}))?);
                event.insert("hashes".to_owned(), to_canonical_value(json!({ "sha256": "" }))?);
                vec![event]
            }
            Attack::StateReset => {
                let mut event = message;
                let content = json!({ "users": { self.user.as_str(): 100 } });
                event.insert("type".to_owned(), "m.room.power_levels".into());
                event.insert("state_key".to_owned(), "".into());
                event.insert("content".to_owned(), to_canonical_value(content)?);
                vec![self.seal(event, &place, &mut forged)?]
            }
        };
        for host in &hosts {
            drop(self.send(host, &place, &events).await);
        }
        Ok(forged)
    }

    /// Says something good to some servers, and never to the others: those have to get it from the ones that have it.
    /// One that `goes_on` then says something after it to all of them, before anybody else can. Notes for each server what
    /// it acknowledged.
    pub async fn withhold(&self, world: &World, some: &[OwnedServerName], goes_on: bool) -> Result<()> {
        let Some(place) = self.next_place() else { return Ok(()) };
        world.trace().note(format_args!("mallory tells only {some:?}"));
        let (prev, depth) = &place.latest;
        let event = self.message_after(&place, (prev, *depth), "a secret");
        let event = pdu::seal(event, &self.key, &self.name, place.rules)?;
        self.tell(world, &place, some, &event).await?;
        if let (true, Some(place)) = (goes_on, self.next_place()) {
            let next = self.message_after(&place, (event.event_id(), event.depth()), "after the secret");
            let next = pdu::seal(next, &self.key, &self.name, place.rules)?;
            let hosts: Vec<_> = world.hosts().iter().map(|host| host.name.clone()).collect();
            self.tell(world, &place, &hosts, &next).await?;
        }
        Ok(())
    }

    /// Sends an event, and notes who acknowledged it.
    async fn tell(&self, world: &World, place: &Place, hosts: &[OwnedServerName], event: &Pdu) -> Result<()> {
        for host in hosts {
            let answer = self.send(host, place, &[event.to_object()?]).await.unwrap_or_default();
            let result = answer["pdus"].get(event.event_id().as_str());
            if result.is_some_and(|result| result.get("error").is_none()) {
                world.ledger().acknowledge(host, &place.room, event.event_id());
            }
        }
        Ok(())
    }

    /// Takes note of the events that it is sent.
    fn hear(&self, transaction: &[u8]) {
        let Ok(transaction) = serde_json::from_slice::<Value>(transaction) else { return };
        let mut place = self.place.lock();
        let Some(place) = place.as_mut() else { return };
        for event in transaction["pdus"].as_array().into_iter().flatten() {
            let Ok(pdu) = Pdu::parse(event.to_string().as_bytes(), place.rules) else { continue };
            if pdu.depth() >= place.latest.1 {
                place.latest = (pdu.event_id().clone(), pdu.depth());
            }
        }
    }

    fn next_place(&self) -> Option<Place> {
        let mut place = self.place.lock();
        let place = place.as_mut()?;
        place.count += 1;
        Some(place.clone())
    }

    /// A message right after its join, without hashes and signatures.
    fn message(&self, place: &Place, body: &str) -> CanonicalJsonObject {
        self.message_after(place, (place.join.event_id(), place.join.depth()), body)
    }

    /// A message after an event of this depth, without hashes and signatures.
    fn message_after(
        &self,
        place: &Place,
        (prev, depth): (&OwnedEventId, u64),
        body: &str,
    ) -> CanonicalJsonObject {
        let text = format!("{body} {}", place.count);
        let value = json!({
            "type": "m.room.message",
            "room_id": place.room,
            "sender": self.user,
            "content": { "msgtype": "m.text", "body": text },
            "origin_server_ts": self.now_ms(),
            "prev_events": [prev],
            "auth_events": place.auth,
            "depth": depth + 1,
        });
        match to_canonical_value(value) {
            Ok(CanonicalJsonValue::Object(object)) => object,
            _ => CanonicalJsonObject::new(),
        }
    }

    fn seal(
        &self,
        event: CanonicalJsonObject,
        place: &Place,
        forged: &mut Vec<OwnedEventId>,
    ) -> Result<CanonicalJsonObject> {
        let pdu = pdu::seal(event, &self.key, &self.name, place.rules)?;
        forged.push(pdu.event_id().clone());
        Ok(pdu.to_object()?)
    }

    /// Sends a transaction, once; gives the answer.
    async fn send(&self, host: &ServerName, place: &Place, events: &[CanonicalJsonObject]) -> Result<Value> {
        let body =
            json!({ "origin": self.name, "origin_server_ts": self.now_ms(), "pdus": events, "edus": [] });
        let path = format!("/_matrix/federation/v1/send/m{}", place.count);
        self.ask(host, Method::PUT, path, Some(&body)).await
    }

    /// Its keys, which are the one thing that it is honest about.
    fn keys(&self) -> Result<Value> {
        let id = self.key.id();
        let mut keys: CanonicalJsonObject = serde_json::from_value(json!({
            "server_name": self.name,
            "valid_until_ts": self.now_ms() + 86_400_000,
            "verify_keys": { id.as_str(): { "key": self.key.public_key() } },
            "old_verify_keys": {},
        }))?;
        let signature = self.key.sign(&serde_json::to_vec(&keys)?);
        let signature: Base64 = Base64::new(signature.as_bytes().to_vec());
        let signatures = json!({ self.name.as_str(): { id: signature.encode() } });
        keys.insert("signatures".to_owned(), to_canonical_value(signatures)?);
        Ok(serde_json::to_value(keys)?)
    }
}

/// A key that signs under another's ID.
fn posing_as(named: &SigningKey, secret: &SigningKey) -> Option<SigningKey> {
    let id = named.id();
    SigningKey::new(&secret.secret(), id.split_once(':')?.1)
}

impl Endpoint for Mallory {
    fn is_up(&self) -> bool {
        true
    }

    fn serve(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<Response, Gone>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let answer = if path.starts_with("/_matrix/key/v2/server") {
            self.keys().ok()
        } else if path.contains("/send/") {
            // The network carries whole requests: nothing is to be waited for.
            if let Some(Ok(body)) = axum::body::to_bytes(body, usize::MAX).now_or_never() {
                self.hear(&body);
            }
            Some(json!({ "pdus": {} }))
        } else if path.contains("/get_missing_events/") {
            Some(json!({ "events": [] }))
        } else {
            None
        };
        let status = if answer.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        let body = answer.unwrap_or_else(|| json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
        let response = Response::builder().status(status).body(Body::from(body.to_string()));
        Box::pin(async move { response.map_err(|_| Gone) })
    }
}
