//! One transaction: what goes into it, and sending it.
//!
//! Spec: server-server API, `PUT /_matrix/federation/v1/send/{txnId}`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use engine::id::{Position, ShortEventId, TimelineIndex};
use http::Method;
use ruma::{CanonicalJsonValue, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{Direction, KeyRange, schema};

use super::{Destination, DestinationShared, Outgoing, ephemeral::Taken, outbox::UnderWay};
use crate::{
    federation::{FederationError, FederationRequest},
    room::{ReadError, RoomStore, StoredEvent},
};

/// PDUs in one transaction, at most, by the specification.
const PDUS_MAX: usize = 50;

/// EDUs in one transaction, at most, by the specification.
pub(super) const EDUS_MAX: usize = 100;

/// How long a transaction may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A response is a list of errors by event.
const RESPONSE_MAX: usize = 1 << 20;

/// What is sent together.
pub(super) struct Transaction {
    txn_id: String,
    /// Events that waited in memory.
    pub(super) pdus: Vec<Outgoing>,
    /// Events of rooms that are caught up with.
    older: Vec<Arc<StoredEvent>>,
    /// Those rooms.
    pub(super) rooms: Vec<CaughtUp>,
    edus: Vec<Arc<RawValue>>,
    /// EDUs that may be lost.
    pub(super) ephemeral: Taken,
    /// The rows of `EDU_QUEUE` among the EDUs.
    pub(super) queued: Vec<(OwnedServerName, Position)>,
}

/// A room that a server is caught up with.
pub(super) struct CaughtUp {
    pub(super) room_id: OwnedRoomId,
    /// Where what was missed begins.
    pub(super) from: Position,
    /// Where what is left over begins; nothing if none.
    pub(super) rest: Option<Position>,
}

/// How sending a transaction ended.
pub struct Outcome {
    pub(super) transaction: Transaction,
    pub(super) result: Result<(), FederationError>,
    /// Until an actor has taken note, the server gets no other transaction.
    pub(super) under_way: UnderWay,
}

impl Destination {
    /// The next transaction; none if there is nothing to send.
    pub(super) async fn next_transaction(&mut self) -> Result<Option<Transaction>, ReadError> {
        let mut transaction = Transaction {
            txn_id: String::new(),
            pdus: Vec::new(),
            older: Vec::new(),
            rooms: Vec::new(),
            edus: Vec::new(),
            ephemeral: Taken::default(),
            queued: Vec::new(),
        };
        self.add_queued_edus(&mut transaction).await?;
        let edus_max = EDUS_MAX.min(self.size_max);
        transaction.ephemeral = self.ephemeral.take(edus_max.saturating_sub(transaction.edus.len()));
        // One at a time is one event or one EDU.
        let is_single = self.size_max == 1 && transaction.edu_count() > 0;
        let pdus_max = if is_single { 0 } else { PDUS_MAX.min(self.size_max) };
        self.add_catch_up(&mut transaction, pdus_max).await?;
        let places = pdus_max.saturating_sub(transaction.older.len()).min(self.pdus.len());
        transaction.pdus.extend(self.pdus.drain(..places));
        let is_empty = transaction.pdus.is_empty()
            && transaction.queued.is_empty()
            && transaction.ephemeral.edus.is_empty()
            && transaction.rooms.is_empty();
        if is_empty {
            return Ok(None);
        }
        transaction.txn_id = self.shared.env.entropy.token(24);
        Ok(Some(transaction))
    }

    async fn add_queued_edus(&mut self, transaction: &mut Transaction) -> Result<(), ReadError> {
        if !self.has_queued_edus {
            return Ok(());
        }
        let own = KeyRange::prefix(&(self.server.clone(),));
        let edus_max = EDUS_MAX.min(self.size_max);
        let most = edus_max + self.deleting.len();
        let mut rows = self.shared.storage.range(&schema::EDU_QUEUE, own, Direction::Ascending, most).await?;
        let is_last = rows.len() < most;
        self.deleting.retain(|sent| rows.iter().any(|(key, _)| key.1 == *sent));
        rows.retain(|(key, _)| !self.deleting.contains(&key.1));
        self.has_queued_edus = !is_last || rows.len() > edus_max;
        rows.truncate(edus_max);
        for (key, edu) in rows {
            transaction.queued.push(key);
            transaction.edus.extend(serde_json::from_slice::<Box<RawValue>>(&edu).ok().map(Into::into));
        }
        Ok(())
    }

    /// Takes rooms that the server has missed events of, as many as fit.
    async fn add_catch_up(&self, transaction: &mut Transaction, pdus_max: usize) -> Result<(), ReadError> {
        if pdus_max == 0 {
            return Ok(());
        }
        for (room_id, from) in &self.catch_up {
            let mut missed = missed(&self.shared, room_id, *from).await?;
            let places = pdus_max.saturating_sub(transaction.older.len());
            if missed.len() > places && !transaction.older.is_empty() {
                break;
            }
            let left_over = missed.split_off(places.min(missed.len()));
            let rest = left_over.first().and_then(|event| event.index).map(Position::from);
            transaction.older.extend(missed);
            transaction.rooms.push(CaughtUp { room_id: room_id.clone(), from: *from, rest });
        }
        Ok(())
    }
}

/// The events of this server that a destination has missed in a room; the newest of the room if they are too many, from
/// which it finds the others itself.
async fn missed(
    shared: &DestinationShared,
    room_id: &RoomId,
    from: Position,
) -> Result<Vec<Arc<StoredEvent>>, ReadError> {
    let store = &shared.rooms.store;
    let Some(room) = shared.storage.get(&schema::ROOM_IDS, room_id).await? else { return Ok(Vec::new()) };
    let range = KeyRange::prefix(&(room,)).from(&(room, TimelineIndex::from(from)));
    let rows = shared.storage.range(&schema::TIMELINE, range, Direction::Ascending, 4 * PDUS_MAX).await?;
    let is_all = rows.len() < 4 * PDUS_MAX;
    let shorts: Vec<_> = rows.into_iter().map(|(_, short)| short).collect();
    let mut events = readable(store, &shorts).await?;
    events.retain(|event| event.pdu.sender().server_name() == shared.server_name);
    if is_all && events.len() <= PDUS_MAX {
        return Ok(events);
    }
    let Some(record) = shared.storage.get(&schema::ROOMS, &room).await? else { return Ok(Vec::new()) };
    let newest = record.tips.len().saturating_sub(PDUS_MAX);
    readable(store, &record.tips[newest..]).await
}

/// Those of some events that can be read: one that is damaged must not keep a server from all others for good.
async fn readable(store: &RoomStore, shorts: &[ShortEventId]) -> Result<Vec<Arc<StoredEvent>>, ReadError> {
    match store.events(shorts).await {
        Err(error) if error.is_damage() => {}
        events => return events,
    }
    let mut events = Vec::new();
    for short in shorts {
        match store.event(*short).await {
            Ok(event) => events.push(event),
            Err(error) if error.is_damage() => {
                tracing::error!(event = short.0, %error, "an event is not sent to other servers");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(events)
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    pdus: BTreeMap<String, PduResult>,
}

#[derive(Deserialize)]
struct PduResult {
    error: Option<String>,
}

impl Transaction {
    /// Events that it carries.
    pub(super) fn pdu_count(&self) -> usize {
        (self.older.len() + self.pdus.len()).min(PDUS_MAX)
    }

    /// Events and EDUs that it carries.
    pub(super) fn item_count(&self) -> usize {
        self.pdu_count() + self.edu_count()
    }

    /// Makes it what is sent again as it was, although `catch_up` says of its events that the server has missed them.
    ///
    /// `rests` tells of the rooms of which that says nothing else where what came since begins, if anything did; of other rooms it
    /// is not known, so that they are caught up with anew.
    pub(super) fn hold(
        &mut self,
        catch_up: &BTreeMap<OwnedRoomId, Position>,
        rests: &BTreeMap<OwnedRoomId, Option<Position>>,
    ) {
        // Who typed then has long stopped. That a server sees less than at the first time does no harm.
        self.ephemeral.forget_typing();
        self.rooms.retain_mut(|room| {
            let rest = rests.get(&room.room_id);
            room.rest = room.rest.or(rest.copied().flatten());
            room.rest.is_some() || rest.is_some()
        });
        for Outgoing { room_id, event, .. } in std::mem::take(&mut self.pdus) {
            self.older.push(event);
            let is_known = self.rooms.iter().any(|room| room.room_id == room_id);
            if let (false, Some(from), Some(rest)) = (is_known, catch_up.get(&room_id), rests.get(&room_id)) {
                self.rooms.push(CaughtUp { room_id, from: *from, rest: *rest });
            }
        }
    }

    /// A room has news that are not in here, from `position` on.
    pub(super) fn ends_before(&mut self, room_id: &RoomId, position: Position) {
        for room in self.rooms.iter_mut().filter(|room| room.room_id == room_id) {
            room.rest.get_or_insert(position);
        }
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> u64 {
        let edus: usize = self.edus.iter().map(|edu| edu.get().len()).sum();
        let others = edus + 512 * self.ephemeral.edus.len() + 128 * self.rooms.len();
        self.older.iter().map(|event| event.weight()).sum::<u64>() + others as u64
    }

    /// EDUs that it carries.
    pub(super) fn edu_count(&self) -> usize {
        self.edus.len() + self.ephemeral.edus.len()
    }

    /// Whether all servers can check its signature: to-device messages may have numbers that canonical JSON forbids.
    pub(super) fn is_canonical(&self) -> bool {
        let edus = self.edus.iter().map(|edu| &**edu).chain(self.ephemeral.edus.iter().map(|edu| &**edu));
        let older = self.older.iter().map(|event| &event.pdu);
        let pdus = older.chain(self.pdus.iter().map(|outgoing| &outgoing.event.pdu));
        edus.map(|edu| edu.get().as_bytes())
            .chain(pdus.map(|pdu| pdu.raw().as_ref()))
            .all(|item| serde_json::from_slice::<CanonicalJsonValue>(item).is_ok())
    }

    pub(super) async fn send(
        self,
        shared: &DestinationShared,
        server: &ServerName,
        under_way: UnderWay,
    ) -> Outcome {
        let path = format!("/_matrix/federation/v1/send/{}", self.txn_id);
        let request = FederationRequest {
            method: Method::PUT,
            path_and_query: path.clone(),
            body: Some(self.body(shared)),
            timeout: TIMEOUT,
            max_response: RESPONSE_MAX,
        };
        let answer = shared.client.request(server, request).await;
        let result = answer.and_then(|answer| {
            // Whatever answers otherwise, a proxy for example, has not taken the events.
            let response: Response = serde_json::from_slice(&answer.body)
                .map_err(|error| FederationError::BadBody(error.to_string()))
                .inspect_err(|error| shared.metrics.misread(&path, error))?;
            for (event_id, result) in response.pdus {
                if let Some(error) = result.error {
                    tracing::debug!(destination = %server, event_id, error, "a server refused an event");
                }
            }
            Ok(())
        });
        Outcome { transaction: self, result, under_way }
    }

    /// The body; the events are copied as they are stored.
    fn body(&self, shared: &DestinationShared) -> Bytes {
        let mut body = Vec::with_capacity(4096);
        body.extend_from_slice(b"{\"edus\":[");
        let queued = self.edus.iter().map(|edu| edu.get().as_bytes());
        join(&mut body, queued.chain(self.ephemeral.edus.iter().map(|edu| edu.get().as_bytes())));
        let now_ms = shared.env.clock.now_ms();
        let origin =
            format!("],\"origin\":\"{}\",\"origin_server_ts\":{now_ms},\"pdus\":[", shared.server_name);
        body.extend_from_slice(origin.as_bytes());
        let older = self.older.iter().map(|event| &event.pdu);
        let pdus = older.chain(self.pdus.iter().map(|outgoing| &outgoing.event.pdu));
        join(&mut body, pdus.take(PDUS_MAX).map(|pdu| pdu.raw().as_ref()));
        body.extend_from_slice(b"]}");
        body.into()
    }
}

fn join<'a>(body: &mut Vec<u8>, parts: impl Iterator<Item = &'a [u8]>) {
    for (place, part) in parts.enumerate() {
        if place > 0 {
            body.push(b',');
        }
        body.extend_from_slice(part);
    }
}
