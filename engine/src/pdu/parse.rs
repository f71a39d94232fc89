//! Parsing events: strictly from peers, quickly from the store.

use std::borrow::Cow;

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId,
    canonical_json::CanonicalJsonValue, signatures, state_res,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Pdu, PduError, SIZE_MAX};
use crate::room_version::RoomVersion;

/// The header of an event, read in one pass.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    sender: Cow<'a, str>,
    #[serde(borrow, default)]
    room_id: Option<Cow<'a, str>>,
    #[serde(default)]
    state_key: Option<String>,
    #[serde(borrow)]
    content: &'a RawValue,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(default)]
    depth: u64,
    #[serde(default)]
    prev_events: Vec<Reference>,
    #[serde(default)]
    auth_events: Vec<Reference>,
    #[serde(default)]
    redacts: Option<OwnedEventId>,
}

/// The event that a redaction's content names.
pub(super) fn content_redacts(content: &RawValue) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Content {
        redacts: Option<OwnedEventId>,
    }
    serde_json::from_str::<Content>(content.get()).ok()?.redacts
}

/// An event ID, or the pair of an event ID and its hashes that room versions 1 and 2 use.
struct Reference(OwnedEventId);

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReferenceVisitor;
        impl<'de> Visitor<'de> for ReferenceVisitor {
            type Value = Reference;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event ID, or a pair of an event ID and hashes")
            }

            fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<Reference, E> {
                EventId::parse(id).map(Reference).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Reference, A::Error> {
                let id = pair.next_element::<OwnedEventId>()?;
                while pair.next_element::<IgnoredAny>()?.is_some() {}
                id.map(Reference).ok_or_else(|| serde::de::Error::invalid_length(0, &self))
            }
        }
        deserializer.deserialize_any(ReferenceVisitor)
    }
}

impl Pdu {
    /// Parses an event from a peer: format and limits are checked, the ID is computed; signatures are not checked.
    ///
    /// Spec: server-server API, "Checks performed on receipt of a PDU", step 1.
    pub fn parse(json: &[u8], version: &RoomVersion) -> Result<Self, PduError> {
        if json.len() > 2 * SIZE_MAX {
            return Err(PduError::TooLarge(format!("{} bytes", json.len())));
        }
        let object: CanonicalJsonObject =
            serde_json::from_slice(json).map_err(|error| PduError::Json(error.to_string()))?;
        Self::from_object(&object, version)
    }

    /// The ID of what may be no event by its format or its size.
    pub fn id_of(json: &[u8], version: &RoomVersion) -> Option<OwnedEventId> {
        let object = serde_json::from_slice(json).ok().filter(|_| json.len() <= 2 * SIZE_MAX)?;
        event_id(&object, version).ok()
    }

    /// The event of a canonical JSON object that a peer sent or that was built here.
    pub(super) fn from_object(object: &CanonicalJsonObject, version: &RoomVersion) -> Result<Self, PduError> {
        let mut raw = serde_json::to_vec(object).map_err(|error| PduError::Json(error.to_string()))?;
        raw.shrink_to_fit(); // it stays in memory for as long as the event does
        if raw.len() > SIZE_MAX {
            return Err(PduError::TooLarge(format!("{} bytes", raw.len())));
        }
        check_lengths(object)?;
        state_res::check_pdu_format(object, &version.event_format).map_err(PduError::Malformed)?;
        Self::from_stored(event_id(object, version)?, raw.into())
    }

    /// An event that was checked before, from its canonical JSON.
    pub fn from_stored(event_id: OwnedEventId, raw: Bytes) -> Result<Self, PduError> {
        let malformed = |what: &str| PduError::Malformed(what.to_owned());
        let wire: Wire<'_> =
            serde_json::from_slice(&raw).map_err(|error| PduError::Malformed(error.to_string()))?;
        let sender =
            OwnedUserId::try_from(wire.sender.as_ref()).map_err(|_| malformed("sender is no user ID"))?;
        let room_id = match wire.room_id {
            Some(room_id) => OwnedRoomId::try_from(room_id.as_ref()),
            // A create event of version 12: the room is named after it.
            None => OwnedRoomId::try_from(format!("!{}", event_id.as_str().trim_start_matches('$'))),
        };
        let content_redacts =
            if wire.kind == "m.room.redaction" { content_redacts(wire.content) } else { None };
        Ok(Self {
            event_id,
            room_id: room_id.map_err(|_| malformed("room_id is no room ID"))?,
            sender,
            kind: wire.kind.as_ref().into(),
            kind_text: wire.kind.into_owned(),
            state_key: wire.state_key,
            content: wire.content.to_owned(),
            origin_server_ts: wire.origin_server_ts,
            depth: wire.depth,
            prev_events: wire.prev_events.into_iter().map(|reference| reference.0).collect(),
            auth_events: wire.auth_events.into_iter().map(|reference| reference.0).collect(),
            redacts: wire.redacts,
            content_redacts,
            raw,
            rejected: false,
        })
    }
}

/// Checks the limit of 255 bytes that some fields have.
///
/// Spec: client-server API, "Size limits".
fn check_lengths(object: &CanonicalJsonObject) -> Result<(), PduError> {
    for field in ["sender", "room_id", "state_key", "type", "event_id"] {
        if let Some(CanonicalJsonValue::String(text)) = object.get(field)
            && text.len() > 255
        {
            return Err(PduError::TooLarge(format!("{field} has {} bytes", text.len())));
        }
    }
    Ok(())
}

/// The ID of an event: its own field, or the reference hash from version 3 on.
fn event_id(object: &CanonicalJsonObject, version: &RoomVersion) -> Result<OwnedEventId, PduError> {
    let id = if version.event_format.require_event_id {
        match object.get("event_id") {
            Some(CanonicalJsonValue::String(id)) => id.clone(),
            _ => return Err(PduError::Malformed("event_id is missing".to_owned())),
        }
    } else {
        let hash = signatures::reference_hash(object, &version.rules)
            .map_err(|error| PduError::Malformed(error.to_string()))?;
        format!("${hash}")
    };
    OwnedEventId::try_from(id).map_err(|error| PduError::Malformed(error.to_string()))
}
