//! Events of local users: made from the room as it is, and authorised by its present state.
//!
//! Spec: server-server API, "Adding hashes and signatures to outgoing events", "Auth events selection".

use std::sync::Arc;

use ruma::{MilliSecondsSinceUnixEpoch, ServerName, UserId, uint};
use serde_json::Value;

use super::{
    admit::{Placement, by_id, rank_of},
    event::StoredEvent,
    graph::PREV_EVENTS_MAX,
    machine::{Head, Need, Room, pdus},
    receive::Evidence,
};
use crate::{
    auth::{self, AuthFailure},
    pdu::{self, BuildContext, Draft, Pdu, PduError, SigningKey},
    state::StateRoot,
};

/// How far ahead of the clock an event is dated, at most: others take no event that its signing key is too old for.
const AHEAD_MAX_MS: u64 = 3_600_000;

/// Who makes events here, and when.
pub struct Author<'a> {
    /// This server.
    pub server_name: &'a ServerName,
    /// Signs the events.
    pub key: &'a SigningKey,
    /// The time.
    pub now: MilliSecondsSinceUnixEpoch,
    /// Unique text for an event's ID, in versions in which the ID is not a hash.
    pub seed: String,
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

/// A local user's event with its place in the graph, or why it is not made.
pub type Made = Result<(Pdu, Placement), Refusal>;

impl Author<'_> {
    /// Builds and signs an event of a room, whether it is allowed or not; `replaced` is the event whose place it takes.
    pub fn build(
        &self,
        head: &Head<'_>,
        (prev_events, auth_events): (&[Arc<Pdu>], &[Arc<Pdu>]),
        replaced: Option<&Pdu>,
        (sender, draft): (&UserId, Draft),
    ) -> Result<Pdu, PduError> {
        let context = BuildContext {
            room_id: Some(head.id),
            sender,
            origin_server_ts: draft.dated.unwrap_or_else(|| date(self.now, replaced, self.server_name)),
            prev_events,
            auth_events,
            event_id_localpart: &self.seed,
            rules: head.rules,
            key: self.key,
            server_name: self.server_name,
        };
        pdu::build(draft, &context)
    }
}

/// The date of an event that takes the place of another one in a room's state: later than that one's, if `server_name`
/// dated that as well.
///
/// Where branches of the room meet, both may be in conflict, and what is dated later is applied last. A clock that was
/// set back in between, or two events of one millisecond, would bring back what was replaced: who left a room and came
/// back would be out of it.
///
/// Spec: room version 2, "State resolution", "Mainline ordering".
pub fn date(
    now: MilliSecondsSinceUnixEpoch,
    replaced: Option<&Pdu>,
    server_name: &ServerName,
) -> MilliSecondsSinceUnixEpoch {
    let own = replaced.filter(|event| event.sender().server_name() == server_name);
    let next = own.and_then(|event| event.origin_server_ts().get().checked_add(uint!(1)));
    let latest = u64::from(now.get()).saturating_add(AHEAD_MAX_MS);
    let next = next.filter(|next| u64::from(*next) <= latest);
    next.map_or(now, |next| now.max(MilliSecondsSinceUnixEpoch(next)))
}

impl Room<'_> {
    /// A local user's event, as the next one of the room: after as many forward extremities as it may name, the newest.
    pub fn make(&mut self, sender: &UserId, draft: &Draft, author: &Author<'_>) -> Result<Made, Need> {
        let tips = self.head.tips;
        if tips.len() <= PREV_EVENTS_MAX {
            return self.build(tips, self.head.root, (sender, draft), author);
        }
        self.make_after(&tips[tips.len() - PREV_EVENTS_MAX..], sender, draft, author)
    }

    /// A local user's event that comes after some others, and is authorised by the state that they make.
    pub fn make_after(
        &mut self,
        prevs: &[Arc<StoredEvent>],
        sender: &UserId,
        draft: &Draft,
        author: &Author<'_>,
    ) -> Result<Made, Need> {
        let before = self.state_after_all(prevs)?;
        self.build(prevs, before, (sender, draft), author)
    }

    fn build(
        &self,
        prevs: &[Arc<StoredEvent>],
        before: StateRoot,
        (sender, draft): (&UserId, &Draft),
        author: &Author<'_>,
    ) -> Result<Made, Need> {
        let rules = self.head.rules;
        let keys = auth::auth_keys(&draft.kind, sender, draft.state_key.as_deref(), &draft.content, rules);
        let keys = match keys {
            Ok(keys) => keys.into_iter().map(|(kind, key)| (kind.to_string(), key)),
            Err(failure) => return Ok(Err(failure.into())),
        };
        let auth_events: Vec<_> = self.held(before, keys)?.into_values().collect();
        let create = self.current("m.room.create", "")?.map(|event| event.pdu.clone());
        let replaced = match &draft.state_key {
            Some(state_key) => {
                self.held(before, [(draft.kind.to_string(), state_key.clone())])?.into_values().next()
            }
            None => None,
        };
        let replaced = replaced.as_ref().map(|event| &*event.pdu);
        let around = (&*pdus(prevs), &*pdus(&auth_events));
        let pdu = match author.build(&self.head, around, replaced, (sender, draft.clone())) {
            Ok(pdu) => pdu,
            Err(error) => return Ok(Err(error.into())),
        };
        let allowed = if before == self.head.root {
            // Its auth events are those of the present state: one check is all three.
            let evidence = Evidence { auth_events: by_id(&auth_events), create, ..Evidence::default() };
            evidence.check_auth_events(&pdu, rules)
        } else {
            self.check(&pdu, &auth_events, before)?
        };
        let placement = Placement { before, rank: rank_of(&auth_events), ..Placement::default() };
        Ok(allowed.map(|()| (pdu, placement)).map_err(Refusal::Forbidden))
    }
}

/// Whether a state event would only repeat the one that the room has in its place.
pub fn repeats(held: &Pdu, sender: &UserId, draft: &Draft) -> bool {
    let parse = |json: &str| serde_json::from_str::<Value>(json).ok();
    held.sender() == sender && parse(held.content().get()) == parse(draft.content.get())
}
