//! From the JSON that a peer sent to events whose signatures and hashes hold.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU", steps 1 to 3.

use engine::{
    pdu::{self, Pdu, PduError, Verified},
    room_version::RoomVersion,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    signatures::{PublicKeyMap, required_server_signatures_to_verify_event},
};
use serde_json::value::RawValue;

use super::keys::WantedKeys;

/// A received event whose signatures are not checked yet.
pub(super) struct Unverified {
    object: CanonicalJsonObject,
    /// The event, as it would be if its content hash matches.
    pub(super) pdu: Pdu,
}

impl Unverified {
    /// Parses an event.
    pub(super) fn parse(json: &RawValue, version: &RoomVersion) -> Result<Self, PduError> {
        let mut object: CanonicalJsonObject =
            serde_json::from_str(json.get()).map_err(|error| PduError::Json(error.to_string()))?;
        // Not signed, and nothing that another server says there is of use here.
        object.remove("unsigned");
        let bytes = serde_json::to_vec(&object).map_err(|error| PduError::Json(error.to_string()))?;
        Ok(Self { pdu: Pdu::parse(&bytes, version)?, object })
    }

    /// Notes which keys the event's signatures need.
    pub(super) fn want_keys(&self, wanted: &mut WantedKeys, version: &RoomVersion) {
        let Ok(servers) = required_server_signatures_to_verify_event(&self.object, &version.signatures)
        else {
            return;
        };
        // Before room version 5 it does not matter whether a key was valid when it signed.
        let valid_at_ms =
            if version.enforce_key_validity { u64::from(self.pdu.origin_server_ts().get()) } else { 0 };
        let signatures = match self.object.get("signatures") {
            Some(CanonicalJsonValue::Object(signatures)) => Some(signatures),
            _ => None,
        };
        for server in servers {
            if let Some(CanonicalJsonValue::Object(keys)) =
                signatures.and_then(|signatures| signatures.get(server.as_str()))
            {
                let wanted = wanted.entry(server).or_default();
                for id in keys.keys() {
                    let at_ms = wanted.entry(id.clone()).or_default();
                    *at_ms = (*at_ms).max(valid_at_ms);
                }
            }
        }
    }

    /// Checks signatures and content hash; an event whose hash does not match is redacted.
    pub(super) fn verify(self, keys: &PublicKeyMap, version: &RoomVersion) -> Result<Pdu, PduError> {
        match pdu::verify(&self.object, keys, version)? {
            Verified::All => Ok(self.pdu),
            Verified::Signatures => pdu::redact(&self.pdu, version),
        }
    }
}
