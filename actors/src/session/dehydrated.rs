//! Dehydrated devices: a device that nobody runs, for messages that come while no other device is there.
//!
//! Spec: MSC3814.

use bytes::Bytes;
use ruma::{DeviceId, OwnedDeviceId};
use serde_json::Value;
use storage::schema::DeviceRecord;

use super::{Keys, SessionError, change::Draft, device::cut_name, keys::Upload};

const DEHYDRATED: &str = "dehydrated";

impl Keys {
    /// The dehydrated device and what it is rehydrated from, JSON.
    pub fn dehydrated(&self) -> Option<(&DeviceId, &[u8])> {
        let found = self.extras.iter().find(|((_, kind), _)| kind == DEHYDRATED);
        found.map(|((device_id, _), data)| (&**device_id, &**data))
    }
}

impl Draft {
    /// Makes a dehydrated device in the place of the one that there may be.
    pub(super) fn dehydrate(
        &mut self,
        display_name: Option<String>,
        device_data: &Value,
        upload: Upload,
    ) -> Result<(), SessionError> {
        let device_id = upload.device_id.clone().ok_or(SessionError::InvalidDeviceId)?;
        if !(1..=255).contains(&device_id.as_str().len()) {
            return Err(SessionError::InvalidDeviceId);
        }
        let former = self.data.keys.dehydrated().map(|(former, _)| former.to_owned());
        if former.as_ref() != Some(&device_id) && self.data.devices.contains_key(&device_id) {
            return Err(SessionError::Invalid("the device ID is another device's".to_owned()));
        }
        self.delete_devices(former.as_slice());
        let record = DeviceRecord {
            display_name: display_name.map(cut_name).or_else(|| Some("Dehydrated device".to_owned())),
            last_seen: Some(self.now),
            last_seen_ip: None,
            access_token: None,
            refresh_token: None,
            previous_refresh_token: None,
        };
        self.put_device(device_id.clone(), record);
        self.put_extra(&device_id, DEHYDRATED, Bytes::from(device_data.to_string()));
        self.upload_keys(upload)
    }

    /// Deletes the dehydrated device; returns its ID.
    pub(super) fn delete_dehydrated(&mut self) -> Result<OwnedDeviceId, SessionError> {
        let former = self.data.keys.dehydrated().map(|(former, _)| former.to_owned());
        let former = former.ok_or(SessionError::DeviceNotFound)?;
        self.delete_devices(std::slice::from_ref(&former));
        Ok(former)
    }
}
