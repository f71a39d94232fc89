//! Noticing state resets: a resolution that takes a key back to an older event although nothing on the winning side
//! explains it.
//!
//! State resolution may do that, mostly where clocks of servers differ: of two events in conflict the one with the
//! later time stamp counts, even if the other was sent in its knowledge. A record changes nothing of the outcome, which
//! all servers must agree on; it is what the operator is told by, and what the same states can be resolved from again.

use std::collections::BTreeSet;

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    event::StoredEvent,
    machine::{Need, Room},
    merge::Differences,
    receive::Verdict,
};
use crate::{
    id::ShortEventId,
    resolve::{StateKey, StateSet},
    state::StateRoot,
};

/// Events that a key held before, at most, that are looked through for the one it went back to.
const REPLACED_MAX: usize = 100;

/// The inputs of a resolution that reset state, and its outcome, as JSON; `sim replay --resolution` reads it.
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

impl Room<'_> {
    /// The keys that a resolution took back to an older event, each with an event that was lost although the outcome
    /// allows it.
    pub(super) fn resets(
        &self,
        held: &Differences,
        root: StateRoot,
    ) -> Result<Vec<(StateKey, OwnedEventId)>, Need> {
        let mut resets = Vec::new();
        for (key, events) in held {
            let winner = self.get(root, &key.0, &key.1)?;
            let losers: BTreeSet<_> =
                events.iter().flatten().filter(|event| Some(**event) != winner).copied().collect();
            for loser in self.events(losers)?.into_values() {
                if self.replaced(&loser, winner)? && self.is_allowed_after(&loser, root)? {
                    resets.push((key.clone(), loser.pdu.event_id().clone()));
                }
            }
        }
        Ok(resets)
    }

    /// Whether an event replaced another one, or came after what did; none stands for a key without an event.
    pub(super) fn replaced(&self, event: &StoredEvent, older: Option<ShortEventId>) -> Result<bool, Need> {
        let mut before = event.replaces;
        for _ in 0..REPLACED_MAX {
            match before {
                Some(short) if Some(short) == older => return Ok(true),
                Some(short) => before = self.event(short)?.replaces,
                None => return Ok(older.is_none()),
            }
        }
        Ok(false)
    }

    fn is_allowed_after(&self, event: &StoredEvent, root: StateRoot) -> Result<bool, Need> {
        let (auth_events, _) = self.known_of(event.pdu.auth_events())?;
        let evidence = self.evidence(&event.pdu, &auth_events, root)?;
        Ok(!matches!(evidence.judge(&event.pdu, self.head.rules), Verdict::Rejected(_)))
    }
}

/// A state as the record holds it.
pub(super) fn spelled(set: &StateSet) -> Vec<(String, String, OwnedEventId)> {
    set.iter().map(|((kind, key), event)| (kind.clone(), key.clone(), event.clone())).collect()
}
