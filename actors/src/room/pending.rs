//! What a room has submitted and the store has not confirmed yet.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use engine::{
    id::{Position, ShortEventId},
    state::{Node, NodeId},
};
use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use storage::schema::MembershipRecord;

use super::{StoredEvent, change::Change};

/// What the room appended and the store has not confirmed yet.
#[derive(Default)]
pub(super) struct Pending {
    changes: VecDeque<InFlight>,
    /// The newest form of each event, with the change that wrote it.
    newest: BTreeMap<ShortEventId, (Position, Arc<StoredEvent>)>,
    /// The numbers of these events.
    numbers: BTreeMap<OwnedEventId, ShortEventId>,
}

struct InFlight {
    position: Position,
    events: Vec<Arc<StoredEvent>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    memberships: Vec<(OwnedUserId, MembershipRecord)>,
}

impl Pending {
    /// Keeps what a submitted change wrote until it is durable.
    pub(super) fn add(&mut self, change: &mut Change) {
        let position = change.position();
        let hidden = std::mem::take(&mut change.hidden).into_values();
        let events: Vec<_> = hidden.chain(change.events.iter().chain(&change.replaced).cloned()).collect();
        for event in &events {
            self.numbers.insert(event.pdu.event_id().clone(), event.short);
            self.newest.insert(event.short, (position, event.clone()));
        }
        let nodes = std::mem::take(&mut change.nodes);
        let memberships = std::mem::take(&mut change.memberships);
        self.changes.push_back(InFlight { position, events, nodes, memberships });
    }

    /// Lets go of what the store can give by now.
    pub(super) fn confirm(&mut self, watermark: Position) {
        while self.changes.front().is_some_and(|oldest| oldest.position <= watermark) {
            let Some(confirmed) = self.changes.pop_front() else { break };
            for event in &confirmed.events {
                let is_newest = |(position, _): &(Position, _)| *position <= confirmed.position;
                if self.newest.get(&event.short).is_some_and(is_newest) {
                    self.newest.remove(&event.short);
                    self.numbers.remove(event.pdu.event_id());
                }
            }
        }
    }

    /// A node of the state tree that is not durable yet.
    pub(super) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.changes.iter().rev().find_map(|change| change.nodes.get(&id).cloned())
    }

    /// Events that are not durable yet, the newest form of each first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        self.changes.iter().rev().flat_map(|change| change.events.iter().rev())
    }

    /// A local user's relation to the room, if a change that is not durable yet touched it.
    pub(super) fn membership(&self, user: &UserId) -> Option<&MembershipRecord> {
        let mut changes = self.changes.iter().rev().flat_map(|change| change.memberships.iter().rev());
        changes.find(|(known, _)| known == user).map(|(_, record)| record)
    }

    /// The newest form of an event that is not durable yet.
    pub(super) fn event(&self, short: ShortEventId) -> Option<&Arc<StoredEvent>> {
        self.newest.get(&short).map(|(_, event)| event)
    }

    /// The same by the event's ID.
    pub(super) fn event_by_id(&self, id: &EventId) -> Option<&Arc<StoredEvent>> {
        self.numbers.get(id).and_then(|short| self.event(*short))
    }
}
