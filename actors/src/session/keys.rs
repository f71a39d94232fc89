//! What a session keeps for end-to-end encryption: keys of devices, one-time keys, cross-signing keys.
//!
//! Spec: client-server API, "End-to-End Encryption".

mod one_time;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use engine::id::Position;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde_json::{Map, Value};
use storage::schema::{self, BackupRecord, FallbackKeyRecord, OneTimeKeyRecord};

use super::{SessionError, change::Draft};

/// One-time keys of one device that are kept; clients keep 50 to 100.
const ONE_TIME_MAX: usize = 1000;

/// One-time keys in one request: clients upload 50 to 100.
const UPLOAD_MAX: usize = 1000;

/// Fallback keys of one device, one for each algorithm. There is one algorithm.
const FALLBACK_MAX: usize = 10;

/// Bytes of a device's identity keys, with signatures.
const DEVICE_KEYS_MAX: usize = 32 << 10;

/// Bytes of a cross-signing key with its signatures, or of a user's signatures on another's key: each of a user's devices may sign the
/// master key, and others take as much in an EDU.
const SIGNED_MAX: usize = 64 << 10;

/// The kinds of cross-signing key.
pub const CROSS_SIGNING: [&str; 3] = ["master", "self_signing", "user_signing"];

/// The kind under which signatures on other users' master keys are kept.
const SIGNATURE: &str = "signature";

pub(super) type OneTimeKey = (OwnedDeviceId, String, String);

/// Keys of an account and its devices. Cloning shares all of it.
#[derive(Clone, Default)]
pub struct Keys {
    pub(super) devices: imbl::OrdMap<OwnedDeviceId, Arc<Value>>,
    pub(super) one_time: imbl::OrdMap<OneTimeKey, Arc<OneTimeKeyRecord>>,
    pub(super) fallback: imbl::OrdMap<(OwnedDeviceId, String), Arc<FallbackKeyRecord>>,
    /// By kind, and by whose key is signed.
    pub(super) cross_signing: imbl::OrdMap<(String, String), Arc<Value>>,
    /// Where the messages are that each device has not acknowledged.
    pub(super) inbox: imbl::OrdMap<OwnedDeviceId, imbl::OrdSet<Position>>,
    /// By device and kind.
    pub(super) extras: imbl::OrdMap<(OwnedDeviceId, String), Bytes>,
    pub(super) backups: imbl::OrdMap<u64, Arc<BackupRecord>>,
    /// When one-time or fallback keys of a device last changed, as far as this session saw it.
    pub(super) touched: imbl::OrdMap<OwnedDeviceId, Position>,
    /// When the device list last changed.
    pub(super) list_changed: Position,
    /// When the user last signed the master key of others.
    pub(super) signed: imbl::OrdMap<OwnedUserId, Position>,
}

/// Keys that a device uploads.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    /// The device.
    pub device_id: Option<OwnedDeviceId>,
    /// Its identity keys.
    pub device_keys: Option<Value>,
    /// One-time keys by `algorithm:id`.
    pub one_time_keys: Map<String, Value>,
    /// Fallback keys by `algorithm:id`.
    pub fallback_keys: Map<String, Value>,
}

/// What is wanted of a user's one-time keys: the algorithm, by device.
pub type Wanted = BTreeMap<OwnedDeviceId, String>;

/// Claimed keys by device, each as `{"algorithm:id": key}`.
pub type Claimed = BTreeMap<OwnedDeviceId, Map<String, Value>>;

impl Keys {
    /// The identity keys of a device.
    pub fn device(&self, device_id: &DeviceId) -> Option<&Value> {
        self.devices.get(device_id).map(|keys| &**keys)
    }

    /// The devices that have identity keys.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &Value)> {
        self.devices.iter().map(|(id, keys)| (&**id, &**keys))
    }

    /// One-time keys of a device that nobody has claimed, counted by algorithm.
    ///
    /// The algorithm that all clients use is always there: clients take its absence for "no news".
    pub fn one_time_counts(&self, device_id: &DeviceId) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::from([("signed_curve25519".to_owned(), 0)]);
        for ((_, algorithm, _), _) in self.one_time_of(device_id) {
            *counts.entry(algorithm.clone()).or_default() += 1;
        }
        counts
    }

    fn one_time_of(
        &self,
        device_id: &DeviceId,
    ) -> impl Iterator<Item = (&OneTimeKey, &Arc<OneTimeKeyRecord>)> {
        let from = (device_id.to_owned(), String::new(), String::new());
        let device_id = device_id.to_owned();
        self.one_time.range(from..).take_while(move |((device, ..), _)| *device == device_id)
    }

    /// The algorithms for which a device has a fallback key that nobody was given.
    pub fn unused_fallback_types(&self, device_id: &DeviceId) -> Vec<String> {
        let unused = self.fallback.iter().filter(|((device, _), key)| device == device_id && !key.is_used);
        unused.map(|((_, algorithm), _)| algorithm.clone()).collect()
    }

    /// When a device's one-time or fallback keys last changed.
    pub fn touched(&self, device_id: &DeviceId) -> Position {
        self.touched.get(device_id).copied().unwrap_or_default()
    }

    /// When the user's device list last changed.
    pub fn list_changed(&self) -> Position {
        self.list_changed
    }

    /// Whether one of the user's cross-signing keys has this public part, by which signatures name it.
    pub(super) fn is_cross_signing_key(&self, public: &str) -> bool {
        let name = format!("ed25519:{public}");
        let kinds = ["master", "self_signing", "user_signing"];
        kinds
            .into_iter()
            .filter_map(|kind| self.cross_signing(kind))
            .any(|key| key["keys"].get(&name).is_some())
    }

    /// A cross-signing key of the user.
    pub fn cross_signing(&self, kind: &str) -> Option<&Value> {
        self.cross_signing.get(&(kind.to_owned(), String::new())).map(|key| &**key)
    }

    /// The signatures that the user put on another user's master key.
    pub fn signatures_on(&self, target: &UserId) -> Option<&Value> {
        self.cross_signing.get(&(SIGNATURE.to_owned(), target.to_string())).map(|key| &**key)
    }

    /// The positions of the messages that a device has not acknowledged.
    pub fn inbox(&self, device_id: &DeviceId) -> Option<&imbl::OrdSet<Position>> {
        self.inbox.get(device_id).filter(|inbox| !inbox.is_empty())
    }

    /// Something else that belongs to a device.
    pub(super) fn extra(&self, device_id: &DeviceId, kind: &str) -> Option<&Bytes> {
        self.extras.get(&(device_id.to_owned(), kind.to_owned()))
    }

    /// The hashes in a row of them.
    pub(super) fn ring(&self, device_id: &DeviceId, kind: &str) -> impl Iterator<Item = &[u8]> {
        self.extra(device_id, kind).into_iter().flat_map(|ring| ring.chunks_exact(8))
    }

    /// Users whose master key the user signed after a position.
    pub fn signed_since(&self, since: Position) -> impl Iterator<Item = &OwnedUserId> {
        self.signed.iter().filter(move |(_, at)| **at > since).map(|(user_id, _)| user_id)
    }

    /// Versions of the key backup that are not deleted, oldest first.
    pub fn backups(&self) -> impl DoubleEndedIterator<Item = (u64, &BackupRecord)> {
        self.backups
            .iter()
            .filter(|(_, backup)| !backup.is_deleted)
            .map(|(version, backup)| (*version, &**backup))
    }

    pub(super) fn weight(&self) -> u64 {
        let waiting: usize = self.inbox.values().map(imbl::OrdSet::len).sum();
        let extras: usize = self.extras.values().map(|extra| extra.len() + 128).sum();
        2048 * (self.devices.len() + self.cross_signing.len()) as u64
            + 512 * (self.one_time.len() + self.fallback.len() + self.backups.len()) as u64
            + (32 * waiting + extras) as u64
    }
}

/// The name of a key, `algorithm:id`, in its parts.
fn parts(name: &str) -> Result<(&str, &str), SessionError> {
    let parts = name.split_once(':').filter(|(algorithm, id)| !algorithm.is_empty() && !id.is_empty());
    parts.ok_or_else(|| SessionError::Invalid(format!("{name} is not algorithm:id")))
}

/// What others are to hear of a device list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListChange {
    /// Devices that changed.
    pub(super) devices: std::collections::BTreeSet<OwnedDeviceId>,
    /// Whether the cross-signing keys that others see changed.
    pub(super) signing_keys: bool,
}

/// Adds signatures to an object's own, by user and key; returns whether there were new ones.
pub(crate) fn merge_signatures(target: &mut Value, from: &Value) -> bool {
    let Some(users) = from.as_object() else { return false };
    let mut is_new = false;
    for (user, signatures) in users {
        for (key, signature) in signatures.as_object().into_iter().flatten() {
            if !target["signatures"].is_object() {
                target["signatures"] = Value::Object(Map::new());
            }
            if !target["signatures"][user].is_object() {
                target["signatures"][user] = Value::Object(Map::new());
            }
            let place = &mut target["signatures"][user][key];
            is_new |= place != signature;
            place.clone_from(signature);
        }
    }
    is_new
}

/// Keys as they are stored; refused if they have too many signatures by now.
fn stored(keys: &Value, max: usize) -> Result<String, SessionError> {
    let text = keys.to_string();
    if text.len() > max {
        return Err(SessionError::TooLarge(format!("keys and their signatures have at most {max} bytes")));
    }
    Ok(text)
}

impl Draft {
    /// Tells others that a device changed.
    pub(super) fn device_changed(&mut self, device_id: &DeviceId) {
        self.bump_device_list().devices.insert(device_id.to_owned());
    }

    fn bump_device_list(&mut self) -> &mut ListChange {
        if self.list_change.is_none() {
            self.is_news = true;
            let (position, user_id) = (self.position(), self.user_id().clone());
            let before = std::mem::replace(&mut self.data.keys.list_changed, position);
            if before != Position(0) {
                self.batch.delete(&schema::DEVICE_LIST_CHANGES, &before);
            }
            self.batch.put(&schema::DEVICE_LISTS, &user_id, &position);
            self.batch.put(&schema::DEVICE_LIST_CHANGES, &position, &user_id);
        }
        self.list_change.get_or_insert_default()
    }

    fn touch_keys(&mut self, device_id: &DeviceId) {
        self.is_news = true;
        let position = self.position();
        self.data.keys.touched.insert(device_id.to_owned(), position);
    }

    /// Spec: client-server API, `POST /_matrix/client/v3/keys/upload`.
    pub(super) fn upload_keys(&mut self, upload: Upload) -> Result<(), SessionError> {
        let Some(device_id) = upload.device_id else { return Err(SessionError::DeviceNotFound) };
        if !self.data.devices.contains_key(&device_id) {
            return Err(SessionError::DeviceNotFound);
        }
        if upload.one_time_keys.len() > UPLOAD_MAX {
            return Err(SessionError::TooMany("one-time keys"));
        }
        if upload.fallback_keys.len() > FALLBACK_MAX {
            return Err(SessionError::TooMany("fallback keys"));
        }
        if let Some(keys) = upload.device_keys {
            self.set_device_keys(&device_id, keys)?;
        }
        let has_new = !upload.one_time_keys.is_empty() || !upload.fallback_keys.is_empty();
        for (name, key) in &upload.one_time_keys {
            let (algorithm, key_id) = parts(name)?;
            self.add_one_time_key(&device_id, algorithm, key_id, key)?;
        }
        if self.data.keys.one_time_of(&device_id).count() > ONE_TIME_MAX {
            return Err(SessionError::TooMany("one-time keys"));
        }
        for (name, key) in &upload.fallback_keys {
            let (algorithm, key_id) = parts(name)?;
            self.set_fallback_key(&device_id, algorithm, key_id, key)?;
        }
        if has_new {
            self.touch_keys(&device_id);
        }
        Ok(())
    }

    fn set_device_keys(&mut self, device_id: &DeviceId, mut keys: Value) -> Result<(), SessionError> {
        let is_own = keys["user_id"] == self.user_id().as_str() && keys["device_id"] == device_id.as_str();
        if !is_own {
            return Err(SessionError::Invalid("user_id and device_id must be the device's own".to_owned()));
        }
        if !keys["keys"].is_object() || !keys["algorithms"].is_array() {
            return Err(SessionError::Invalid("device_keys lacks algorithms or keys".to_owned()));
        }
        if keys.to_string().len() > DEVICE_KEYS_MAX {
            return Err(SessionError::Invalid(format!("device_keys has at most {DEVICE_KEYS_MAX} bytes")));
        }
        if let Some(keys) = keys.as_object_mut() {
            // The server's own to say.
            keys.remove("unsigned");
        }
        let known = self.data.keys.device(device_id);
        if let Some(known) = known
            && known["keys"] == keys["keys"]
        {
            // What others have signed stays signed.
            let mut merged = known["signatures"].clone();
            if merged.is_object() {
                let mut own = Value::Object(Map::new());
                merge_signatures(&mut own, &merged);
                merge_signatures(&mut own, &keys["signatures"]);
                merged = own["signatures"].take();
                keys["signatures"] = merged;
            }
        }
        if known != Some(&keys) {
            self.put_device_keys(device_id, keys)?;
        }
        Ok(())
    }

    fn put_device_keys(&mut self, device_id: &DeviceId, keys: Value) -> Result<(), SessionError> {
        let row = (self.user_id().clone(), device_id.to_owned());
        self.batch.put(&schema::DEVICE_KEYS, &row, &stored(&keys, DEVICE_KEYS_MAX)?);
        self.data.keys.devices.insert(device_id.to_owned(), Arc::new(keys));
        self.device_changed(device_id);
        Ok(())
    }

    /// Sets cross-signing keys by kind.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/device_signing/upload`.
    pub(super) fn set_cross_signing(&mut self, keys: BTreeMap<String, Value>) -> Result<(), SessionError> {
        for (kind, key) in keys {
            let known = self.data.keys.cross_signing(&kind);
            if let Some(known) = known
                && known["keys"] == key["keys"]
            {
                let mut known = self.without_gone(known);
                if merge_signatures(&mut known, &key["signatures"]) {
                    self.put_cross_signing(&kind, known)?;
                }
                continue;
            }
            self.put_cross_signing(&kind, key)?;
        }
        Ok(())
    }

    fn put_cross_signing(&mut self, kind: &str, key: Value) -> Result<(), SessionError> {
        let row = (self.user_id().clone(), kind.to_owned(), String::new());
        self.batch.put(&schema::CROSS_SIGNING, &row, &stored(&key, SIGNED_MAX)?);
        self.data.keys.cross_signing.insert((row.1, row.2), Arc::new(key));
        // Nobody else sees the user-signing key.
        self.bump_device_list().signing_keys |= kind != "user_signing";
        Ok(())
    }

    /// A key without this user's signatures by devices and cross-signing keys that are gone: nobody can check them any more, and they
    /// would take the place of new ones for good.
    fn without_gone(&self, key: &Value) -> Value {
        let mut key = key.clone();
        if let Some(own) = key["signatures"].get_mut(self.user_id().as_str()).and_then(Value::as_object_mut) {
            own.retain(|name, _| {
                let signer = name.split_once(':').map_or("", |(_, signer)| signer);
                self.data.devices.contains_key(<&DeviceId>::from(signer))
                    || self.data.keys.is_cross_signing_key(signer)
            });
        }
        key
    }

    /// Adds signatures to a device's keys or to a cross-signing key of this user.
    pub(super) fn sign_own(&mut self, key_id: &str, signatures: &Value) -> Result<(), SessionError> {
        let device_id: OwnedDeviceId = key_id.into();
        if let Some(keys) = self.data.keys.device(&device_id) {
            let mut keys = self.without_gone(keys);
            if merge_signatures(&mut keys, signatures) {
                self.put_device_keys(&device_id, keys)?;
            }
            return Ok(());
        }
        for kind in CROSS_SIGNING {
            if let Some(key) = self.data.keys.cross_signing(kind)
                && key["keys"].get(format!("ed25519:{key_id}")).is_some()
            {
                let mut key = self.without_gone(key);
                if merge_signatures(&mut key, signatures) {
                    self.put_cross_signing(kind, key)?;
                }
                return Ok(());
            }
        }
        Err(SessionError::KeyNotFound)
    }

    /// Keeps this user's signatures on the master key of another user; nobody else is shown them.
    pub(super) fn sign_other(
        &mut self,
        target: &OwnedUserId,
        signatures: &Value,
    ) -> Result<(), SessionError> {
        let held = self.data.keys.signatures_on(target);
        let mut held = held.map(|held| self.without_gone(held)).unwrap_or_default();
        if merge_signatures(&mut held, signatures) {
            let row = (self.user_id().clone(), SIGNATURE.to_owned(), target.to_string());
            self.batch.put(&schema::CROSS_SIGNING, &row, &stored(&held, SIGNED_MAX)?);
            self.data.keys.cross_signing.insert((row.1, row.2), Arc::new(held));
            // The user's other devices look at the target's keys again; nobody else has reason to.
            let position = self.position();
            self.batch.put(&schema::SIGNED_USERS, &(row.0, target.clone()), &position);
            self.data.keys.signed.insert(target.clone(), position);
            self.is_news = true;
        }
        Ok(())
    }

    /// Forgets all that belongs to a device.
    pub(super) fn forget_keys(&mut self, device_id: &DeviceId) {
        let user_id = self.user_id().clone();
        let keys = &mut self.data.keys;
        let places: Vec<_> = keys.one_time_of(device_id).map(|(place, _)| place.clone()).collect();
        for place in places {
            keys.one_time.remove(&place);
            self.batch.delete(&schema::ONE_TIME_KEYS, &(user_id.clone(), place.0, place.1, place.2));
        }
        let places: Vec<_> = keys.fallback.keys().filter(|place| place.0 == device_id).cloned().collect();
        for place in places {
            keys.fallback.remove(&place);
            self.batch.delete(&schema::FALLBACK_KEYS, &(user_id.clone(), place.0, place.1));
        }
        let places: Vec<_> = keys.extras.keys().filter(|place| place.0 == device_id).cloned().collect();
        for place in places {
            keys.extras.remove(&place);
            self.batch.delete(&schema::DEVICE_DATA, &(user_id.clone(), place.0, place.1));
        }
        for position in keys.inbox.remove(device_id).into_iter().flatten() {
            self.batch.delete(&schema::TO_DEVICE, &(user_id.clone(), device_id.to_owned(), position));
        }
        keys.touched.remove(device_id);
        if keys.devices.remove(device_id).is_some() {
            self.batch.delete(&schema::DEVICE_KEYS, &(user_id, device_id.to_owned()));
            self.device_changed(device_id);
        }
    }

    /// Adds a hash to a row of them, from which the oldest give way.
    pub(super) fn push_ring(&mut self, device_id: &DeviceId, kind: &str, hash: [u8; 8], most: usize) {
        let held = self.data.keys.extra(device_id, kind).cloned().unwrap_or_default();
        let from = (held.len() / 8 + 1).saturating_sub(most) * 8;
        let mut ring = held[from.min(held.len())..].to_vec();
        ring.extend_from_slice(&hash);
        self.put_extra(device_id, kind, Bytes::from(ring));
    }

    /// Keeps something else that belongs to a device.
    pub(super) fn put_extra(&mut self, device_id: &DeviceId, kind: &str, value: Bytes) {
        let place = (device_id.to_owned(), kind.to_owned());
        let row = (self.user_id().clone(), place.0.clone(), place.1.clone());
        self.batch.put(&schema::DEVICE_DATA, &row, &value);
        self.data.keys.extras.insert(place, value);
    }
}
