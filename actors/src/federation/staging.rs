//! Received events that are stored until they are dealt with, so that a crash loses none.
//!
//! A resident server sends a room's events from the moment at which it accepts a join, while its answer, without which
//! nothing can be made of them, is still on its way. They wait for the end of the join.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use engine::id::Position;
use futures_util::future::join_all;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{Batch, Direction, KeyRange, schema};

use super::{
    inbound::{Results, Taken},
    remote::RawEvents,
};
use crate::{homeserver::Homeserver, room::RoomError};

/// When events are tried again that could not be dealt with for a reason of this server's own.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// Events of a room that wait for the end of a join, at most; what comes after them is fetched when a later event
/// refers to it.
const WAITING_MAX: usize = 500;

/// Rooms that local users are about to join through other servers.
#[derive(Default)]
pub(super) struct Joins(DashMap<OwnedRoomId, Joining>);

#[derive(Default)]
struct Joining {
    joins: usize,
    waiting: usize,
}

impl Joins {
    fn begin(&self, room_id: &RoomId) -> JoinMark<'_> {
        self.0.entry(room_id.to_owned()).or_default().joins += 1;
        JoinMark { joins: self, room_id: room_id.to_owned() }
    }

    fn is_joining(&self, room_id: &RoomId) -> bool {
        self.0.contains_key(room_id)
    }

    /// Lets more events wait, unless they are too many.
    fn admit(&self, room_id: &RoomId, events: usize) -> bool {
        let Some(mut joining) = self.0.get_mut(room_id) else { return false };
        joining.waiting += events;
        joining.waiting <= WAITING_MAX
    }
}

/// Says that a room is being joined, for as long as it is there.
struct JoinMark<'a> {
    joins: &'a Joins,
    room_id: OwnedRoomId,
}

impl Drop for JoinMark<'_> {
    fn drop(&mut self) {
        self.joins.0.remove_if_mut(&self.room_id, |_, joining| {
            joining.joins -= 1;
            joining.joins == 0
        });
    }
}

type StagedKey = (OwnedRoomId, Position, OwnedServerName);

/// A received event, with its place among those that are stored.
pub(super) struct Staged {
    key: StagedKey,
    json: Box<RawValue>,
}

#[derive(Deserialize)]
struct Header {
    room_id: Option<OwnedRoomId>,
}

impl Homeserver {
    /// Takes part in a join; then deals with the room's events that came meanwhile.
    pub(super) async fn joining<T>(&self, room_id: &RoomId, join: impl Future<Output = T>) -> T {
        let Some(federation) = self.federation() else { return join.await };
        let mark = federation.inbound.joins.begin(room_id);
        let outcome = join.await;
        drop(mark);
        if !federation.inbound.joins.is_joining(room_id) {
            let (homeserver, room_id) = (self.clone(), room_id.to_owned());
            // What a shutdown ends is taken up at the next start.
            tokio::spawn(async move {
                if let Err(error) = homeserver.take_up(&KeyRange::prefix(&(&*room_id,)), None).await {
                    tracing::warn!(%room_id, %error, "cannot read events that came during a join");
                }
            });
        }
        outcome
    }

    /// Whether a room's events cannot be dealt with before a join has ended.
    async fn waits_for_join(&self, room_id: &RoomId) -> Result<bool, RoomError> {
        let joins = self.federation().map(|federation| &federation.inbound.joins);
        let is_joining = joins.is_some_and(|joins| joins.is_joining(room_id));
        Ok(is_joining && !self.is_resident(room_id).await?)
    }

    /// Stores received events until they are dealt with; returns those that can be dealt with at once.
    pub(super) async fn stage(
        &self,
        origin: &ServerName,
        pdus: RawEvents,
    ) -> Result<BTreeMap<OwnedRoomId, Vec<Staged>>, RoomError> {
        let Some(federation) = self.federation() else { return Err(RoomError::NotFound) };
        let joins = &federation.inbound.joins;
        let mut rooms = BTreeMap::<_, Vec<_>>::new();
        for json in pdus {
            let header = serde_json::from_str::<Header>(json.get());
            if let Some(room_id) = header.ok().and_then(|header| header.room_id) {
                rooms.entry(room_id).or_default().push(json);
            }
        }
        let known = self.storage().get_many(&schema::ROOM_IDS, rooms.keys().cloned()).await?;
        let mut batch = Batch::default();
        let mut staged = BTreeMap::<_, Vec<_>>::new();
        let mut waiting = BTreeSet::new();
        for ((room_id, jsons), known) in rooms.into_iter().zip(known) {
            let waits = self.waits_for_join(&room_id).await?;
            let is_wanted = if waits { joins.admit(&room_id, jsons.len()) } else { known.is_some() };
            if waits {
                waiting.insert(room_id.clone());
            }
            if !is_wanted {
                tracing::debug!(%room_id, %origin, events = jsons.len(), "left out events of a room that is not known");
                continue;
            }
            for json in jsons {
                let position = self.storage().reserve(1).last();
                let key = (room_id.clone(), position, origin.to_owned());
                batch.put(&schema::STAGED, &key, &Bytes::copy_from_slice(json.get().as_bytes()));
                staged.entry(room_id.clone()).or_default().push(Staged { key, json });
            }
        }
        self.storage().commit(batch).await.map_err(RoomError::Commit)?;
        // Whoever ends a join looks for what is stored by then.
        staged.retain(|room_id, _| !(waiting.contains(room_id) && joins.is_joining(room_id)));
        Ok(staged)
    }

    /// Deals with staged events of one room.
    pub(super) async fn deal_with(
        &self,
        origin: &ServerName,
        room_id: OwnedRoomId,
        events: Vec<Staged>,
    ) -> Results {
        let Some(federation) = self.federation() else { return Results::new() };
        let key = (room_id, origin.to_owned());
        let turn = federation.inbound.turns.entry(key.clone()).or_default().clone();
        let held = turn.lock().await;
        let results = self.deal_in_turn(origin, &key.0, events).await;
        drop(held);
        drop(turn);
        federation.inbound.turns.remove_if(&key, |_, turn| Arc::strong_count(turn) == 1);
        results
    }

    async fn deal_in_turn(&self, origin: &ServerName, room_id: &RoomId, events: Vec<Staged>) -> Results {
        let (keys, jsons): (Vec<_>, Vec<_>) =
            events.into_iter().map(|staged| (staged.key, staged.json)).unzip();
        let mut retries = RETRIES.iter();
        let results = loop {
            let (taken, wait) = (self.take_in(origin, room_id, &jsons).await, retries.next());
            let error = match (taken, wait) {
                (Ok(Taken { results, postponed: None }), _) | (Ok(Taken { results, .. }), None) => {
                    break results;
                }
                (Ok(Taken { postponed: Some(reason), .. }), Some(_)) => reason,
                (Err(error), Some(_)) => error.to_string(),
                (Err(error), None) => {
                    tracing::warn!(%room_id, %origin, %error, "cannot take in events; they are kept, and tried again later");
                    return Results::new();
                }
            };
            tracing::debug!(%room_id, %origin, error, "cannot take in events; will retry");
            tokio::time::sleep(wait.copied().unwrap_or_default()).await;
        };
        let mut batch = Batch::default();
        for key in keys {
            batch.delete(&schema::STAGED, &key);
        }
        self.storage().submit(batch, None, |_| {});
        results
    }

    /// Takes up what was staged up to a position and is not dealt with; answers how many events that are.
    pub(crate) async fn resume_staged(&self, upto: Position) -> Result<usize, RoomError> {
        self.take_up(&KeyRange::all(), Some(upto)).await
    }

    /// Deals with staged events, but for those that wait for a join.
    async fn take_up(&self, all: &KeyRange<StagedKey>, upto: Option<Position>) -> Result<usize, RoomError> {
        let (mut range, mut count) = (all.clone(), 0);
        loop {
            let rows = self.storage().range(&schema::STAGED, range, Direction::Ascending, 500).await?;
            let Some((last, _)) = rows.last() else { return Ok(count) };
            range = all.clone().after(last);
            let mut groups = BTreeMap::<(OwnedServerName, OwnedRoomId), Vec<Staged>>::new();
            for (key, json) in rows.into_iter().filter(|(key, _)| upto.is_none_or(|upto| key.1 <= upto)) {
                let Ok(json) = serde_json::from_slice(&json) else { continue };
                groups.entry((key.2.clone(), key.0.clone())).or_default().push(Staged { key, json });
            }
            let groups = groups.into_iter().map(async |((origin, room_id), events)| {
                if self.waits_for_join(&room_id).await? {
                    return Ok(0);
                }
                let count = events.len();
                self.deal_with(&origin, room_id, events).await;
                Ok::<_, RoomError>(count)
            });
            count += join_all(groups).await.into_iter().sum::<Result<usize, _>>()?;
        }
    }
}
