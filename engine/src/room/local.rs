//! Events of local users: made from the room as it is, and authorised by its present state.
//!
//! Spec: server-server API, "Adding hashes and signatures to outgoing events", "Auth events selection".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{MilliSecondsSinceUnixEpoch, RoomId, ServerName, UserId};
use serde_json::Value;

use super::receive::Evidence;
use crate::{
    auth::AuthFailure,
    pdu::{self, BuildContext, Draft, Pdu, PduError, SigningKey},
    resolve::StateKey,
    room_version::RoomVersion,
};

/// What of a room a local user's event is made from.
pub struct Ground<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The room's version.
    pub rules: &'static RoomVersion,
    /// The events before the new one.
    pub prev_events: Vec<Arc<Pdu>>,
    /// Those of the room's present state that authorise it.
    pub auth_events: BTreeMap<StateKey, Arc<Pdu>>,
    /// The room's create event.
    pub create: Option<Arc<Pdu>>,
    /// The time.
    pub now: MilliSecondsSinceUnixEpoch,
    /// Unique text for the event's ID, in versions in which the ID is not a hash.
    pub seed: String,
    /// This server.
    pub server_name: &'a ServerName,
    /// Signs the event.
    pub key: &'a SigningKey,
}

/// Why a local user's event is not made.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is too large or malformed.
    #[error(transparent)]
    Malformed(#[from] PduError),
    /// The authorization rules refuse it.
    #[error(transparent)]
    Forbidden(#[from] AuthFailure),
}

impl Ground<'_> {
    /// Builds and signs an event, and checks that it is allowed.
    pub fn make(self, sender: &UserId, draft: Draft) -> Result<Pdu, Refusal> {
        let pdu = self.build(sender, draft)?;
        let auth_events = self.auth_events.into_values();
        let auth_events = auth_events.map(|event| (event.event_id().clone(), event)).collect();
        let evidence = Evidence { auth_events, create: self.create, ..Evidence::default() };
        // Its auth events are those of the present state: one check is all three.
        evidence.check_auth_events(&pdu, self.rules)?;
        Ok(pdu)
    }

    /// Builds and signs an event, whether it is allowed or not.
    pub fn build(&self, sender: &UserId, draft: Draft) -> Result<Pdu, PduError> {
        let auth_events: Vec<_> = self.auth_events.values().cloned().collect();
        let context = BuildContext {
            room_id: Some(self.room_id),
            sender,
            origin_server_ts: self.now,
            prev_events: &self.prev_events,
            auth_events: &auth_events,
            event_id_localpart: &self.seed,
            rules: self.rules,
            key: self.key,
            server_name: self.server_name,
        };
        pdu::build(draft, &context)
    }
}

/// Whether a state event would only repeat the one that the room has in its place.
pub fn repeats(held: &Pdu, sender: &UserId, draft: &Draft) -> bool {
    let parse = |json: &str| serde_json::from_str::<Value>(json).ok();
    held.sender() == sender && parse(held.content().get()) == parse(draft.content.get())
}
