//! Parsing events: strictly from peers, quickly from the store.

use std::borrow::Cow;

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId,
    canonical_json::CanonicalJsonValue, signatures, signatures::PublicKeyMap, state_res,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{Pdu, PduError, SIZE_MAX, Verified, loose::Loose, sign::verify};
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
        match serde_json::from_slice(json) {
            Ok(object) => Self::from_object(&object, version),
            Err(_) => Self::from_loose(&Loose::parse(json, version)?, version),
        }
    }

    /// The ID of what may be no event by its format or its size.
    pub fn id_of(json: &[u8], version: &RoomVersion) -> Option<OwnedEventId> {
        if json.len() > 2 * SIZE_MAX {
            return None;
        }
        match serde_json::from_slice(json) {
            Ok(object) => event_id(&object, version).ok(),
            Err(_) => loose_event_id(&Loose::parse(json, version).ok()?, version).ok(),
        }
    }

    /// The event of a canonical JSON object that a peer sent or that was built here.
    pub(super) fn from_object(object: &CanonicalJsonObject, version: &RoomVersion) -> Result<Self, PduError> {
        let raw = serde_json::to_vec(object).map_err(|error| PduError::Json(error.to_string()))?;
        check(object, &raw, version)?;
        Self::from_checked(event_id(object, version)?, raw)
    }

    /// The event of a peer that is no canonical JSON.
    fn from_loose(loose: &Loose<'_>, version: &RoomVersion) -> Result<Self, PduError> {
        let raw = loose.bytes()?;
        check(&loose.form(), &raw, version)?;
        Self::from_checked(loose_event_id(loose, version)?, raw)
    }

    fn from_checked(event_id: OwnedEventId, mut raw: Vec<u8>) -> Result<Self, PduError> {
        raw.shrink_to_fit(); // it stays in memory for as long as the event does
        Self::from_stored(event_id, raw.into())
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
        let content = match &*wire.kind {
            "m.room.power_levels" => whole_levels(wire.content),
            _ => wire.content.to_owned(),
        };
        Ok(Self {
            event_id,
            room_id: room_id.map_err(|_| malformed("room_id is no room ID"))?,
            sender,
            kind: wire.kind.as_ref().into(),
            kind_text: wire.kind.into_owned(),
            state_key: wire.state_key,
            content,
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

/// An event of a peer whose signatures are not checked yet.
pub struct Unchecked {
    /// The event, as it would be if its content hash matches.
    pub pdu: Pdu,
    /// The event as canonical JSON; numbers that this forbids are 0, where the room version does not enforce it.
    pub form: CanonicalJsonObject,
    is_canonical: bool,
}

impl Unchecked {
    /// Parses an event, but for what is not signed: nothing that another server says there is of use here.
    pub fn parse(json: &[u8], version: &RoomVersion) -> Result<Self, PduError> {
        if let Ok(mut form) = serde_json::from_slice::<CanonicalJsonObject>(json) {
            form.remove("unsigned");
            return Ok(Self { pdu: Pdu::from_object(&form, version)?, form, is_canonical: true });
        }
        let loose = Loose::parse(json, version)?.without(&["unsigned"]);
        Ok(Self { pdu: Pdu::from_loose(&loose, version)?, form: loose.form(), is_canonical: false })
    }

    /// Checks signatures and content hash, as [`verify`] does.
    pub fn verify(&self, keys: &PublicKeyMap, version: &RoomVersion) -> Result<Verified, PduError> {
        if self.is_canonical {
            return verify(&self.form, keys, version);
        }
        Loose::parse(&self.pdu.raw, version)?.verify(keys, version)
    }
}

/// The content of power levels, its floats cut off at the decimal point; only versions that accept them have any.
///
/// Spec: room versions 1 to 5, "`m.room.power_levels` events accept values as floats".
fn whole_levels(content: &RawValue) -> Box<RawValue> {
    let may_be_float = |pair: &[u8]| pair[0].is_ascii_digit() && matches!(pair[1], b'.' | b'e' | b'E');
    if !content.get().as_bytes().windows(2).any(may_be_float) {
        return content.to_owned();
    }
    let Ok(mut levels) = serde_json::from_str(content.get()) else { return content.to_owned() };
    cut_off(&mut levels);
    to_raw_value(&levels).unwrap_or_else(|_| content.to_owned())
}

fn cut_off(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole =
                number.as_f64().filter(|_| number.is_f64()).map(|float| format!("{:.0}", float.trunc()));
            if let Some(whole) = whole.and_then(|whole| whole.parse::<i64>().ok()) {
                *number = whole.into();
            }
        }
        Value::Object(members) => members.values_mut().for_each(cut_off),
        _ => {}
    }
}

/// Checks an event's limits and format.
fn check(form: &CanonicalJsonObject, raw: &[u8], version: &RoomVersion) -> Result<(), PduError> {
    if raw.len() > SIZE_MAX {
        return Err(PduError::TooLarge(format!("{} bytes", raw.len())));
    }
    check_lengths(form)?;
    state_res::check_pdu_format(form, &version.event_format).map_err(PduError::Malformed)
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
    let hash = || {
        signatures::reference_hash(object, &version.rules)
            .map_err(|error| PduError::Malformed(error.to_string()))
    };
    event_id_by(object, hash, version)
}

fn loose_event_id(loose: &Loose<'_>, version: &RoomVersion) -> Result<OwnedEventId, PduError> {
    event_id_by(&loose.form(), || loose.reference_hash(version), version)
}

fn event_id_by(
    form: &CanonicalJsonObject,
    hash: impl FnOnce() -> Result<String, PduError>,
    version: &RoomVersion,
) -> Result<OwnedEventId, PduError> {
    let id = if version.event_format.require_event_id {
        match form.get("event_id") {
            Some(CanonicalJsonValue::String(id)) => id.clone(),
            _ => return Err(PduError::Malformed("event_id is missing".to_owned())),
        }
    } else {
        format!("${}", hash()?)
    };
    OwnedEventId::try_from(id).map_err(|error| PduError::Malformed(error.to_string()))
}
