//! Noticing state resets: a resolution that takes a key back to an older event although nothing on the winning side
//! explains it.
//!
//! State resolution may do that, mostly where clocks of servers differ: of two events in conflict the one with the
//! later time stamp counts, even if the other was sent in its knowledge. An alarm changes nothing of the outcome, which
//! all servers must agree on; it tells the operator, and keeps what is needed to resolve the same states again.

use std::collections::{BTreeMap, BTreeSet};

use engine::{
    id::ShortEventId,
    resolve::StateSet,
    room::receive::Verdict,
    state::{self, StateRoot},
};
use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use storage::schema;

use super::{ActiveRoom, RoomError, StateKey, StoredEvent, change::Change};

/// Events that a key held before, at most, that are looked through for the one it went back to.
const REPLACED_MAX: usize = 100;

/// The inputs of a resolution that raised an alarm, and its outcome, as JSON; `sim replay --resolution` reads it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ResetRecord {
    /// The room's version.
    pub room_version: String,
    /// What each state had in the keys that were not the same in all.
    pub differing: Vec<Vec<(String, String, OwnedEventId)>>,
    /// What all states had in other keys, as far as the resolution asked.
    pub agreed: Vec<(String, String, Option<OwnedEventId>)>,
    /// The events that the resolution looked at, each with its rank and whether it was rejected.
    pub events: Vec<(u64, bool, OwnedEventId, Box<RawValue>)>,
    /// The outcome.
    pub resolved: Vec<(String, String, OwnedEventId)>,
    /// The keys that went back, each with the event that was lost.
    pub lost: Vec<(String, String, OwnedEventId)>,
}

impl ActiveRoom {
    /// The keys that a resolution took back to an older event, each with an event that was lost although the outcome
    /// allows it.
    pub(super) async fn resets(
        &self,
        change: &Change,
        held: &BTreeMap<StateKey, Vec<Option<ShortEventId>>>,
        root: StateRoot,
    ) -> Result<Vec<(StateKey, OwnedEventId)>, RoomError> {
        let mut resets = Vec::new();
        for (key, events) in held {
            let (kind, state_key) = key;
            let winner = self.with_nodes(change, |nodes| state::get(nodes, root, kind, state_key)).await?;
            let losers: BTreeSet<_> =
                events.iter().flatten().filter(|event| Some(**event) != winner).collect();
            for loser in losers {
                let loser = self.event(change, *loser).await?;
                if self.replaced(change, &loser, winner).await?
                    && self.is_allowed_after(change, &loser, root).await?
                {
                    resets.push((key.clone(), loser.pdu.event_id().clone()));
                }
            }
        }
        Ok(resets)
    }

    /// Whether an event replaced another one, or came after what did; none stands for a key without an event.
    async fn replaced(
        &self,
        change: &Change,
        event: &StoredEvent,
        older: Option<ShortEventId>,
    ) -> Result<bool, RoomError> {
        let mut before = event.replaces;
        for _ in 0..REPLACED_MAX {
            match before {
                Some(short) if Some(short) == older => return Ok(true),
                Some(short) => before = self.event(change, short).await?.replaces,
                None => return Ok(older.is_none()),
            }
        }
        Ok(false)
    }

    async fn is_allowed_after(
        &self,
        change: &Change,
        event: &StoredEvent,
        root: StateRoot,
    ) -> Result<bool, RoomError> {
        let (auth_events, _) = self.known_events(change, event.pdu.auth_events()).await?;
        let evidence = self.evidence(change, &event.pdu, &auth_events, root).await?;
        Ok(!matches!(evidence.judge(&event.pdu, self.rules), Verdict::Rejected(_)))
    }

    /// Tells the operator of a reset, and keeps what led to it.
    pub(super) fn raise_alarm(&self, change: &mut Change, record: &ResetRecord) {
        let lost: Vec<_> =
            record.lost.iter().map(|(kind, key, event)| format!("{kind} {key:?}: {event}")).collect();
        tracing::error!(
            room.id = %self.room_id, lost = lost.join(", "),
            "state resolution went back to older state without a reason; its inputs are kept"
        );
        self.shared.metrics.state_was_reset();
        let ticket = self.shared.store.storage().reserve(1);
        if let Ok(json) = serde_json::to_vec(record) {
            change.batch.put(&schema::STATE_RESETS, &(self.room, ticket.last()), &json.into());
        }
        change.tickets.push(ticket);
    }
}

/// A state as the record holds it.
pub(super) fn spelled(set: &StateSet) -> Vec<(String, String, OwnedEventId)> {
    set.iter().map(|((kind, key), event)| (kind.clone(), key.clone(), event.clone())).collect()
}
