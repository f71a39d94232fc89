//! Events that are no canonical JSON, in room versions that do not enforce it.
//!
//! Numbers that it forbids stay as they are written, in the event as it is stored and in all that is hashed or signed.
//! Whatever does not depend on them works with the event's *form*: canonical JSON in which they are 0.
//!
//! Spec: room versions 1 to 5, "Canonical JSON".

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose};
use ruma::{
    AnyKeyName, CanonicalJsonObject, CanonicalJsonValue, SigningKeyId, canonical_json,
    room_version_rules::EventIdFormatVersion,
    serde::{Base64, base64::Standard},
    signatures::{
        PublicKeyMap, Verified, required_server_signatures_to_verify_event, verify_canonical_json_bytes,
    },
};
use sha2::{Digest, Sha256};

use super::PduError;
use crate::{canonical::Json, room_version::RoomVersion};

/// An event with numbers as they are written.
#[derive(Clone)]
pub(super) struct Loose<'a>(BTreeMap<Cow<'a, str>, Json<'a>>);

impl<'a> Loose<'a> {
    /// The event of what is JSON, but not canonical; an error if the room version enforces that.
    pub(super) fn parse(json: &'a [u8], version: &RoomVersion) -> Result<Self, PduError> {
        if version.authorization.strict_canonical_json {
            return Err(PduError::Json("no object, or numbers that are no integers of 53 bits".to_owned()));
        }
        match Json::parse(json) {
            Ok(Json::Object(event)) => Ok(Self(event)),
            Ok(_) => Err(PduError::Json("it is no object".to_owned())),
            Err(error) => Err(PduError::Json(error.to_string())),
        }
    }

    /// The event without some of its fields.
    pub(super) fn without(mut self, fields: &[&str]) -> Self {
        self.0.retain(|field, _| !fields.contains(&&**field));
        self
    }

    /// The event's form.
    pub(super) fn form(&self) -> CanonicalJsonObject {
        self.0.iter().map(|(field, value)| (field.to_string(), form(value))).collect()
    }

    /// Its JSON.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, PduError> {
        serde_json::to_vec(&self.0).map_err(|error| PduError::Json(error.to_string()))
    }

    /// What the redaction algorithm leaves of it.
    pub(super) fn redacted(mut self, version: &RoomVersion) -> Result<Self, PduError> {
        let kept = canonical_json::redact(self.form(), &version.redaction, None)
            .map_err(|error| PduError::Malformed(error.to_string()))?;
        keep(&mut self.0, &kept);
        Ok(self)
    }

    /// The reference hash, in the alphabet of the room version.
    ///
    /// Spec: server-server API, "Calculating the reference hash for an event".
    pub(super) fn reference_hash(&self, version: &RoomVersion) -> Result<String, PduError> {
        let hashed = self.clone().redacted(version)?.without(&["signatures", "unsigned"]).bytes()?;
        let alphabet = match version.event_id_format {
            EventIdFormatVersion::V1 | EventIdFormatVersion::V2 => general_purpose::STANDARD_NO_PAD,
            _ => general_purpose::URL_SAFE_NO_PAD,
        };
        Ok(alphabet.encode(Sha256::digest(hashed)))
    }

    /// Checks signatures and content hash.
    pub(super) fn verify(&self, keys: &PublicKeyMap, version: &RoomVersion) -> Result<Verified, PduError> {
        let bad = |error: &dyn std::fmt::Display| PduError::Signature(error.to_string());
        let form = self.form();
        let signed = self.clone().redacted(version)?.without(&["signatures", "unsigned"]).bytes()?;
        let signers = required_server_signatures_to_verify_event(&form, &version.signatures)
            .map_err(|error| bad(&error))?;
        for server in signers {
            if !is_signed(&form, &signed, server.as_str(), keys) {
                return Err(bad(&format_args!("{server} has not signed it")));
            }
        }
        let hashed = self.clone().without(&["hashes", "signatures", "unsigned"]).bytes()?;
        let hash = general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(hashed));
        let stated = member(&form, "hashes").and_then(|hashes| hashes.get("sha256")?.as_str());
        Ok(if stated == Some(&*hash) { Verified::All } else { Verified::Signatures })
    }
}

fn member<'a>(object: &'a CanonicalJsonObject, field: &str) -> Option<&'a CanonicalJsonObject> {
    object.get(field)?.as_object()
}

/// Whether a server signed something: there is a signature whose key is known, and all such hold.
fn is_signed(form: &CanonicalJsonObject, signed: &[u8], server: &str, keys: &PublicKeyMap) -> bool {
    let signatures = member(form, "signatures").and_then(|signatures| member(signatures, server));
    let known = signatures.into_iter().flatten().filter_map(|(id, signature)| {
        let key = keys.get(server)?.get(id)?;
        let algorithm = <&SigningKeyId<AnyKeyName>>::try_from(id.as_str()).ok()?.algorithm();
        let signature = signature.as_str().and_then(|signature| Base64::<Standard>::parse(signature).ok());
        let holds = signature.is_some_and(|signature| {
            verify_canonical_json_bytes(&algorithm, key.as_bytes(), signature.as_bytes(), signed).is_ok()
        });
        Some(holds)
    });
    let known: Vec<bool> = known.collect();
    !known.is_empty() && known.into_iter().all(|holds| holds)
}

/// A value without numbers that canonical JSON forbids.
fn form(value: &Json<'_>) -> CanonicalJsonValue {
    match value {
        Json::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.to_string(), form(value)));
            CanonicalJsonValue::Object(members.collect())
        }
        Json::Array(values) => CanonicalJsonValue::Array(values.iter().map(form).collect()),
        Json::Text(text) => CanonicalJsonValue::String(text.to_string()),
        Json::Word(word) => serde_json::from_str(word.get())
            .unwrap_or_else(|_| CanonicalJsonValue::Integer(js_int::Int::default())),
    }
}

/// Removes what is not in a redacted form.
fn keep(members: &mut BTreeMap<Cow<'_, str>, Json<'_>>, kept: &CanonicalJsonObject) {
    members.retain(|key, _| kept.contains_key(&**key));
    for (key, value) in members {
        if let (Json::Object(members), Some(CanonicalJsonValue::Object(kept))) = (value, kept.get(&**key)) {
            keep(members, kept);
        }
    }
}
