//! A client that follows its rooms with `/sync`, and checks what it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::Value;

use crate::{
    client::{CallError, Client},
    invariant::Verdict,
};

/// The pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the server may wait for news.
const TIMEOUT_MS: u64 = 30_000;

/// A client that follows its rooms with `/sync`.
pub struct Follower {
    /// Who follows.
    pub client: Arc<Client>,
    tracks_devices: AtomicBool,
    log: Mutex<Log>,
}

/// What a follower was told.
#[derive(Clone, Default)]
struct Log {
    since: Option<String>,
    rooms: BTreeMap<OwnedRoomId, RoomLog>,
    /// Messages to the device, in order: their senders and numbers.
    messages: Vec<(String, u64)>,
    /// Users whose devices have changed since they were last asked for.
    stale: BTreeSet<OwnedUserId>,
    /// The keys of users' devices, as they were when they were last asked for.
    devices: BTreeMap<OwnedUserId, Value>,
}

/// What a follower was told of one room.
#[derive(Clone, Default)]
pub struct RoomLog {
    /// The events, in the order in which they came.
    pub events: Vec<OwnedEventId>,
    known: BTreeSet<OwnedEventId>,
    /// The state that follows from what was told, by type and state key.
    pub state: BTreeMap<(String, String), OwnedEventId>,
    /// Whether the last that was told is that the user is not in the room any more.
    pub was_left: bool,
    /// Where in `events` the last stretch without a jump begins.
    pub unbroken_from: usize,
}

impl Follower {
    /// Starts to follow.
    pub fn start(client: &Arc<Client>, verdict: &Arc<Verdict>) -> Arc<Self> {
        let follower = Arc::new(Self {
            client: client.clone(),
            tracks_devices: AtomicBool::new(false),
            log: Mutex::default(),
        });
        let (own, verdict) = (follower.clone(), verdict.clone());
        tokio::spawn(async move {
            while !verdict.is_over() {
                if own.look(&verdict).await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        follower
    }

    /// What was told of each room so far.
    pub fn rooms(&self) -> BTreeMap<OwnedRoomId, RoomLog> {
        self.log.lock().rooms.clone()
    }

    /// Has the client ask for the keys of devices whenever it is told that they changed.
    pub fn track_devices(&self) {
        self.tracks_devices.store(true, Ordering::Relaxed);
    }

    /// Whether it does so.
    pub fn tracks_devices(&self) -> bool {
        self.tracks_devices.load(Ordering::Relaxed)
    }

    /// The messages to the device that came so far: their senders and numbers.
    pub fn messages(&self) -> Vec<(String, u64)> {
        self.log.lock().messages.clone()
    }

    /// The keys of a user's devices, as the client knows them.
    pub fn devices_of(&self, user: &UserId) -> Option<Value> {
        self.log.lock().devices.get(user).cloned()
    }

    async fn look(&self, verdict: &Verdict) -> Result<(), CallError> {
        self.look_at_devices().await?;
        let since = self.log.lock().since.clone();
        let since = since.map_or_else(String::new, |since| format!("&since={since}"));
        let path = format!("/_matrix/client/v3/sync?timeout={TIMEOUT_MS}{since}");
        let answer = self.client.call(Method::GET, &path, None).await?;
        if let Err(wrong) = self.log.lock().take_messages(&answer) {
            verdict.fail("devices_told", format!("{} {wrong}", self.client.user_id));
        }
        if let Err(wrong) = self.log.lock().take(&self.client.user_id, &answer) {
            verdict.fail("sync_in_order", format!("{} {wrong}: {}", self.client.user_id, answer["rooms"]));
        }
        Ok(())
    }

    async fn look_at_devices(&self) -> Result<(), CallError> {
        let stale = std::mem::take(&mut self.log.lock().stale);
        for user in stale.iter().filter(|_| self.tracks_devices()) {
            match self.client.keys_of(user).await {
                Ok(keys) => drop(self.log.lock().devices.insert(user.clone(), keys)),
                Err(error) => {
                    self.log.lock().stale.extend(stale);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Log {
    fn take_messages(&mut self, answer: &Value) -> Result<(), String> {
        for message in answer["to_device"]["events"].as_array().into_iter().flatten() {
            let from = message["sender"].as_str().unwrap_or_default();
            let number = message["content"]["number"].as_u64().ok_or("gets a message without a number")?;
            if self.messages.iter().any(|(other, earlier)| other == from && *earlier >= number) {
                return Err(format!("gets message {number} of {from} twice, or after a later one"));
            }
            self.messages.push((from.to_owned(), number));
        }
        let changed = answer["device_lists"]["changed"].as_array().into_iter().flatten();
        self.stale.extend(changed.filter_map(|user| UserId::parse(user.as_str()?).ok()));
        Ok(())
    }

    fn take(&mut self, user: &UserId, answer: &Value) -> Result<(), String> {
        let next = answer["next_batch"].as_str().ok_or("gets no token")?;
        self.since = Some(next.to_owned());
        for section in ["join", "leave"] {
            let Some(rooms) = answer["rooms"][section].as_object() else { continue };
            for (room, told) in rooms {
                let room = OwnedRoomId::try_from(room.as_str()).map_err(|_| "gets a bad room ID")?;
                let log = self.rooms.entry(room).or_default();
                if section == "join" && (log.was_left || log.is_back(user, told)?) {
                    // Who comes back is told of the room from the beginning.
                    *log = RoomLog::default();
                }
                log.was_left = section == "leave";
                log.apply(&told["state"]["events"])?;
                log.apply(&told["timeline"]["events"])?;
                log.take(&told["timeline"])?;
            }
        }
        Ok(())
    }
}

impl RoomLog {
    /// Whether the user left and came back since the last answer: they are told of a new join, and of the whole state.
    fn is_back(&self, user: &UserId, told: &Value) -> Result<bool, String> {
        let mut now = Self::default();
        now.apply(&told["state"]["events"])?;
        let is_whole = now.state.contains_key(&("m.room.create".to_owned(), String::new()));
        now.apply(&told["timeline"]["events"])?;
        let own = ("m.room.member".to_owned(), user.to_string());
        Ok(is_whole && self.state.contains_key(&own) && now.state.get(&own) != self.state.get(&own))
    }

    /// Applies the state events among some events, as clients do.
    fn apply(&mut self, events: &Value) -> Result<(), String> {
        for event in events.as_array().into_iter().flatten() {
            let (Some(kind), Some(state_key)) = (event["type"].as_str(), event["state_key"].as_str()) else {
                continue;
            };
            self.state.insert((kind.to_owned(), state_key.to_owned()), event_id(event)?);
        }
        Ok(())
    }

    fn take(&mut self, timeline: &Value) -> Result<(), String> {
        if timeline["limited"] == Value::Bool(true) {
            self.unbroken_from = self.events.len();
        }
        for event in timeline["events"].as_array().into_iter().flatten() {
            let id = event_id(event)?;
            if !self.known.insert(id.clone()) {
                return Err(format!("gets {id} twice"));
            }
            self.events.push(id);
        }
        Ok(())
    }
}

fn event_id(event: &Value) -> Result<OwnedEventId, String> {
    let id = event["event_id"].as_str().unwrap_or_default();
    OwnedEventId::try_from(id).map_err(|_| "gets a bad event ID".to_owned())
}
