//! Records of events that are to be sent later.

use bytes::Bytes;
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// An event that a local user has asked to be sent later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedEventRecord {
    /// Who sends it.
    pub user_id: OwnedUserId,
    /// The device that asked for it.
    pub device_id: OwnedDeviceId,
    /// The client's transaction ID, with the event's type and room good for one delayed event; empty if there is none.
    pub txn_id: String,
    /// The room that it goes to.
    pub room_id: OwnedRoomId,
    /// The event's type.
    pub kind: String,
    /// The event's state key, if it is a state event.
    pub state_key: Option<String>,
    /// The event's content, JSON.
    pub content: Bytes,
    /// How long it waits, in milliseconds.
    pub delay_ms: u64,
    /// When it began to wait, in milliseconds since the epoch.
    pub since_ms: u64,
    /// The state event that had the place of a state event when it was scheduled.
    pub held: Option<OwnedEventId>,
    /// What has become of it.
    pub stage: DelayedStage,
}

/// What has become of a delayed event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelayedStage {
    /// It waits.
    Scheduled,
    /// It is being sent, and is sent after a restart.
    Sending,
    /// It was sent.
    Sent {
        /// The event that it became.
        event_id: OwnedEventId,
        /// When, in milliseconds since the epoch.
        at_ms: u64,
    },
    /// It was not sent, and never will be.
    Cancelled {
        /// When that was decided, in milliseconds since the epoch.
        at_ms: u64,
        /// Why, unless the user wanted it so.
        reason: Option<String>,
    },
}

impl Record for DelayedEventRecord {
    const VERSION: u8 = 1;
}
