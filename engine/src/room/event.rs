//! Events with their place in a room.

use std::sync::Arc;

use ruma::OwnedDeviceId;
use serde::{Deserialize, Serialize};

use crate::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::Pdu,
    resolve::{Ranked, StateKey},
    state::StateRoot,
};

/// How an event that was taken in stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Part of the graph and of the timeline.
    Accepted,
    /// Part of the graph, but hidden from clients and never a prev event of ours.
    SoftFailed,
    /// Failed authorization; kept so that it is not fetched again.
    Rejected,
    /// Known (as an auth event, say) but outside the graph.
    Outlier,
}

/// The transaction that a local client sent an event with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentBy {
    /// The device that sent it.
    pub device_id: OwnedDeviceId,
    /// The client's transaction ID.
    pub txn_id: String,
}

/// An event with its place in the room; immutable, shared by everyone who reads it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event's local number.
    pub short: ShortEventId,
    /// The room's local number.
    pub room: ShortRoomId,
    /// The event.
    pub pdu: Arc<Pdu>,
    /// The place in the timeline, if it is in there.
    pub index: Option<TimelineIndex>,
    /// How it fared in the checks on receipt.
    pub standing: Standing,
    /// State before the event.
    pub before: StateRoot,
    /// The room's current state once the event was in.
    pub after: StateRoot,
    /// The state event that it replaced.
    pub replaces: Option<ShortEventId>,
    /// The event that redacted it.
    pub redacted_by: Option<ShortEventId>,
    /// The local client's transaction, if one sent it.
    pub sent_by: Option<SentBy>,
    /// One more than the highest rank of its auth events; 0 without any.
    pub rank: u64,
    /// Whether other events may relate to it.
    pub has_relations: bool,
    /// Whether the states at it lack members for good: the room was left, and joined again, before they came.
    pub lacks_members: bool,
}

impl StoredEvent {
    /// Whether it has a place in the graph, so that the state before it is known.
    ///
    /// An outlier has none, and neither has an event that was rejected as one.
    pub fn has_place(&self) -> bool {
        match self.standing {
            Standing::Accepted | Standing::SoftFailed => true,
            Standing::Rejected => self.before != StateRoot::default() || self.pdu.prev_events().is_empty(),
            Standing::Outlier => false,
        }
    }

    /// Whether the state before it, and so the one after it, is known and whole.
    pub fn has_state(&self) -> bool {
        self.has_place() && !self.lacks_members
    }

    /// The key of the state that it sets, if it is a state event.
    pub fn state_key(&self) -> Option<StateKey> {
        Some((self.pdu.kind().to_owned(), self.pdu.state_key()?.to_owned()))
    }

    /// The event as a state resolution takes it.
    pub fn ranked(&self) -> Ranked {
        Ranked { event: self.pdu.clone(), rank: self.rank }
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> u64 {
        // The parsed header repeats some strings of the JSON: twice its size covers both.
        512 + 2 * self.pdu.raw().len() as u64
    }
}
