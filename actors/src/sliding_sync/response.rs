//! The body of a response. Members that are absent have not changed.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;

use super::threads::ThreadSubscriptions;
use crate::sync::DeviceLists;

/// The whole response.
#[derive(Debug, Default, Serialize)]
pub struct SlidingResponse {
    /// For the next request.
    pub pos: String,
    /// The request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txn_id: Option<String>,
    /// The lists of the request.
    pub lists: BTreeMap<String, ListResult>,
    /// Rooms that are new to the client or have changed.
    pub rooms: BTreeMap<OwnedRoomId, RoomResult>,
    /// What else was asked for.
    pub extensions: Extensions,
}

/// A list.
#[derive(Debug, Serialize)]
pub struct ListResult {
    /// The number of rooms that pass the list's filters.
    pub count: usize,
}

/// A room.
#[derive(Debug, Default, Serialize)]
pub struct RoomResult {
    /// The name that its state gives it; null once that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Option<String>>,
    /// Its avatar; null once that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar: Option<Option<String>>,
    /// Members to name it after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heroes: Option<Vec<Hero>>,
    /// Whether this is all there is, and not only what changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub initial: bool,
    /// Whether it is a direct chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_dm: Option<bool>,
    /// The user's membership.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<String>,
    /// Stripped state of a room that the user was never in: it is invited, knocked or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invite_state: Option<Vec<Box<RawValue>>>,
    /// State that the request requires.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_state: Vec<Box<RawValue>>,
    /// The newest events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Box<RawValue>>,
    /// Where `/messages` goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
    /// Whether there are events between the last response and `timeline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited: Option<bool>,
    /// Whether `timeline` reaches further back than before.
    #[serde(rename = "unstable_expanded_timeline", skip_serializing_if = "std::ops::Not::not")]
    pub expanded_timeline: bool,
    /// How many events of `timeline` are news.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_live: Option<usize>,
    /// Orders rooms by activity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bump_stamp: Option<u64>,
    /// The number of joined members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined_count: Option<u64>,
    /// The number of invited members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invited_count: Option<u64>,
    /// Unread events that notify.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notification_count: Option<u64>,
    /// Unread events that highlight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highlight_count: Option<u64>,
    /// The lists that it is in; the accepted form alone tells of them.
    #[serde(skip)]
    pub lists: Vec<String>,
    /// Required state that is not there any more, by type and state key; the accepted form alone tells of it.
    #[serde(skip)]
    pub deleted: Vec<(String, String)>,
}

impl RoomResult {
    /// Whether there is nothing to tell; the membership alone is no news.
    pub(super) fn is_empty(&self) -> bool {
        let no_state =
            self.required_state.is_empty() && self.deleted.is_empty() && self.invite_state.is_none();
        let no_timeline = self.timeline.is_empty() && self.limited != Some(true);
        let no_name = self.name.is_none() && self.avatar.is_none() && self.heroes.is_none();
        let no_counts = self.joined_count.is_none() && self.notification_count.is_none();
        !self.initial && self.is_dm.is_none() && no_state && no_timeline && no_name && no_counts
    }
}

/// A member to name a room after.
#[derive(Debug, Serialize)]
pub struct Hero {
    /// The user.
    pub user_id: OwnedUserId,
    /// Their name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub displayname: Option<String>,
    /// Their avatar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
}

/// What is sent besides rooms.
#[derive(Debug, Default, Serialize)]
pub struct Extensions {
    /// Account data.
    #[serde(skip_serializing_if = "AccountData::is_empty")]
    pub account_data: AccountData,
    /// Receipts.
    #[serde(skip_serializing_if = "PerRoom::is_empty")]
    pub receipts: PerRoom,
    /// Who is typing.
    #[serde(skip_serializing_if = "PerRoom::is_empty")]
    pub typing: PerRoom,
    /// Messages to the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_device: Option<ToDevice>,
    /// Device lists and key counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2ee: Option<Encryption>,
    /// Threads that the user subscribed to, or unsubscribed from.
    #[serde(rename = "io.element.msc4308.thread_subscriptions", skip_serializing_if = "Option::is_none")]
    pub thread_subscriptions: Option<ThreadSubscriptions>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        let has_messages = self.to_device.as_ref().is_some_and(|to_device| !to_device.events.is_empty());
        let has_keys =
            self.e2ee.as_ref().is_some_and(|e2ee| e2ee.has_new_counts || !e2ee.device_lists.is_empty());
        let no_events = self.account_data.is_empty() && self.receipts.is_empty() && self.typing.is_empty();
        no_events && !has_messages && !has_keys && self.thread_subscriptions.is_none()
    }
}

/// Messages to the device.
#[derive(Debug, Serialize)]
pub struct ToDevice {
    /// For the next request, which thereby acknowledges these messages.
    pub next_batch: String,
    /// The messages.
    pub events: Vec<Box<RawValue>>,
}

/// What a client needs to know of keys.
#[derive(Debug, Default, Serialize)]
pub struct Encryption {
    /// Whose devices changed.
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub device_lists: DeviceLists,
    /// One-time keys of the device that nobody has claimed, by algorithm.
    pub device_one_time_keys_count: BTreeMap<String, u64>,
    /// Algorithms for which the device has a fallback key that nobody was given.
    pub device_unused_fallback_key_types: Vec<String>,
    /// Whether these two have changed.
    #[serde(skip)]
    pub(super) has_new_counts: bool,
}

/// Account data.
#[derive(Debug, Default, Serialize)]
pub struct AccountData {
    /// Global account data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub global: Vec<Box<RawValue>>,
    /// Account data of rooms.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}

impl AccountData {
    fn is_empty(&self) -> bool {
        self.global.is_empty() && self.rooms.is_empty()
    }
}

/// An event for each room.
#[derive(Debug, Default, Serialize)]
pub struct PerRoom {
    /// The events.
    pub rooms: BTreeMap<OwnedRoomId, Box<RawValue>>,
}

impl PerRoom {
    fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}
