//! Which events a client's filter lets through.
//!
//! Spec: client-server API, "Filtering".

mod fields;

use std::collections::BTreeMap;

use engine::pdu::Pdu;
use ruma::{
    RoomId,
    api::client::filter::{Filter, RoomEventFilter, RoomFilter, UrlFilter},
};
use serde_json::Value;

pub use self::fields::Fields;

/// Whether a filter for room events lets an event through.
pub fn passes(filter: &RoomEventFilter, pdu: &Pdu) -> bool {
    let kind = pdu.kind();
    if !type_passes(filter.types.as_deref(), &filter.not_types, kind) {
        return false;
    }
    if filter.not_senders.iter().any(|sender| sender == pdu.sender())
        || filter.senders.as_ref().is_some_and(|senders| !senders.iter().any(|sender| sender == pdu.sender()))
    {
        return false;
    }
    match filter.url_filter {
        None => true,
        Some(UrlFilter::EventsWithUrl) => contains_url(pdu),
        Some(UrlFilter::EventsWithoutUrl) => !contains_url(pdu),
    }
}

/// Whether a filter that only looks at types lets a type through.
pub fn type_passes(types: Option<&[String]>, not_types: &[String], kind: &str) -> bool {
    !not_types.iter().any(|pattern| glob(pattern, kind))
        && types.is_none_or(|types| types.iter().any(|pattern| glob(pattern, kind)))
}

/// Whether a filter for events without rooms lets an event of this type and sender through.
pub fn passes_outside_rooms(filter: &Filter, kind: &str, sender: Option<&ruma::UserId>) -> bool {
    type_passes(filter.types.as_deref(), &filter.not_types, kind)
        && sender.is_none_or(|sender| {
            !filter.not_senders.iter().any(|other| other == sender)
                && filter.senders.as_ref().is_none_or(|senders| senders.iter().any(|other| other == sender))
        })
}

/// Whether a room filter lets a room through.
pub fn room_passes(filter: &RoomFilter, room_id: &RoomId) -> bool {
    id_passes(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

/// Whether a filter for room events applies to a room at all.
pub fn applies_to_room(filter: &RoomEventFilter, room_id: &RoomId) -> bool {
    id_passes(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

fn id_passes(rooms: Option<&[ruma::OwnedRoomId]>, not_rooms: &[ruma::OwnedRoomId], room_id: &RoomId) -> bool {
    !not_rooms.iter().any(|other| other == room_id)
        && rooms.is_none_or(|rooms| rooms.iter().any(|other| other == room_id))
}

/// Whether the content has a key `url`, whatever its value.
fn contains_url(pdu: &Pdu) -> bool {
    let content = pdu.content().get();
    content.contains("\"url\"")
        && serde_json::from_str::<BTreeMap<String, Value>>(content)
            .is_ok_and(|content| content.contains_key("url"))
}

/// Matches a type against a pattern in which `*` stands for any characters.
fn glob(pattern: &str, kind: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == kind };
    let Some(mut kind) = kind.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = kind.find(part) else { return false };
        kind = &kind[at + part.len()..];
    }
    kind.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, kind, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.member", true),
            ("m.*.member", "m.room.member", true),
            ("*", "", true),
            ("*member", "m.room.member", true),
            ("m.*room*member", "m.room.member", true),
            ("m.*x*member", "m.room.member", false),
            ("m.a*a", "m.a", false),
        ] {
            assert_eq!(glob(pattern, kind), expected, "{pattern} against {kind}");
        }
    }
}
