//! Asking the room's machine: what it needs is fetched, what it finds out on the way is kept with the change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::ShortEventId,
    room::{Context, Findings, Head, LookUp, Need, Room, reset::ResetRecord},
    state::{Node, NodeId, NodeSource},
};
use ruma::{EventId, OwnedEventId};
use storage::schema;

use super::{ActiveRoom, ReadError, RoomError, StoredEvent, change::Change};

/// Events of auth chains that are fetched ahead whenever one is missing, since a resolution asks for them next.
const AHEAD: usize = 200;

/// What was fetched for a question; an eviction from the caches in between cannot make it start over.
#[derive(Default)]
struct Fetched {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    events: BTreeMap<ShortEventId, Arc<StoredEvent>>,
    ids: BTreeMap<OwnedEventId, Option<Arc<StoredEvent>>>,
}

/// What is at hand for a question: the change in the making, what is under way, what is cached, what was fetched.
struct AtHand<'a> {
    room: &'a ActiveRoom,
    change: &'a Change,
    fetched: &'a Fetched,
}

impl NodeSource for AtHand<'_> {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        let own = self.change.nodes.get(&id).or_else(|| self.fetched.nodes.get(&id)).cloned();
        own.or_else(|| self.room.shared.store.node(id)).or_else(|| self.room.pending.node(id))
    }
}

impl Context for AtHand<'_> {
    fn event(&self, short: ShortEventId) -> Option<Arc<StoredEvent>> {
        let fetched = || self.fetched.events.get(&short).cloned();
        let own = self.room.own_event(self.change, short).or_else(fetched);
        own.or_else(|| self.room.shared.store.cached(short))
    }

    fn event_by_id(&self, id: &EventId) -> LookUp {
        match self.fetched.ids.get(id) {
            Some(fetched) => LookUp::of(fetched.clone()),
            None => self.room.own_event_by_id(self.change, id).map_or(LookUp::Open, LookUp::Known),
        }
    }
}

impl ActiveRoom {
    /// Asks the room's machine a question until nothing is missing for the answer.
    pub(super) async fn decide<T>(
        &self,
        change: &mut Change,
        question: impl Fn(&mut Room<'_>) -> Result<T, Need>,
    ) -> Result<T, RoomError> {
        let mut fetched = Fetched::default();
        let (answer, findings) = loop {
            let need = {
                let at_hand = AtHand { room: self, change, fetched: &fetched };
                let mut room = Room::new(self.machine_head(change), &at_hand);
                match question(&mut room) {
                    Ok(answer) => break (answer, room.into_findings()),
                    Err(need) => need,
                }
            };
            self.fetch(change, need, &mut fetched).await?;
        };
        self.keep(change, findings);
        Ok(answer)
    }

    /// The room as its machine takes it.
    pub(super) fn machine_head<'a>(&'a self, change: &'a Change) -> Head<'a> {
        Head {
            id: &self.room_id,
            number: self.room,
            rules: self.rules,
            salt: self.salt,
            root: change.head.root,
            tips: &change.head.tips,
            lacks_members: change.head.lacks_members,
            merged: &change.merged,
        }
    }

    async fn fetch(&self, change: &Change, need: Need, fetched: &mut Fetched) -> Result<(), RoomError> {
        let store = &self.shared.store;
        match need {
            Need::Nodes(ids) => {
                let nodes = store.fetch_nodes(&ids).await?;
                fetched.nodes.extend(ids.into_iter().zip(nodes));
            }
            Need::Events(shorts) => {
                let shorts: Vec<_> = shorts.into_iter().collect();
                fetched.events.extend(shorts.iter().copied().zip(store.events(&shorts).await?));
            }
            Need::Ids(ids) => self.look_up(change, ids, fetched).await?,
            Need::Chains(ids) => self.fetch_chains(change, ids, fetched).await?,
        }
        Ok(())
    }

    async fn look_up(
        &self,
        change: &Change,
        ids: BTreeSet<OwnedEventId>,
        fetched: &mut Fetched,
    ) -> Result<(), RoomError> {
        let (own, others): (Vec<_>, Vec<_>) = ids
            .into_iter()
            .map(|id| (self.own_event_by_id(change, &id), id))
            .partition(|(own, _)| own.is_some());
        fetched.ids.extend(own.into_iter().map(|(own, id)| (id, own)));
        let others: Vec<_> = others.into_iter().map(|(_, id)| id).collect();
        let shorts = self.shared.store.short_ids(&others).await?;
        let known: Vec<_> = shorts.iter().flatten().copied().collect();
        let mut events = self.shared.store.events(&known).await?.into_iter();
        for (id, short) in others.into_iter().zip(shorts) {
            // One of another room has taken the ID.
            fetched.ids.insert(id, short.and_then(|_| events.next()));
        }
        Ok(())
    }

    /// Fetches events and some of what authorises them.
    async fn fetch_chains(
        &self,
        change: &Change,
        ids: BTreeSet<OwnedEventId>,
        fetched: &mut Fetched,
    ) -> Result<(), RoomError> {
        let mut left = AHEAD.max(ids.len());
        let mut open = ids;
        while !open.is_empty() && left > 0 {
            let level: BTreeSet<_> = std::mem::take(&mut open).into_iter().take(left).collect();
            left -= level.len();
            self.look_up(change, level.clone(), fetched).await?;
            for id in level {
                let event = fetched.ids.get(&id).cloned().flatten().filter(|event| event.room == self.room);
                let event = event.ok_or_else(|| ReadError::Lost(format!("auth event {id}")))?;
                let auth_events = event.pdu.auth_events().iter();
                open.extend(auth_events.filter(|id| !fetched.ids.contains_key(*id)).cloned());
            }
        }
        Ok(())
    }

    /// Takes what was found out into the change.
    fn keep(&self, change: &mut Change, findings: Findings) {
        for (id, node) in findings.nodes {
            change.batch.put(&schema::STATE_NODES, &id.0, &node.encode().into());
            change.nodes.insert(id, node);
        }
        change.merged.extend(findings.merged);
        for record in &findings.resets {
            self.raise_alarm(change, record);
        }
    }

    /// Tells the operator of a state reset, and keeps what led to it.
    fn raise_alarm(&self, change: &mut Change, record: &ResetRecord) {
        let lost: Vec<_> =
            record.lost.iter().map(|(kind, key, event)| format!("{kind} {key:?}: {event}")).collect();
        tracing::error!(
            room.id = %self.room_id, lost = lost.join(", "),
            "state resolution went back to older state without a reason; its inputs are kept"
        );
        self.shared.metrics.state_was_reset();
        let ticket = self.shared.store.storage().reserve(1);
        if let Ok(json) = serde_json::to_vec(record) {
            change.batch.put(&schema::STATE_RESETS, &(self.room, ticket.last()), &json.into());
        }
        change.tickets.push(ticket);
    }
}
