//! Events from other servers: placing them in the graph, in the timeline and in the state.
//!
//! Their signatures and hashes are checked before they come here.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    auth,
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::receive::{Evidence, Verdict},
    state::StateRoot,
};
use ruma::{OwnedEventId, OwnedServerName};
use storage::schema::{self, GapRecord, SentBy, Standing};

use super::{ActiveRoom, Advice, Backfill, RoomError, StoredEvent, change::Change};

/// Places in the timeline that are kept free where events are missing.
const GAP_PLACES: u64 = 1000;

/// An event from another server.
#[derive(Clone, Debug)]
pub struct Receive {
    /// The event; redacted if its content hash did not match.
    pub pdu: Pdu,
    /// The server that it came from.
    pub origin: OwnedServerName,
    /// For prev events that cannot be had: the events of the state after each of them.
    pub prev_states: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    /// Whether this server is to pass it on: its server is not in the room (yet), and came to us with it.
    pub relay: bool,
    /// What the room's policy server thinks of it.
    pub advice: Advice,
    /// The local client's transaction, if one sent it.
    pub sent_by: Option<SentBy>,
}

impl Receive {
    /// An event that came from a server, with nothing special about it.
    pub fn new(pdu: Pdu, origin: OwnedServerName) -> Self {
        Self {
            pdu,
            origin,
            prev_states: BTreeMap::new(),
            relay: false,
            advice: Advice::Recommended,
            sent_by: None,
        }
    }
}

/// What became of a received event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is part of the room now, or was before.
    Accepted,
    /// It is part of the graph, but hidden from clients.
    SoftFailed,
    /// It was never allowed.
    Rejected(String),
    /// These are to be fetched first.
    Lacks {
        /// Prev events that are not known.
        prev_events: Vec<OwnedEventId>,
        /// Auth events that are not known.
        auth_events: Vec<OwnedEventId>,
    },
}

/// Where an event goes.
pub(super) struct Placement {
    /// The state before it.
    pub(super) before: StateRoot,
    /// One more than the highest rank of its auth events.
    pub(super) rank: u64,
    /// Its number, if it is known as an outlier.
    pub(super) short: Option<ShortEventId>,
    /// Where it came from.
    pub(super) origin: OwnedServerName,
    /// Prev events that are missing here.
    pub(super) missing: Vec<OwnedEventId>,
    /// The local client's transaction, if one sent it.
    pub(super) sent_by: Option<SentBy>,
}

impl ActiveRoom {
    /// Judges a received event and takes it in accordingly.
    pub(super) async fn receive(&self, change: &mut Change, receive: Receive) -> Result<Received, RoomError> {
        let Receive { pdu, origin, prev_states, relay, advice, sent_by } = receive;
        change.relays = relay;
        if *pdu.room_id() != *self.room_id {
            return Ok(Received::Rejected("the event belongs to another room".to_owned()));
        }
        let known = self.known_event(change, pdu.event_id()).await?;
        match known.as_ref().map(|known| known.standing) {
            Some(Standing::Rejected) => return Ok(Received::Rejected("rejected before".to_owned())),
            Some(Standing::Accepted) => return Ok(Received::Accepted),
            Some(Standing::SoftFailed) => return Ok(Received::SoftFailed),
            Some(Standing::Outlier) | None => {}
        }
        let (auth_events, lacking_auth) = self.known_events(change, pdu.auth_events()).await?;
        let (prevs, unknown) = self.known_events(change, pdu.prev_events()).await?;
        let (prevs, outliers): (Vec<_>, Vec<_>) =
            prevs.into_iter().partition(|event| event.standing != Standing::Outlier);
        let missing: Vec<_> =
            outliers.iter().map(|event| event.pdu.event_id().clone()).chain(unknown).collect();
        let lacking_prev: Vec<_> =
            missing.iter().filter(|id| !prev_states.contains_key(*id)).cloned().collect();
        if !lacking_auth.is_empty() || !lacking_prev.is_empty() {
            return Ok(Received::Lacks { prev_events: lacking_prev, auth_events: lacking_auth });
        }
        // What is missing in a hole of the timeline belongs there, not at its end.
        let hole = change.head.gaps.iter().find(|(_, gap)| gap.missing.contains(pdu.event_id()));
        if let Some(at) = hole.map(|(at, _)| *at) {
            let backfill = Backfill { gap: at, events: vec![pdu], states: BTreeMap::new(), origin };
            self.backfill(change, backfill).await?;
            return Ok(Received::Accepted);
        }
        let mut before = self.state_before(change, &prevs, &missing, &prev_states).await?;
        if change.head.lacks_members {
            before = self.with_members_of(change, before, &auth_events).await?;
        }
        let verdict = self.evidence(change, &pdu, &auth_events, before).await?.judge(&pdu, self.rules);
        let placement = Placement {
            before,
            rank: rank(&auth_events),
            short: known.map(|known| known.short),
            origin,
            missing,
            sent_by,
        };
        let pdu = Arc::new(pdu);
        match verdict {
            Verdict::Accepted if advice == Advice::Refused => {
                self.hide(change, pdu, Standing::SoftFailed, &placement);
                Ok(Received::SoftFailed)
            }
            Verdict::Accepted => {
                self.accept(change, pdu, placement).await?;
                Ok(Received::Accepted)
            }
            Verdict::SoftFailed(reason) => {
                tracing::debug!(event_id = %pdu.event_id(), %reason, "soft-failed an event");
                self.hide(change, pdu.clone(), Standing::SoftFailed, &placement);
                self.note_refused(change, pdu.event_id());
                Ok(Received::SoftFailed)
            }
            Verdict::Rejected(reason) => {
                tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an event");
                self.hide(change, Arc::new(Pdu::clone(&pdu).rejected()), Standing::Rejected, &placement);
                self.note_refused(change, pdu.event_id());
                Ok(Received::Rejected(reason.to_string()))
            }
        }
    }

    async fn state_before(
        &self,
        change: &mut Change,
        prevs: &[Arc<StoredEvent>],
        missing: &[OwnedEventId],
        prev_states: &BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    ) -> Result<StateRoot, RoomError> {
        let mut roots = BTreeSet::new();
        for prev in prevs {
            roots.insert(self.state_after(change, prev).await?);
        }
        for id in missing {
            if let Some(state) = prev_states.get(id) {
                roots.insert(self.state_of(change, state).await?);
            }
        }
        self.merge(change, roots).await
    }

    /// The state that some known events make.
    pub(super) async fn state_of(
        &self,
        change: &mut Change,
        ids: &[OwnedEventId],
    ) -> Result<StateRoot, RoomError> {
        let (events, missing) = self.known_events(change, ids).await?;
        if !missing.is_empty() {
            tracing::debug!(room_id = %self.room_id, missing = missing.len(), "a state from a peer has holes");
        }
        let entries = events
            .iter()
            .filter(|event| event.standing != Standing::Rejected)
            .filter_map(|event| {
                let key = (event.pdu.kind().to_owned(), event.pdu.state_key()?.to_owned());
                Some((key, Some(event.short)))
            })
            .collect();
        self.apply(change, StateRoot::default(), &entries).await
    }

    /// Takes an accepted event into the timeline, the graph and the current state.
    pub(super) async fn accept(
        &self,
        change: &mut Change,
        pdu: Arc<Pdu>,
        placement: Placement,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let Placement { before, rank, short, origin, missing, sent_by } = placement;
        let has_relations = self.has_relations(change, pdu.event_id()).await?;
        let places = if missing.is_empty() { 1 } else { GAP_PLACES + 1 };
        let ticket = self.shared.store.storage().reserve(places);
        let position = ticket.last();
        let index = TimelineIndex::from(position);
        let mut event = StoredEvent {
            short: short.unwrap_or(ShortEventId(position.0)),
            room: self.room,
            pdu,
            index: Some(index),
            standing: Standing::Accepted,
            before,
            after: before,
            replaces: None,
            redacted_by: None,
            sent_by,
            rank,
            has_relations,
        };
        if let Some(state_key) = event.pdu.state_key() {
            let held = self
                .with_nodes(change, |nodes| engine::state::get(nodes, before, event.pdu.kind(), state_key))
                .await?;
            event.replaces = held.filter(|held| *held != event.short);
        }
        // The state's new events are looked up while members are counted.
        change.hidden.insert(event.short, Arc::new(event.clone()));
        let mut roots = BTreeSet::from([self.state_after(change, &event).await?]);
        let mut tips = self.tips_beside(change, &event.pdu).await?;
        for tip in &tips {
            roots.insert(self.state_after(change, tip).await?);
        }
        let root = self.merge(change, roots).await?;
        self.move_state(change, root, index).await?;
        change.hidden.remove(&event.short);
        event.after = root;
        let event = Arc::new(event);
        tips.push(event.clone());
        tips.sort_by_key(|tip| tip.short);
        change.head.tips = tips;
        let floor = std::mem::replace(&mut change.head.latest, index);
        change.head.push_recent(event.clone());
        if !missing.is_empty() {
            self.open_gap(change, index, GapRecord { missing, floor, origin });
        }
        self.store_event(change, &event);
        change.tickets.push(ticket);
        change.events.push(event.clone());
        self.relate(change, &event).await?;
        self.apply_redactions(change, &event).await?;
        Ok(event)
    }

    pub(super) fn open_gap(&self, change: &mut Change, at: TimelineIndex, gap: GapRecord) {
        change.batch.put(&schema::GAPS, &(self.room, at), &gap);
        change.head.gaps.insert(at, gap);
        change.head.recent_is_all = false;
    }

    /// Keeps an event that clients do not see.
    pub(super) fn hide(&self, change: &mut Change, pdu: Arc<Pdu>, standing: Standing, placement: &Placement) {
        let ticket = self.shared.store.storage().reserve(1);
        let event = Arc::new(StoredEvent {
            short: placement.short.unwrap_or(ShortEventId(ticket.last().0)),
            room: self.room,
            pdu,
            index: None,
            standing,
            before: placement.before,
            after: placement.before,
            replaces: None,
            redacted_by: None,
            sent_by: None,
            rank: placement.rank,
            has_relations: false,
        });
        self.store_event(change, &event);
        change.hidden_ids.insert(event.pdu.event_id().clone(), event.short);
        change.hidden.insert(event.short, event);
        change.tickets.push(ticket);
    }

    /// Applies a redaction to its target, or to an event the redaction that came before it.
    pub(super) async fn apply_redactions(
        &self,
        change: &mut Change,
        event: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        if event.pdu.kind() == "m.room.redaction" {
            let Some(target_id) = event.pdu.redacts() else { return Ok(()) };
            if let Some(target) = self.known_event(change, target_id).await? {
                return self.redact_if_allowed(change, &target, event).await;
            }
            let key = (self.room, target_id.to_owned());
            change.batch.put(&schema::EARLY_REDACTIONS, &key, &event.short);
            return Ok(());
        }
        let key = (self.room, event.pdu.event_id().clone());
        let early = self.shared.store.storage().get(&schema::EARLY_REDACTIONS, &key).await?;
        if let Some(short) = early {
            let redaction = self.event(change, short).await?;
            change.batch.delete(&schema::EARLY_REDACTIONS, &key);
            self.redact_if_allowed(change, event, &redaction).await?;
        }
        Ok(())
    }

    async fn redact_if_allowed(
        &self,
        change: &mut Change,
        target: &Arc<StoredEvent>,
        redaction: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        let Some(powers) = self.powers(change).await? else { return Ok(()) };
        if auth::redaction_applies(&redaction.pdu, &target.pdu, &powers) {
            self.redact(change, target, redaction).await?;
        }
        Ok(())
    }

    /// Stores events that others refer to, without a place in the graph.
    pub(super) async fn store_outliers(&self, change: &mut Change, pdus: Vec<Pdu>) -> Result<(), RoomError> {
        let held = self.current(change, "m.room.create", "").await?.map(|event| event.pdu.clone());
        let new = pdus.iter().find(|pdu| pdu.kind() == "m.room.create" && pdu.state_key() == Some(""));
        let create = held.or_else(|| new.cloned().map(Arc::new));
        for pdu in by_auth(pdus) {
            if *pdu.room_id() != *self.room_id || self.known_event(change, pdu.event_id()).await?.is_some() {
                continue;
            }
            let (auth_events, missing) = self.known_events(change, pdu.auth_events()).await?;
            let evidence = Evidence {
                auth_events: auth_events
                    .iter()
                    .map(|event| (event.pdu.event_id().to_owned(), event.pdu.clone()))
                    .collect(),
                create: create.clone(),
                ..Evidence::default()
            };
            let verdict = evidence.check_auth_events(&pdu, self.rules);
            let is_allowed = missing.is_empty() && verdict.is_ok();
            if let Err(reason) = verdict {
                tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an outlier");
            }
            let (pdu, standing) =
                if is_allowed { (pdu, Standing::Outlier) } else { (pdu.rejected(), Standing::Rejected) };
            let placement = Placement {
                before: StateRoot::default(),
                rank: rank(&auth_events),
                short: None,
                origin: self.shared.server_name.clone(),
                missing: Vec::new(),
                sent_by: None,
            };
            self.hide(change, Arc::new(pdu), standing, &placement);
        }
        Ok(())
    }
}

/// One more than the highest rank of the auth events.
pub(super) fn rank(auth_events: &[Arc<StoredEvent>]) -> u64 {
    auth_events.iter().map(|event| event.rank + 1).max().unwrap_or(0)
}

/// Events in an order in which each comes after those of them that authorise it; cycles are left out.
fn by_auth(pdus: Vec<Pdu>) -> Vec<Pdu> {
    let mut waiting: BTreeMap<OwnedEventId, Pdu> =
        pdus.into_iter().map(|pdu| (pdu.event_id().clone(), pdu)).collect();
    let mut blocked = BTreeMap::<OwnedEventId, usize>::new();
    let mut blocks = BTreeMap::<OwnedEventId, Vec<OwnedEventId>>::new();
    for (id, pdu) in &waiting {
        let open: BTreeSet<_> = pdu.auth_events().iter().filter(|id| waiting.contains_key(*id)).collect();
        blocked.insert(id.clone(), open.len());
        for auth_id in open {
            blocks.entry(auth_id.clone()).or_default().push(id.clone());
        }
    }
    let mut ready: Vec<_> =
        blocked.iter().filter(|(_, open)| **open == 0).map(|(id, _)| id.clone()).rev().collect();
    let mut sorted = Vec::with_capacity(waiting.len());
    while let Some(id) = ready.pop() {
        for freed in blocks.remove(&id).unwrap_or_default() {
            if let Some(open) = blocked.get_mut(&freed) {
                *open -= 1;
                if *open == 0 {
                    ready.push(freed);
                }
            }
        }
        sorted.extend(waiting.remove(&id));
    }
    sorted
}
