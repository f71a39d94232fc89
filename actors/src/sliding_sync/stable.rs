//! The accepted form of requests and responses, where it differs from the one that clients began with.
//!
//! Spec: MSC4186, "API" and the differences in "Changelog".

use std::collections::BTreeMap;

use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{
    request::{Body, Extensions, Filters, List, RoomConfig},
    required::{ANY, LAZY, MEMBER, excluded},
    response::{self, Hero, ListResult, RoomResult, SlidingResponse},
};

/// Rooms that a request may subscribe to: the MSC's.
const SUBSCRIPTIONS_MAX: usize = 100;

/// A request's body; what was in the query is in here, too.
#[derive(Debug, Deserialize)]
pub struct StableBody {
    /// The last response's `pos`.
    pub pos: Option<String>,
    /// How long to wait for something new, in milliseconds.
    pub timeout: Option<u64>,
    /// How the user is shown meanwhile.
    pub set_presence: Option<String>,
    conn_id: Option<String>,
    #[serde(default)]
    lists: BTreeMap<String, StableList>,
    #[serde(default)]
    room_subscriptions: BTreeMap<OwnedRoomId, StableConfig>,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Debug, Deserialize)]
struct StableList {
    range: Option<(u64, u64)>,
    #[serde(flatten)]
    config: StableConfig,
    filters: Option<Filters>,
}

#[derive(Debug, Deserialize)]
struct StableConfig {
    timeline_limit: u32,
    required_state: RequiredState,
}

#[derive(Debug, Deserialize)]
struct RequiredState {
    #[serde(default)]
    include: Vec<Element>,
    #[serde(default)]
    exclude: Vec<Element>,
    #[serde(default)]
    lazy_members: bool,
}

#[derive(Debug, Deserialize)]
struct Element {
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
}

impl Element {
    fn pair(self) -> (String, String) {
        (self.kind.unwrap_or_else(|| ANY.to_owned()), self.state_key.unwrap_or_else(|| ANY.to_owned()))
    }
}

impl From<StableConfig> for RoomConfig {
    fn from(config: StableConfig) -> Self {
        let RequiredState { include, exclude, lazy_members } = config.required_state;
        let mut required: Vec<_> = include.into_iter().map(Element::pair).collect();
        required.extend(exclude.into_iter().map(|element| excluded(element.pair())));
        required.extend(lazy_members.then(|| (MEMBER.to_owned(), LAZY.to_owned())));
        Self { required_state: required, timeline_limit: config.timeline_limit }
    }
}

impl StableBody {
    /// The body as the rest of this module takes it, or what is wrong with it.
    pub fn into_body(self) -> Result<Body, String> {
        if self.room_subscriptions.len() > SUBSCRIPTIONS_MAX {
            return Err(format!("there may be {SUBSCRIPTIONS_MAX} subscriptions at most"));
        }
        let list = |list: StableList| List {
            ranges: None,
            range: list.range,
            config: list.config.into(),
            filters: list.filters,
        };
        let body = Body {
            conn_id: self.conn_id,
            txn_id: None,
            lists: self.lists.into_iter().map(|(name, config)| (name, list(config))).collect(),
            room_subscriptions: self
                .room_subscriptions
                .into_iter()
                .map(|(room, config)| (room, config.into()))
                .collect(),
            extensions: self.extensions,
        };
        body.check().map(|()| body)
    }
}

/// The whole response.
#[derive(Debug, Serialize)]
pub struct StableResponse {
    pos: String,
    lists: BTreeMap<String, ListResult>,
    rooms: BTreeMap<OwnedRoomId, StableRoom>,
    extensions: response::Extensions,
}

#[derive(Debug, Serialize)]
#[expect(clippy::option_option, reason = "what is absent has not changed, and what is null is gone")]
struct StableRoom {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lists: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<Hero>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripped_state: Option<Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expanded_timeline: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
}

impl From<RoomResult> for StableRoom {
    fn from(room: RoomResult) -> Self {
        let mut required_state = room.required_state;
        required_state.extend(room.deleted.iter().filter_map(|(kind, state_key)| {
            serde_json::value::to_raw_value(&json!({ "type": kind, "state_key": state_key })).ok()
        }));
        Self {
            lists: room.lists,
            membership: room.membership,
            name: room.name,
            avatar: room.avatar,
            heroes: room.heroes,
            initial: room.initial,
            is_dm: room.is_dm,
            stripped_state: room.invite_state,
            required_state,
            timeline: room.timeline,
            prev_batch: room.prev_batch,
            limited: room.limited,
            expanded_timeline: room.expanded_timeline,
            num_live: room.num_live,
            bump_stamp: room.bump_stamp,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
        }
    }
}

impl From<SlidingResponse> for StableResponse {
    fn from(response: SlidingResponse) -> Self {
        let rooms = response.rooms.into_iter().map(|(room_id, room)| (room_id, room.into())).collect();
        Self { pos: response.pos, lists: response.lists, rooms, extensions: response.extensions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_state_becomes_pairs() {
        let config: StableConfig = serde_json::from_value(json!({
            "timeline_limit": 1,
            "required_state": {
                "include": [{}, { "type": "m.room.name", "state_key": "" }],
                "exclude": [{ "type": "m.room.create" }],
                "lazy_members": true,
            },
        }))
        .unwrap();
        let pair = |kind: &str, key: &str| (kind.to_owned(), key.to_owned());
        let expected = [
            pair("*", "*"),
            pair("m.room.name", ""),
            excluded(pair("m.room.create", "*")),
            pair("m.room.member", "$LAZY"),
        ];
        assert_eq!(RoomConfig::from(config).required_state, expected);
    }
}
