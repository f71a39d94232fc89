//! Records of push notifications.

use bytes::Bytes;
use engine::id::Position;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// Where a user's notifications go.
///
/// Spec: client-server API, `POST /_matrix/client/v3/pushers/set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PusherRecord {
    /// The device that set it; it goes with the device.
    pub device_id: OwnedDeviceId,
    /// `http`.
    pub kind: String,
    /// The application, for people.
    pub app_display_name: String,
    /// The device, for people.
    pub device_display_name: String,
    /// The device's set of rules.
    pub profile_tag: Option<String>,
    /// The language of the notifications.
    pub lang: String,
    /// What the push gateway is called with, JSON: `url`, `format` and whatever else the client wants to be passed on.
    pub data: Bytes,
    /// When it was last set.
    pub set: MilliSecondsSinceUnixEpoch,
    /// Events up to here came before there was such a pusher.
    pub since: Position,
}

/// How far a pusher has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushCursorRecord {
    /// Events up to here are dealt with.
    pub upto: Position,
    /// The number of unread messages that the push gateway was last told.
    pub badge: u64,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// When the first of them failed, in milliseconds since the epoch.
    pub failing_since_ms: u64,
    /// When to try again, in milliseconds since the epoch.
    pub retry_at_ms: u64,
}

/// What a user has not read of a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushUnreadRecord {
    /// Events that notify.
    pub unread: u64,
    /// Calls that nobody took.
    pub missed_calls: u64,
}

impl Record for PusherRecord {
    const VERSION: u8 = 1;
}

impl Record for PushCursorRecord {
    const VERSION: u8 = 1;
}

impl Record for PushUnreadRecord {
    const VERSION: u8 = 1;
}
