//! Received events that are stored until they are dealt with, so that a crash loses none.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
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

/// A received event, with its place among those that are stored.
pub(super) struct Staged {
    key: (OwnedRoomId, engine::id::Position, OwnedServerName),
    json: Box<RawValue>,
}

#[derive(Deserialize)]
struct Header {
    room_id: Option<OwnedRoomId>,
}

impl Homeserver {
    /// Stores received events until they are dealt with.
    pub(super) async fn stage(
        &self,
        origin: &ServerName,
        pdus: RawEvents,
    ) -> Result<BTreeMap<OwnedRoomId, Vec<Staged>>, RoomError> {
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
        for ((room_id, jsons), known) in rooms.into_iter().zip(known) {
            if known.is_none() {
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
                    tracing::warn!(%room_id, %origin, %error, "cannot take in events; they are kept for the next start");
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

    /// Takes up what was staged when the server stopped.
    pub(crate) async fn resume_staged(&self) -> Result<(), RoomError> {
        let mut range = KeyRange::all();
        loop {
            let rows = self.storage().range(&schema::STAGED, range, Direction::Ascending, 500).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            range = KeyRange::all().after(last);
            let mut groups = BTreeMap::<(OwnedServerName, OwnedRoomId), Vec<Staged>>::new();
            for (key, json) in rows {
                let Ok(json) = serde_json::from_slice(&json) else { continue };
                groups.entry((key.2.clone(), key.0.clone())).or_default().push(Staged { key, json });
            }
            let groups = groups
                .into_iter()
                .map(async |((origin, room_id), events)| self.deal_with(&origin, room_id, events).await);
            join_all(groups).await;
        }
    }
}
