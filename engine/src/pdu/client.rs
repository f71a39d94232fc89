//! Events as clients see them, put together from the stored JSON without serialising it again.
//!
//! Spec: client-server API, "Room event format" and "Stripped state".

use std::fmt::Write;

use ruma::EventId;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::Pdu;
use crate::room_version::RoomVersion;

/// What a server adds to an event for a client.
///
/// Spec: client-server API, `UnsignedData`.
#[derive(Clone, Debug, Default)]
pub struct Unsigned<'a> {
    /// Milliseconds since the event was sent.
    pub age_ms: Option<i64>,
    /// The client's transaction, for the device that sent it.
    pub transaction_id: Option<&'a str>,
    /// The content that a state event replaced.
    pub prev_content: Option<&'a RawValue>,
    /// The state event that it replaced.
    pub replaces_state: Option<&'a str>,
    /// Who sent the state event that it replaced.
    pub prev_sender: Option<&'a str>,
    /// The event that redacted it, in client format.
    pub redacted_because: Option<&'a RawValue>,
    /// The reader's membership when it was sent.
    pub membership: Option<&'a str>,
    /// Further members, ready-made: `"m.relations":{…}`.
    pub more: Option<&'a str>,
}

/// Whether an event names its room, which the place in a `/sync` response does already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomIdField {
    /// `room_id` is part of the event.
    Present,
    /// `room_id` is left out.
    Absent,
}

/// The event of a room of a version, in client format.
pub fn client_event(
    pdu: &Pdu,
    version: &RoomVersion,
    unsigned: &Unsigned<'_>,
    room_id: RoomIdField,
) -> Box<RawValue> {
    let target = pdu.redacts(version).filter(|_| pdu.kind_text == "m.room.redaction");
    let mut json = String::with_capacity(pdu.content.get().len() + 320);
    json.push_str("{\"content\":");
    match target {
        Some(target) => push_redaction(&mut json, &pdu.content, target),
        None => json.push_str(pdu.content.get()),
    }
    push_text(&mut json, "event_id", pdu.event_id.as_str());
    let _ = write!(json, ",\"origin_server_ts\":{}", pdu.origin_server_ts.get());
    if let Some(target) = target {
        push_text(&mut json, "redacts", target.as_str());
    }
    if room_id == RoomIdField::Present {
        push_text(&mut json, "room_id", pdu.room_id.as_str());
    }
    push_text(&mut json, "sender", pdu.sender.as_str());
    if let Some(state_key) = &pdu.state_key {
        push_text(&mut json, "state_key", state_key);
    }
    push_text(&mut json, "type", &pdu.kind_text);
    push_unsigned(&mut json, unsigned);
    json.push('}');
    RawValue::from_string(json).expect("JSON put together from JSON is JSON")
}

/// The event as servers send it to each other, with its ID, which newer room versions do not write down.
///
/// Spec: client-server API, "Filtering", `event_format`.
pub fn federation_event(pdu: &Pdu) -> Box<RawValue> {
    let mut event: Map<String, Value> = serde_json::from_slice(&pdu.raw).unwrap_or_default();
    event.insert("event_id".to_owned(), pdu.event_id.as_str().into());
    to_raw_value(&event).expect("a JSON object serialises")
}

/// The event as someone sees it who is not in the room.
pub fn stripped(pdu: &Pdu) -> Box<RawValue> {
    strip(pdu, false)
}

/// The event as someone sees it who is not in the room, and when it was sent.
///
/// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`, `children_state`.
pub fn stripped_with_time(pdu: &Pdu) -> Box<RawValue> {
    strip(pdu, true)
}

fn strip(pdu: &Pdu, with_time: bool) -> Box<RawValue> {
    let mut json = String::with_capacity(pdu.content.get().len() + 160);
    json.push_str("{\"content\":");
    json.push_str(pdu.content.get());
    if with_time {
        let _ = write!(json, ",\"origin_server_ts\":{}", pdu.origin_server_ts.get());
    }
    push_text(&mut json, "sender", pdu.sender.as_str());
    push_text(&mut json, "state_key", pdu.state_key.as_deref().unwrap_or_default());
    push_text(&mut json, "type", &pdu.kind_text);
    json.push('}');
    RawValue::from_string(json).expect("JSON put together from JSON is JSON")
}

/// The content of a redaction, which names its target there for clients in every room version.
fn push_redaction(json: &mut String, content: &RawValue, target: &EventId) {
    let content = content.get();
    if content.contains("\"redacts\"") {
        // Before version 11 it may say something else.
        let mut fields: Map<String, Value> = serde_json::from_str(content).unwrap_or_default();
        fields.insert("redacts".to_owned(), target.as_str().into());
        json.push_str(&Value::Object(fields).to_string());
        return;
    }
    json.push_str("{\"redacts\":");
    push_string(json, target.as_str());
    let rest = content.trim_start_matches('{').trim_start();
    if !rest.starts_with('}') {
        json.push(',');
    }
    json.push_str(rest);
}

fn push_unsigned(json: &mut String, unsigned: &Unsigned<'_>) {
    let start = json.len();
    if let Some(age) = unsigned.age_ms {
        let _ = write!(json, ",\"age\":{age}");
    }
    if let Some(membership) = unsigned.membership {
        push_text(json, "membership", membership);
    }
    for (name, raw) in
        [("prev_content", unsigned.prev_content), ("redacted_because", unsigned.redacted_because)]
    {
        if let Some(raw) = raw {
            let _ = write!(json, ",\"{name}\":{}", raw.get());
        }
    }
    for (name, text) in [
        ("prev_sender", unsigned.prev_sender),
        ("replaces_state", unsigned.replaces_state),
        ("transaction_id", unsigned.transaction_id),
    ] {
        if let Some(text) = text {
            push_text(json, name, text);
        }
    }
    if let Some(more) = unsigned.more {
        json.push(',');
        json.push_str(more);
    }
    if json.len() > start {
        json.replace_range(start..=start, ",\"unsigned\":{");
        json.push('}');
    }
}

fn push_text(json: &mut String, name: &str, text: &str) {
    json.push_str(",\"");
    json.push_str(name);
    json.push_str("\":");
    push_string(json, text);
}

fn push_string(json: &mut String, text: &str) {
    // Identifiers and types are plain almost always; the others pay for the escapes.
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}
