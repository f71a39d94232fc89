//! Pushers: where a user's notifications go.
//!
//! Spec: client-server API, "Push Notifications".

use std::sync::Arc;

use bytes::Bytes;
use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId};
use storage::schema::{self, PusherRecord};

use super::{SessionData, SessionError, change::Draft};

/// Names a pusher among those of its user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PusherKey {
    /// The application.
    pub app_id: String,
    /// What the push gateway knows the device by.
    pub pushkey: String,
}

/// A pusher to be set.
#[derive(Clone, Debug)]
pub struct NewPusher {
    /// Its name.
    pub key: PusherKey,
    /// The device that sets it.
    pub device_id: OwnedDeviceId,
    /// `http`.
    pub kind: String,
    /// The application, for people.
    pub app_display_name: String,
    /// The device, for people.
    pub device_display_name: String,
    /// The device's set of rules.
    pub profile_tag: Option<String>,
    /// The language of the notifications.
    pub lang: String,
    /// What the push gateway is called with, JSON.
    pub data: Bytes,
}

/// Pushers that one user may have: each costs a request per notification.
const PUSHERS_MAX: usize = 32;

impl SessionData {
    /// A pusher.
    pub fn pusher(&self, key: &PusherKey) -> Option<&Arc<PusherRecord>> {
        self.pushers.get(key)
    }

    /// All pushers, in the order of their keys.
    pub fn pushers(&self) -> impl Iterator<Item = (&PusherKey, &PusherRecord)> {
        self.pushers.iter().map(|(key, record)| (key, &**record))
    }
}

impl Draft {
    /// Creates or replaces a pusher.
    pub(super) fn set_pusher(&mut self, new: NewPusher) -> Result<(), SessionError> {
        if self.data.account.is_deactivated {
            return Err(SessionError::Deactivated);
        }
        let known = self.data.pushers.get(&new.key);
        if known.is_none() && self.data.pushers.len() >= PUSHERS_MAX {
            return Err(SessionError::TooMany("pushers"));
        }
        let record = PusherRecord {
            device_id: new.device_id,
            kind: new.kind,
            app_display_name: new.app_display_name,
            device_display_name: new.device_display_name,
            profile_tag: new.profile_tag,
            lang: new.lang,
            data: new.data,
            set: self.now,
            since: known.map_or(self.position(), |known| known.since),
        };
        let (row, index) = rows(self.user_id(), &new.key);
        self.batch.put(&schema::PUSHERS, &row, &record);
        self.batch.put(&schema::PUSHKEYS, &index, &());
        self.data.pushers.insert(new.key, Arc::new(record));
        self.pushers_changed = true;
        Ok(())
    }

    /// Removes a pusher; with `set`, only one that was last set then.
    pub(super) fn remove_pusher(&mut self, key: &PusherKey, set: Option<MilliSecondsSinceUnixEpoch>) {
        let is_meant = |record: &Arc<PusherRecord>| set.is_none_or(|set| record.set == set);
        if !self.data.pushers.get(key).is_some_and(is_meant) {
            return;
        }
        let (row, index) = rows(self.user_id(), key);
        self.batch.delete(&schema::PUSHERS, &row);
        self.batch.delete(&schema::PUSH_CURSORS, &row);
        self.batch.delete(&schema::PUSHKEYS, &index);
        self.data.pushers.remove(key);
        self.pushers_changed = true;
    }

    /// Removes the pushers that a device has set.
    pub(super) fn remove_pushers_of(&mut self, device_id: &DeviceId) {
        let theirs = self.data.pushers.iter().filter(|(_, record)| record.device_id == device_id);
        let keys: Vec<_> = theirs.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove_pusher(&key, None);
        }
    }
}

type Rows = ((OwnedUserId, String, String), (String, String, OwnedUserId));

/// The keys of a pusher's rows, by user and by pushkey.
fn rows(user_id: &OwnedUserId, key: &PusherKey) -> Rows {
    let PusherKey { app_id, pushkey } = key.clone();
    ((user_id.clone(), app_id.clone(), pushkey.clone()), (app_id, pushkey, user_id.clone()))
}
