//! What servers publish of their keys.
//!
//! Spec: server-server API, "Publishing Keys".

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde::Deserialize;
use storage::schema::ServerKeyRecord;

use super::{DatedKeys, KEYS_MAX};

/// Keys are believed this long, whatever their server says.
pub(super) const VALID_MAX_MS: u64 = 7 * 24 * 3600 * 1000;

/// Keys that their server signed, as it published them.
pub(super) struct Published {
    pub(super) keys: DatedKeys,
    pub(super) document: CanonicalJsonObject,
}

/// What a server says of its keys.
#[derive(Deserialize)]
struct ServerKeys {
    server_name: OwnedServerName,
    #[serde(default)]
    verify_keys: BTreeMap<String, VerifyKey>,
    #[serde(default)]
    old_verify_keys: BTreeMap<String, OldVerifyKey>,
    valid_until_ts: MilliSecondsSinceUnixEpoch,
}

#[derive(Deserialize)]
struct VerifyKey {
    key: String,
}

#[derive(Deserialize)]
struct OldVerifyKey {
    key: String,
    expired_ts: MilliSecondsSinceUnixEpoch,
}

/// The keys of a document that `server` published.
pub(super) fn read_keys(server: &ServerName, document: &str, now_ms: u64) -> Result<Published, String> {
    let text = |error: serde_json::Error| error.to_string();
    let keys: ServerKeys = serde_json::from_str(document).map_err(text)?;
    if keys.server_name != server {
        return Err("the keys are another server's".to_owned());
    }
    if keys.verify_keys.len() + keys.old_verify_keys.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    let mut document: CanonicalJsonObject = serde_json::from_str(document).map_err(text)?;
    let own: PublicKeySet = keys
        .verify_keys
        .iter()
        .filter_map(|(id, key)| Some((id.clone(), Base64::parse(&key.key).ok()?)))
        .collect();
    // Notaries sign too, and old keys; theirs are not what makes the keys good.
    keep_signatures(&mut document, server, &own);
    verify_json(&PublicKeyMap::from([(server.to_string(), own)]), &document)
        .map_err(|error| format!("the keys are not signed by their server: {error}"))?;
    let valid_until_ms = u64::from(keys.valid_until_ts.get()).min(now_ms + VALID_MAX_MS);
    let present =
        keys.verify_keys.into_iter().map(|(id, key)| (id, ServerKeyRecord { key: key.key, valid_until_ms }));
    let old = keys
        .old_verify_keys
        .into_iter()
        .map(|(id, key)| (id, ServerKeyRecord { key: key.key, valid_until_ms: key.expired_ts.get().into() }));
    Ok(Published { keys: old.chain(present).collect(), document })
}

/// Leaves only the signatures with certain keys of `server`, and always a place for them, so that none is an error.
fn keep_signatures(object: &mut CanonicalJsonObject, server: &ServerName, keys: &PublicKeySet) {
    let own = match object.get("signatures") {
        Some(CanonicalJsonValue::Object(signatures)) => signatures.get(server.as_str()),
        _ => None,
    };
    let own = match own {
        Some(CanonicalJsonValue::Object(own)) => own.clone().into_iter(),
        _ => CanonicalJsonObject::new().into_iter(),
    };
    let own: CanonicalJsonObject = own.filter(|(id, _)| keys.contains_key(id)).collect();
    let signatures = CanonicalJsonObject::from([(server.to_string(), own.into())]);
    object.insert("signatures".to_owned(), signatures.into());
}
