//! Events in their federation form: parsed, built, hashed, signed, redacted.
//!
//! A [`Pdu`] keeps the canonical JSON that was received or created; nothing serialises it again.
//! Spec: server-server API, "PDUs" and "Signing events".

mod build;
pub mod client;
mod loose;
mod parse;
mod sign;

use std::fmt;

use bytes::Bytes;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::TimelineEventType,
};
use serde_json::value::RawValue;

use crate::room_version::RoomVersion;

pub use self::{
    build::{BuildContext, Draft, build, countersign, redact, seal, template},
    parse::Unchecked,
    sign::{SigningKey, Verified, is_signed_by, signers, verify, with_signature},
};

/// The largest event, in bytes of canonical JSON with signatures.
///
/// Spec: client-server API, "Size limits".
pub const SIZE_MAX: usize = 65_536;

/// Why bytes are not an acceptable event, or a draft makes none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// The event is larger than 65,536 bytes, or one of its fields than 255.
    #[error("event is too large: {0}")]
    TooLarge(String),
    /// The bytes are not JSON that the room version allows.
    #[error("event is not canonical JSON: {0}")]
    Json(String),
    /// A field is missing or has the wrong shape.
    #[error("event is malformed: {0}")]
    Malformed(String),
    /// The signatures do not hold.
    #[error("event is not properly signed: {0}")]
    Signature(String),
}

/// An event; immutable.
#[derive(Clone)]
pub struct Pdu {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    kind: TimelineEventType,
    kind_text: String,
    state_key: Option<String>,
    content: Box<RawValue>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    depth: u64,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    /// The event's own `redacts`.
    redacts: Option<OwnedEventId>,
    /// That in the content of a redaction.
    content_redacts: Option<OwnedEventId>,
    raw: Bytes,
    rejected: bool,
}

impl Pdu {
    /// The event's ID.
    pub fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    /// The room's ID; for a create event of version 12, the one that follows from its hash.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Who sent it.
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// The event's type, as text.
    pub fn kind(&self) -> &str {
        &self.kind_text
    }

    /// The event's type.
    pub fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    /// The state key, if it is a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    /// The content, as the JSON that it is.
    pub fn content(&self) -> &RawValue {
        &self.content
    }

    /// When its server says it was sent.
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    /// Its distance from the start of the room, as its server says.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// The events before it.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.prev_events
    }

    /// The events that authorise it.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.auth_events
    }

    /// The event that a redaction redacts: its content names it from version 11 on, a field of its own before.
    ///
    /// Spec: room version 11, "Moving the `redacts` property of `m.room.redaction` events to a `content` property".
    pub fn redacts(&self, version: &RoomVersion) -> Option<&EventId> {
        let in_content = version.redaction.content_field_redacts;
        if in_content { self.content_redacts.as_deref() } else { self.redacts.as_deref() }
    }

    /// The canonical JSON as received or created.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Whether the event failed authorization.
    pub fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// Marks an event that failed authorization, so that nothing is authorised by it.
    #[must_use]
    pub fn rejected(mut self) -> Self {
        self.rejected = true;
        self
    }
}

/// Everything else follows from the ID and the JSON, which may be redacted in one of two.
impl PartialEq for Pdu {
    fn eq(&self, other: &Self) -> bool {
        self.event_id == other.event_id && self.raw == other.raw && self.rejected == other.rejected
    }
}

impl Eq for Pdu {}

impl fmt::Debug for Pdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Content is private to the room: it must not end up in a log.
        f.debug_struct("Pdu")
            .field("event_id", &self.event_id)
            .field("kind", &self.kind_text)
            .finish_non_exhaustive()
    }
}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        // Since version 12 a create event has no `room_id`: its own ID, with another sigil, is the room's.
        let is_own_room = self.event_id.as_str().get(1..) == self.room_id.as_str().get(1..);
        (!is_own_room).then_some(&self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        // Asked for only by the rules of versions that have the field.
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

#[cfg(test)]
mod tests;
