//! What becomes of a received event.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, RoomId, events::StateEventType};

pub use super::event::Standing;
use super::{
    admit::{Former, Placement, by_id, rank_of},
    event::StoredEvent,
    machine::{Need, Room, pdus},
    partial::add_members,
};
use crate::{
    auth::{self, AuthFailure},
    id::TimelineIndex,
    pdu::Pdu,
    resolve::StateKey,
    room_version::RoomVersion,
    state::StateRoot,
};

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

/// A received event, with what came along.
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// The event; redacted if its content hash did not match, its signatures are checked.
    pub pdu: &'a Pdu,
    /// For prev events that cannot be had: the events of the state after each of them.
    pub prev_states: &'a BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    /// What the room's policy server thinks of it.
    pub advice: Advice,
    /// The end of the hole in the timeline that lacks it, if there is one with places left.
    pub hole: Option<TimelineIndex>,
}

/// What is to be done with a received event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing; this is the answer.
    Answer(Received),
    /// It belongs into the hole that ends here, not at the end of the timeline; this is the state before it.
    Fill(TimelineIndex, StateRoot),
    /// It is judged: it is to be kept as it stands, with its place in the graph.
    Settle {
        /// How it stands.
        standing: Standing,
        /// What became of it.
        received: Received,
        /// The rule that it broke, if it did.
        reason: Option<AuthFailure>,
        /// Its place in the graph.
        placement: Placement,
    },
}

/// What is to be done with an older event, which belongs into a hole of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldStep {
    /// Nothing: it has its place, or belongs to another room.
    Done,
    /// Nothing for now: what authorises it, or the state before it, is not known.
    Wait,
    /// It is judged.
    Settle {
        /// Accepted, rejected, or soft-failed if only the present state does not allow it: for what is history, that says
        /// nothing.
        standing: Standing,
        /// The rule that it broke, if it did.
        reason: Option<AuthFailure>,
        /// Its place in the graph; `missing` are the events that lead on into the hole.
        placement: Placement,
    },
}

/// An event that others refer to, judged without its place in the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Whether its auth events allow it.
    pub verdict: Result<(), AuthFailure>,
    /// One more than their highest rank.
    pub rank: u64,
}

/// The answer to an event that needs no look at its surroundings: it is known, or not of this room.
pub fn recall(pdu: &Pdu, room_id: &RoomId, standing: Option<Standing>) -> Option<Received> {
    if pdu.room_id() != room_id {
        return Some(Received::Rejected("the event belongs to another room".to_owned()));
    }
    match standing? {
        Standing::Rejected => Some(Received::Rejected("rejected before".to_owned())),
        Standing::Accepted => Some(Received::Accepted),
        Standing::SoftFailed => Some(Received::SoftFailed),
        Standing::Outlier => None,
    }
}

/// What a policy server thinks of an event.
///
/// Spec: server-server API, "Policy Servers" (MSC4284).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Advice {
    /// It is recommended, or nobody was to be asked.
    #[default]
    Recommended,
    /// It is not, so that clients do not see it.
    Refused,
}

/// How a received event fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It is part of the graph, but the room's present state does not allow it: clients do not see it.
    SoftFailed(AuthFailure),
    /// It was never allowed; nothing may be authorised by it.
    Rejected(AuthFailure),
}

impl Verdict {
    /// How the event stands from now on, and what became of it; a policy server's advice counts for what is allowed.
    pub fn settle(&self, advice: Advice) -> (Standing, Received) {
        match self {
            Self::Accepted if advice == Advice::Recommended => (Standing::Accepted, Received::Accepted),
            Self::Accepted | Self::SoftFailed(_) => (Standing::SoftFailed, Received::SoftFailed),
            Self::Rejected(reason) => (Standing::Rejected, Received::Rejected(reason.to_string())),
        }
    }

    /// Why it is not part of the room, if it is not.
    pub fn reason(&self) -> Option<&AuthFailure> {
        match self {
            Self::Accepted => None,
            Self::SoftFailed(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// The events that a received one is judged by.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Its auth events, rejected ones among them.
    pub auth_events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    /// Those of the state before it that authorise it.
    pub before: BTreeMap<StateKey, Arc<Pdu>>,
    /// Those of the room's current state that authorise it.
    pub current: BTreeMap<StateKey, Arc<Pdu>>,
    /// The room's create event.
    pub create: Option<Arc<Pdu>>,
}

/// What comes before an event.
struct Before {
    /// The prev events whose states are known.
    known: Vec<Arc<StoredEvent>>,
    /// The other prev events.
    lacking: Vec<OwnedEventId>,
    /// Those of them that have no place in the graph.
    missing: Vec<OwnedEventId>,
}

impl Room<'_> {
    /// What becomes of a received event, by the checks on receipt.
    pub fn receive(&mut self, arriving: Arriving<'_>) -> Result<Step, Need> {
        let Arriving { pdu, prev_states, advice, hole } = arriving;
        let around = pdu.auth_events().iter().chain(pdu.prev_events());
        self.ask(around.chain([pdu.event_id()]))?;
        let known = self.known(pdu.event_id())?;
        let placed = known.as_deref().filter(|known| known.has_place()).map(|known| known.standing);
        if let Some(answer) = recall(pdu, self.head.id, placed) {
            return Ok(Step::Answer(answer));
        }
        if self.is_elsewhere(pdu.event_id())? {
            let reason = "an event of another room has this ID".to_owned();
            return Ok(Step::Answer(Received::Rejected(reason)));
        }
        if pdu.kind() == "m.room.create"
            && let Some(create) = self.current("m.room.create", "")?
        {
            // A room begins once, and its beginning is no news: it gets its place when the hole before it is filled.
            let is_it = create.pdu.event_id() == pdu.event_id();
            let other = || Received::Rejected("the room has another create event".to_owned());
            return Ok(Step::Answer(if is_it { Received::Accepted } else { other() }));
        }
        let (auth_events, unknown_auth_events) = self.known_of(pdu.auth_events())?;
        let Before { known: prevs, lacking, missing } = self.before(pdu)?;
        let without_state: Vec<_> =
            lacking.iter().filter(|id| !prev_states.contains_key(*id)).cloned().collect();
        // Without its auth events, and a state for each prev event, there is nothing to judge it by.
        if !unknown_auth_events.is_empty() || !without_state.is_empty() {
            let (prev_events, auth_events) = (without_state, unknown_auth_events);
            return Ok(Step::Answer(Received::Lacks { prev_events, auth_events }));
        }
        let mut roots = BTreeSet::new();
        for prev in &prevs {
            roots.insert(self.state_after(prev)?);
        }
        for state in lacking.iter().filter_map(|id| prev_states.get(id)) {
            roots.insert(self.state_of(state)?);
        }
        let mut before = self.merge(roots)?;
        if self.head.lacks_members {
            before = self.with_members_of(before, &auth_events)?;
        }
        if let Some(end) = hole {
            return Ok(Step::Fill(end, before));
        }
        let verdict = self.judge(pdu, known.as_deref(), &auth_events, before)?;
        let (standing, received) = verdict.settle(advice);
        let former = known.as_deref().map(Former::from);
        let placement = Placement { before, rank: rank_of(&auth_events), former, missing };
        Ok(Step::Settle { standing, received, reason: verdict.reason().cloned(), placement })
    }

    /// What becomes of an older event; `given` is the state before it, where a server gave that.
    pub fn receive_old(&mut self, pdu: &Pdu, given: Option<StateRoot>) -> Result<OldStep, Need> {
        let around = pdu.auth_events().iter().chain(pdu.prev_events());
        self.ask(around.chain([pdu.event_id()]))?;
        let known = self.known(pdu.event_id())?;
        if pdu.kind() == "m.room.create" {
            let create = self.current("m.room.create", "")?;
            if create.is_none_or(|create| create.pdu.event_id() != pdu.event_id()) {
                return Ok(OldStep::Wait);
            }
        }
        let is_placed = known.as_ref().is_some_and(|known| known.has_place());
        if pdu.room_id() != self.head.id || is_placed || self.is_elsewhere(pdu.event_id())? {
            return Ok(OldStep::Done);
        }
        let (auth_events, unknown) = self.known_of(pdu.auth_events())?;
        if !unknown.is_empty() {
            return Ok(OldStep::Wait);
        }
        let Before { known: prevs, lacking, missing } = self.before(pdu)?;
        let before = if pdu.kind() == "m.room.create" {
            StateRoot::default()
        } else if lacking.is_empty() && !prevs.is_empty() {
            let before = self.state_after_all(&prevs)?;
            // What is rejected stays so, once all members are there, too.
            if self.head.lacks_members { self.with_members_of(before, &auth_events)? } else { before }
        } else if let Some(given) = given {
            given
        } else {
            // Without its state an event cannot be judged: what follows it stays at the edge of the hole.
            return Ok(OldStep::Wait);
        };
        let verdict = self.judge(pdu, known.as_deref(), &auth_events, before)?;
        let (standing, _) = verdict.settle(Advice::Recommended);
        let former = known.as_deref().map(Former::from);
        Ok(OldStep::Settle {
            standing,
            reason: verdict.reason().cloned(),
            placement: Placement { before, rank: rank_of(&auth_events), former, missing },
        })
    }

    /// What becomes of an event that others refer to and that gets no place in the graph; none if it is known already,
    /// or what authorises it is not: it may come again with that.
    ///
    /// `create` is the create event of a room that has no state yet.
    pub fn receive_outlier(&mut self, pdu: &Pdu, create: Option<&Arc<Pdu>>) -> Result<Option<Outlier>, Need> {
        self.ask(pdu.auth_events().iter().chain([pdu.event_id()]))?;
        let is_known = self.known(pdu.event_id())?.is_some();
        if pdu.room_id() != self.head.id || is_known || self.is_elsewhere(pdu.event_id())? {
            return Ok(None);
        }
        let (auth_events, unknown) = self.known_of(pdu.auth_events())?;
        if !unknown.is_empty() {
            return Ok(None);
        }
        let held = self.current("m.room.create", "")?.map(|event| event.pdu.clone());
        let create = held.or_else(|| create.cloned());
        let evidence = Evidence { auth_events: by_id(&auth_events), create, ..Evidence::default() };
        let verdict = evidence.check_auth_events(pdu, self.head.rules);
        Ok(Some(Outlier { verdict, rank: rank_of(&auth_events) }))
    }

    /// The state that a resident server gave, with the members that the join names where it came without them.
    pub fn state_given(&mut self, ids: &[OwnedEventId], join: Option<&Pdu>) -> Result<StateRoot, Need> {
        let root = self.state_of(ids)?;
        let Some(join) = join else { return Ok(root) };
        let (auth_events, _) = self.known_of(join.auth_events())?;
        self.with_members_of(root, &auth_events)
    }

    /// The place of the join by which this server enters the room, or why it is refused.
    pub fn enter(&mut self, join: &Pdu, before: StateRoot) -> Result<Result<Placement, AuthFailure>, Need> {
        let known = self.known(join.event_id())?;
        let (auth_events, _) = self.known_of(join.auth_events())?;
        if let Err(reason) = self.check(join, &auth_events, before)? {
            return Ok(Err(reason));
        }
        let former = known.as_deref().map(Former::from);
        // What came before it is to be found in the hole that begins there.
        Ok(Ok(Placement { before, rank: rank_of(&auth_events), former, missing: Vec::new() }))
    }

    /// What is known of what comes before an event.
    fn before(&self, pdu: &Pdu) -> Result<Before, Need> {
        let (events, mut missing) = self.known_of(pdu.prev_events())?;
        let (known, lacking): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.has_state());
        let outside = lacking.iter().filter(|event| !event.has_place());
        missing.extend(outside.map(|event| event.pdu.event_id().clone()));
        let in_graph = lacking.iter().filter(|event| event.has_place());
        let lacking = in_graph.map(|event| event.pdu.event_id().clone()).chain(missing.iter().cloned());
        Ok(Before { lacking: lacking.collect(), known, missing })
    }

    /// What becomes of an event; one that was rejected as an outlier stays so.
    fn judge(
        &self,
        pdu: &Pdu,
        known: Option<&StoredEvent>,
        auth_events: &[Arc<StoredEvent>],
        before: StateRoot,
    ) -> Result<Verdict, Need> {
        if known.is_some_and(|known| known.standing == Standing::Rejected) {
            return Ok(Verdict::Rejected(AuthFailure("rejected before".to_owned())));
        }
        Ok(self.evidence(pdu, auth_events, before)?.judge(pdu, self.head.rules))
    }

    /// Whether an event is allowed by its auth events, by the state before it, and by the current state.
    pub(super) fn check(
        &self,
        pdu: &Pdu,
        auth_events: &[Arc<StoredEvent>],
        before: StateRoot,
    ) -> Result<Result<(), AuthFailure>, Need> {
        let verdict = self.judge(pdu, None, auth_events, before)?;
        Ok(verdict.reason().cloned().map_or(Ok(()), Err))
    }

    /// What an event is judged by.
    pub(super) fn evidence(
        &self,
        pdu: &Pdu,
        auth_events: &[Arc<StoredEvent>],
        before: StateRoot,
    ) -> Result<Evidence, Need> {
        let plain = |events: BTreeMap<StateKey, Arc<StoredEvent>>| {
            events.into_iter().map(|(key, event)| (key, event.pdu.clone())).collect()
        };
        let mut current: BTreeMap<StateKey, Arc<Pdu>> = plain(self.authorizing(self.head.root, pdu)?);
        if self.head.lacks_members {
            add_members(&mut current, &pdus(auth_events));
        }
        Ok(Evidence {
            auth_events: by_id(auth_events),
            before: plain(self.authorizing(before, pdu)?),
            current,
            create: self.current("m.room.create", "")?.map(|event| event.pdu.clone()),
        })
    }
}

impl Evidence {
    /// Steps 4 to 6 of the checks: its auth events, the state before it, the room's current state.
    pub fn judge(&self, pdu: &Pdu, version: &RoomVersion) -> Verdict {
        match self.check_auth_events(pdu, version).and_then(|()| self.check_state(pdu, &self.before, version))
        {
            Err(failure) => Verdict::Rejected(failure),
            Ok(()) => match self.check_state(pdu, &self.current, version) {
                Err(failure) => Verdict::SoftFailed(failure),
                Ok(()) => Verdict::Accepted,
            },
        }
    }

    /// Whether an event is allowed by its own auth events, which is all that is asked of an outlier.
    pub fn check_auth_events(&self, pdu: &Pdu, version: &RoomVersion) -> Result<(), AuthFailure> {
        let by_id = |id: &EventId| {
            let create = self.create.as_ref().filter(|create| create.event_id() == id);
            self.auth_events.get(id).or(create).cloned()
        };
        let by_auth_events: BTreeMap<StateKey, Arc<Pdu>> = self
            .auth_events
            .values()
            .filter(|event| !event.is_rejected())
            .filter_map(|event| {
                Some(((event.kind().to_owned(), event.state_key()?.to_owned()), event.clone()))
            })
            .collect();
        let by_key = |kind: &StateEventType, key: &str| self.find(&by_auth_events, kind, key);
        auth::check(pdu, by_id, by_key, version)
    }

    fn check_state(
        &self,
        pdu: &Pdu,
        state: &BTreeMap<StateKey, Arc<Pdu>>,
        version: &RoomVersion,
    ) -> Result<(), AuthFailure> {
        auth::check_against(pdu, |kind, key| self.find(state, kind, key), version)
    }

    fn find(
        &self,
        state: &BTreeMap<StateKey, Arc<Pdu>>,
        kind: &StateEventType,
        state_key: &str,
    ) -> Option<Arc<Pdu>> {
        if *kind == StateEventType::RoomCreate {
            return self.create.clone();
        }
        state.get(&(kind.to_string(), state_key.to_owned())).cloned()
    }
}
