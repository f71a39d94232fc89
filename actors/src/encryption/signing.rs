//! Cross-signing: which keys and signatures are taken.
//!
//! Spec: client-server API, "Cross-signing".

use std::{collections::BTreeMap, time::Duration};

use ruma::{
    CanonicalJsonObject, OwnedUserId, UserId,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde_json::{Map, Value, json};

use crate::{
    homeserver::Homeserver,
    session::{CROSS_SIGNING, Keys, SessionChange, SessionError, SessionHandle},
};

/// How long another server may take to give the key that is signed.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Keys that one request signs, at most: clients sign one or a few at a time.
const SIGNED_MAX: usize = 1000;

/// Bytes of a cross-signing key with its signatures.
const KEY_MAX: usize = 32 << 10;

/// Errors by user and key.
pub type SignatureFailures = BTreeMap<String, BTreeMap<String, Value>>;

impl SessionHandle {
    /// Checks cross-signing keys; says whether the user has to authenticate to set them.
    pub fn check_cross_signing(&self, keys: &BTreeMap<String, Value>) -> Result<bool, SessionError> {
        let data = self.data();
        let held = data.keys();
        for (kind, key) in keys {
            let public = check_key(self.user_id(), kind, key)?;
            // Signatures name keys by these IDs.
            if data.device(public.into()).is_some() {
                return Err(SessionError::KeyInUse);
            }
        }
        let master = keys.get("master").or_else(|| held.cross_signing("master"));
        let master = master.ok_or(SessionError::NoMasterKey)?;
        for (_, key) in keys.iter().filter(|(kind, _)| *kind != "master") {
            let name = public_key(master).map(|(name, _)| name.to_owned()).unwrap_or_default();
            if !is_signed(key, self.user_id(), &name, master["keys"][&name].as_str().unwrap_or_default()) {
                return Err(SessionError::InvalidSignature("the key is not signed by the master key"));
            }
        }
        let is_known = |(kind, key): (&String, &Value)| {
            held.cross_signing(kind).is_some_and(|held| held["keys"] == key["keys"])
        };
        Ok(held.cross_signing("master").is_some() && !keys.iter().all(is_known))
    }

    /// Sets cross-signing keys by kind.
    pub async fn set_cross_signing(&self, keys: BTreeMap<String, Value>) -> Result<(), SessionError> {
        self.check_cross_signing(&keys)?;
        self.change(SessionChange::SetCrossSigning(keys)).await
    }
}

/// The name and the value of a cross-signing key, which holds one.
fn public_key(key: &Value) -> Option<(&str, &str)> {
    let keys = key["keys"].as_object().filter(|keys| keys.len() == 1)?;
    let (name, value) = keys.iter().next()?;
    Some((name, value.as_str()?))
}

/// Checks a cross-signing key; returns its public part.
fn check_key<'a>(user_id: &UserId, kind: &str, key: &'a Value) -> Result<&'a str, SessionError> {
    let invalid = |message: &str| Err(SessionError::Invalid(message.to_owned()));
    if key["user_id"] != user_id.as_str() {
        return invalid("user_id must be the user's own");
    }
    if !key["usage"].as_array().is_some_and(|usage| usage.iter().any(|usage| usage == kind)) {
        return invalid("the key is not for this usage");
    }
    if key.to_string().len() > KEY_MAX {
        return invalid("the key is too large");
    }
    match public_key(key) {
        Some((name, value)) if name.strip_prefix("ed25519:") == Some(value) => Ok(value),
        _ => invalid("a cross-signing key has one ed25519 key, named by itself"),
    }
}

/// Whether an object is signed with this key.
fn is_signed(object: &Value, signer: &UserId, name: &str, public: &str) -> bool {
    let Some(signature) = object["signatures"][signer.as_str()].get(name) else { return false };
    let mut object = object.clone();
    object["signatures"] = json!({ signer.as_str(): { name: signature } });
    let Ok(public) = Base64::parse(public) else { return false };
    let keys = PublicKeyMap::from([(signer.to_string(), PublicKeySet::from([(name.to_owned(), public)]))]);
    serde_json::from_value::<CanonicalJsonObject>(object)
        .is_ok_and(|object| verify_json(&keys, &object).is_ok())
}

/// A key without what may be added to it.
fn bare(key: &Value) -> Value {
    let mut bare = key.clone();
    if let Some(bare) = bare.as_object_mut() {
        bare.remove("signatures");
        bare.remove("unsigned");
    }
    bare
}

/// The signatures of an object that a user made with keys that are known; none if one of them is not valid.
///
/// Clients send along what signatures they know. Those by keys that were replaced since cannot be checked and are left
/// out, like those that the key as it is `held` has already.
fn good_signatures(object: &Value, held: &Value, signer: &UserId, keys: &Keys) -> Option<Value> {
    let all = |key: &Value| key["signatures"][signer.as_str()].as_object().cloned().unwrap_or_default();
    let (mut good, stored) = (all(object), all(held));
    let is_valid = |name: &str| Some(is_signed(object, signer, name, public_of(keys, name)?));
    if good.iter().any(|(name, given)| is_valid(name) == Some(false) && stored.get(name) != Some(given)) {
        return None;
    }
    good.retain(|name, _| is_valid(name) == Some(true));
    (!good.is_empty()).then(|| json!({ signer.as_str(): good }))
}

/// The value of a user's signing key by its name: that of a device, or one for cross-signing.
fn public_of<'a>(keys: &'a Keys, name: &str) -> Option<&'a str> {
    let id = name.strip_prefix("ed25519:")?;
    let of_device = keys.device(id.into()).and_then(|device| device["keys"][name].as_str());
    let mut crossing = CROSS_SIGNING.iter().filter_map(|kind| keys.cross_signing(kind));
    of_device.or_else(|| crossing.find_map(|key| key["keys"][name].as_str()))
}

impl Homeserver {
    /// Takes signatures on keys; tells which were not taken.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/signatures/upload`.
    pub async fn upload_signatures(
        &self,
        signer: &UserId,
        signed: BTreeMap<OwnedUserId, Map<String, Value>>,
    ) -> Result<SignatureFailures, SessionError> {
        if signed.values().map(Map::len).sum::<usize>() > SIGNED_MAX {
            return Err(SessionError::Invalid(format!("at most {SIGNED_MAX} keys are signed at a time")));
        }
        let session = self.session(signer).await?;
        let mut failures = SignatureFailures::new();
        for (target, keys) in signed {
            for (key_id, object) in keys {
                let Some((errcode, error)) =
                    refusal(self.take_signature(&session, &target, &key_id, &object).await)?
                else {
                    continue;
                };
                let failure = json!({ "errcode": errcode, "error": error });
                failures.entry(target.to_string()).or_default().insert(key_id, failure);
            }
        }
        Ok(failures)
    }

    /// The master key of a user, of whichever server.
    async fn master_key_of(&self, user_id: &OwnedUserId) -> Result<Option<Value>, SessionError> {
        if user_id.server_name() == self.server_name() {
            return Ok(self.session(user_id).await?.data().keys().cross_signing("master").cloned());
        }
        let wanted = BTreeMap::from([(user_id.clone(), Vec::new())]);
        let (mut lists, _) = self.query_remote_keys(wanted, QUERY_TIMEOUT).await?;
        let master = lists.remove(user_id).and_then(|list| list.master);
        Ok(master.and_then(|json| serde_json::from_str(&json).ok()))
    }

    async fn take_signature(
        &self,
        session: &SessionHandle,
        target: &OwnedUserId,
        key_id: &str,
        object: &Value,
    ) -> Result<(), SessionError> {
        let is_own = session.user_id() == target;
        let signer = session.data();
        let names_key = |key: &Value| key["keys"].get(format!("ed25519:{key_id}")).is_some();
        let held = if is_own {
            let mut crossing = CROSS_SIGNING.iter().filter_map(|kind| signer.keys().cross_signing(kind));
            let device = signer.keys().device(key_id.into());
            device.or_else(|| crossing.find(|key| names_key(key))).cloned()
        } else {
            // Spec: of other users' keys, only the master key is signed.
            self.master_key_of(target).await?.filter(names_key)
        };
        let held = held.ok_or(SessionError::KeyNotFound)?;
        if bare(&held) != bare(object) {
            return Err(SessionError::InvalidSignature("the key is not the one that is known"));
        }
        let signatures = good_signatures(object, &held, session.user_id(), signer.keys())
            .ok_or(SessionError::InvalidSignature("a signature is not valid"))?;
        let change = if is_own {
            SessionChange::SignOwn(key_id.to_owned(), signatures)
        } else {
            SessionChange::SignOther(target.clone(), signatures)
        };
        session.change(change).await
    }
}

/// The errcode of a failure that concerns one key; other failures concern the whole request.
fn refusal(result: Result<(), SessionError>) -> Result<Option<(&'static str, String)>, SessionError> {
    match result {
        Ok(()) => Ok(None),
        Err(error @ (SessionError::KeyNotFound | SessionError::NotFound)) => {
            Ok(Some(("M_NOT_FOUND", error.to_string())))
        }
        Err(error @ SessionError::InvalidSignature(_)) => {
            Ok(Some(("M_INVALID_SIGNATURE", error.to_string())))
        }
        Err(error @ SessionError::TooLarge(_)) => Ok(Some(("M_TOO_LARGE", error.to_string()))),
        Err(error) => Err(error),
    }
}
