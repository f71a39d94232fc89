//! The body of a request, as both the unstable and the accepted form of the proposal spell it.

use std::collections::BTreeMap;

use ruma::OwnedRoomId;
use serde::Deserialize;

/// Lists that a request may have.
const LISTS_MAX: usize = 100;

/// Rooms that a request may subscribe to.
const SUBSCRIPTIONS_MAX: usize = 1000;

/// Elements of a room's required state.
const REQUIRED_MAX: usize = 200;

/// The longest connection ID.
const CONN_ID_MAX: usize = 255;

/// A request's body.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Body {
    /// Tells the connections of a device apart.
    #[serde(default)]
    pub conn_id: Option<String>,
    /// Comes back in the response.
    #[serde(default)]
    pub txn_id: Option<String>,
    /// Rooms by their place in an order.
    #[serde(default)]
    pub lists: BTreeMap<String, List>,
    /// Rooms by their ID.
    #[serde(default)]
    pub room_subscriptions: BTreeMap<OwnedRoomId, RoomConfig>,
    /// What else to send.
    #[serde(default)]
    pub extensions: Extensions,
}

/// What to send of a room.
#[derive(Clone, Debug, Deserialize)]
pub struct RoomConfig {
    /// Event types and state keys.
    #[serde(default)]
    pub required_state: Vec<(String, String)>,
    /// How many events of the timeline.
    pub timeline_limit: u32,
}

/// A list.
#[derive(Clone, Debug, Deserialize)]
pub struct List {
    /// First and last places; all rooms without any.
    #[serde(default)]
    pub ranges: Option<Vec<(u64, u64)>>,
    /// One such pair.
    #[serde(default)]
    pub range: Option<(u64, u64)>,
    /// What to send of each room.
    #[serde(flatten)]
    pub config: RoomConfig,
    /// Which rooms belong to the list.
    #[serde(default)]
    pub filters: Option<Filters>,
}

impl List {
    /// Whether a place is in the list's ranges.
    pub(super) fn covers(&self, place: u64) -> bool {
        let mut ranges = self.ranges.iter().flatten().chain(&self.range).peekable();
        let is_unbounded = self.ranges.is_none() && self.range.is_none();
        is_unbounded || ranges.any(|(first, last)| (*first..=*last).contains(&place))
    }
}

/// Which rooms belong to a list: those that pass all that is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// Direct chats or others.
    pub is_dm: Option<bool>,
    /// Children of any of these spaces.
    pub spaces: Option<Vec<OwnedRoomId>>,
    /// Encrypted rooms or others.
    pub is_encrypted: Option<bool>,
    /// Invites or others.
    #[serde(alias = "is_invited")]
    pub is_invite: Option<bool>,
    /// Rooms of these types; null stands for rooms without one.
    pub room_types: Option<Vec<Option<String>>>,
    /// Rooms of other types than these.
    pub not_room_types: Option<Vec<Option<String>>>,
    /// Rooms with any of these tags.
    pub tags: Option<Vec<String>>,
    /// Rooms with none of these tags.
    pub not_tags: Option<Vec<String>>,
}

/// What to send besides rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Extensions {
    /// Account data.
    pub account_data: PerRoom,
    /// Receipts.
    pub receipts: PerRoom,
    /// Who is typing.
    pub typing: PerRoom,
    /// Messages to the device.
    pub to_device: ToDevice,
    /// Device lists and key counts.
    pub e2ee: PerRoom,
    /// Threads that the user subscribed to.
    #[serde(rename = "io.element.msc4308.thread_subscriptions")]
    pub thread_subscriptions: ThreadSubscriptions,
}

/// Threads that the user subscribed to, or unsubscribed from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ThreadSubscriptions {
    /// Whether they are wanted.
    pub enabled: Option<bool>,
    /// How many changes a response may hold.
    pub limit: Option<u64>,
}

/// Messages to the device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ToDevice {
    /// Whether they are wanted.
    pub enabled: Option<bool>,
    /// The last response's `next_batch`.
    pub since: Option<String>,
}

/// An extension that concerns rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PerRoom {
    /// Whether it is wanted.
    pub enabled: Option<bool>,
    /// For the rooms of which lists; of all, if unset.
    pub lists: Option<Vec<String>>,
    /// For which subscribed rooms; for all, if unset.
    pub rooms: Option<Vec<String>>,
}

impl PerRoom {
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled == Some(true)
    }
}

impl Body {
    /// Refuses what is beyond the limits.
    pub fn check(&self) -> Result<(), String> {
        let configs = self.lists.values().map(|list| &list.config).chain(self.room_subscriptions.values());
        let mut ranges = self.lists.values().flat_map(|list| list.ranges.iter().flatten().chain(&list.range));
        if self.lists.len() > LISTS_MAX {
            return Err(format!("there may be {LISTS_MAX} lists at most"));
        }
        if self.room_subscriptions.len() > SUBSCRIPTIONS_MAX {
            return Err(format!("there may be {SUBSCRIPTIONS_MAX} subscriptions at most"));
        }
        if configs.clone().any(|config| config.required_state.len() > REQUIRED_MAX) {
            return Err(format!("required_state may have {REQUIRED_MAX} elements at most"));
        }
        if ranges.any(|(first, last)| first > last) {
            return Err("a range ends before it begins".to_owned());
        }
        if self.conn_id.as_ref().is_some_and(|id| id.len() > CONN_ID_MAX) {
            return Err(format!("conn_id may have {CONN_ID_MAX} bytes at most"));
        }
        Ok(())
    }
}
