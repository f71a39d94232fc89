//! A change in the making: events that a room appends together, in one atomic batch.
//!
//! It works on a copy of the room's head, which is cheap. If an event is refused half-way, the copy is
//! dropped and nothing has happened.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{Position, ShortEventId},
    room::Merged,
    state::{Node, NodeId},
};
use ruma::{OwnedEventId, OwnedServerName, OwnedUserId};
use storage::{
    Batch, Ticket,
    schema::{self, EventRecord, MembershipRecord},
};

use super::{ActiveRoom, RoomHead, StateKey, StoredEvent, relations::RelationChange};
use crate::session::RoomEntry;

/// Events that are appended together, and what follows from them.
pub(super) struct Change {
    /// The room's head once the change is in.
    pub(super) head: RoomHead,
    /// The state events that the change set.
    pub(super) hot: imbl::OrdMap<StateKey, Arc<StoredEvent>>,
    /// The rows to store.
    pub(super) batch: Batch,
    /// The new events, in order.
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Events that are stored without a place in the timeline.
    pub(super) hidden: BTreeMap<ShortEventId, Arc<StoredEvent>>,
    /// Their numbers.
    pub(super) hidden_ids: BTreeMap<OwnedEventId, ShortEventId>,
    /// Older events that changed (were redacted).
    pub(super) replaced: Vec<Arc<StoredEvent>>,
    /// What relates to other events now, or does no more.
    pub(super) relations: Vec<RelationChange>,
    /// New nodes of the state tree.
    pub(super) nodes: BTreeMap<NodeId, Arc<Node>>,
    /// New relations of local users to the room.
    pub(super) memberships: Vec<(OwnedUserId, MembershipRecord)>,
    /// Whether this server passes events of others on to the servers in the room: it let them in.
    pub(super) relays: bool,
    /// Other servers that have members here now, and had none before.
    pub(super) newcomers: Vec<OwnedServerName>,
    /// The positions that the change takes.
    pub(super) tickets: Vec<Ticket>,
    /// States that were resolved from others.
    pub(super) merged: Merged,
}

impl Change {
    pub(super) fn new(room: &ActiveRoom) -> Self {
        Self {
            head: room.head.clone(),
            hot: room.hot.clone(),
            batch: Batch::default(),
            events: Vec::new(),
            hidden: BTreeMap::new(),
            hidden_ids: BTreeMap::new(),
            replaced: Vec::new(),
            relations: Vec::new(),
            nodes: BTreeMap::new(),
            memberships: Vec::new(),
            relays: false,
            newcomers: Vec::new(),
            tickets: Vec::new(),
            merged: room.merged.clone(),
        }
    }

    /// Puts a changed event in the place of its former self.
    pub(super) fn replace(&mut self, event: &Arc<StoredEvent>) {
        self.batch.put(&schema::EVENTS, &event.short, &EventRecord::of(event));
        if let Some(state_key) = event.pdu.state_key() {
            // The state is the same, and yet it may say something else.
            self.batch.delete(&schema::PUBLIC_FACES, &event.room);
            let key = (event.pdu.kind().to_owned(), state_key.to_owned());
            if self.hot.get(&key).is_some_and(|held| held.short == event.short) {
                self.hot.insert(key, event.clone());
            }
        }
        self.head.replace_recent(event);
        if let Some(held) = self.hidden.get_mut(&event.short) {
            *held = event.clone();
        }
        self.replaced.retain(|held| held.short != event.short);
        self.replaced.push(event.clone());
    }

    /// The newest position of the change.
    pub(super) fn position(&self) -> Position {
        self.tickets.last().map_or(Position(0), Ticket::last)
    }

    /// What to tell active sessions about their memberships.
    pub(super) fn entries(&self) -> Vec<(OwnedUserId, RoomEntry)> {
        let position = self.position();
        self.memberships
            .iter()
            .map(|(user, record)| (user.clone(), RoomEntry::new(record.clone(), position)))
            .collect()
    }
}
