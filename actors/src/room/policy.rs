//! Policy servers: a server in the room that is asked whether an event is to be recommended.
//!
//! Spec: server-server API, "Policy Servers" (MSC4284).

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use engine::pdu::{self, Draft, Pdu};
pub use engine::room::receive::Advice;
use http::Method;
use ruma::{CanonicalJsonObject, OwnedServerName};
use serde::Deserialize;

use super::{
    MembershipChange, Receive, Received, RoomError, RoomHandle, RoomMessage, Send, membership::Prepared,
};
use crate::federation::{FederationError, FederationRequest};

/// The ID of every policy server's key.
const KEY_ID: &str = "ed25519:policy_server";

/// How long a policy server may take: a sender waits for it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer is one signature.
const RESPONSE_MAX: usize = 64 << 10;

/// The policy server of a room.
#[derive(Clone, Debug)]
pub(super) struct PolicyServer {
    name: OwnedServerName,
    key: String,
}

#[derive(Deserialize)]
struct Content {
    via: OwnedServerName,
    public_keys: PublicKeys,
}

#[derive(Deserialize)]
struct PublicKeys {
    ed25519: String,
}

/// Whether events of this type and state key are sent without asking, so that the policy server can be removed.
fn is_exempt(kind: &str, state_key: Option<&str>) -> bool {
    kind == "m.room.policy" && state_key == Some("")
}

impl RoomHandle {
    /// The policy server that the room uses for events of a type and state key, if any.
    async fn policy_server(
        &self,
        kind: &str,
        state_key: Option<&str>,
    ) -> Result<Option<PolicyServer>, RoomError> {
        if is_exempt(kind, state_key) {
            return Ok(None);
        }
        let Some(event) = self.current("m.room.policy", "").await? else { return Ok(None) };
        let Ok(Content { via, public_keys }) = serde_json::from_str(event.pdu.content().get()) else {
            return Ok(None);
        };
        let is_in_room = self.snapshot().head.has_server(&via);
        Ok(is_in_room.then_some(PolicyServer { name: via, key: public_keys.ed25519 }))
    }

    /// What the room's policy server thinks of an event that was received, which it is asked unless it signed already.
    ///
    /// Returns the event with its signature.
    pub(crate) async fn advice(&self, pdu: Pdu) -> Result<(Pdu, Advice), RoomError> {
        let Some(server) = self.policy_server(pdu.kind(), pdu.state_key()).await? else {
            return Ok((pdu, Advice::Recommended));
        };
        if self.is_signed_by(&server, &pdu) {
            return Ok((pdu, Advice::Recommended));
        }
        match self.ask(&server, &pdu).await {
            Ok(signed) => Ok((signed, Advice::Recommended)),
            Err(RoomError::Policy(error)) => {
                tracing::info!(event_id = %pdu.event_id(), server = %server.name, %error, "a policy server does not recommend an event");
                Ok((pdu, Advice::Refused))
            }
            Err(error) => Err(error),
        }
    }

    /// An event of this server with the signature of the room's policy server, if it uses one; refused if that refuses.
    pub(crate) async fn recommended(&self, pdu: Pdu) -> Result<Pdu, RoomError> {
        match self.policy_server(pdu.kind(), pdu.state_key()).await? {
            Some(server) => self.ask(&server, &pdu).await,
            None => Ok(pdu),
        }
    }

    fn is_signed_by(&self, server: &PolicyServer, pdu: &Pdu) -> bool {
        pdu::is_signed_by(pdu, (&server.name, KEY_ID), &server.key, self.snapshot().rules)
    }

    /// The event with the policy server's signature.
    async fn ask(&self, server: &PolicyServer, pdu: &Pdu) -> Result<Pdu, RoomError> {
        let signature = self.ask_signature(server, pdu).await.map_err(RoomError::Policy)?;
        let signed = pdu::with_signature(pdu, (&server.name, KEY_ID), &signature)?;
        if self.is_signed_by(server, &signed) {
            return Ok(signed);
        }
        let bad = "the policy server's signature does not hold".to_owned();
        Err(RoomError::Policy(FederationError::BadBody(bad)))
    }

    async fn ask_signature(&self, server: &PolicyServer, pdu: &Pdu) -> Result<String, FederationError> {
        let client = self.client().ok_or(FederationError::Disabled)?;
        let request = FederationRequest {
            method: Method::POST,
            path_and_query: "/_matrix/policy/v1/sign".to_owned(),
            body: Some(Bytes::clone(pdu.raw())),
            timeout: TIMEOUT,
            max_response: RESPONSE_MAX,
        };
        let answer = client.request(&server.name, request).await?;
        let bad = |what: String| FederationError::BadBody(what);
        let signatures: BTreeMap<OwnedServerName, CanonicalJsonObject> =
            serde_json::from_slice(&answer.body).map_err(|error| bad(error.to_string()))?;
        let signature = signatures.get(&server.name).and_then(|own| own.get(KEY_ID)?.as_str());
        signature.map(ToOwned::to_owned).ok_or_else(|| bad("the policy server did not sign".to_owned()))
    }

    /// Sends an event of a local user, once the room's policy server recommends it; if it uses none, just sends it.
    pub(super) async fn send_advised(&self, send: Send) -> Result<ruma::OwnedEventId, RoomError> {
        let Draft { kind, state_key, .. } = &send.draft;
        if self.policy_server(&kind.to_string(), state_key.as_deref()).await?.is_none() {
            return self.actor().call(|reply| RoomMessage::Send(Box::new(send), reply)).await?;
        }
        let sent_by = send.sent_by.clone();
        let pdu = match self.actor().call(|reply| RoomMessage::PrepareSend(Box::new(send), reply)).await?? {
            Prepared::Event(pdu) => self.recommended(*pdu).await?,
            Prepared::Known(event_id) => return Ok(event_id),
        };
        let event_id = pdu.event_id().clone();
        let origin = pdu.sender().server_name().to_owned();
        self.take_own(Receive { sent_by, ..Receive::new(pdu, origin) }).await?;
        Ok(event_id)
    }

    /// The same for a membership.
    pub(super) async fn change_membership_advised(
        &self,
        change: MembershipChange,
    ) -> Result<Option<ruma::OwnedEventId>, RoomError> {
        let target = change.target.to_string();
        if self.policy_server("m.room.member", Some(&target)).await?.is_none() {
            return self.actor().call(|reply| RoomMessage::Membership(Box::new(change), reply)).await?;
        }
        let prepared =
            self.actor().call(|reply| RoomMessage::PrepareChange(Box::new(change), reply)).await??;
        let Some(pdu) = prepared else { return Ok(None) };
        let pdu = self.recommended(pdu).await?;
        let event_id = pdu.event_id().clone();
        let origin = pdu.sender().server_name().to_owned();
        self.take_own(Receive::new(pdu, origin)).await?;
        Ok(Some(event_id))
    }

    async fn take_own(&self, receive: Receive) -> Result<(), RoomError> {
        match self.receive(receive).await? {
            Received::Accepted => Ok(()),
            Received::SoftFailed | Received::Lacks { .. } => {
                Err(RoomError::NotAllowed("the room does not allow it any more".to_owned()))
            }
            Received::Rejected(reason) => Err(RoomError::NotAllowed(reason)),
        }
    }
}
