//! Local numbers: short ids for keys, and the order of durable changes.

use serde::{Deserialize, Serialize};

/// Order of durable changes, from one sequencer; 0 is before everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position(pub u64);

/// Local number of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ShortRoomId(pub u64);

/// Local number of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ShortEventId(pub u64);

/// Place in a room's local timeline; live events are above 0, backfilled ones below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TimelineIndex(pub i64);

impl From<Position> for TimelineIndex {
    /// The place of an event that arrived at this position.
    fn from(position: Position) -> Self {
        Self(i64::try_from(position.0).unwrap_or(i64::MAX))
    }
}

impl From<TimelineIndex> for Position {
    /// When the event at this place arrived; backfilled events count as older than everything.
    fn from(index: TimelineIndex) -> Self {
        Self(u64::try_from(index.0).unwrap_or(0))
    }
}
