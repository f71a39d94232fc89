//! The few content fields that a room looks into itself.

use ruma::{OwnedRoomId, OwnedUserId, events::room::server_acl::RoomServerAclEventContent};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::pdu::Pdu;

/// A field set of an event's content, or its default if the content has another shape.
fn read<T: DeserializeOwned + Default>(pdu: &Pdu) -> T {
    serde_json::from_str(pdu.content().get()).unwrap_or_default()
}

#[derive(Default, Deserialize)]
struct Member {
    #[serde(default)]
    membership: String,
}

/// The membership that an `m.room.member` event states.
pub fn membership(pdu: &Pdu) -> String {
    read::<Member>(pdu).membership
}

#[derive(Default, Deserialize)]
struct Create {
    #[serde(rename = "m.federate")]
    federates: Option<bool>,
}

/// Whether users of other servers than its creator's may be in a room, by its `m.room.create` event.
pub fn federates(create: &Pdu) -> bool {
    read::<Create>(create).federates.unwrap_or(true)
}

#[derive(Default, Deserialize)]
struct JoinRules {
    join_rule: Option<String>,
    #[serde(default)]
    allow: Vec<AllowRule>,
}

#[derive(Deserialize)]
struct AllowRule {
    room_id: Option<OwnedRoomId>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// The join rule that an `m.room.join_rules` event states; `invite` if there is none.
pub fn join_rule(pdu: Option<&Pdu>) -> String {
    pdu.and_then(|pdu| read::<JoinRules>(pdu).join_rule).unwrap_or_else(|| "invite".to_owned())
}

/// The rooms whose members may join, by an `m.room.join_rules` event.
pub fn allowed_rooms(pdu: &Pdu) -> Vec<OwnedRoomId> {
    let allow = read::<JoinRules>(pdu).allow;
    allow
        .into_iter()
        .filter(|rule| rule.kind.as_deref() == Some("m.room_membership"))
        .filter_map(|rule| rule.room_id)
        .collect()
}

/// A string field of an event's content.
pub fn string(pdu: &Pdu, field: &str) -> Option<String> {
    let content: Map<String, Value> = read(pdu);
    content.get(field)?.as_str().map(ToOwned::to_owned)
}

/// The users whom an `m.room.create` event names as creators besides its sender.
///
/// Spec: room version 12, "Event format"; before that, nobody has power by it.
pub fn additional_creators(create: &Pdu) -> Vec<OwnedUserId> {
    let content: Map<String, Value> = read(create);
    let users = strings(content.get("additional_creators"));
    users.into_iter().filter_map(|user| OwnedUserId::try_from(user).ok()).collect()
}

/// The access control list that an `m.room.server_acl` event states, as far as it is one.
///
/// Spec: client-server API, "`m.room.server_acl`".
pub fn server_acl(pdu: &Pdu) -> RoomServerAclEventContent {
    let content: Map<String, Value> = read(pdu);
    let allow_ip_literals = content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true);
    let list = |field| strings(content.get(field));
    RoomServerAclEventContent::new(allow_ip_literals, list("allow"), list("deny"))
}

/// The strings of a list; none if it is no list.
fn strings(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|item| item.as_str().map(ToOwned::to_owned)).collect()
}

/// The users whom an `m.room.power_levels` event names with a level of their own.
pub fn power_users(pdu: &Pdu) -> Vec<OwnedUserId> {
    let content: Map<String, Value> = read(pdu);
    let users = content.get("users").and_then(|users| users.as_object());
    users.into_iter().flatten().filter_map(|(user, _)| OwnedUserId::try_from(user.as_str()).ok()).collect()
}
