//! Signing keys, and checking the signatures of received events.

use std::{borrow::Cow, collections::BTreeSet};

use ed25519_dalek::{Signer, SigningKey as Ed25519Key};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, OwnedSigningKeyId, ServerName,
    ServerSigningKeyVersion, canonical_json,
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::{self, KeyPair, PublicKeyMap, Signature},
};

use super::{Pdu, PduError, SIZE_MAX};
use crate::room_version::RoomVersion;

pub use ruma::signatures::Verified;

/// A server's ed25519 key.
pub struct SigningKey {
    key: Ed25519Key,
    version: String,
}

impl SigningKey {
    /// The key of a 32-byte secret. `version` is what follows `ed25519:` in its ID; none if it cannot.
    pub fn new(secret: &[u8; 32], version: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_valid = !version.is_empty() && version.bytes().all(is_allowed);
        is_valid.then(|| Self { key: Ed25519Key::from_bytes(secret), version: version.to_owned() })
    }

    /// The key's ID, as in `ed25519:abc`.
    pub fn id(&self) -> String {
        format!("ed25519:{}", self.version)
    }

    /// The public half, as other servers know it.
    pub fn public_key(&self) -> Base64 {
        Base64::new(self.key.verifying_key().to_bytes().to_vec())
    }

    /// The secret, for storing it.
    pub fn secret(&self) -> [u8; 32] {
        self.key.to_bytes()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("version", &self.version).finish_non_exhaustive()
    }
}

impl KeyPair for SigningKey {
    fn sign(&self, message: &[u8]) -> Signature {
        let id = OwnedSigningKeyId::<ServerSigningKeyVersion>::try_from(self.id())
            .map(|id| ruma::OwnedSigningKeyId::<ruma::AnyKeyName>::try_from(id.as_str()));
        let id = id.ok().and_then(Result::ok).expect("a key's version is checked when the key is loaded");
        Signature::new(id, self.key.sign(message).to_bytes().to_vec())
    }
}

/// Whether a server signed an event with a key of an ID; the key is base64, of either alphabet.
///
/// Spec: server-server API, "Validating Policy Server signatures".
pub fn is_signed_by(
    pdu: &Pdu,
    (server, key_id): (&ServerName, &str),
    key: &str,
    version: &RoomVersion,
) -> bool {
    let Ok(key) = Base64::parse(key.replace('-', "+").replace('_', "/")) else { return false };
    let Ok(object) = pdu.to_object() else { return false };
    let Some(signature) = signature(&object, server, key_id) else { return false };
    let Ok(mut signed) = canonical_json::redact(object, &version.redaction, None) else { return false };
    signed.remove("unsigned");
    let own = CanonicalJsonObject::from([(key_id.to_owned(), signature)]);
    let signatures = CanonicalJsonObject::from([(server.to_string(), own.into())]);
    signed.insert("signatures".to_owned(), signatures.into());
    let keys = PublicKeyMap::from([(server.to_string(), [(key_id.to_owned(), key)].into())]);
    signatures::verify_json(&keys, &signed).is_ok()
}

fn signature(object: &CanonicalJsonObject, server: &ServerName, key_id: &str) -> Option<CanonicalJsonValue> {
    let CanonicalJsonValue::Object(signatures) = object.get("signatures")? else { return None };
    let CanonicalJsonValue::Object(own) = signatures.get(server.as_str())? else { return None };
    own.get(key_id).cloned()
}

/// Adds a signature of another server to an event.
pub fn with_signature(
    pdu: &Pdu,
    (server, key_id): (&ServerName, &str),
    signature: &str,
) -> Result<Pdu, PduError> {
    let malformed = || PduError::Malformed("signatures are no object".to_owned());
    let mut object = pdu.to_object()?;
    let signatures =
        object.entry("signatures".to_owned()).or_insert_with(|| CanonicalJsonObject::new().into());
    let CanonicalJsonValue::Object(signatures) = signatures else { return Err(malformed()) };
    let own = signatures.entry(server.to_string()).or_insert_with(|| CanonicalJsonObject::new().into());
    let CanonicalJsonValue::Object(own) = own else { return Err(malformed()) };
    own.insert(key_id.to_owned(), signature.into());
    let raw = serde_json::to_vec(&object).map_err(|error| PduError::Json(error.to_string()))?;
    if raw.len() > SIZE_MAX {
        return Err(PduError::TooLarge(format!("{} bytes", raw.len())));
    }
    // Signatures are no part of what an event's ID is made of.
    Pdu::from_stored(pdu.event_id().clone(), raw.into())
}

/// The servers whose signatures an event needs; none if it is malformed.
///
/// Spec: server-server API, "Validating hashes and signatures on received events".
pub fn signers(object: &CanonicalJsonObject, version: &RoomVersion) -> BTreeSet<OwnedServerName> {
    let rules = signature_rules(object, version);
    signatures::required_server_signatures_to_verify_event(object, &rules.signatures).unwrap_or_default()
}

/// The rules by which an event's signatures are checked: who lets a user in signs that membership. In the content of
/// other events the same field says nothing.
///
/// Spec: room version 8, "Authorisation rules", rule 4.2.
fn signature_rules<'a>(object: &CanonicalJsonObject, version: &'a RoomVersion) -> Cow<'a, RoomVersionRules> {
    let is_member = object.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.room.member");
    if is_member || !version.signatures.check_join_authorised_via_users_server {
        return Cow::Borrowed(&version.rules);
    }
    let mut rules = version.rules.clone();
    rules.signatures.check_join_authorised_via_users_server = false;
    Cow::Owned(rules)
}

/// Checks a received event's signatures and content hash.
///
/// If only the hash does not match, the event is to be redacted before use.
/// Spec: server-server API, "Checks performed on receipt of a PDU", steps 2 and 3.
pub fn verify(
    object: &CanonicalJsonObject,
    keys: &PublicKeyMap,
    version: &RoomVersion,
) -> Result<Verified, PduError> {
    signatures::verify_event(keys, object, &signature_rules(object, version))
        .map_err(|error| PduError::Signature(error.to_string()))
}
