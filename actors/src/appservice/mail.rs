//! To-device messages for the devices of a service's users.
//!
//! They have positions like events, so that the service's cursor is theirs too. They stay in the devices' inboxes: a device
//! may sync as well.
//!
//! Spec: MSC2409, MSC4203.

use std::collections::BTreeSet;

use engine::id::Position;
use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use storage::{Direction, KeyRange, schema};

use super::{Service, follower::FollowError};
use crate::{homeserver::Homeserver, session::SessionError};

/// Messages of one transaction after which no more are added.
const MESSAGES_MAX: usize = 100;

/// Devices that are read at a time when a task starts.
const PAGE: usize = 1000;

/// A message in a device's inbox, by when it came.
type Waiting = (Position, OwnedUserId, OwnedDeviceId);

/// The users of a service whose inboxes may hold what it has not been told of.
#[derive(Default)]
pub(super) struct Mail {
    users: BTreeSet<OwnedUserId>,
}

impl Mail {
    /// All users of a service who have devices.
    pub(super) async fn load(homeserver: &Homeserver, service: &Service) -> Result<Self, FollowError> {
        let mut mail = Self::default();
        let mut range = KeyRange::all();
        loop {
            let storage = homeserver.storage();
            let rows = storage.range(&schema::DEVICES, range, Direction::Ascending, PAGE).await?;
            let Some((last, _)) = rows.last() else { return Ok(mail) };
            range = KeyRange::all().after(last);
            let users = rows.into_iter().map(|((user_id, _), _)| user_id);
            mail.users.extend(users.filter(|user_id| service.has_user(user_id)));
        }
    }

    /// Somebody sent something to these users.
    pub(super) fn came(&mut self, users: BTreeSet<OwnedUserId>) {
        self.users.extend(users);
    }

    /// What came after a position and not after another, oldest first; and up to where that is all.
    pub(super) async fn waiting(
        &mut self,
        homeserver: &Homeserver,
        after: Position,
        upto: Position,
    ) -> Result<(Vec<Waiting>, Position), FollowError> {
        let mut waiting = Vec::new();
        let mut idle = Vec::new();
        for user_id in &self.users {
            let session = match homeserver.session(user_id).await {
                Ok(session) => session,
                Err(SessionError::NotFound) => {
                    idle.push(user_id.clone());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let data = session.data();
            let before = waiting.len();
            for (device_id, _) in data.devices() {
                let inbox = data.keys().inbox(device_id).into_iter().flatten().copied();
                let new = inbox.filter(|position| *position > after);
                waiting.extend(new.map(|position| (position, user_id.clone(), device_id.to_owned())));
            }
            if waiting.len() == before {
                idle.push(user_id.clone());
            }
        }
        for user_id in &idle {
            self.users.remove(user_id);
        }
        waiting.retain(|(position, ..)| *position <= upto);
        waiting.sort();
        let upto = match waiting.get(MESSAGES_MAX) {
            Some((bound, ..)) => *bound,
            None => upto,
        };
        waiting.retain(|(position, ..)| *position <= upto);
        Ok((waiting, upto))
    }
}

/// The messages, each with whom it is for; those that a device has got meanwhile are left out.
pub(super) async fn messages(
    homeserver: &Homeserver,
    waiting: Vec<Waiting>,
) -> Result<Vec<Box<RawValue>>, FollowError> {
    let mut messages = Vec::with_capacity(waiting.len());
    for (position, user_id, device_id) in waiting {
        let key = (user_id, device_id, position);
        let Some(json) = homeserver.storage().get(&schema::TO_DEVICE, &key).await? else { continue };
        let mut message: Map<String, Value> = serde_json::from_str(&json).unwrap_or_default();
        message.insert("to_user_id".to_owned(), key.0.as_str().into());
        message.insert("to_device_id".to_owned(), key.1.as_str().into());
        messages.extend(to_raw_value(&message));
    }
    Ok(messages)
}
