//! To-device messages of local devices: each transaction is done once, whatever happens meanwhile.
//!
//! Its messages go into the inboxes of many users, each in a commit of its own. So each inbox notes in the same commit which transaction it
//! has messages of, and the last commit, which notes that the transaction is done, lets go of these notes again. Whoever comes back with a
//! transaction that was left half done finds them. Which transactions those are is kept in memory, so that no other looks for notes.
//!
//! Spec: client-server API, "Send-to-Device messaging".

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use ruma::{OwnedDeviceId, ServerName, TransactionId, UserId};
use serde_json::{Value, json};
use storage::{Direction, KeyRange, Storage, StoreError, schema};
use tokio::sync::OnceCell;

use super::{AT_A_TIME, MESSAGE_MAX, Messages, is_deliverable};
use crate::{
    flights::Flights,
    homeserver::Homeserver,
    session::{ReceivedId, Requester, SessionChange, SessionError, SessionHandle},
};

/// Messages that are sent to devices in one request, at most: a bot may have something for all devices of a large room, but they
/// wait on the disk until they are fetched.
const MESSAGES_MAX: usize = 10_000;

/// Servers that one request sends to-device messages to, at most: each is looked for, and the messages for one that does not exist
/// are tried for weeks.
const SERVERS_MAX: usize = 1000;

/// Transactions that are known to be half done, at most; of further ones messages may come twice.
const HALF_DONE_MAX: usize = 10_000;

/// The transactions that are under way, and those that were left half done.
#[derive(Default)]
pub(crate) struct Sending {
    /// A client that gave up waiting comes again while the first request goes on.
    flights: Flights,
    half_done: Mutex<BTreeSet<String>>,
    /// Set once what a crash left half done is known.
    filled: OnceCell<()>,
}

impl Sending {
    /// Whether some inboxes may have the messages of a transaction already.
    async fn is_half_done(&self, storage: &Storage, id: &ReceivedId) -> Result<bool, StoreError> {
        self.filled.get_or_try_init(|| self.fill(storage, &id.origin)).await?;
        Ok(self.half_done.lock().contains(&id.message_id))
    }

    /// Reads what a crash left half done: nothing, or what was under way.
    async fn fill(&self, storage: &Storage, own: &ServerName) -> Result<(), StoreError> {
        let of_own = KeyRange::prefix(&(own,));
        let rows =
            storage.range(&schema::RECEIVED_MESSAGES, of_own, Direction::Ascending, HALF_DONE_MAX).await?;
        self.half_done.lock().extend(rows.into_iter().map(|((_, message_id, _), _)| message_id));
        Ok(())
    }

    fn ended(&self, id: &ReceivedId, result: &Result<(), SessionError>) {
        let mut half_done = self.half_done.lock();
        if result.is_ok() {
            half_done.remove(&id.message_id);
        } else if half_done.len() < HALF_DONE_MAX {
            half_done.insert(id.message_id.clone());
        }
    }
}

impl Homeserver {
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
        let (homeserver, requester) = (self.clone(), requester.clone());
        let (kind, txn_id) = (kind.to_owned(), txn_id.to_owned());
        // Whoever hangs up does not leave it half done.
        let sent = self.see_through(async move {
            homeserver.send_once(&session, &requester, &kind, &txn_id, messages).await
        });
        sent.await.unwrap_or(Err(SessionError::Crashed))
    }

    async fn send_once(
        &self,
        session: &SessionHandle,
        requester: &Requester,
        kind: &str,
        txn_id: &TransactionId,
        messages: Messages,
    ) -> Result<(), SessionError> {
        let sending = &self.session_shared().sending;
        let id = self.own_id(requester, kind, txn_id);
        let _turn = sending.flights.board(id.message_id.clone()).await;
        if session.has_sent(&requester.device_key(), kind, txn_id) {
            return Ok(());
        }
        let (mut local, remote): (Messages, Messages) =
            messages.into_iter().partition(|(user_id, _)| self.is_local(user_id));
        self.send_to_remote_devices(requester, kind, txn_id.as_str(), remote).await?;
        let recipients: Vec<_> = local.keys().cloned().collect();
        if sending.is_half_done(self.storage(), &id).await? {
            local = self.undelivered(local, &id).await?;
        }
        let sent = async {
            self.deliver_to_device(&requester.user_id, kind, local, &id).await?;
            session.note_sent(requester.device_key(), kind, txn_id, id.message_id.clone(), recipients).await
        };
        let result = sent.await;
        sending.ended(&id, &result);
        result
    }

    /// Of messages, those whose recipients have not got them yet.
    pub(crate) async fn undelivered(
        &self,
        messages: Messages,
        id: &ReceivedId,
    ) -> Result<Messages, SessionError> {
        let keys = messages.keys().map(|user_id| (&*id.origin, &*id.message_id, &**user_id));
        let known = self.storage().get_many(&schema::RECEIVED_MESSAGES, keys).await?;
        Ok(messages.into_iter().zip(known).filter(|(_, known)| known.is_none()).map(|(new, _)| new).collect())
    }

    /// Puts messages into the inboxes of local devices; returns when they are durable.
    pub(crate) async fn deliver_to_device(
        &self,
        sender: &UserId,
        kind: &str,
        messages: Messages,
        id: &ReceivedId,
    ) -> Result<(), SessionError> {
        let deliveries = stream::iter(messages).map(|(user_id, by_device)| async move {
            let change = SessionChange::Deliver(events(sender, kind, by_device), id.clone());
            match self.session(&user_id).await {
                Ok(session) => session.change(change).await,
                Err(SessionError::NotFound) => Ok(()),
                // Or else their server would send it again and again, and nothing after it.
                Err(error) if id.origin != self.server_name() && error.is_damage() => {
                    tracing::error!(user.id = %user_id, %error, "messages for a user's devices are lost");
                    Ok(())
                }
                Err(error) => Err(error),
            }
        });
        let results: Vec<Result<(), _>> = deliveries.buffered(AT_A_TIME).collect().await;
        results.into_iter().collect()
    }
}

/// The messages to a user as its devices get them: by device, and for all of them where none is named.
fn events(
    sender: &UserId,
    kind: &str,
    by_device: BTreeMap<String, Value>,
) -> Vec<(Option<OwnedDeviceId>, String)> {
    let event = |(device_id, content): (String, Value)| {
        let device_id = (device_id != "*").then(|| device_id.into());
        (device_id, json!({ "type": kind, "sender": sender, "content": content }).to_string())
    };
    by_device.into_iter().map(event).collect()
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
