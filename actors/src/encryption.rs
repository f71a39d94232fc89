//! End-to-end encryption as the server as a whole sees it: whose keys, whose messages.
//!
//! Spec: client-server API, "End-to-End Encryption", "Send-to-Device messaging".

mod signing;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use ruma::{OwnedDeviceId, OwnedUserId, TransactionId, UserId};
use serde_json::{Map, Value, json};

pub use self::signing::SignatureFailures;
use crate::{
    homeserver::Homeserver,
    session::{Claimed, Requester, SessionChange, SessionError, SessionHandle, Wanted},
};

/// Sessions that are asked at a time for one request.
const AT_A_TIME: usize = 16;

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

    /// Keys of users; of all their devices where none is named.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/query`.
    pub async fn query_keys(
        &self,
        viewpoint: Viewpoint<'_>,
        wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Result<QueriedKeys, SessionError> {
        let mut answer = QueriedKeys::default();
        let signer = match viewpoint {
            Viewpoint::User(user_id) => Some(self.session(user_id).await?),
            Viewpoint::Server => None,
        };
        let (local, remote): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        answer.failures = unreached(remote.iter().map(|(user_id, _)| &**user_id));
        let mut found = stream::iter(local)
            .map(|(user_id, devices)| {
                let homeserver = self.clone();
                async move { (homeserver.session(&user_id).await, user_id, devices) }
            })
            .buffered(AT_A_TIME);
        while let Some((session, user_id, devices)) = found.next().await {
            match session {
                Ok(session) => add_keys(&mut answer, &session, &user_id, &devices, signer.as_ref()),
                Err(SessionError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Takes one-time keys of users, and tells which servers were not reached.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/keys/claim`.
    pub async fn claim_keys(
        &self,
        wanted: BTreeMap<OwnedUserId, Wanted>,
    ) -> Result<(BTreeMap<OwnedUserId, Claimed>, BTreeMap<String, Value>), SessionError> {
        let (local, remote): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        let failures = unreached(remote.iter().map(|(user_id, _)| &**user_id));
        let claims = stream::iter(local).map(|(user_id, wanted)| {
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
        Ok((claimed, failures))
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
        if session.has_sent(&requester.device_id, kind, txn_id) {
            return Ok(());
        }
        self.deliver_to_device(&requester.user_id, kind, messages).await?;
        session.note_sent(requester.device_id.clone(), kind, txn_id).await
    }

    /// Puts messages into the inboxes of local devices; returns when they are durable.
    ///
    /// Messages to users of other servers are left out.
    pub async fn deliver_to_device(
        &self,
        sender: &UserId,
        kind: &str,
        messages: Messages,
    ) -> Result<(), SessionError> {
        let local: Vec<_> = messages.into_iter().filter(|(user_id, _)| self.is_local(user_id)).collect();
        let deliveries = stream::iter(local).map(|(user_id, by_device)| {
            let event = |content: &Value| json!({ "type": kind, "sender": sender, "content": content });
            let messages: Vec<_> = by_device
                .iter()
                .map(|(device_id, content)| {
                    let device_id = (device_id != "*").then(|| device_id.as_str().into());
                    (device_id, event(content).to_string())
                })
                .collect();
            let homeserver = self.clone();
            async move {
                match homeserver.session(&user_id).await {
                    Ok(session) => session.change(SessionChange::Deliver(messages)).await,
                    Err(SessionError::NotFound) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        });
        let results: Vec<Result<(), _>> = deliveries.buffered(AT_A_TIME).collect().await;
        results.into_iter().collect()
    }
}

/// The servers of users whose keys are not to be had: other servers are not asked yet.
fn unreached<'a>(users: impl Iterator<Item = &'a UserId>) -> BTreeMap<String, Value> {
    let servers: BTreeSet<_> = users.map(|user_id| user_id.server_name().to_string()).collect();
    let failure = json!({ "errcode": "M_UNREACHABLE", "error": "this server does not ask others for keys" });
    servers.into_iter().map(|server| (server, failure.clone())).collect()
}

fn add_keys(
    answer: &mut QueriedKeys,
    session: &SessionHandle,
    user_id: &OwnedUserId,
    devices: &[OwnedDeviceId],
    signer: Option<&SessionHandle>,
) {
    let data = session.data();
    let mut by_device = Map::new();
    for (device_id, keys) in data.keys().devices() {
        if !devices.is_empty() && !devices.iter().any(|wanted| wanted == device_id) {
            continue;
        }
        let mut keys = keys.clone();
        let name = data.device(device_id).and_then(|device| device.display_name.clone());
        if let (Some(name), Some(keys)) = (name, keys.as_object_mut()) {
            keys.insert("unsigned".to_owned(), json!({ "device_display_name": name }));
        }
        by_device.insert(device_id.to_string(), keys);
    }
    answer.device_keys.insert(user_id.clone(), by_device);
    let is_own = signer.is_some_and(|signer| signer.user_id() == user_id);
    for kind in crate::session::CROSS_SIGNING {
        let Some(mut key) = data.keys().cross_signing(kind).cloned() else { continue };
        if kind == "user_signing" && !is_own {
            continue;
        }
        if kind == "master"
            && !is_own
            && let Some(signatures) =
                signer.and_then(|signer| signer.data().keys().signatures_on(user_id).cloned())
        {
            crate::session::merge_signatures(&mut key, &signatures["signatures"]);
        }
        answer.cross_signing.entry(kind).or_default().insert(user_id.clone(), key);
    }
}
