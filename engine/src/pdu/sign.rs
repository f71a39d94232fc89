//! Signing keys, and checking the signatures of received events.

use ed25519_dalek::{Signer, SigningKey as Ed25519Key};
use ruma::{
    CanonicalJsonObject, OwnedSigningKeyId, ServerSigningKeyVersion,
    serde::Base64,
    signatures::{self, KeyPair, PublicKeyMap, Signature},
};

use super::PduError;
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

/// Checks a received event's signatures and content hash.
///
/// If only the hash does not match, the event is to be redacted before use.
/// Spec: server-server API, "Checks performed on receipt of a PDU", steps 2 and 3.
pub fn verify(
    object: &CanonicalJsonObject,
    keys: &PublicKeyMap,
    version: &RoomVersion,
) -> Result<Verified, PduError> {
    signatures::verify_event(keys, object, &version.rules)
        .map_err(|error| PduError::Signature(error.to_string()))
}
