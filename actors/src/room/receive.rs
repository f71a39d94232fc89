//! Events from other servers: placing them in the graph, in the timeline and in the state.
//!
//! Their signatures and hashes are checked before they come here.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use engine::room::receive::Received;
use engine::{
    auth::AuthFailure,
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::{
        graph::{by_auth, rank},
        hole::HOLE_PLACES,
        receive::{Arrival, Evidence, Standing, Step, Verdict, recall},
    },
    state::StateRoot,
};
use ruma::{OwnedEventId, OwnedServerName};
use storage::schema::{self, GapRecord, SentBy};

use super::{ActiveRoom, Advice, RoomError, StoredEvent, change::Change};

/// Holes with which nothing is noted any more of what is missing before hidden events, of which a hostile server may
/// send any number.
const HIDDEN_HOLES_MAX: usize = 100;

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
        let known = self.known_event(change, pdu.event_id()).await?;
        if let Some(answer) = recall(&pdu, &self.room_id, known.as_deref().and_then(placed)) {
            return Ok(answer);
        }
        if pdu.kind() == "m.room.create"
            && let Some(create) = self.current(change, "m.room.create", "").await?
        {
            // A room begins once, and its beginning is no news: it gets its place when the hole before it is filled.
            let is_it = create.pdu.event_id() == pdu.event_id();
            let other = || Received::Rejected("the room has another create event".to_owned());
            return Ok(if is_it { Received::Accepted } else { other() });
        }
        let (auth_events, unknown_auth) = self.known_events(change, pdu.auth_events()).await?;
        let (prevs, unknown) = self.known_events(change, pdu.prev_events()).await?;
        let (prevs, outliers): (Vec<_>, Vec<_>) = prevs.into_iter().partition(|event| event.has_place());
        let missing: Vec<_> =
            outliers.iter().map(|event| event.pdu.event_id().clone()).chain(unknown).collect();
        let hole = change.head.gaps.iter().find(|(_, gap)| gap.missing.contains(pdu.event_id()));
        let arrival = Arrival {
            unknown_auth_events: &unknown_auth,
            missing_prev_events: &missing,
            prev_states: &prev_states,
            hole: hole.map(|(end, _)| *end),
        };
        let hole = match arrival.step() {
            Step::Answer(answer) => return Ok(answer),
            Step::Fill(end) => Some(end),
            Step::Judge => None,
        };
        let mut before = self.state_before(change, &prevs, &missing, &prev_states).await?;
        if change.head.lacks_members {
            before = self.with_members_of(change, before, &auth_events).await?;
        }
        if let Some(end) = hole {
            let states = BTreeMap::from([(pdu.event_id().clone(), before)]);
            self.fill(change, end, vec![pdu.clone()], &states).await?;
            let filled = self.known_event(change, pdu.event_id()).await?;
            // A hole without a place for it leaves it to the end.
            if let Some(answer) = recall(&pdu, &self.room_id, filled.as_deref().and_then(placed)) {
                return Ok(answer);
            }
        }
        let evidence = self.evidence(change, &pdu, &auth_events, before).await?;
        let verdict = self.judge(&pdu, known.as_deref(), &evidence);
        let placement = Placement {
            before,
            rank: rank_of(&auth_events),
            short: known.map(|known| known.short),
            origin,
            missing,
            sent_by,
        };
        if let Some(reason) = verdict.reason() {
            tracing::debug!(event_id = %pdu.event_id(), %reason, "did not accept an event");
        }
        let (standing, received) = verdict.settle(advice);
        let pdu = Arc::new(pdu);
        if standing == Standing::Accepted {
            self.accept(change, pdu, placement).await?;
            return Ok(received);
        }
        self.hide(change, pdu.clone(), standing, &placement);
        // By the rules, that is; what a policy server thinks stays.
        if verdict.reason().is_some() {
            self.note_refused(change, pdu.event_id());
        }
        if standing == Standing::SoftFailed {
            self.note_missing(change, placement);
        }
        Ok(received)
    }

    /// What becomes of an event; one that was rejected as an outlier stays so.
    pub(super) fn judge(&self, pdu: &Pdu, known: Option<&StoredEvent>, evidence: &Evidence) -> Verdict {
        if known.is_some_and(|known| known.standing == Standing::Rejected) {
            return Verdict::Rejected(AuthFailure("rejected before".to_owned()));
        }
        evidence.judge(pdu, self.rules)
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
        let places = if missing.is_empty() { 1 } else { HOLE_PLACES + 1 };
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
        let pdu = if standing == Standing::Rejected { Arc::new(Pdu::clone(&pdu).rejected()) } else { pdu };
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

    /// Notes what is missing before a soft-failed event: others may accept it, and refer to it.
    fn note_missing(&self, change: &mut Change, placement: Placement) {
        let Placement { missing, origin, .. } = placement;
        if missing.is_empty() || change.head.gaps.len() >= HIDDEN_HOLES_MAX {
            return;
        }
        let ticket = self.shared.store.storage().reserve(HOLE_PLACES + 1);
        let index = TimelineIndex::from(ticket.last());
        let floor = std::mem::replace(&mut change.head.latest, index);
        self.open_gap(change, index, GapRecord { missing, floor, origin });
        change.tickets.push(ticket);
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
            // Whether it is allowed cannot be said, now; it may come again with what authorises it.
            if !missing.is_empty() {
                tracing::debug!(event_id = %pdu.event_id(), "left out an outlier whose auth events are not known");
                continue;
            }
            let evidence = Evidence {
                auth_events: auth_events
                    .iter()
                    .map(|event| (event.pdu.event_id().to_owned(), event.pdu.clone()))
                    .collect(),
                create: create.clone(),
                ..Evidence::default()
            };
            let standing = evidence.judge_outlier(&pdu, self.rules).unwrap_or_else(|reason| {
                tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an outlier");
                Standing::Rejected
            });
            let placement = Placement {
                before: StateRoot::default(),
                rank: rank_of(&auth_events),
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

/// How an event stands that has a place in the graph.
fn placed(known: &StoredEvent) -> Option<Standing> {
    known.has_place().then_some(known.standing)
}

/// One more than the highest rank of the auth events.
pub(super) fn rank_of(auth_events: &[Arc<StoredEvent>]) -> u64 {
    rank(auth_events.iter().map(|event| event.rank))
}
