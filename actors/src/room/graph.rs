//! The event graph: states at its events, and what becomes of members when the current state moves.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use engine::{
    auth,
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    room::{
        partial::add_members,
        receive::{Evidence, Standing},
    },
    state::{self, StateRoot},
};
use ruma::OwnedEventId;

use super::{ActiveRoom, RoomError, StateKey, StoredEvent, change::Change, members::MemberChange};

/// Keys of a state that are read at a time.
const STATE_PAGE: usize = 1000;

impl ActiveRoom {
    /// The state after an event, on its own branch of the graph.
    pub(super) async fn state_after(
        &self,
        change: &mut Change,
        event: &StoredEvent,
    ) -> Result<StateRoot, RoomError> {
        match event.pdu.state_key() {
            Some(state_key) if event.standing != Standing::Rejected => {
                let key = (event.pdu.kind().to_owned(), state_key.to_owned());
                self.apply(change, event.before, &BTreeMap::from([(key, Some(event.short))])).await
            }
            _ => Ok(event.before),
        }
    }

    /// All keys of a state.
    pub(super) async fn state_entries(
        &self,
        change: &Change,
        root: StateRoot,
    ) -> Result<Vec<state::Entry>, RoomError> {
        let mut entries: Vec<state::Entry> = Vec::new();
        loop {
            let page = self
                .with_nodes(change, |nodes| {
                    let from = entries.last().map_or(Bound::Unbounded, |last| {
                        Bound::Excluded((last.kind.as_str(), last.state_key.as_str()))
                    });
                    state::range(nodes, root, from, None, STATE_PAGE)
                })
                .await?;
            let is_last = page.len() < STATE_PAGE;
            entries.extend(page);
            if is_last {
                return Ok(entries);
            }
        }
    }

    /// The events of a state that authorise an event.
    pub(super) async fn authorizing(
        &self,
        change: &Change,
        root: StateRoot,
        pdu: &Pdu,
    ) -> Result<BTreeMap<StateKey, Arc<Pdu>>, RoomError> {
        // Content that names no auth events fails the checks themselves.
        let keys =
            auth::auth_keys(pdu.event_type(), pdu.sender(), pdu.state_key(), pdu.content(), self.rules)
                .unwrap_or_default();
        let mut events = BTreeMap::new();
        for (kind, state_key) in keys {
            let kind = kind.to_string();
            let short = self.with_nodes(change, |nodes| state::get(nodes, root, &kind, &state_key)).await?;
            if let Some(short) = short {
                events.insert((kind, state_key), self.event(change, short).await?.pdu.clone());
            }
        }
        Ok(events)
    }

    /// What a received event is judged by.
    pub(super) async fn evidence(
        &self,
        change: &Change,
        pdu: &Pdu,
        auth_events: &[Arc<StoredEvent>],
        before: StateRoot,
    ) -> Result<Evidence, RoomError> {
        let create = self.current(change, "m.room.create", "").await?;
        let mut current = self.authorizing(change, change.head.root, pdu).await?;
        if change.head.lacks_members {
            add_members(&mut current, &pdus(auth_events));
        }
        Ok(Evidence {
            auth_events: auth_events
                .iter()
                .map(|event| (event.pdu.event_id().to_owned(), event.pdu.clone()))
                .collect(),
            before: self.authorizing(change, before, pdu).await?,
            current,
            create: create.map(|event| event.pdu.clone()),
        })
    }

    /// Makes a state the current one, with all that follows for members.
    pub(super) async fn move_state(
        &self,
        change: &mut Change,
        root: StateRoot,
        at: TimelineIndex,
    ) -> Result<(), RoomError> {
        let old = std::mem::replace(&mut change.head.root, root);
        let changes = self.with_nodes(change, |nodes| state::diff(nodes, old, root)).await?;
        for moved in changes {
            change.hot.remove(&(moved.kind.clone(), moved.state_key));
            if moved.kind == "m.room.member" {
                let before = self.maybe_event(change, moved.before).await?;
                let after = self.maybe_event(change, moved.after).await?;
                let member = MemberChange { before: before.as_deref(), after: after.as_deref(), at };
                self.member_changed(change, &member).await?;
            }
        }
        Ok(())
    }

    async fn maybe_event(
        &self,
        change: &Change,
        short: Option<ShortEventId>,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        match short {
            Some(short) => Ok(Some(self.event(change, short).await?)),
            None => Ok(None),
        }
    }

    /// Those of some events that are known here, and the IDs of the others.
    pub(super) async fn known_events(
        &self,
        change: &Change,
        ids: &[OwnedEventId],
    ) -> Result<(Vec<Arc<StoredEvent>>, Vec<OwnedEventId>), RoomError> {
        let (mut known, mut missing) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            match self.known_event(change, id).await? {
                Some(event) => known.push(event),
                None => missing.push(id.clone()),
            }
        }
        Ok((known, missing))
    }
}

/// Events without their places in the room.
pub(super) fn pdus(events: &[Arc<StoredEvent>]) -> Vec<Arc<Pdu>> {
    events.iter().map(|event| event.pdu.clone()).collect()
}
