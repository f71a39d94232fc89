//! The event graph: states at its events, and what becomes of the current state when it forks and merges.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use engine::{
    auth,
    id::{ShortEventId, TimelineIndex},
    pdu::Pdu,
    resolve::{self, EventSource, MissingEvents, Ranked, StateSet},
    room::receive::Evidence,
    state::{self, StateRoot},
};
use ruma::{EventId, OwnedEventId};
use storage::schema::Standing;

use super::{
    ActiveRoom, RoomError, StateKey, StoredEvent,
    change::{Change, MemberChange},
};

/// Keys of a state that are read at a time.
const STATE_PAGE: usize = 1000;

/// Events of auth chains that are fetched ahead whenever one is missing.
const AHEAD: usize = 200;

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

    /// One state from several, by the resolution algorithm of the room's version.
    pub(super) async fn merge(
        &self,
        change: &mut Change,
        roots: BTreeSet<StateRoot>,
    ) -> Result<StateRoot, RoomError> {
        let Some(first) = roots.first().copied() else { return Ok(StateRoot::default()) };
        if roots.len() == 1 {
            return Ok(first);
        }
        let mut known = Known::default();
        let mut sets = Vec::with_capacity(roots.len());
        for root in roots {
            sets.push(self.state_set(change, root, &mut known).await?);
        }
        let resolved = loop {
            match resolve::resolve(self.rules, &sets, &known) {
                Ok(resolved) => break resolved,
                Err(MissingEvents(ids)) => self.fetch_chain(change, ids, &mut known).await?,
            }
        };
        let mut entries = BTreeMap::new();
        for (key, id) in &resolved {
            if sets[0].get(key) != Some(id) {
                entries.insert(key.clone(), known.0.get(id).map(|(event, _)| event.short));
            }
        }
        for key in sets[0].keys().filter(|key| !resolved.contains_key(*key)) {
            entries.insert(key.clone(), None);
        }
        self.apply(change, first, &entries).await
    }

    async fn state_set(
        &self,
        change: &Change,
        root: StateRoot,
        known: &mut Known,
    ) -> Result<StateSet, RoomError> {
        let mut set = StateSet::new();
        for entry in self.state_entries(change, root).await? {
            let event = match known.1.get(&entry.event) {
                Some(id) => id.clone(),
                None => known.add(self.event(change, entry.event).await?),
            };
            set.insert((entry.kind, entry.state_key), event);
        }
        Ok(set)
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

    /// Fetches events and some of what authorises them, since a resolution will ask for it next.
    async fn fetch_chain(
        &self,
        change: &Change,
        ids: BTreeSet<OwnedEventId>,
        known: &mut Known,
    ) -> Result<(), RoomError> {
        let mut open: Vec<_> = ids.into_iter().collect();
        let mut left = AHEAD.max(open.len());
        while let Some(id) = open.pop() {
            if known.0.contains_key(&id) {
                continue;
            }
            let event = self.known_event(change, &id).await?;
            let event = event.ok_or_else(|| super::ReadError::Lost(format!("auth event {id}")))?;
            left = left.saturating_sub(1);
            if left > 0 {
                open.extend(event.pdu.auth_events().iter().cloned());
            }
            known.add(event);
        }
        Ok(())
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
        Ok(Evidence {
            auth_events: auth_events
                .iter()
                .map(|event| (event.pdu.event_id().to_owned(), event.pdu.clone()))
                .collect(),
            before: self.authorizing(change, before, pdu).await?,
            current: self.authorizing(change, change.head.root, pdu).await?,
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

/// The events that a resolution has seen so far.
#[derive(Default)]
struct Known(BTreeMap<OwnedEventId, (Arc<StoredEvent>, Ranked)>, BTreeMap<ShortEventId, OwnedEventId>);

impl Known {
    fn add(&mut self, event: Arc<StoredEvent>) -> OwnedEventId {
        let id = event.pdu.event_id().clone();
        let ranked = Ranked { event: event.pdu.clone(), rank: event.rank };
        self.1.insert(event.short, id.clone());
        self.0.insert(id.clone(), (event, ranked));
        id
    }
}

impl EventSource for Known {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.0.get(id).map(|(_, ranked)| ranked.clone())
    }
}
