//! End-to-end encryption as the server as a whole sees it: whose keys, whose messages.
//!
//! Spec: client-server API, "End-to-End Encryption", "Send-to-Device messaging".

mod sending;
mod signing;

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde_json::{Map, Value, json};
use storage::schema::RemoteDeviceListRecord;

pub(crate) use self::sending::Sending;
pub use self::signing::SignatureFailures;
use crate::{
    federation::WantedDevices,
    homeserver::Homeserver,
    session::{CROSS_SIGNING, Claimed, SessionError, SessionHandle, Wanted, merge_signatures},
};

/// Sessions that are asked at a time for one request.
const AT_A_TIME: usize = 16;

/// Bytes of a to-device message's content, at most: as much as an event has, and as others take in an EDU. A device that was away gets
/// all that waits for it.
const MESSAGE_MAX: usize = 64 << 10;

/// Keys by user, as `/keys/query` answers, and the servers that were not reached.
#[derive(Debug, Default)]
pub struct QueriedKeys {
    /// Devices' identity keys.
    pub device_keys: BTreeMap<OwnedUserId, Map<String, Value>>,
    /// Cross-signing keys by kind (`master`, `self_signing`, `user_signing`) and user.
    pub cross_signing: BTreeMap<&'static str, BTreeMap<OwnedUserId, Value>>,
    /// Servers that did not answer.
    pub failures: BTreeMap<String, Value>,
}

/// Which keys a user is let see.
#[derive(Clone, Copy, Debug)]
pub enum Viewpoint<'a> {
    /// A local user's: with that user's own signatures and user-signing key.
    User(&'a UserId),
    /// Another server's.
    Server,
}

/// To-device messages by user and device (`*`: all devices).
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<String, Value>>;

impl Homeserver {
    fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.server_name()
    }

    /// Keys of users; of all their devices where none is named. Other servers get `timeout` to answer.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/query`; server-server API,
    /// `POST /_matrix/federation/v1/user/keys/query`, which is about local users only.
    pub async fn query_keys(
        &self,
        viewpoint: Viewpoint<'_>,
        wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
        timeout: Duration,
    ) -> Result<QueriedKeys, SessionError> {
        let mut answer = QueriedKeys::default();
        let signer = match viewpoint {
            Viewpoint::User(user_id) => Some(self.session(user_id).await?),
            Viewpoint::Server => None,
        };
        let (local, remote): (WantedDevices, WantedDevices) =
            wanted.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        if let Some(signer) = signer.as_ref().filter(|_| !remote.is_empty()) {
            let (lists, failures) = self.query_remote_keys(remote.clone(), timeout).await?;
            answer.failures = failures;
            for (user_id, list) in lists {
                add_remote_keys(&mut answer, &user_id, &list, &remote[&user_id], signer);
            }
        }
        let mut found = stream::iter(local)
            .map(|(user_id, devices)| {
                let homeserver = self.clone();
                async move { (homeserver.session(&user_id).await, user_id, devices) }
            })
            .buffered(AT_A_TIME);
        while let Some((session, user_id, devices)) = found.next().await {
            match session {
                Ok(session) => {
                    self.add_keys(&mut answer, &session, &user_id, &devices, signer.as_ref());
                }
                // Clients ask again for users of whom they are told nothing at all.
                Err(SessionError::NotFound) if signer.is_some() => {
                    answer.device_keys.entry(user_id).or_default();
                }
                Err(SessionError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Takes one-time keys of users, and tells which servers did not answer within `timeout`.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/claim`.
    pub async fn claim_keys(
        &self,
        wanted: BTreeMap<OwnedUserId, Wanted>,
        timeout: Duration,
    ) -> Result<(BTreeMap<OwnedUserId, Claimed>, BTreeMap<String, Value>), SessionError> {
        let (local, remote): (BTreeMap<_, _>, BTreeMap<_, _>) =
            wanted.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        let (local, remote) =
            futures_util::join!(self.claim_own_keys(local), self.claim_remote_keys(remote, timeout));
        let (mut claimed, failures) = remote;
        claimed.extend(local?);
        Ok((claimed, failures))
    }

    /// Takes one-time keys of local users; others are left out.
    ///
    /// Spec: server-server API, `POST /_matrix/federation/v1/user/keys/claim`.
    pub async fn claim_own_keys(
        &self,
        mut wanted: BTreeMap<OwnedUserId, Wanted>,
    ) -> Result<BTreeMap<OwnedUserId, Claimed>, SessionError> {
        wanted.retain(|user_id, _| self.is_local(user_id));
        let claims = stream::iter(wanted).map(|(user_id, wanted)| {
            let homeserver = self.clone();
            async move {
                let claimed = match homeserver.session(&user_id).await {
                    Ok(session) => session.claim(wanted).await?,
                    Err(SessionError::NotFound) => Claimed::new(),
                    Err(error) => return Err(error),
                };
                Ok((user_id, claimed))
            }
        });
        let claims: Vec<_> = claims.buffered(AT_A_TIME).collect().await;
        let mut claimed = claims.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        claimed.retain(|_, keys| !keys.is_empty());
        Ok(claimed)
    }

    fn add_keys(
        &self,
        answer: &mut QueriedKeys,
        session: &SessionHandle,
        user_id: &OwnedUserId,
        devices: &[OwnedDeviceId],
        signer: Option<&SessionHandle>,
    ) {
        let data = session.data();
        let mut by_device = Map::new();
        for (device_id, keys) in data.keys().devices().filter(|(id, _)| is_wanted(devices, id)) {
            let mut keys = keys.clone();
            let name = match signer {
                Some(_) => data.device(device_id).and_then(|device| device.display_name.clone()),
                None => self.shared_device_name(&data, device_id),
            };
            if let (Some(name), Some(keys)) = (name, keys.as_object_mut()) {
                keys.insert("unsigned".to_owned(), json!({ "device_display_name": name }));
            }
            by_device.insert(device_id.to_string(), keys);
        }
        answer.device_keys.insert(user_id.clone(), by_device);
        let is_own = signer.is_some_and(|signer| signer.user_id() == user_id);
        for kind in CROSS_SIGNING {
            let Some(mut key) = data.keys().cross_signing(kind).cloned() else { continue };
            if kind == "user_signing" && !is_own {
                continue;
            }
            if kind == "master"
                && !is_own
                && let Some(signer) = signer
            {
                add_signatures_of(signer, user_id, &mut key);
            }
            answer.cross_signing.entry(kind).or_default().insert(user_id.clone(), key);
        }
    }
}

/// Whether a content is what a device may be sent, whoever sends it.
pub(crate) fn is_deliverable(content: &Value) -> bool {
    content.is_object() && content.to_string().len() <= MESSAGE_MAX
}

fn is_wanted(devices: &[OwnedDeviceId], device_id: &DeviceId) -> bool {
    devices.is_empty() || devices.iter().any(|wanted| wanted == device_id)
}

/// Adds a user's signatures to another user's master key: only they see them.
fn add_signatures_of(signer: &SessionHandle, user_id: &UserId, key: &mut Value) {
    if let Some(signatures) = signer.data().keys().signatures_on(user_id) {
        merge_signatures(key, &signatures["signatures"]);
    }
}

fn add_remote_keys(
    answer: &mut QueriedKeys,
    user_id: &OwnedUserId,
    list: &RemoteDeviceListRecord,
    devices: &[OwnedDeviceId],
    signer: &SessionHandle,
) {
    let parse = |json: &String| serde_json::from_str::<Value>(json).ok();
    let wanted = list.devices.iter().filter(|(device_id, _)| is_wanted(devices, device_id));
    let by_device = wanted.filter_map(|(device_id, keys)| Some((device_id.to_string(), parse(keys)?)));
    answer.device_keys.insert(user_id.clone(), by_device.collect());
    if let Some(mut key) = list.master.as_ref().and_then(parse) {
        add_signatures_of(signer, user_id, &mut key);
        answer.cross_signing.entry("master").or_default().insert(user_id.clone(), key);
    }
    if let Some(key) = list.self_signing.as_ref().and_then(parse) {
        answer.cross_signing.entry("self_signing").or_default().insert(user_id.clone(), key);
    }
}
