//! The room as a change in the making has it: what is stored, what is under way, and what the change adds.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    auth::Powers,
    id::ShortEventId,
    state::{self, Missing, Node, NodeId, NodeSource},
};
use ruma::EventId;

use super::{ActiveRoom, RoomError, StoredEvent, change::Change, pending::Pending};

/// Nodes of a change that is not stored yet, in front of the room's own.
struct NodesOf<'a> {
    change: &'a BTreeMap<NodeId, Arc<Node>>,
    pending: &'a Pending,
    behind: &'a dyn NodeSource,
}

impl NodeSource for NodesOf<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        let cached = self.change.get(&id).cloned().or_else(|| self.behind.node(id));
        cached.or_else(|| self.pending.node(id))
    }
}

impl ActiveRoom {
    /// One key of the current state, as the change has it.
    pub(super) async fn current(
        &self,
        change: &Change,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let key = (kind.to_owned(), state_key.to_owned());
        if let Some(event) = change.hot.get(&key) {
            return Ok(Some(event.clone()));
        }
        let root = change.head.root;
        let short = self.with_nodes(change, |nodes| state::get(nodes, root, kind, state_key)).await?;
        match short {
            None => Ok(None),
            Some(short) => Ok(Some(self.event(change, short).await?)),
        }
    }

    /// Runs a state operation on stored nodes and those that are still in the making.
    pub(super) async fn with_nodes<T>(
        &self,
        change: &Change,
        operation: impl Fn(&dyn NodeSource) -> Result<T, Missing>,
    ) -> Result<T, RoomError> {
        let read = self.shared.store.with_nodes(|behind| {
            operation(&NodesOf { change: &change.nodes, pending: &self.pending, behind })
        });
        Ok(read.await?)
    }

    /// What users may do, by the current state; none in a room without a create event.
    pub(super) async fn powers(&self, change: &Change) -> Result<Option<Powers>, RoomError> {
        let Some(create) = self.current(change, "m.room.create", "").await? else { return Ok(None) };
        let power_levels = self.current(change, "m.room.power_levels", "").await?;
        let power_levels = power_levels.map(|event| event.pdu.clone());
        Ok(Some(Powers::new(create.pdu.clone(), power_levels, self.rules)))
    }

    /// An event by its number, if the store may not have it, or not in this form.
    pub(super) fn own_event(&self, change: &Change, short: ShortEventId) -> Option<Arc<StoredEvent>> {
        let own = change.replaced.iter().chain(&change.events).find(|event| event.short == short);
        let own = own.or_else(|| change.hidden.get(&short));
        own.or_else(|| self.pending.event(short)).cloned()
    }

    /// An event by its number.
    pub(super) async fn event(
        &self,
        change: &Change,
        short: ShortEventId,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        match self.own_event(change, short) {
            Some(event) => Ok(event),
            None => Ok(self.shared.store.event(short).await?),
        }
    }

    /// Events by their numbers.
    pub(super) async fn events(
        &self,
        change: &Change,
        shorts: impl IntoIterator<Item = ShortEventId>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut events = Vec::new();
        for short in shorts {
            events.push(self.event(change, short).await?);
        }
        Ok(events)
    }

    /// An event of this room by its ID, if it is in the making, under way or recent.
    pub(super) fn own_event_by_id(&self, change: &Change, event_id: &EventId) -> Option<Arc<StoredEvent>> {
        let own = change.replaced.iter().rev().chain(change.events.iter().rev());
        let recent = change.head.recent.iter().rev();
        let hot = own.chain(recent).find(|event| event.pdu.event_id() == event_id);
        let hidden = || change.hidden_ids.get(event_id).and_then(|short| change.hidden.get(short));
        hot.or_else(hidden).or_else(|| self.pending.event_by_id(event_id)).cloned()
    }

    /// An event of this room by its ID, whether it is stored already or still in the making.
    pub(super) async fn known_event(
        &self,
        change: &Change,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let event = match self.own_event_by_id(change, event_id) {
            Some(event) => Some(event),
            None => self.shared.store.event_by_id(event_id).await?,
        };
        Ok(event.filter(|event| event.room == self.room))
    }
}
