//! Building events of local users, and redacting events.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName,
    UserId, canonical_json, events::TimelineEventType, signatures,
};
use serde_json::value::RawValue;

use super::{Pdu, PduError, SigningKey, loose::Loose, parse::content_redacts};
use crate::room_version::RoomVersion;

/// The largest depth: canonical JSON has no larger integers.
const DEPTH_MAX: u64 = (1 << 53) - 1;

/// What a local user wants to say.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The event's type.
    pub kind: TimelineEventType,
    /// The state key, for a state event.
    pub state_key: Option<String>,
    /// The content.
    pub content: Box<RawValue>,
    /// The event to redact, for a redaction.
    pub redacts: Option<OwnedEventId>,
    /// When it is said to have happened, if that is not when it is sent.
    pub dated: Option<MilliSecondsSinceUnixEpoch>,
}

impl Draft {
    /// What a client wants to say; a redaction's content says what to redact.
    ///
    /// Spec: client-server API, `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`.
    pub fn new(kind: TimelineEventType, state_key: Option<String>, content: Box<RawValue>) -> Self {
        let is_redaction = kind == TimelineEventType::RoomRedaction;
        let redacts = if is_redaction { content_redacts(&content) } else { None };
        Self { kind, state_key, content, redacts, dated: None }
    }
}

/// Where in a room, when and by whom an event is made.
pub struct BuildContext<'a> {
    /// The room; none for the create event of a version in which that event names the room.
    pub room_id: Option<&'a RoomId>,
    /// Who sends it.
    pub sender: &'a UserId,
    /// When.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The events before it.
    pub prev_events: &'a [Arc<Pdu>],
    /// The events that authorise it.
    pub auth_events: &'a [Arc<Pdu>],
    /// Unique text for the ID, in versions in which the ID is not a hash.
    pub event_id_localpart: &'a str,
    /// The room's version.
    pub rules: &'static RoomVersion,
    /// Signs the event.
    pub key: &'a SigningKey,
    /// The signing server.
    pub server_name: &'a ServerName,
}

/// Builds, hashes and signs an event.
///
/// Spec: server-server API, "Adding hashes and signatures to outgoing events".
pub fn build(draft: Draft, context: &BuildContext<'_>) -> Result<Pdu, PduError> {
    seal(template(draft, context)?, context.key, context.server_name, context.rules)
}

/// An event without hashes and signatures, for whoever is to sign it.
///
/// Spec: server-server API, `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`.
pub fn template(draft: Draft, context: &BuildContext<'_>) -> Result<CanonicalJsonObject, PduError> {
    let version = context.rules;
    let mut object = header(draft, context)?;
    let prev_events = references(context.prev_events, version)?;
    object.insert("prev_events".to_owned(), prev_events);
    object.insert("auth_events".to_owned(), references(context.auth_events, version)?);
    let depth = context.prev_events.iter().map(|event| event.depth()).max().unwrap_or(0);
    object.insert("depth".to_owned(), integer(depth.saturating_add(1).min(DEPTH_MAX))?);
    if version.event_format.require_event_id {
        let id = format!("${}:{}", context.event_id_localpart, context.server_name);
        object.insert("event_id".to_owned(), id.into());
    }
    Ok(object)
}

/// Adds the content hash and the server's signature to an event that lacks them.
///
/// Spec: server-server API, "Adding hashes and signatures to outgoing events".
pub fn seal(
    mut object: CanonicalJsonObject,
    key: &SigningKey,
    server_name: &ServerName,
    version: &RoomVersion,
) -> Result<Pdu, PduError> {
    hash_and_sign(&mut object, server_name, key, version)?;
    Pdu::from_object(&object, version)
}

/// Adds the content hash and then the server's signature.
pub(super) fn hash_and_sign(
    object: &mut CanonicalJsonObject,
    server_name: &ServerName,
    key: &SigningKey,
    version: &RoomVersion,
) -> Result<(), PduError> {
    signatures::add_content_hash_to_event(object).map_err(malformed)?;
    signatures::sign_event(server_name.as_str(), key, object, &version.redaction).map_err(malformed)
}

/// Adds a server's signature to an event that others have signed.
///
/// Spec: server-server API, "Inviting to a room"; room version 8, "Restricted rooms".
pub fn countersign(
    pdu: &Pdu,
    key: &SigningKey,
    server_name: &ServerName,
    version: &RoomVersion,
) -> Result<Pdu, PduError> {
    let mut object = pdu.to_object()?;
    signatures::sign_event(server_name.as_str(), key, &mut object, &version.redaction).map_err(malformed)?;
    Pdu::from_object(&object, version)
}

fn malformed(error: signatures::JsonError) -> PduError {
    match error {
        signatures::JsonError::PduTooLarge => PduError::TooLarge("over 65536 bytes".to_owned()),
        error => PduError::Malformed(error.to_string()),
    }
}

fn header(draft: Draft, context: &BuildContext<'_>) -> Result<CanonicalJsonObject, PduError> {
    let json = |error: serde_json::Error| PduError::Json(error.to_string());
    let mut content: CanonicalJsonObject = serde_json::from_str(draft.content.get()).map_err(json)?;
    let mut object = CanonicalJsonObject::new();
    if let Some(redacts) = draft.redacts {
        if context.rules.redaction.content_field_redacts {
            content.insert("redacts".to_owned(), redacts.to_string().into());
        } else {
            // Clients may name it in the content in every version.
            content.remove("redacts");
            object.insert("redacts".to_owned(), redacts.to_string().into());
        }
    }
    object.insert("type".to_owned(), draft.kind.to_string().into());
    object.insert("sender".to_owned(), context.sender.to_string().into());
    object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    object.insert("origin_server_ts".to_owned(), integer(context.origin_server_ts.get().into())?);
    if let Some(room_id) = context.room_id {
        object.insert("room_id".to_owned(), room_id.to_string().into());
    }
    if let Some(state_key) = draft.state_key {
        object.insert("state_key".to_owned(), state_key.into());
    }
    Ok(object)
}

fn integer(number: u64) -> Result<CanonicalJsonValue, PduError> {
    let number = js_int::Int::try_from(number).map_err(|error| PduError::Malformed(error.to_string()))?;
    Ok(CanonicalJsonValue::Integer(number))
}

fn references(events: &[Arc<Pdu>], version: &RoomVersion) -> Result<CanonicalJsonValue, PduError> {
    let references = events.iter().map(|event| {
        let id: CanonicalJsonValue = event.event_id().to_string().into();
        if !version.references_have_hashes {
            return Ok(id);
        }
        let hash = event.reference_hash(version)?;
        let hashes = CanonicalJsonObject::from([("sha256".to_owned(), hash.into())]);
        Ok(CanonicalJsonValue::Array(vec![id, CanonicalJsonValue::Object(hashes)]))
    });
    Ok(CanonicalJsonValue::Array(references.collect::<Result<_, PduError>>()?))
}

/// Strips an event to what the redaction algorithm of its room version keeps; ID and signatures still hold.
///
/// Spec: "Redactions" of each room version.
pub fn redact(pdu: &Pdu, version: &RoomVersion) -> Result<Pdu, PduError> {
    let raw = match pdu.to_object() {
        Ok(object) => {
            let stripped = canonical_json::redact(object, &version.redaction, None)
                .map_err(|error| PduError::Malformed(error.to_string()))?;
            serde_json::to_vec(&stripped).map_err(|error| PduError::Json(error.to_string()))?
        }
        Err(_) => Loose::parse(&pdu.raw, version)?.redacted(version)?.bytes()?,
    };
    let mut redacted = Pdu::from_stored(pdu.event_id.clone(), raw.into())?;
    redacted.rejected = pdu.rejected;
    Ok(redacted)
}

impl Pdu {
    /// The hash that names the event, in the alphabet of the room version.
    fn reference_hash(&self, version: &RoomVersion) -> Result<String, PduError> {
        match self.to_object() {
            Ok(object) => signatures::reference_hash(&object, &version.rules)
                .map_err(|error| PduError::Malformed(error.to_string())),
            Err(_) => Loose::parse(&self.raw, version)?.reference_hash(version),
        }
    }

    /// The event as a canonical JSON object; an error if it is none, as it may be before version 6.
    pub fn to_object(&self) -> Result<CanonicalJsonObject, PduError> {
        serde_json::from_slice(&self.raw).map_err(|error| PduError::Json(error.to_string()))
    }
}
