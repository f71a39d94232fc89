//! To-device messages, device lists and key counts: what a client needs for end-to-end encryption.
//!
//! Spec: MSC3884, MSC3885; client-server API, "End-to-End Encryption", extensions to `/sync`.

use engine::id::Position;

use super::{
    SlidingError, Turn,
    response::{Encryption, ToDevice},
};
use crate::token::Token;

impl Turn<'_> {
    /// The messages that wait for the device; a token of the client's says which it has.
    pub(super) async fn to_device(&self) -> Result<Option<ToDevice>, SlidingError> {
        let wanted = &self.request.body.extensions.to_device;
        if wanted.enabled != Some(true) {
            return Ok(None);
        }
        let since = match wanted.since.as_deref().filter(|since| !since.is_empty()) {
            Some(since) => match since.parse() {
                Ok(Token::Sync(since)) if since <= self.upto => since,
                // From a time after the backup that the store was restored from: what comes next was not sent yet.
                Ok(Token::Sync(_)) => Position(0),
                _ => return Err(SlidingError::InvalidSince),
            },
            None => Position(0),
        };
        let device_id = &self.request.device_id;
        self.session.acknowledge(device_id, since);
        let waiting = self.session.waiting(device_id, since, self.upto).await?;
        let next = waiting.more_after.unwrap_or(self.upto).max(since);
        Ok(Some(ToDevice { next_batch: Token::Sync(next).to_string(), events: waiting.messages }))
    }

    /// Whose devices changed, and the device's keys.
    pub(super) async fn encryption(&self) -> Result<Option<Encryption>, SlidingError> {
        if !self.request.body.extensions.e2ee.is_enabled() {
            return Ok(None);
        }
        let data = self.session.data();
        let (keys, device_id) = (data.keys(), &self.request.device_id);
        let mut encryption = Encryption {
            device_one_time_keys_count: keys.one_time_counts(device_id),
            device_unused_fallback_key_types: keys.unused_fallback_types(device_id),
            has_new_counts: keys.touched(device_id) > self.since().unwrap_or_default(),
            ..Encryption::default()
        };
        // A client that starts a connection asks for all devices that it tracks by itself.
        if let Some(since) = self.since() {
            encryption.device_lists =
                self.homeserver.device_list_changes(self.session, since, self.upto).await?;
        }
        Ok(Some(encryption))
    }
}
