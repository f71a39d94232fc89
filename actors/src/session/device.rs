//! Devices and their tokens.
//!
//! Spec: client-server API, "Relationship between access tokens and devices", "Refreshing access tokens".

use std::{sync::Arc, time::Duration};

use js_int::UInt;
use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId};
use storage::schema::{self, AccountRecord, DeviceRecord, TokenHash, TokenKind, TokenRecord};

use super::{LogOut, SessionError, change::Draft, token::hash_token};
use crate::{effects::Effect, env::Entropy};

/// A login on a device, new or known.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// The device; a new one if none.
    pub device_id: Option<OwnedDeviceId>,
    /// The name of a new device.
    pub display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub wants_refresh_token: bool,
}

/// The tokens of a login or a refresh.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Authenticates requests.
    pub access_token: String,
    /// Exchanged for a new access token.
    pub refresh_token: Option<String>,
    /// How long the access token works, if not for ever.
    pub expires_in: Option<Duration>,
}

/// How long an access token of a client that can refresh it works.
const ACCESS_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Devices that one user may have; bots that log in at every start come to thousands.
const DEVICES_MAX: usize = 10_000;

/// Bytes of a device's name, at most: everybody who shares a room with its user is told of it.
const NAME_MAX: usize = 1024;

/// Letters and digits of a token: more than 256 bits.
const TOKEN_LENGTH: usize = 44;

impl Draft {
    /// Logs in; a device that was logged in already loses its former tokens.
    pub(super) fn log_in(&mut self, login: Login, entropy: &dyn Entropy) -> Result<LoggedIn, SessionError> {
        if self.data.account.is_deactivated {
            return Err(SessionError::Deactivated);
        }
        if self.data.account.is_locked {
            return Err(SessionError::Locked);
        }
        let device_id = match login.device_id {
            Some(device_id) => self.checked_id(device_id)?,
            None => entropy.token(10).to_ascii_uppercase().into(),
        };
        let device = match self.data.devices.get(&device_id).cloned() {
            Some(device) => {
                self.revoke_tokens(&device);
                (*device).clone()
            }
            None => self.new_device(login.display_name)?,
        };
        Ok(self.issue(device_id, device, login.wants_refresh_token, entropy))
    }

    /// A device's ID as somebody chose it, if it may be one.
    fn checked_id(&self, device_id: OwnedDeviceId) -> Result<OwnedDeviceId, SessionError> {
        if self.data.keys.is_cross_signing_key(device_id.as_str()) {
            return Err(SessionError::KeyInUse);
        }
        let is_possible = (1..=255).contains(&device_id.as_str().len());
        if is_possible { Ok(device_id) } else { Err(SessionError::InvalidDeviceId) }
    }

    fn new_device(&self, name: Option<String>) -> Result<DeviceRecord, SessionError> {
        if self.data.devices.len() >= DEVICES_MAX {
            return Err(SessionError::TooMany("devices"));
        }
        Ok(DeviceRecord {
            display_name: name.map(cut_name),
            last_seen: Some(self.now),
            last_seen_ip: None,
            access_token: None,
            refresh_token: None,
            previous_refresh_token: None,
        })
    }

    /// Makes a device for which an application service acts, without tokens; one that is there is named.
    ///
    /// Spec: application service API, "Creating devices".
    pub(super) fn put_device_of_service(
        &mut self,
        device_id: OwnedDeviceId,
        name: Option<String>,
    ) -> Result<(), SessionError> {
        if self.data.devices.contains_key(&device_id) {
            return if name.is_some() { self.rename_device(&device_id, name) } else { Ok(()) };
        }
        let device_id = self.checked_id(device_id)?;
        let device = self.new_device(name)?;
        self.put_device(device_id, device);
        Ok(())
    }

    /// Exchanges a refresh token for new tokens.
    ///
    /// The exchanged token goes on working until one of the new ones is used, so that a client that
    /// never got the answer is not locked out.
    pub(super) fn refresh(
        &mut self,
        token: &TokenHash,
        entropy: &dyn Entropy,
    ) -> Result<LoggedIn, SessionError> {
        let holds = |device: &DeviceRecord| {
            device.refresh_token.as_ref() == Some(token)
                || device.previous_refresh_token.as_ref() == Some(token)
        };
        let found = self.data.devices.iter().find(|(_, device)| holds(device));
        let (device_id, mut device) = match found {
            Some((device_id, device)) => (device_id.clone(), (**device).clone()),
            None => return Err(SessionError::UnknownRefreshToken),
        };
        if self.data.account.is_locked {
            return Err(SessionError::Locked);
        }
        for old in [device.access_token, device.refresh_token, device.previous_refresh_token] {
            self.revoke(old.filter(|old| old != token));
        }
        device.previous_refresh_token = Some(*token);
        Ok(self.issue(device_id, device, true, entropy))
    }

    fn issue(
        &mut self,
        device_id: OwnedDeviceId,
        mut device: DeviceRecord,
        with_refresh_token: bool,
        entropy: &dyn Entropy,
    ) -> LoggedIn {
        let access_token = format!("gat_{}", entropy.token(TOKEN_LENGTH));
        let refresh_token = with_refresh_token.then(|| format!("grt_{}", entropy.token(TOKEN_LENGTH)));
        let expires_in = with_refresh_token.then_some(ACCESS_LIFETIME);
        device.access_token = Some(hash_token(&access_token));
        device.refresh_token = refresh_token.as_deref().map(hash_token);
        let expires = expires_in.map(|lifetime| later(self.now, lifetime));
        self.put_token(device.access_token, &device_id, TokenKind::Access, expires);
        self.put_token(device.refresh_token, &device_id, TokenKind::Refresh, None);
        self.put_device(device_id.clone(), device);
        LoggedIn { device_id, access_token, refresh_token, expires_in }
    }

    fn put_token(
        &mut self,
        hash: Option<TokenHash>,
        device_id: &DeviceId,
        kind: TokenKind,
        expires: Option<MilliSecondsSinceUnixEpoch>,
    ) {
        let Some(hash) = hash else { return };
        let record = TokenRecord {
            user_id: self.user_id().clone(),
            device_id: device_id.to_owned(),
            kind,
            expires,
            is_guest: self.data.account.is_guest,
        };
        self.batch.put(&schema::TOKENS, &hash, &record);
    }

    pub(super) fn put_device(&mut self, device_id: OwnedDeviceId, device: DeviceRecord) {
        self.batch.put(&schema::DEVICES, &(self.data.user_id.clone(), device_id.clone()), &device);
        self.data.devices.insert(device_id, Arc::new(device));
    }

    fn revoke(&mut self, hash: Option<TokenHash>) {
        if let Some(hash) = hash {
            self.batch.delete(&schema::TOKENS, &hash);
            self.revoked.push(hash);
        }
    }

    fn revoke_tokens(&mut self, device: &DeviceRecord) {
        for token in [device.access_token, device.refresh_token, device.previous_refresh_token] {
            self.revoke(token);
        }
    }

    /// Notes that a device was used, and that its present tokens have arrived.
    pub(super) fn seen(&mut self, device_id: &DeviceId, ip: Option<String>) {
        let Some(device) = self.data.devices.get(device_id) else { return };
        let mut device = (**device).clone();
        self.revoke(device.previous_refresh_token.take());
        device.last_seen = Some(self.now);
        device.last_seen_ip = ip.or(device.last_seen_ip);
        self.put_device(device_id.to_owned(), device);
    }

    pub(super) fn rename_device(
        &mut self,
        device_id: &DeviceId,
        name: Option<String>,
    ) -> Result<(), SessionError> {
        let device = self.data.devices.get(device_id).ok_or(SessionError::DeviceNotFound)?;
        if name.as_ref().is_some_and(|name| name.len() > NAME_MAX) {
            return Err(SessionError::Invalid(format!("a device's name has at most {NAME_MAX} bytes")));
        }
        let is_same = device.display_name == name;
        let device = DeviceRecord { display_name: name, ..(**device).clone() };
        self.put_device(device_id.to_owned(), device);
        // The name goes with the keys.
        if !is_same && self.data.keys.device(device_id).is_some() {
            self.device_changed(device_id);
        }
        Ok(())
    }

    pub(super) fn device_ids(&self) -> Vec<OwnedDeviceId> {
        self.data.devices.keys().cloned().collect()
    }

    /// Logs out devices and forgets them; those that are not there are fine.
    pub(super) fn delete_devices(&mut self, device_ids: &[OwnedDeviceId]) {
        for device_id in device_ids {
            if let Some(device) = self.data.devices.remove(device_id) {
                self.revoke_tokens(&device);
                self.end_sliding_connections(device_id);
                self.remove_pushers_of(device_id);
                self.batch.delete(&schema::DEVICES, &(self.data.user_id.clone(), device_id.clone()));
                self.forget_keys(device_id);
            }
        }
    }

    pub(super) fn set_account(&mut self, set: impl FnOnce(&mut AccountRecord)) {
        let mut account = (*self.data.account).clone();
        set(&mut account);
        self.batch.put(&schema::ACCOUNTS, &self.data.user_id, &account);
        self.data.account = Arc::new(account);
    }

    pub(super) fn set_password(&mut self, hash: String, log_out: &LogOut) -> Result<(), SessionError> {
        if self.data.account.is_deactivated {
            return Err(SessionError::Deactivated);
        }
        self.set_account(|account| account.password_hash = Some(hash));
        if let LogOut::Others(kept) = log_out {
            let mut others = self.device_ids();
            others.retain(|device_id| Some(device_id) != kept.as_ref());
            self.delete_devices(&others);
        }
        Ok(())
    }

    pub(super) fn upgrade_guest(&mut self, password_hash: Option<String>) -> Result<(), SessionError> {
        if self.data.account.is_deactivated {
            return Err(SessionError::Deactivated);
        }
        self.set_account(|account| {
            account.password_hash = password_hash;
            account.is_guest = false;
        });
        // Their tokens are a guest's.
        self.delete_devices(&self.device_ids());
        Ok(())
    }

    /// Closes the account for good: no password, no device, no profile, no account data.
    ///
    /// Spec: client-server API, "Deactivating accounts".
    pub(super) fn deactivate(&mut self, erase: bool) {
        self.set_account(|account| {
            account.password_hash = None;
            account.is_deactivated = true;
            account.is_erased |= erase;
        });
        self.ask_for(Effect::Departure);
        if erase {
            let position = self.position();
            self.batch.put(&schema::ERASED_USERS, &self.data.user_id, &position);
            self.is_erasure = true;
        }
        self.delete_devices(&self.device_ids());
        self.index_name(None);
        for (name, _) in std::mem::take(&mut self.data.profile.fields) {
            self.batch.delete(&schema::PROFILES, &(self.data.user_id.clone(), name));
        }
        for (room_id, kind) in self.data.account_data.clear() {
            let room_id = room_id.map_or_else(String::new, |room_id| room_id.to_string());
            self.batch.delete(&schema::ACCOUNT_DATA, &(self.data.user_id.clone(), room_id, kind));
        }
        for ((room_id, thread), _) in std::mem::take(&mut self.data.private_receipts) {
            self.batch.delete(&schema::PRIVATE_RECEIPTS, &(self.data.user_id.clone(), room_id, thread));
        }
        self.forget_threads();
    }
}

/// A new device's name, cut where it is too long: a login that is otherwise good does not fail for it.
pub(super) fn cut_name(mut name: String) -> String {
    let end = (0..=NAME_MAX.min(name.len())).rev().find(|at| name.is_char_boundary(*at));
    name.truncate(end.unwrap_or_default());
    name
}

/// A moment later than another.
pub(super) fn later(now: MilliSecondsSinceUnixEpoch, by: Duration) -> MilliSecondsSinceUnixEpoch {
    let by = UInt::try_from(by.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(now.0.saturating_add(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut_name("phone".to_owned()), "phone");
        assert_eq!(cut_name("x".repeat(NAME_MAX)).len(), NAME_MAX);
        assert_eq!(cut_name("x".repeat(NAME_MAX + 1)).len(), NAME_MAX);
        assert_eq!(cut_name("€".repeat(NAME_MAX)), "€".repeat(NAME_MAX / 3));
    }
}
