//! The room as a machine without I/O.
//!
//! A [`Room`] is made from what a room is at the moment (its [`Head`]) and from whatever of its events and state nodes is
//! at hand (a [`Context`]). It is asked one question: what becomes of a received event ([`Room::receive`]), how a local
//! user's event is to be ([`Room::make`]), what follows from taking an event in ([`Room::admit`]). It answers with what
//! is to be stored and who is concerned, or with what it lacks ([`Need`]): the owner fetches that and asks again.
//! What was worked out on the way is in the [`Findings`], to be kept with the answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;
use ruma::{EventId, OwnedEventId, RoomId};

use super::{
    event::{Standing, StoredEvent},
    partial::members,
    reset::ResetRecord,
};
use crate::{
    auth,
    id::{ShortEventId, ShortRoomId},
    pdu::Pdu,
    resolve::{MissingEvents, StateKey},
    room_version::RoomVersion,
    state::{self, Missing, Node, NodeId, NodeSource, Salt, StateRoot},
};

/// What is at hand of a room's events and state nodes.
pub trait Context: NodeSource {
    /// An event by its number.
    fn event(&self, short: ShortEventId) -> Option<Arc<StoredEvent>>;

    /// An event by its ID, of whichever room.
    fn event_by_id(&self, id: &EventId) -> LookUp;
}

/// What came of looking for an event by its ID.
#[derive(Clone, Debug)]
pub enum LookUp {
    /// It was not looked for yet.
    Open,
    /// There is none here.
    Unknown,
    /// An event of another room has this ID.
    Elsewhere,
    /// This one.
    Known(Arc<StoredEvent>),
}

impl LookUp {
    /// The event, if it is at hand.
    pub fn known(self) -> Option<Arc<StoredEvent>> {
        match self {
            Self::Known(event) => Some(event),
            Self::Open | Self::Unknown | Self::Elsewhere => None,
        }
    }

    /// What came of looking everywhere.
    pub fn of(found: Option<Arc<StoredEvent>>) -> Self {
        found.map_or(Self::Unknown, Self::Known)
    }
}

/// What the answer to a question depends on and is not at hand: to be fetched, before it is asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// Nodes of the state tree.
    #[error("{} state nodes are not at hand", .0.len())]
    Nodes(Vec<NodeId>),
    /// Events by their numbers.
    #[error("{} events are not at hand", .0.len())]
    Events(BTreeSet<ShortEventId>),
    /// Events by their IDs, which may be unknown.
    #[error("{} events were not looked up", .0.len())]
    Ids(BTreeSet<OwnedEventId>),
    /// Events of auth chains, which are known since what they authorise is; what authorises them is asked for next.
    #[error("{} events of auth chains are not at hand", .0.len())]
    Chains(BTreeSet<OwnedEventId>),
}

impl From<Missing> for Need {
    fn from(Missing(nodes): Missing) -> Self {
        Self::Nodes(nodes)
    }
}

impl From<MissingEvents> for Need {
    fn from(MissingEvents(ids): MissingEvents) -> Self {
        Self::Chains(ids)
    }
}

/// States that were resolved, by the states that they were resolved from.
pub type Merged = OrdMap<Vec<StateRoot>, StateRoot>;

/// What a room is at a moment, as far as its events depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The room's ID.
    pub id: &'a RoomId,
    /// Its local number.
    pub number: ShortRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersion,
    /// Decides the shape of its state tree.
    pub salt: Salt,
    /// Its current state.
    pub root: StateRoot,
    /// Its forward extremities, in ascending order.
    pub tips: &'a [Arc<StoredEvent>],
    /// Whether its state lacks members, since it was joined without them.
    pub lacks_members: bool,
    /// What was resolved before: a fork of the graph stays for many events.
    pub merged: &'a Merged,
}

/// What was worked out on the way to an answer, and holds whatever becomes of that.
#[derive(Debug, Default)]
pub struct Findings {
    /// New nodes of the state tree.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// States that were resolved.
    pub merged: Vec<(Vec<StateRoot>, StateRoot)>,
    /// State resets: the operator is to be told.
    pub resets: Vec<ResetRecord>,
}

/// The room, while it answers a question; see the module's documentation.
pub struct Room<'a> {
    pub(super) head: Head<'a>,
    pub(super) findings: Findings,
    /// The event that is being placed, which the context does not have (in this form).
    pub(super) placing: Option<Arc<StoredEvent>>,
    context: &'a dyn Context,
}

impl NodeSource for Room<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.findings.nodes.get(&id).cloned().or_else(|| self.context.node(id))
    }
}

impl<'a> Room<'a> {
    /// The room as it is at the moment.
    pub fn new(head: Head<'a>, context: &'a dyn Context) -> Self {
        Self { head, findings: Findings::default(), placing: None, context }
    }

    /// What was worked out, once the answer is there.
    pub fn into_findings(self) -> Findings {
        self.findings
    }

    /// An event by its number.
    pub(super) fn event(&self, short: ShortEventId) -> Result<Arc<StoredEvent>, Need> {
        self.find(short).ok_or_else(|| Need::Events([short].into()))
    }

    /// Several events by their numbers.
    pub(super) fn events(
        &self,
        shorts: impl IntoIterator<Item = ShortEventId>,
    ) -> Result<BTreeMap<ShortEventId, Arc<StoredEvent>>, Need> {
        let (mut found, mut absent) = (BTreeMap::new(), BTreeSet::new());
        for short in shorts {
            match self.find(short) {
                Some(event) => drop(found.insert(short, event)),
                None => drop(absent.insert(short)),
            }
        }
        if absent.is_empty() { Ok(found) } else { Err(Need::Events(absent)) }
    }

    fn find(&self, short: ShortEventId) -> Option<Arc<StoredEvent>> {
        let placing = self.placing.as_ref().filter(|event| event.short == short).cloned();
        placing.or_else(|| self.context.event(short))
    }

    /// An event of the room by its ID.
    pub(super) fn look_up(&self, id: &EventId) -> LookUp {
        match self.placing.as_ref().filter(|event| event.pdu.event_id() == id) {
            Some(event) => LookUp::Known(event.clone()),
            None => match self.context.event_by_id(id) {
                LookUp::Known(event) if event.room != self.head.number => LookUp::Elsewhere,
                found => found,
            },
        }
    }

    /// Whether another room has an event of this ID. In room versions 1 and 2 servers make up the IDs of their events, and
    /// one that came twice would be lost to the room that had it first.
    ///
    /// Spec: room version 1, "Event IDs".
    pub fn is_elsewhere(&self, id: &OwnedEventId) -> Result<bool, Need> {
        self.ask([id])?;
        Ok(matches!(self.look_up(id), LookUp::Elsewhere))
    }

    /// Has all of some IDs looked up.
    pub(super) fn ask<'b>(&self, ids: impl IntoIterator<Item = &'b OwnedEventId>) -> Result<(), Need> {
        let unasked: BTreeSet<_> =
            ids.into_iter().filter(|id| matches!(self.look_up(id), LookUp::Open)).cloned().collect();
        if unasked.is_empty() { Ok(()) } else { Err(Need::Ids(unasked)) }
    }

    /// An event by its ID, if it is known here.
    pub(super) fn known(&self, id: &OwnedEventId) -> Result<Option<Arc<StoredEvent>>, Need> {
        match self.look_up(id) {
            LookUp::Open => Err(Need::Ids([id.clone()].into())),
            found => Ok(found.known()),
        }
    }

    /// Those of some events that are known here, and the IDs of the others.
    pub(super) fn known_of(
        &self,
        ids: &[OwnedEventId],
    ) -> Result<(Vec<Arc<StoredEvent>>, Vec<OwnedEventId>), Need> {
        self.ask(ids)?;
        let (mut known, mut unknown) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            match self.known(id)? {
                Some(event) => known.push(event),
                None => unknown.push(id.clone()),
            }
        }
        Ok((known, unknown))
    }

    /// The event that holds a key of a state.
    pub(super) fn get(
        &self,
        root: StateRoot,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<ShortEventId>, Need> {
        Ok(state::get(self, root, kind, state_key)?)
    }

    /// The event that holds a key of the current state.
    pub(super) fn current(&self, kind: &str, state_key: &str) -> Result<Option<Arc<StoredEvent>>, Need> {
        self.get(self.head.root, kind, state_key)?.map(|short| self.event(short)).transpose()
    }

    /// A state with some keys changed.
    pub(super) fn apply(
        &mut self,
        root: StateRoot,
        entries: &BTreeMap<StateKey, Option<ShortEventId>>,
    ) -> Result<StateRoot, Need> {
        let applied = state::apply(self, root, self.head.salt, entries)?;
        self.findings.nodes.extend(applied.new_nodes);
        Ok(applied.root)
    }

    /// The state after an event, on its own branch of the graph.
    pub fn state_after(&mut self, event: &StoredEvent) -> Result<StateRoot, Need> {
        match event.state_key() {
            Some(key) if event.standing != Standing::Rejected => {
                self.apply(event.before, &BTreeMap::from([(key, Some(event.short))]))
            }
            _ => Ok(event.before),
        }
    }

    /// The one state that follows from those after several events.
    pub fn state_after_all(&mut self, events: &[Arc<StoredEvent>]) -> Result<StateRoot, Need> {
        let mut roots = BTreeSet::new();
        for event in events {
            roots.insert(self.state_after(event)?);
        }
        self.merge(roots)
    }

    /// The state that some events make; those that are not known here are missing in it.
    pub fn state_of(&mut self, ids: &[OwnedEventId]) -> Result<StateRoot, Need> {
        let (events, unknown) = self.known_of(ids)?;
        if !unknown.is_empty() {
            tracing::trace!(room_id = %self.head.id, missing = unknown.len(), "a state from a peer has holes");
        }
        let entries = events
            .iter()
            .filter(|event| event.standing != Standing::Rejected)
            .filter_map(|event| Some((event.state_key()?, Some(event.short))))
            .collect();
        self.apply(StateRoot::default(), &entries)
    }

    /// A state with the members that some auth events name, where it lacks them.
    pub fn with_members_of(
        &mut self,
        root: StateRoot,
        auth_events: &[Arc<StoredEvent>],
    ) -> Result<StateRoot, Need> {
        let mut entries = BTreeMap::<StateKey, Option<ShortEventId>>::new();
        for event in auth_events {
            let Some((key, _)) = members(std::slice::from_ref(&event.pdu)).next() else { continue };
            if self.get(root, &key.0, &key.1)?.is_none() {
                entries.insert(key, Some(event.short));
            }
        }
        if entries.is_empty() { Ok(root) } else { self.apply(root, &entries) }
    }

    /// The events of a state that authorise an event.
    pub(super) fn authorizing(
        &self,
        root: StateRoot,
        pdu: &Pdu,
    ) -> Result<BTreeMap<StateKey, Arc<StoredEvent>>, Need> {
        // Content that names no auth events fails the checks themselves.
        let keys =
            auth::auth_keys(pdu.event_type(), pdu.sender(), pdu.state_key(), pdu.content(), self.head.rules);
        self.held(root, keys.unwrap_or_default().into_iter().map(|(kind, key)| (kind.to_string(), key)))
    }

    /// The events that hold some keys of a state.
    pub(super) fn held(
        &self,
        root: StateRoot,
        keys: impl IntoIterator<Item = StateKey>,
    ) -> Result<BTreeMap<StateKey, Arc<StoredEvent>>, Need> {
        let mut shorts = BTreeMap::new();
        for key in keys {
            if let Some(short) = self.get(root, &key.0, &key.1)? {
                shorts.insert(key, short);
            }
        }
        let events = self.events(shorts.values().copied())?;
        Ok(shorts.into_iter().filter_map(|(key, short)| Some((key, events.get(&short)?.clone()))).collect())
    }
}

/// Events without their places in the room.
pub(super) fn pdus(events: &[Arc<StoredEvent>]) -> Vec<Arc<Pdu>> {
    events.iter().map(|event| event.pdu.clone()).collect()
}
