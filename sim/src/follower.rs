//! A client that follows its rooms with `/sync`, and checks what it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedRoomId};
use serde_json::Value;

use crate::{
    client::{CallError, Client},
    invariant::Verdict,
};

/// The pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A client that follows its rooms with `/sync`.
pub struct Follower {
    /// Who follows.
    pub client: Arc<Client>,
    log: Mutex<Log>,
}

/// What a follower was told.
#[derive(Clone, Default)]
struct Log {
    since: Option<String>,
    rooms: BTreeMap<OwnedRoomId, RoomLog>,
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
        let follower = Arc::new(Self { client: client.clone(), log: Mutex::default() });
        let (own, verdict) = (follower.clone(), verdict.clone());
        tokio::spawn(async move {
            while !verdict.is_over() {
                if own.look(30_000, &verdict).await.is_err() {
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

    async fn look(&self, timeout_ms: u64, verdict: &Verdict) -> Result<(), CallError> {
        let since = self.log.lock().since.clone();
        let since = since.map_or_else(String::new, |since| format!("&since={since}"));
        let path = format!("/_matrix/client/v3/sync?timeout={timeout_ms}{since}");
        let answer = self.client.call(Method::GET, &path, None).await?;
        if let Err(wrong) = self.log.lock().take(&answer) {
            verdict.fail("sync_in_order", format!("{} {wrong}: {}", self.client.user_id, answer["rooms"]));
        }
        Ok(())
    }
}

impl Log {
    fn take(&mut self, answer: &Value) -> Result<(), String> {
        let next = answer["next_batch"].as_str().ok_or("gets no token")?;
        self.since = Some(next.to_owned());
        for section in ["join", "leave"] {
            let Some(rooms) = answer["rooms"][section].as_object() else { continue };
            for (room, told) in rooms {
                let room = OwnedRoomId::try_from(room.as_str()).map_err(|_| "gets a bad room ID")?;
                let log = self.rooms.entry(room).or_default();
                if section == "join" && log.was_left {
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
