//! What a room has submitted and the store has not confirmed yet.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use engine::{
    id::Position,
    state::{Node, NodeId},
};
use ruma::{OwnedUserId, UserId};
use storage::schema::MembershipRecord;

use super::{StoredEvent, change::Change};

/// What the room appended and the store has not confirmed yet.
#[derive(Default)]
pub(super) struct Pending(VecDeque<InFlight>);

struct InFlight {
    position: Position,
    events: Vec<Arc<StoredEvent>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    memberships: Vec<(OwnedUserId, MembershipRecord)>,
}

impl Pending {
    /// Keeps what a submitted change wrote until it is durable.
    pub(super) fn add(&mut self, change: &mut Change) {
        let hidden = std::mem::take(&mut change.hidden).into_values();
        let events = hidden.chain(change.events.iter().chain(&change.replaced).cloned()).collect();
        let nodes = std::mem::take(&mut change.nodes);
        let memberships = std::mem::take(&mut change.memberships);
        self.0.push_back(InFlight { position: change.position(), events, nodes, memberships });
    }

    /// Lets go of what the store can give by now.
    pub(super) fn confirm(&mut self, watermark: Position) {
        while self.0.front().is_some_and(|oldest| oldest.position <= watermark) {
            self.0.pop_front();
        }
    }

    /// A node of the state tree that is not durable yet.
    pub(super) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.iter().rev().find_map(|change| change.nodes.get(&id).cloned())
    }

    /// Events that are not durable yet, the newest form of each first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        self.0.iter().rev().flat_map(|change| change.events.iter().rev())
    }

    /// A local user's relation to the room, if a change that is not durable yet touched it.
    pub(super) fn membership(&self, user: &UserId) -> Option<&MembershipRecord> {
        let mut changes = self.0.iter().rev().flat_map(|change| change.memberships.iter().rev());
        changes.find(|(known, _)| known == user).map(|(_, record)| record)
    }

    /// The newest form of an event that is not durable yet.
    pub(super) fn find(&self, is_it: impl Fn(&StoredEvent) -> bool) -> Option<&Arc<StoredEvent>> {
        self.events().find(|event| is_it(event))
    }
}
