//! One-time and fallback keys: no one-time key is given away twice.

use std::sync::Arc;

use ruma::{DeviceId, OwnedDeviceId};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use storage::schema::{self, FallbackKeyRecord, OneTimeKeyRecord};

use super::{Claimed, Wanted};
use crate::session::{SessionError, change::Draft};

/// Bytes of a one-time or fallback key, which clients sign once.
const KEY_MAX: usize = 8 << 10;

/// One-time keys of a device that were given away and are remembered, in case an upload is repeated that had arrived.
const CLAIMED_MAX: usize = 200;

const CLAIMED: &str = "claimed";

/// A one-time or fallback key as it is stored.
fn checked_key(key: &Value) -> Result<String, SessionError> {
    if !key.is_object() && !key.is_string() {
        return Err(SessionError::Invalid("a key is text or an object".to_owned()));
    }
    let key = key.to_string();
    if key.len() > KEY_MAX {
        return Err(SessionError::Invalid(format!("a key has at most {KEY_MAX} bytes")));
    }
    Ok(key)
}

/// Names a one-time key among those that were given away.
fn claimed_hash(algorithm: &str, key_id: &str, key: &str) -> [u8; 8] {
    let digest = Sha256::digest(format!("{algorithm}:{key_id}\0{key}").as_bytes());
    let mut hash = [0; 8];
    hash.copy_from_slice(&digest[..8]);
    hash
}

impl Draft {
    pub(super) fn add_one_time_key(
        &mut self,
        device_id: &DeviceId,
        algorithm: &str,
        key_id: &str,
        key: &Value,
    ) -> Result<(), SessionError> {
        let key = checked_key(key)?;
        let place = (device_id.to_owned(), algorithm.to_owned(), key_id.to_owned());
        match self.data.keys.one_time.get(&place) {
            Some(known) if known.key == key => return Ok(()),
            Some(_) => {
                return Err(SessionError::Invalid(format!(
                    "one-time key {algorithm}:{key_id} already exists with another value"
                )));
            }
            None => {}
        }
        let hash = claimed_hash(algorithm, key_id, &key);
        if self.data.keys.ring(device_id, CLAIMED).any(|claimed| claimed == hash) {
            return Ok(());
        }
        let row = (self.user_id().clone(), place.0.clone(), place.1.clone(), place.2.clone());
        let record = OneTimeKeyRecord { key, uploaded: self.position() };
        self.batch.put(&schema::ONE_TIME_KEYS, &row, &record);
        self.data.keys.one_time.insert(place, Arc::new(record));
        Ok(())
    }

    pub(super) fn set_fallback_key(
        &mut self,
        device_id: &DeviceId,
        algorithm: &str,
        key_id: &str,
        key: &Value,
    ) -> Result<(), SessionError> {
        let key = checked_key(key)?;
        let place = (device_id.to_owned(), algorithm.to_owned());
        let known = self.data.keys.fallback.get(&place);
        if !known.is_some_and(|known| known.key_id == key_id && known.key == key) {
            let record = FallbackKeyRecord { key_id: key_id.to_owned(), key, is_used: false };
            self.put_fallback_key(place, record);
        }
        Ok(())
    }

    fn put_fallback_key(&mut self, place: (OwnedDeviceId, String), record: FallbackKeyRecord) {
        let row = (self.user_id().clone(), place.0.clone(), place.1.clone());
        self.batch.put(&schema::FALLBACK_KEYS, &row, &record);
        self.data.keys.fallback.insert(place, Arc::new(record));
    }

    /// Takes one key of each device: a one-time key, which nobody gets again, or else the fallback key.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/claim`.
    pub(in crate::session) fn claim_keys(&mut self, wanted: Wanted) -> Claimed {
        let mut claimed = Claimed::new();
        for (device_id, algorithm) in wanted {
            if let Some((name, key)) = self.claim_key(&device_id, &algorithm) {
                claimed.insert(device_id, Map::from_iter([(name, key)]));
            }
        }
        claimed
    }

    fn claim_key(&mut self, device_id: &DeviceId, algorithm: &str) -> Option<(String, Value)> {
        let of_algorithm =
            self.data.keys.one_time_of(device_id).filter(|((_, known, _), _)| known == algorithm);
        // Spec: in the order that they were uploaded.
        let found = of_algorithm.min_by_key(|(_, key)| key.uploaded);
        if let Some((place, key)) = found.map(|(place, key)| (place.clone(), key.clone())) {
            self.data.keys.one_time.remove(&place);
            self.push_ring(device_id, CLAIMED, claimed_hash(algorithm, &place.2, &key.key), CLAIMED_MAX);
            let row = (self.user_id().clone(), place.0, place.1, place.2);
            self.batch.delete(&schema::ONE_TIME_KEYS, &row);
            self.touch_keys(device_id);
            return Some((format!("{algorithm}:{}", row.3), serde_json::from_str(&key.key).ok()?));
        }
        let place = (device_id.to_owned(), algorithm.to_owned());
        let fallback = (**self.data.keys.fallback.get(&place)?).clone();
        let answer = (format!("{algorithm}:{}", fallback.key_id), serde_json::from_str(&fallback.key).ok()?);
        if !fallback.is_used {
            self.put_fallback_key(place, FallbackKeyRecord { is_used: true, ..fallback });
            self.touch_keys(device_id);
        }
        Some(answer)
    }
}
