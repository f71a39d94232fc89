//! Taking an event into a room: its place in the graph, the state that follows, and whom that concerns.
//!
//! Spec: server-server API, "PDUs"; room version 2, "State resolution".

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use ruma::OwnedEventId;

use super::{
    event::{SentBy, Standing, StoredEvent},
    graph::rank,
    machine::{Need, Room},
};
use crate::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::Pdu,
    resolve::StateKey,
    state::{self, StateRoot},
};

/// Soft-failed and rejected events that are walked through, at most, to find what an event comes after.
const WALK_MAX: usize = 100;

/// Where an event goes in the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The state before it.
    pub before: StateRoot,
    /// One more than the highest rank of its auth events.
    pub rank: u64,
    /// What it was before, if it is known as an outlier.
    pub former: Option<Former>,
    /// Prev events that have no place in the graph here.
    pub missing: Vec<OwnedEventId>,
}

/// An event as it was known before it got its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// Its number.
    pub short: ShortEventId,
    /// What a redaction left of it, if one applied: it may arrive unredacted from servers that do not know that one.
    pub redacted: Option<Redacted>,
}

/// What a redaction left of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redacted {
    /// The redaction.
    pub by: ShortEventId,
    /// The event without what the redaction took.
    pub pdu: Arc<Pdu>,
}

impl From<&StoredEvent> for Former {
    fn from(event: &StoredEvent) -> Self {
        let redacted = event.redacted_by.map(|by| Redacted { by, pdu: event.pdu.clone() });
        Self { short: event.short, redacted }
    }
}

/// What the room's owner gives an event with its place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its number, unless it has one.
    pub short: ShortEventId,
    /// Its place in the timeline.
    pub index: TimelineIndex,
    /// The local client's transaction, if one sent it.
    pub sent_by: Option<SentBy>,
    /// Whether events that came earlier relate to it.
    pub has_relations: bool,
}

/// What follows from taking an event in. If it has no place in the timeline, clients are not to see it.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The event, to be stored.
    pub event: Arc<StoredEvent>,
    /// The room's forward extremities, in ascending order.
    pub tips: Vec<Arc<StoredEvent>>,
    /// How the current state moves.
    pub moves: Moves,
}

/// How the current state moves.
#[derive(Clone, Debug)]
pub struct Moves {
    /// The state that it becomes.
    pub root: StateRoot,
    /// The keys that change, each with the event that holds it then.
    pub keys: Vec<(StateKey, Option<ShortEventId>)>,
    /// The members among them.
    pub members: Vec<MemberMoved>,
}

/// A member whose event in the current state changes.
#[derive(Clone, Debug)]
pub struct MemberMoved {
    /// The event that held the place.
    pub before: Option<Arc<StoredEvent>>,
    /// The event that holds it then.
    pub after: Option<Arc<StoredEvent>>,
}

impl Placement {
    /// An event without a place in the timeline; what a redaction took of it before stays away.
    ///
    /// `new` is its number, unless it has one.
    pub fn event(
        &self,
        room: ShortRoomId,
        pdu: &Arc<Pdu>,
        standing: Standing,
        new: ShortEventId,
    ) -> StoredEvent {
        let is_rejected = standing == Standing::Rejected;
        let redacted = self.former.as_ref().and_then(|former| former.redacted.as_ref());
        let pdu = redacted.map_or(pdu, |redacted| &redacted.pdu);
        StoredEvent {
            short: self.former.as_ref().map_or(new, |former| former.short),
            room,
            pdu: if is_rejected { Arc::new(Pdu::clone(pdu).rejected()) } else { pdu.clone() },
            index: None,
            standing,
            before: self.before,
            after: self.before,
            replaces: None,
            redacted_by: redacted.map(|redacted| redacted.by),
            sent_by: None,
            rank: self.rank,
            has_relations: false,
            lacks_members: false,
        }
    }
}

impl Room<'_> {
    /// What follows from taking an accepted event in at the end of the timeline. A redaction that does not apply (yet)
    /// gets no place there.
    pub fn admit(&mut self, pdu: &Arc<Pdu>, placement: &Placement, place: &Place) -> Result<Admission, Need> {
        let mut event = placement.event(self.head.number, pdu, Standing::Accepted, place.short);
        event.index = if self.is_withheld(pdu, event.before)? { None } else { Some(place.index) };
        event.sent_by.clone_from(&place.sent_by);
        event.has_relations = place.has_relations;
        event.replaces = self.held_before(&event)?;
        let (root, mut tips) = self.follow(&event)?;
        let moves = self.moves(root)?;
        event.after = root;
        let event = Arc::new(event);
        tips.push(event.clone());
        tips.sort_by_key(|tip| tip.short);
        Ok(Admission { event, tips, moves })
    }

    /// An older event, which gets a place in the timeline but is no news: only the state after it is worked out.
    pub fn admit_old(
        &mut self,
        pdu: &Arc<Pdu>,
        placement: &Placement,
        new: ShortEventId,
        has_relations: bool,
    ) -> Result<StoredEvent, Need> {
        let mut event = placement.event(self.head.number, pdu, Standing::Accepted, new);
        event.has_relations = has_relations;
        event.replaces = self.held_before(&event)?;
        event.after = self.state_after(&event)?;
        Ok(event)
    }

    /// The event that a state event takes the place of, by the state before it.
    pub(super) fn held_before(&self, event: &StoredEvent) -> Result<Option<ShortEventId>, Need> {
        let Some(state_key) = event.pdu.state_key() else { return Ok(None) };
        let held = self.get(event.before, event.pdu.kind(), state_key)?;
        Ok(held.filter(|held| *held != event.short))
    }

    /// The current state once an event is in, and the forward extremities beside it.
    pub fn follow(&mut self, event: &StoredEvent) -> Result<(StateRoot, Vec<Arc<StoredEvent>>), Need> {
        // Where states disagree about it, the event itself is looked up.
        self.placing = Some(Arc::new(event.clone()));
        let tips = self.tips_beside(&event.pdu)?;
        let mut roots = BTreeSet::from([self.state_after(event)?]);
        for tip in &tips {
            roots.insert(self.state_after(tip)?);
        }
        Ok((self.merge(roots)?, tips))
    }

    /// The forward extremities without those that an event comes after, be it by way of soft-failed or rejected ones,
    /// which are none themselves.
    fn tips_beside(&self, event: &Pdu) -> Result<Vec<Arc<StoredEvent>>, Need> {
        let mut tips = self.head.tips.to_vec();
        let mut open: VecDeque<OwnedEventId> = event.prev_events().iter().cloned().collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop_front() {
            let before = tips.len();
            tips.retain(|tip| *tip.pdu.event_id() != id);
            if tips.len() < before || tips.is_empty() || seen.len() >= WALK_MAX || !seen.insert(id.clone()) {
                continue;
            }
            let is_left_out = |known: &Arc<StoredEvent>| {
                matches!(known.standing, Standing::SoftFailed | Standing::Rejected)
            };
            if let Some(known) = self.known(&id)?.filter(is_left_out) {
                open.extend(known.pdu.prev_events().iter().cloned());
            }
        }
        Ok(tips)
    }

    /// What moves when a state becomes the current one.
    pub fn moves(&self, root: StateRoot) -> Result<Moves, Need> {
        let changes = state::diff(self, self.head.root, root)?;
        let members = changes.iter().filter(|moved| moved.kind == "m.room.member");
        let events =
            self.events(members.clone().flat_map(|moved| moved.before.into_iter().chain(moved.after)))?;
        let event = |short: Option<ShortEventId>| short.and_then(|short| events.get(&short).cloned());
        let members = members
            .map(|moved| MemberMoved { before: event(moved.before), after: event(moved.after) })
            .collect();
        let keys = changes.into_iter().map(|moved| ((moved.kind, moved.state_key), moved.after)).collect();
        Ok(Moves { root, keys, members })
    }
}

/// One more than the highest rank of the auth events.
pub(super) fn rank_of<'a>(auth_events: impl IntoIterator<Item = &'a Arc<StoredEvent>>) -> u64 {
    rank(auth_events.into_iter().map(|event| event.rank))
}

/// Events by what a check looks them up by.
pub(super) fn by_id<'a>(
    events: impl IntoIterator<Item = &'a Arc<StoredEvent>>,
) -> BTreeMap<OwnedEventId, Arc<Pdu>> {
    events.into_iter().map(|event| (event.pdu.event_id().clone(), event.pdu.clone())).collect()
}
