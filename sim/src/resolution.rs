//! Resolving the states of an alarm again: what the server kept when a resolution went back to older state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use actors::room::ResetRecord;
use anyhow::{Context, Result};
use bytes::Bytes;
use engine::{
    pdu::Pdu,
    resolve::{AgreedState, EventSource, Lacking, Ranked, StateKey, StateSet, resolve_differing},
    room_version,
};
use ruma::{EventId, OwnedEventId, RoomVersionId};

struct Inputs {
    events: BTreeMap<OwnedEventId, Ranked>,
    agreed: BTreeMap<StateKey, Option<OwnedEventId>>,
}

impl EventSource for Inputs {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.events.get(id).cloned()
    }
}

impl AgreedState for Inputs {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        Ok(self.agreed.get(key).cloned().flatten())
    }

    fn leads_to(&self, _events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        Ok(BTreeSet::new())
    }
}

/// Resolves the states of a record again, and says what came of it then and now.
pub fn replay(record: &[u8]) -> Result<String> {
    let record: ResetRecord = serde_json::from_slice(record).context("not the inputs of a resolution")?;
    let version = RoomVersionId::try_from(record.room_version.as_str())?;
    let rules = room_version::rules(&version).context("the room's version is not supported")?;
    let mut inputs = Inputs { events: BTreeMap::new(), agreed: BTreeMap::new() };
    for (rank, is_rejected, id, json) in record.events {
        let pdu = Pdu::from_stored(id.clone(), Bytes::copy_from_slice(json.get().as_bytes()))?;
        let pdu = if is_rejected { pdu.rejected() } else { pdu };
        inputs.events.insert(id, Ranked { event: Arc::new(pdu), rank });
    }
    for (kind, key, id) in record.agreed {
        inputs.agreed.insert((kind, key), id);
    }
    let set = |events: Vec<(String, String, OwnedEventId)>| -> StateSet {
        events.into_iter().map(|(kind, key, id)| ((kind, key), id)).collect()
    };
    let differing: Vec<StateSet> = record.differing.into_iter().map(set).collect();
    let before = set(record.resolved);
    let now = resolve_differing(rules, &differing, &inputs, &inputs)?;
    let mut text = format!("{} states of a room of version {version}\n", differing.len());
    for (number, state) in differing.iter().enumerate() {
        for ((kind, key), id) in state {
            let event = inputs.events.get(id).map(|ranked| &ranked.event);
            let sender = event.map_or("?", |event| event.sender().as_str());
            let at = event.map_or(0, |event| u64::from(event.origin_server_ts().get()));
            writeln!(text, "state {number}: {kind} {key:?} is {id} of {sender} at {at}")?;
        }
    }
    for (kind, key, id) in &record.lost {
        writeln!(text, "lost: {kind} {key:?} {id}")?;
    }
    for ((kind, key), id) in &now {
        writeln!(text, "resolved: {kind} {key:?} is {id}")?;
    }
    text += if now == before { "the same as then" } else { "not the same as then" };
    Ok(text)
}
