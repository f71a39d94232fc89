//! The body of a `/sync` response.
//!
//! Not ruma's type: events go out as the raw JSON that they are, without a copy per response type.
//! Spec: client-server API, `GET /_matrix/client/v3/sync`.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::session::UnreadCounts;

/// A list of events.
#[derive(Debug, Default, Serialize)]
pub struct Events {
    /// The events.
    pub events: Vec<Box<RawValue>>,
}

impl Events {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

impl From<Vec<Box<RawValue>>> for Events {
    fn from(events: Vec<Box<RawValue>>) -> Self {
        Self { events }
    }
}

/// The whole response.
#[derive(Debug, Serialize)]
pub struct SyncResponse {
    /// The token for the next request's `since`.
    pub next_batch: String,
    /// Global account data.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub account_data: Events,
    /// Presence of others.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub presence: Events,
    /// Rooms.
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    pub rooms: Rooms,
    /// Messages to the device.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub to_device: Events,
    /// Whose devices changed.
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub device_lists: DeviceLists,
    /// One-time keys of the device that nobody has claimed, by algorithm.
    pub device_one_time_keys_count: BTreeMap<String, u64>,
    /// Algorithms for which the device has a fallback key that nobody was given.
    pub device_unused_fallback_key_types: Vec<String>,
    /// Whether these two have changed.
    #[serde(skip)]
    pub has_new_counts: bool,
}

/// Users whose devices changed, and users whose devices are no concern any more.
#[derive(Debug, Default, Serialize)]
pub struct DeviceLists {
    /// Users who share a room, and whose devices changed or who did not share one before.
    pub changed: BTreeSet<OwnedUserId>,
    /// Users who do not share a room any more.
    pub left: BTreeSet<OwnedUserId>,
}

impl DeviceLists {
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

impl SyncResponse {
    /// Whether it tells the client nothing but the next token.
    pub fn is_empty(&self) -> bool {
        self.account_data.is_empty()
            && self.presence.is_empty()
            && self.rooms.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
            && !self.has_new_counts
    }
}

/// The rooms by membership.
#[derive(Debug, Default, Serialize)]
pub struct Rooms {
    /// Rooms that the user is joined to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub join: BTreeMap<OwnedRoomId, JoinedRoom>,
    /// Rooms that the user is invited to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub invite: BTreeMap<OwnedRoomId, InvitedRoom>,
    /// Rooms that the user knocked on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub knock: BTreeMap<OwnedRoomId, KnockedRoom>,
    /// Rooms that the user left or was banned from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub leave: BTreeMap<OwnedRoomId, LeftRoom>,
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty() && self.invite.is_empty() && self.knock.is_empty() && self.leave.is_empty()
    }
}

/// State, before the timeline or after it, as the client asked.
#[derive(Debug, Serialize)]
pub enum State {
    /// Changes up to the start of the timeline.
    #[serde(rename = "state")]
    Before(Events),
    /// Changes up to the end of the timeline.
    #[serde(rename = "state_after")]
    After(Events),
}

/// A room that the user is joined to.
#[derive(Debug, Serialize)]
pub struct JoinedRoom {
    /// What clients need to name the room.
    pub summary: Summary,
    /// State changes.
    #[serde(flatten)]
    pub state: State,
    /// Recent messages and state changes.
    pub timeline: Timeline,
    /// Typing notices and receipts.
    pub ephemeral: Events,
    /// The user's account data for the room.
    pub account_data: Events,
    /// What the user has not read, outside threads if those are counted apart.
    pub unread_notifications: UnreadCounts,
    /// What the user has not read, by thread.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unread_thread_notifications: BTreeMap<String, UnreadCounts>,
    /// Whether these two may have changed.
    #[serde(skip)]
    pub has_new_counts: bool,
}

impl JoinedRoom {
    /// Whether there is nothing in it that a client could not do without.
    pub fn is_empty(&self) -> bool {
        let (State::Before(state) | State::After(state)) = &self.state;
        state.is_empty()
            && self.timeline.events.is_empty()
            && !self.timeline.limited
            && self.ephemeral.is_empty()
            && self.account_data.is_empty()
            && !self.has_new_counts
    }
}

/// What clients need to name a room.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Members to name the room after.
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub heroes: Option<Vec<OwnedUserId>>,
    /// Number of joined members.
    #[serde(rename = "m.joined_member_count", skip_serializing_if = "Option::is_none")]
    pub joined: Option<u64>,
    /// Number of invited members.
    #[serde(rename = "m.invited_member_count", skip_serializing_if = "Option::is_none")]
    pub invited: Option<u64>,
}

/// A piece of a room's timeline.
#[derive(Debug, Default, Serialize)]
pub struct Timeline {
    /// The events, oldest first.
    pub events: Vec<Box<RawValue>>,
    /// Whether events between the last response and these were left out.
    pub limited: bool,
    /// Where to page back from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
}

/// A room that the user is invited to.
#[derive(Debug, Serialize)]
pub struct InvitedRoom {
    /// Stripped state.
    pub invite_state: Events,
}

/// A room that the user knocked on.
#[derive(Debug, Serialize)]
pub struct KnockedRoom {
    /// Stripped state.
    pub knock_state: Events,
}

/// A room that the user left or was banned from.
#[derive(Debug, Serialize)]
pub struct LeftRoom {
    /// State changes up to the user's leave.
    #[serde(flatten)]
    pub state: State,
    /// The timeline up to the user's leave.
    pub timeline: Timeline,
    /// The user's account data for the room.
    pub account_data: Events,
}
