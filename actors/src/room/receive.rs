//! Events from other servers: placing them in the graph, in the timeline and in the state.
//!
//! Their signatures and hashes are checked before they come here.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::{
        admit::{Admission, Place, Placement},
        event::Standing,
        graph::by_auth,
        hole::HOLE_PLACES,
        receive::{Arriving, Outlier, Received, Step},
    },
};
use ruma::{OwnedEventId, OwnedServerName};
use storage::{
    Ticket,
    schema::{self, GapRecord, SentBy},
};

use super::{ActiveRoom, Advice, Lacking, RoomError, StoredEvent, change::Change};

/// Where an event comes from.
pub(super) struct Source {
    /// The server that sent it.
    pub(super) origin: OwnedServerName,
    /// The local client's transaction, if one sent it.
    pub(super) sent_by: Option<SentBy>,
}

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
    /// What these states lack and may be had later.
    pub lacking: Lacking,
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
            lacking: Lacking::new(),
            relay: false,
            advice: Advice::Recommended,
            sent_by: None,
        }
    }
}

impl ActiveRoom {
    /// Judges a received event and takes it in accordingly.
    pub(super) async fn receive(&self, change: &mut Change, receive: Receive) -> Result<Received, RoomError> {
        let event_id = receive.pdu.event_id().clone();
        let is_state = receive.pdu.state_key().is_some();
        let received = self.judge(change, receive).await?;
        if is_state {
            self.mend(change, [event_id]).await?;
        }
        Ok(received)
    }

    async fn judge(&self, change: &mut Change, receive: Receive) -> Result<Received, RoomError> {
        let Receive { pdu, origin, prev_states, lacking, relay, advice, sent_by } = receive;
        change.relays = relay;
        let pdu = Arc::new(pdu);
        let gap = change.head.gaps.iter().find(|(_, gap)| gap.missing.contains(pdu.event_id()));
        let mut hole = gap.map(|(end, _)| *end);
        let (standing, received, reason, placement) = loop {
            let arriving = Arriving { pdu: &pdu, prev_states: &prev_states, advice, hole };
            match self.decide(change, |room| room.receive(arriving)).await? {
                Step::Answer(answer) => return Ok(answer),
                Step::Fill(end, before) => {
                    let states = BTreeMap::from([(pdu.event_id().clone(), before)]);
                    let lacking = BTreeMap::from([(pdu.event_id().clone(), lacking.clone())]);
                    self.fill(change, end, vec![Pdu::clone(&pdu)], advice, (&states, &lacking)).await?;
                    // A hole without a place for it leaves it to the end.
                    hole = None;
                }
                Step::Settle { standing, received, reason, placement } => {
                    break (standing, received, reason, placement);
                }
            }
        };
        if let Some(reason) = &reason {
            tracing::debug!(event_id = %pdu.event_id(), %reason, "did not accept an event");
        }
        if standing == Standing::Accepted {
            let event = self.accept(change, &pdu, placement, Source { origin, sent_by }).await?;
            self.note_lacking(change, event.short, &lacking);
            return Ok(received);
        }
        let short = self.hide(change, &pdu, standing, &placement);
        self.note_lacking(change, short, &lacking);
        // By the rules, that is; what a policy server thinks stays.
        if advice == Advice::Recommended {
            self.note_refused(change, pdu.event_id());
        } else {
            self.note_hidden(change, pdu.event_id());
        }
        if standing == Standing::SoftFailed {
            self.note_missing(change, placement.missing, origin);
        }
        self.redact_unseen(change, std::slice::from_ref(pdu.event_id())).await?;
        Ok(received)
    }

    /// Takes an accepted event of another server in, which others may have referred to before.
    pub(super) async fn accept(
        &self,
        change: &mut Change,
        pdu: &Arc<Pdu>,
        placement: Placement,
        source: Source,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let has_relations = self.has_relations(change, pdu.event_id()).await?;
        let event = self.admit(change, pdu, placement, source, has_relations).await?;
        self.apply_redactions(change, &event).await?;
        Ok(event)
    }

    /// Takes an accepted event into the timeline, the graph and the current state.
    pub(super) async fn admit(
        &self,
        change: &mut Change,
        pdu: &Arc<Pdu>,
        placement: Placement,
        Source { origin, sent_by }: Source,
        has_relations: bool,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let places = if placement.missing.is_empty() { 1 } else { HOLE_PLACES + 1 };
        let ticket = self.shared.store.storage().reserve(places);
        let index = TimelineIndex::from(ticket.last());
        let place = Place { short: ShortEventId(ticket.last().0), index, sent_by, has_relations };
        let Admission { event, tips, moves } =
            self.decide(change, |room| room.admit(pdu, &placement, &place)).await?;
        let holds_key = moves.keys.iter().any(|(_, held)| *held == Some(event.short));
        self.move_state(change, moves, index).await?;
        if let Some(key) = event.state_key().filter(|_| holds_key) {
            change.hot.insert(key, event.clone());
        }
        change.hidden.remove(&event.short);
        change.head.tips = tips;
        let floor = change.head.latest;
        if event.index.is_some() {
            self.append_placed(change, &event, ticket).await?;
        } else {
            self.keep_hidden(change, &event, ticket);
            self.note_hidden(change, event.pdu.event_id());
        }
        if !placement.missing.is_empty() {
            change.head.latest = index;
            let root = event.index.is_none().then_some(change.head.root);
            self.open_gap(change, index, GapRecord { missing: placement.missing, floor, origin, root });
        }
        Ok(event)
    }

    /// Adds an event at the end of the timeline, which has its place in the graph and in the state.
    pub(super) async fn append_placed(
        &self,
        change: &mut Change,
        event: &Arc<StoredEvent>,
        ticket: Ticket,
    ) -> Result<(), RoomError> {
        change.head.latest = TimelineIndex::from(ticket.last());
        change.head.push_recent(event.clone());
        self.store_event(change, event);
        change.tickets.push(ticket);
        change.events.push(event.clone());
        self.relate(change, event).await
    }

    pub(super) fn open_gap(&self, change: &mut Change, at: TimelineIndex, gap: GapRecord) {
        change.batch.put(&schema::GAPS, &(self.room, at), &gap);
        change.head.gaps.insert(at, gap);
        change.head.recent_is_all = false;
    }

    /// Keeps an event that clients do not see.
    pub(super) fn hide(
        &self,
        change: &mut Change,
        pdu: &Arc<Pdu>,
        standing: Standing,
        placement: &Placement,
    ) -> ShortEventId {
        let ticket = self.shared.store.storage().reserve(1);
        let event = Arc::new(placement.event(self.room, pdu, standing, ShortEventId(ticket.last().0)));
        self.keep_hidden(change, &event, ticket);
        event.short
    }

    /// Stores an event that has no place in the timeline.
    fn keep_hidden(&self, change: &mut Change, event: &Arc<StoredEvent>, ticket: Ticket) {
        self.store_event(change, event);
        change.hidden_ids.insert(event.pdu.event_id().clone(), event.short);
        change.hidden.insert(event.short, event.clone());
        change.tickets.push(ticket);
    }

    /// Gives an event that is part of the graph a place at the end of the timeline.
    pub(super) async fn show(
        &self,
        change: &mut Change,
        event: &StoredEvent,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let ticket = self.shared.store.storage().reserve(1);
        let index = Some(TimelineIndex::from(ticket.last()));
        let event = Arc::new(StoredEvent { index, after: change.head.root, ..event.clone() });
        change.hidden.remove(&event.short);
        change.replaced.retain(|held| held.short != event.short);
        if let Some(tip) = change.head.tips.iter_mut().find(|tip| tip.short == event.short) {
            *tip = event.clone();
        }
        self.append_placed(change, &event, ticket).await?;
        Ok(event)
    }

    /// Notes what is missing before a soft-failed event: others may accept it, and refer to it.
    fn note_missing(&self, change: &mut Change, missing: Vec<OwnedEventId>, origin: OwnedServerName) {
        if missing.is_empty() || change.head.gaps.len() >= HIDDEN_HOLES_MAX {
            return;
        }
        let ticket = self.shared.store.storage().reserve(HOLE_PLACES + 1);
        let index = TimelineIndex::from(ticket.last());
        let floor = std::mem::replace(&mut change.head.latest, index);
        let root = Some(change.head.root);
        self.open_gap(change, index, GapRecord { missing, floor, origin, root });
        change.tickets.push(ticket);
    }

    /// Keeps events that others refer to; states that lack them get them.
    pub(super) async fn keep_outliers(&self, change: &mut Change, pdus: Vec<Pdu>) -> Result<(), RoomError> {
        let known: Vec<_> = pdus.iter().map(|pdu| pdu.event_id().clone()).collect();
        self.store_outliers(change, pdus).await?;
        self.redact_unseen(change, &known).await?;
        self.mend(change, known).await
    }

    /// Stores events that others refer to, without a place in the graph.
    pub(super) async fn store_outliers(&self, change: &mut Change, pdus: Vec<Pdu>) -> Result<(), RoomError> {
        let new = pdus.iter().find(|pdu| pdu.kind() == "m.room.create" && pdu.state_key() == Some(""));
        let create = new.cloned().map(Arc::new);
        for pdu in by_auth(pdus) {
            let judged = self.decide(change, |room| room.receive_outlier(&pdu, create.as_ref())).await?;
            let Some(Outlier { verdict, rank }) = judged else { continue };
            let standing = match verdict {
                Ok(()) => Standing::Outlier,
                Err(reason) => {
                    tracing::debug!(event_id = %pdu.event_id(), %reason, "rejected an outlier");
                    Standing::Rejected
                }
            };
            let placement = Placement { rank, ..Placement::default() };
            self.hide(change, &Arc::new(pdu), standing, &placement);
        }
        Ok(())
    }
}
