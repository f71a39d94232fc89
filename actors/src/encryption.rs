//! End-to-end encryption as the server as a whole sees it: whose keys, whose messages.
//!
//! Spec: client-server API, "End-to-End Encryption", "Send-to-Device messaging".

mod signing;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, TransactionId, UserId};
use serde_json::{Map, Value, json};
use storage::schema::RemoteDeviceListRecord;

pub use self::signing::SignatureFailures;
use crate::{
    federation::WantedDevices,
    homeserver::Homeserver,
    session::{
        CROSS_SIGNING, Claimed, ReceivedId, Requester, SessionChange, SessionError, SessionHandle, Wanted,
        merge_signatures,
    },
};

/// Sessions that are asked at a time for one request.
const AT_A_TIME: usize = 16;

/// Bytes of a to-device message's content, at most: as much as an event has, and as others take in an EDU. A device that was away gets
/// all that waits for it.
const MESSAGE_MAX: usize = 64 << 10;

/// Messages that are sent to devices in one request, at most: a bot may have something for all devices of a large room, but they
/// wait on the disk until they are fetched.
const MESSAGES_MAX: usize = 10_000;

/// Servers that one request sends to-device messages to, at most: each is looked for, and the messages for one that does not exist
/// are tried for weeks.
const SERVERS_MAX: usize = 1000;

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

    /// Sends to-device messages of a local device, once per transaction.
    ///
    /// Spec: client-server API, `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`.
    pub async fn send_to_device(
        &self,
        requester: &Requester,
        kind: &str,
        txn_id: &TransactionId,
        messages: Messages,
    ) -> Result<(), SessionError> {
        let session = self.session(&requester.user_id).await?;
        if session.has_sent(&requester.device_key(), kind, txn_id) {
            return Ok(());
        }
        check_size(&messages)?;
        let (local, remote): (Messages, Messages) =
            messages.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        self.send_to_remote_devices(requester, kind, txn_id.as_str(), remote).await?;
        self.deliver_to_device(&requester.user_id, kind, local, None).await?;
        session.note_sent(requester.device_key(), kind, txn_id).await
    }

    /// Puts messages into the inboxes of local devices; returns when they are durable.
    ///
    /// Messages of another server have an ID.
    pub(crate) async fn deliver_to_device(
        &self,
        sender: &UserId,
        kind: &str,
        messages: Messages,
        received: Option<ReceivedId>,
    ) -> Result<(), SessionError> {
        let deliveries = stream::iter(messages).map(|(user_id, by_device)| {
            let event = |content: &Value| json!({ "type": kind, "sender": sender, "content": content });
            let messages: Vec<_> = by_device
                .iter()
                .map(|(device_id, content)| {
                    let device_id = (device_id != "*").then(|| device_id.as_str().into());
                    (device_id, event(content).to_string())
                })
                .collect();
            let (homeserver, received) = (self.clone(), received.clone());
            async move {
                match homeserver.session(&user_id).await {
                    Ok(session) => session.change(SessionChange::Deliver(messages, received.clone())).await,
                    Err(SessionError::NotFound) => Ok(()),
                    // Or else their server would send it again and again, and nothing after it.
                    Err(error) if received.is_some() && error.is_damage() => {
                        tracing::error!(user.id = %user_id, %error, "messages for a user's devices are lost");
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        });
        let results: Vec<Result<(), _>> = deliveries.buffered(AT_A_TIME).collect().await;
        results.into_iter().collect()
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

/// Refuses messages that are too many or too large.
fn check_size(messages: &Messages) -> Result<(), SessionError> {
    let too_large = |what: String| Err(SessionError::TooLarge(what));
    let servers: BTreeSet<_> = messages.keys().map(|user_id| user_id.server_name()).collect();
    if servers.len() > SERVERS_MAX {
        return too_large(format!("one request has messages for {SERVERS_MAX} servers at most"));
    }
    let mut contents = messages.values().flat_map(BTreeMap::values);
    if contents.clone().count() > MESSAGES_MAX {
        return too_large(format!("one request has {MESSAGES_MAX} messages at most"));
    }
    if !contents.all(is_deliverable) {
        return too_large(format!("a message's content has at most {MESSAGE_MAX} bytes"));
    }
    Ok(())
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
