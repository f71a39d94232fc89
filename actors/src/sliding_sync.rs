//! Simplified sliding sync: a client says which rooms it looks at, and is sent what changed of those.
//!
//! A connection's state is which rooms were sent, with what, and up to where. A room that is up to date has
//! no place of its own: it is as of the client's `pos`. So most responses change nothing in that state, and
//! only those that do (a new room, another configuration, a room that changes out of sight) are stored, as
//! a new generation. `pos` names a generation and a position. The last two generations are kept, so that
//! a client that lost a response asks again and gets all of it, after a restart too.
//!
//! Spec: MSC4186.

mod encryption;
mod extensions;
mod list;
pub mod request;
mod required;
mod response;
mod room;
pub mod stable;
pub mod threads;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use engine::id::{Position, ShortRoomId};
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId};
use storage::schema::{SlidingConnectionRecord, SlidingGenerationRecord, SlidingRoomRecord};
use tokio::time::Instant;

pub use self::response::{Hero, ListResult, RoomResult, SlidingResponse};
use self::{list::Matched, request::Body};
use crate::{
    homeserver::{Homeserver, ROOMS_AT_A_TIME},
    room::{RoomError, RoomHandle},
    session::{ConnectionKey, SessionData, SessionError, SessionHandle, Told},
    sync::{SyncError, VIEW_MAX},
};

/// A client's request.
#[derive(Clone, Debug)]
pub struct SlidingRequest {
    /// Who asks.
    pub user_id: OwnedUserId,
    /// With which device.
    pub device_id: OwnedDeviceId,
    /// The last response's; none starts a connection.
    pub pos: Option<String>,
    /// How long to wait for something new.
    pub timeout: Duration,
    /// The rest.
    pub body: Body,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SlidingError {
    /// The connection is not known, or not as of this `pos`: the client is to start over.
    #[error("the connection has expired")]
    UnknownPos,
    /// A token for to-device messages is not one of this server.
    #[error("since is not a token of this server")]
    InvalidSince,
    /// The user's session cannot be read or written.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A room cannot be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// What happened last is not durable yet, and may never be: the disk is slow, or full.
    #[error("what happened last is not stored yet; try again")]
    Late,
}

/// What `pos` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pos {
    /// The state of the connection.
    generation: u64,
    /// Everything up to here is told, but for rooms that the state says otherwise of.
    upto: Position,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p1_{:016x}_{}", self.generation, self.upto.0)
    }
}

impl FromStr for Pos {
    type Err = SlidingError;

    fn from_str(text: &str) -> Result<Self, SlidingError> {
        let parse = || {
            let (generation, upto) = text.strip_prefix("p1_")?.split_once('_')?;
            let generation = u64::from_str_radix(generation, 16).ok()?;
            Some(Self { generation, upto: Position(upto.parse().ok()?) })
        };
        parse().ok_or(SlidingError::UnknownPos)
    }
}

/// Where a request goes on.
struct Base {
    pos: Pos,
    generation: SlidingGenerationRecord,
}

/// One look at what there is for a request.
struct Turn<'a> {
    homeserver: &'a Homeserver,
    session: &'a SessionHandle,
    request: &'a SlidingRequest,
    base: Option<&'a Base>,
    /// Everything up to here is durable and visible, and is told.
    upto: Position,
    /// Direct chats, by account data.
    direct: BTreeSet<OwnedRoomId>,
}

/// A response that is not given yet.
struct Outcome {
    response: SlidingResponse,
    generation: SlidingGenerationRecord,
    told: Told,
    upto: Position,
}

impl Outcome {
    fn is_empty(&self) -> bool {
        self.response.rooms.is_empty() && self.response.extensions.is_empty()
    }
}

impl From<SyncError> for SlidingError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Session(error) => Self::Session(error),
            SyncError::Room(error) => Self::Room(error),
            SyncError::Late => Self::Late,
        }
    }
}

impl Homeserver {
    /// Answers with what changed, waiting for it up to the request's time-out.
    pub async fn sliding_sync(&self, request: &SlidingRequest) -> Result<SlidingResponse, SlidingError> {
        let deadline = Instant::now() + request.timeout;
        let mut idle: Option<(Outcome, Arc<SessionData>)> = None;
        loop {
            let session = self.session(&request.user_id).await?;
            let mut changes = session.view().subscribe();
            let upto = self.caught_up(session.view().latest()).await?;
            let base = self.base(&session, request)?;
            let data = session.data();
            if let Some((outcome, looked_at)) = &mut idle
                && Arc::ptr_eq(looked_at, &data)
                && session.view().rooms_changed(outcome.upto).is_empty()
                && session.view().device_lists_changed(outcome.upto).is_some_and(|users| users.is_empty())
            {
                // Others' presence, say.
                outcome.upto = upto;
            } else {
                let direct = direct_rooms(&data);
                let turn =
                    Turn { homeserver: self, session: &session, request, base: base.as_ref(), upto, direct };
                let outcome = turn.build().await?;
                if request.pos.is_none() || !outcome.is_empty() {
                    return self.give(&session, request, base, outcome).await;
                }
                idle = Some((outcome, data));
            }
            tokio::select! {
                biased;
                () = changes.changed(), if Instant::now() < deadline => {}
                () = self.stopping() => return Ok(unchanged(request)),
                () = tokio::time::sleep_until(deadline.min(Instant::now() + VIEW_MAX)) => {
                    if Instant::now() >= deadline {
                        return match idle {
                            Some((outcome, _)) => self.give(&session, request, base, outcome).await,
                            None => Ok(unchanged(request)),
                        };
                    }
                }
            }
        }
    }

    /// The state that a request goes on from.
    fn base(&self, session: &SessionHandle, request: &SlidingRequest) -> Result<Option<Base>, SlidingError> {
        let Some(pos) = &request.pos else { return Ok(None) };
        let pos: Pos = pos.parse()?;
        let data = session.data();
        let record = data.sliding_connection(&key_of(request)).ok_or(SlidingError::UnknownPos)?;
        let generation = record.generations.iter().find(|known| known.id == pos.generation);
        let generation = generation.cloned().ok_or(SlidingError::UnknownPos)?;
        if pos.upto > self.storage().watermark() {
            return Err(SlidingError::UnknownPos);
        }
        Ok(Some(Base { pos, generation }))
    }

    /// Makes sure that the next request can go on from a response, and gives it.
    async fn give(
        &self,
        session: &SessionHandle,
        request: &SlidingRequest,
        base: Option<Base>,
        outcome: Outcome,
    ) -> Result<SlidingResponse, SlidingError> {
        let Outcome { mut response, mut generation, told, upto } = outcome;
        let key = key_of(request);
        let is_same = base.as_ref().is_some_and(|base| {
            base.generation.rooms == generation.rooms && base.generation.required == generation.required
        });
        let mut pos = Pos { generation: generation.id, upto };
        if !is_same {
            generation.id = self.env().entropy.next_u64();
            pos.generation = generation.id;
            let generations = base.into_iter().map(|base| base.generation).chain([generation]).collect();
            let record = SlidingConnectionRecord { touched: upto, generations };
            session.set_sliding_connection(key.clone(), record).await?;
        }
        response.pos = pos.to_string();
        session.set_told(&key, request.pos.as_deref(), &response.pos, told);
        Ok(response)
    }
}

fn key_of(request: &SlidingRequest) -> ConnectionKey {
    (request.device_id.clone(), request.body.conn_id.clone().unwrap_or_default())
}

/// Nothing happened that the client is to know of.
fn unchanged(request: &SlidingRequest) -> SlidingResponse {
    let pos = request.pos.clone().unwrap_or_default();
    SlidingResponse { pos, txn_id: request.body.txn_id.clone(), ..SlidingResponse::default() }
}

/// Spec: client-server API, "Direct Messaging".
fn direct_rooms(data: &SessionData) -> BTreeSet<OwnedRoomId> {
    let by_user = data.account_data(None, "m.direct").map(serde_json::value::RawValue::get);
    // A client may have put anything there.
    let by_user: BTreeMap<String, serde_json::Value> =
        by_user.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let rooms = by_user.values().filter_map(serde_json::Value::as_array).flatten();
    rooms.filter_map(|room| OwnedRoomId::try_from(room.as_str()?).ok()).collect()
}

/// The rooms that a response is about, with what the client knew of each.
type Known = BTreeMap<ShortRoomId, Option<Position>>;

impl Turn<'_> {
    /// The position that the client has reached; none at first.
    fn since(&self) -> Option<Position> {
        self.base.map(|base| base.pos.upto)
    }

    async fn build(&self) -> Result<Outcome, SlidingError> {
        let base = self.base.map(|base| &base.generation);
        let mut told = match &self.request.pos {
            Some(pos) => self.session.told(&key_of(self.request), pos),
            None => Told::default(),
        };
        let (matched, lists) = self.matched(base).await?;
        let mut response =
            SlidingResponse { txn_id: self.request.body.txn_id.clone(), lists, ..SlidingResponse::default() };
        let mut generation = base.cloned().unwrap_or_default();
        let configs = generation.required.len();
        self.leave_behind(&mut generation, &matched);
        let mut known = Known::new();
        for rooms in matched.chunks(ROOMS_AT_A_TIME) {
            let _active = self.activate(rooms, base).await;
            for room in rooms {
                let since = self.known_of(room, base);
                let sent = base.and_then(|base| base.rooms.get(&room.entry.room));
                match self.room(room, sent, since, &mut told).await {
                    Ok(result) => {
                        if let Some(mut result) = result {
                            result.lists.clone_from(&room.lists);
                            response.rooms.insert(room.room_id.clone(), result);
                        }
                        known.insert(room.entry.room, since);
                        let required = index_of(&mut generation.required, &room.required.0);
                        let is_direct = self.direct.contains(&room.room_id);
                        let sent = SlidingRoomRecord { upto: None, limit: room.limit, required, is_direct };
                        generation.rooms.insert(room.entry.room, sent);
                    }
                    // One damaged room must not take the account down with it.
                    Err(error) => {
                        tracing::error!(room.id = %room.room_id, %error, "room left out of a sync");
                        if let Some(sent) = generation.rooms.get_mut(&room.entry.room) {
                            sent.upto = since;
                        }
                    }
                }
            }
        }
        if generation.required.len() > configs {
            compact(&mut generation);
        }
        self.extend(&mut response, &matched, &known).await;
        response.extensions.to_device = self.to_device().await?;
        response.extensions.e2ee = self.encryption().await?;
        response.extensions.thread_subscriptions = self.threads();
        Ok(Outcome { response, generation, told, upto: self.upto })
    }

    /// How far the client knows a room; none if it was not sent before.
    fn known_of(&self, room: &Matched, base: Option<&SlidingGenerationRecord>) -> Option<Position> {
        let sent = base.and_then(|base| base.rooms.get(&room.entry.room));
        sent.map(|sent| sent.upto.or(self.since()).unwrap_or_default())
    }

    /// Brings the rooms that have news into memory, beside each other, and keeps them there.
    async fn activate(&self, rooms: &[Matched], base: Option<&SlidingGenerationRecord>) -> Vec<RoomHandle> {
        let has_news = |room: &&Matched| {
            let was_inside = room.entry.is_joined() || room.entry.left.is_some();
            was_inside && self.known_of(room, base).is_none_or(|known| room.entry.latest > known)
        };
        self.homeserver.rooms(rooms.iter().filter(has_news).map(|room| &*room.room_id)).await
    }

    /// Notes how far the client knows the rooms that changed while it does not look at them.
    fn leave_behind(&self, generation: &mut SlidingGenerationRecord, matched: &[Matched]) {
        let Some(since) = self.since() else { return };
        let seen: BTreeSet<_> = matched.iter().map(|room| room.entry.room).collect();
        for (_, entry) in self.session.view().rooms_changed(since) {
            if let Some(sent) = generation.rooms.get_mut(&entry.room)
                && sent.upto.is_none()
                && !seen.contains(&entry.room)
            {
                sent.upto = Some(since);
            }
        }
    }
}

/// The place of a required state among those of a generation.
fn index_of(all: &mut Vec<Vec<(String, String)>>, required: &Vec<(String, String)>) -> u32 {
    let index = all.iter().position(|known| known == required).unwrap_or_else(|| {
        all.push(required.clone());
        all.len() - 1
    });
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Lets go of required states that no room has any more.
fn compact(generation: &mut SlidingGenerationRecord) {
    let old = std::mem::take(&mut generation.required);
    for sent in generation.rooms.values_mut() {
        let required = old.get(sent.required as usize).cloned().unwrap_or_default();
        sent.required = index_of(&mut generation.required, &required);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pos_survives_being_text() {
        let pos = Pos { generation: u64::MAX - 7, upto: Position(42) };
        assert_eq!(pos.to_string().parse::<Pos>().unwrap(), pos);
        for text in ["", "p1_", "p1_1", "p1_x_1", "p1_1_-1", "s1_1", "p1_1_99999999999999999999"] {
            assert!(matches!(text.parse::<Pos>(), Err(SlidingError::UnknownPos)), "{text}");
        }
    }

    #[test]
    fn required_states_that_are_not_used_go() {
        let pair = |kind: &str| vec![(kind.to_owned(), String::new())];
        let sent = |required| SlidingRoomRecord { upto: None, limit: 1, required, is_direct: false };
        let mut generation = SlidingGenerationRecord {
            id: 1,
            required: vec![pair("a"), pair("b"), pair("c")],
            rooms: [(ShortRoomId(1), sent(2)), (ShortRoomId(2), sent(1))].into(),
        };
        compact(&mut generation);
        assert_eq!(generation.required, [pair("c"), pair("b")]);
        assert_eq!(generation.rooms[&ShortRoomId(1)].required, 0);
    }
}
