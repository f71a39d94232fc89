//! Records of what users report.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::Record;

/// Something that a user reported to the administrators.
///
/// Spec: client-server API, "Reporting Content".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// The room; none if a user is reported.
    pub room_id: Option<OwnedRoomId>,
    /// The event, if one is reported.
    pub event_id: Option<OwnedEventId>,
    /// The user, if one is reported.
    pub user_id: Option<OwnedUserId>,
    /// Why, as the reporter put it.
    pub reason: String,
    /// When.
    pub reported: MilliSecondsSinceUnixEpoch,
}

impl Record for ReportRecord {
    const VERSION: u8 = 1;
}
