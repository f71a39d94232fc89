//! A user's client: requests through the host's real router, and what was acknowledged to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors::session::Login;
use anyhow::Context;
use axum::{body::Body, response::Response};
use http::{Method, StatusCode, header};
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde_json::{Map, Value, json};

use crate::{
    host::Host,
    invariant::{Ledger, Verdict},
    network::Endpoint,
    trace::{Trace, fingerprint},
};

/// How long a request that needs no other server may take before it counts as hanging.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// How long one that does may take: ten servers are asked in turn, each for three minutes at most, twice.
const REMOTE_ANSWER_MAX: Duration = Duration::from_secs(3700);

/// The device of those who register.
const DEVICE: &str = "D";

/// The pause before a request that could not be made is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// A user's client.
pub struct Client {
    /// The user.
    pub user_id: OwnedUserId,
    /// Their host.
    pub host: Arc<Host>,
    device: String,
    token: Mutex<String>,
    txns: AtomicU64,
    trace: Arc<Trace>,
    ledger: Arc<Ledger>,
    verdict: Arc<Verdict>,
}

/// Why a request has no answer that says yes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The host is down; nothing happened.
    #[error("the host is down")]
    Down,
    /// No answer came; what was asked may have been done.
    #[error("no answer came")]
    Lost,
    /// The server says no.
    #[error("{status} {errcode}: {error}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The Matrix error code.
        errcode: String,
        /// The text for people.
        error: String,
    },
}

impl CallError {
    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Down | Self::Lost => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
        }
    }
}

/// What all clients of a world share.
pub type Shared<'a> = (&'a Arc<Trace>, &'a Arc<Ledger>, &'a Arc<Verdict>);

impl Client {
    fn new(
        host: &Arc<Host>,
        (name, device): (&str, &str),
        (trace, ledger, verdict): Shared<'_>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            user_id: OwnedUserId::try_from(format!("@{name}:{}", host.name))?,
            host: host.clone(),
            device: device.to_owned(),
            token: Mutex::default(),
            txns: AtomicU64::new(0),
            trace: trace.clone(),
            ledger: ledger.clone(),
            verdict: verdict.clone(),
        })
    }

    /// Registers a user with a host that is up.
    pub async fn register(host: &Arc<Host>, name: &str, shared: Shared<'_>) -> anyhow::Result<Arc<Self>> {
        let client = Self::new(host, (name, DEVICE), shared)?;
        let body = json!({ "username": name, "auth": { "type": "m.login.dummy" }, "device_id": DEVICE });
        let answer = client.call(Method::POST, "/_matrix/client/v3/register", Some(body)).await?;
        answer["access_token"].as_str().unwrap_or_default().clone_into(&mut client.token.lock());
        Ok(Arc::new(client))
    }

    /// A client of an account that is there already, on another device.
    pub async fn log_in(
        host: &Arc<Host>,
        (name, device): (&str, &str),
        shared: Shared<'_>,
    ) -> anyhow::Result<Arc<Self>> {
        let client = Self::new(host, (name, device), shared)?;
        let boot = host.boot().context("the host is up")?;
        let session = boot.homeserver().session(&client.user_id).await?;
        let login = Login { device_id: Some(device.into()), display_name: None, wants_refresh_token: false };
        *client.token.lock() = session.log_in(login).await?.access_token;
        Ok(Arc::new(client))
    }

    /// Makes a request once.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, CallError> {
        self.call_within(ANSWER_MAX, method, path, body).await
    }

    async fn call_within(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, CallError> {
        let Some(boot) = self.host.boot() else { return Err(CallError::Down) };
        let token = self.token.lock().clone();
        let mut request = http::Request::builder().method(method.clone()).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        let request = request.expect("the simulator's own paths are valid");
        let answer = tokio::time::timeout(limit, self.host.serve(request)).await;
        let Ok(answer) = answer else {
            if boot.is_on() {
                self.verdict.fail("answers", format!("{} {method} {path} hangs", self.user_id));
            }
            return Err(CallError::Lost);
        };
        let response = answer.map_err(|_| CallError::Lost)?;
        self.read(&method, path, response).await
    }

    async fn read(&self, method: &Method, path: &str, response: Response) -> Result<Value, CallError> {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.map_err(|_| CallError::Lost)?;
        let (user, status, print) = (&self.user_id, parts.status, fingerprint(&body));
        let is_lost = self.host.is_mute();
        let fate = if is_lost { ", lost" } else { "" };
        self.trace.note(format_args!("{user} {method} {path} {} {print:x}{fate}", status.as_u16()));
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status == StatusCode::INTERNAL_SERVER_ERROR && !self.host.has_failed() {
            self.verdict.fail("answers", format!("{user} {method} {path} is answered with {status}: {body}"));
        }
        if is_lost {
            return Err(CallError::Lost);
        }
        if status.is_success() {
            return Ok(body);
        }
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        Err(CallError::Refused { status, errcode: text("errcode"), error: text("error") })
    }

    /// Makes a request until it has an answer that will stay; another server may be asked for it.
    pub async fn persist(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, CallError> {
        let _ongoing = self.trace.begin(format_args!("{} {method} {path}", self.user_id));
        loop {
            match self.call_within(REMOTE_ANSWER_MAX, method.clone(), path, body.clone()).await {
                Err(error) if error.is_passing() && !self.verdict.is_over() => {
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    fn room_path(room: &RoomId, rest: &str) -> String {
        format!("/_matrix/client/v3/rooms/{}/{rest}", encode(room.as_str()))
    }

    /// Creates a room.
    pub async fn create_room(&self, options: Value) -> anyhow::Result<OwnedRoomId> {
        let answer = self.persist(Method::POST, "/_matrix/client/v3/createRoom", Some(options)).await?;
        Ok(OwnedRoomId::try_from(answer["room_id"].as_str().unwrap_or_default())?)
    }

    /// Joins a room, through a server that is in it.
    pub async fn join(&self, room: &RoomId, via: &str) -> Result<(), CallError> {
        let path = format!("/_matrix/client/v3/join/{}?via={via}", encode(room.as_str()));
        self.persist(Method::POST, &path, Some(json!({}))).await.map(drop)
    }

    /// Changes a membership: `leave`, `invite`, `kick`, `ban` or `unban`.
    pub async fn membership(
        &self,
        room: &RoomId,
        action: &str,
        target: Option<&Self>,
    ) -> Result<(), CallError> {
        let body = target.map_or_else(|| json!({}), |target| json!({ "user_id": target.user_id }));
        self.persist(Method::POST, &Self::room_path(room, action), Some(body)).await.map(drop)
    }

    /// Bans a user of any server.
    pub async fn ban(&self, room: &RoomId, user: &ruma::UserId) -> Result<(), CallError> {
        let body = json!({ "user_id": user });
        self.persist(Method::POST, &Self::room_path(room, "ban"), Some(body)).await.map(drop)
    }

    /// Sends a message; one whose answer was lost is sent again under the same transaction ID.
    pub async fn send(&self, room: &RoomId, body: &str) -> Result<OwnedEventId, CallError> {
        let txn = self.txns.fetch_add(1, Ordering::Relaxed);
        let path = Self::room_path(room, &format!("send/m.room.message/t{txn}"));
        let content = json!({ "msgtype": "m.text", "body": body });
        let answer = self.persist(Method::PUT, &path, Some(content)).await?;
        Ok(self.acknowledged(room, &answer))
    }

    /// Redacts an event.
    pub async fn redact(&self, room: &RoomId, event: &ruma::EventId) -> Result<OwnedEventId, CallError> {
        let txn = self.txns.fetch_add(1, Ordering::Relaxed);
        let path = Self::room_path(room, &format!("redact/{}/t{txn}", encode(event.as_str())));
        let answer = self.persist(Method::PUT, &path, Some(json!({}))).await?;
        Ok(self.acknowledged(room, &answer))
    }

    /// Sends a state event.
    pub async fn set_state(
        &self,
        room: &RoomId,
        (kind, key): (&str, &str),
        content: Value,
    ) -> Result<OwnedEventId, CallError> {
        let path = Self::room_path(room, &format!("state/{kind}/{}", encode(key)));
        let answer = self.persist(Method::PUT, &path, Some(content)).await?;
        Ok(self.acknowledged(room, &answer))
    }

    /// The content of a state event.
    pub async fn state(&self, room: &RoomId, kind: &str) -> Result<Value, CallError> {
        self.persist(Method::GET, &Self::room_path(room, &format!("state/{kind}/")), None).await
    }

    /// Sets a receipt, a typing notice or the presence, if the host is up.
    pub async fn make_noise(&self, room: &RoomId, noise: Noise<'_>) -> Result<(), CallError> {
        let user = encode(self.user_id.as_str());
        let (method, path, body) = match noise {
            Noise::Typing(typing) => {
                let path = Self::room_path(room, &format!("typing/{user}"));
                (Method::PUT, path, json!({ "typing": typing, "timeout": 20_000 }))
            }
            Noise::Read(event) => {
                let path = Self::room_path(room, &format!("receipt/m.read/{}", encode(event.as_str())));
                (Method::POST, path, json!({}))
            }
            Noise::Presence(presence) => {
                let path = format!("/_matrix/client/v3/presence/{user}/status");
                (Method::PUT, path, json!({ "presence": presence }))
            }
        };
        self.call(method, &path, Some(body)).await.map(drop)
    }

    /// Sends a numbered message to a user's device; one whose answer was lost is sent again.
    pub async fn tell(&self, other: &Self) -> Result<(), CallError> {
        let number = self.txns.fetch_add(1, Ordering::Relaxed);
        let path = format!("/_matrix/client/v3/sendToDevice/m.sim/t{number}");
        let body = json!({ "messages": { other.user_id.as_str(): { DEVICE: { "number": number } } } });
        self.persist(Method::PUT, &path, Some(body)).await?;
        self.ledger.tell(&self.user_id, &other.user_id, number);
        Ok(())
    }

    /// Gives the device new keys.
    pub async fn upload_keys(&self, version: u64) -> Result<(), CallError> {
        let key = format!("ed25519:{}", self.device);
        let keys = json!({
            "user_id": self.user_id,
            "device_id": self.device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { key: format!("version{version}") },
            "signatures": {},
        });
        let body = json!({ "device_keys": keys });
        self.persist(Method::POST, "/_matrix/client/v3/keys/upload", Some(body)).await.map(drop)
    }

    /// The keys of a user's devices as this one's server gives them; null if there are none.
    pub async fn keys_of(&self, user: &ruma::UserId) -> Result<Value, CallError> {
        let body = json!({ "device_keys": { user.as_str(): [] } });
        let answer = self.call(Method::POST, "/_matrix/client/v3/keys/query", Some(body)).await?;
        if answer["failures"].as_object().is_some_and(|failures| !failures.is_empty()) {
            return Err(CallError::Lost);
        }
        let devices = answer["device_keys"][user.as_str()].as_object().into_iter().flatten();
        let keys: Map<_, _> = devices.map(|(id, device)| (id.clone(), device["keys"].clone())).collect();
        Ok(if keys.is_empty() { Value::Null } else { keys.into() })
    }

    fn acknowledged(&self, room: &RoomId, answer: &Value) -> OwnedEventId {
        let event_id = OwnedEventId::try_from(answer["event_id"].as_str().unwrap_or_default());
        let event_id = event_id.expect("the server's own event IDs are valid");
        self.ledger.acknowledge(&self.host.name, room, &event_id);
        event_id
    }
}

/// What others may miss.
#[derive(Clone, Copy, Debug)]
pub enum Noise<'a> {
    /// Begins or ends typing.
    Typing(bool),
    /// Has read up to an event.
    Read(&'a ruma::EventId),
    /// Is `online`, `unavailable` or `offline`.
    Presence(&'a str),
}

/// A path segment, percent-encoded.
pub fn encode(text: &str) -> String {
    actors::federation::remote::encode(text)
}
