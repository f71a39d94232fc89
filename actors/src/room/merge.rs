//! One state from several that disagree: what the engine's resolution needs is fetched as it asks for it.
//!
//! The cost is one of what the states differ in. A fork of the graph stays for many events, so that what was resolved
//! is remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::ShortEventId,
    resolve::{AgreedState, EventSource, Lacking, MissingEvents, Ranked, Reach, StateSet, resolve_differing},
    state::{self, StateRoot},
};
use ruma::{EventId, OwnedEventId};

use super::{
    ActiveRoom, ReadError, RoomError, StateKey, StoredEvent,
    change::Change,
    reset::{ResetRecord, spelled},
};

/// Events of auth chains that are fetched ahead whenever one is missing.
const AHEAD: usize = 200;

/// Resolutions that a room remembers before it starts over.
pub(super) const MERGED_MAX: usize = 64;

impl ActiveRoom {
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
        let roots: Vec<_> = roots.into_iter().collect();
        if let Some(root) = change.merged.get(&roots) {
            return Ok(*root);
        }
        let root = self.resolve(change, first, &roots).await?;
        change.merged.insert(roots, root);
        Ok(root)
    }

    async fn resolve(
        &self,
        change: &mut Change,
        first: StateRoot,
        roots: &[StateRoot],
    ) -> Result<StateRoot, RoomError> {
        // What each state has in the keys that are not the same in all.
        let mut held = BTreeMap::<StateKey, Vec<Option<ShortEventId>>>::new();
        for (number, root) in roots.iter().enumerate().skip(1) {
            for moved in self.with_nodes(change, |nodes| state::diff(nodes, first, *root)).await? {
                let key = (moved.kind, moved.state_key);
                held.entry(key).or_insert_with(|| vec![moved.before; roots.len()])[number] = moved.after;
            }
        }
        let mut known = Known::default();
        let mut differing = vec![StateSet::new(); roots.len()];
        for (key, events) in &held {
            for (set, short) in differing.iter_mut().zip(events) {
                if let Some(short) = short {
                    set.insert(key.clone(), self.id_of(change, *short, &mut known).await?);
                }
            }
        }
        let mut agreed = Agreed::default();
        let resolved = loop {
            match resolve_differing(self.rules, &differing, &agreed, &known) {
                Ok(resolved) => break resolved,
                Err(Lacking::Events(MissingEvents(ids))) => self.fetch_chain(change, ids, &mut known).await?,
                Err(Lacking::Keys(keys)) => {
                    for key in keys {
                        let (kind, state_key) = &key;
                        let short =
                            self.with_nodes(change, |nodes| state::get(nodes, first, kind, state_key));
                        let id = match short.await? {
                            Some(short) => Some(self.id_of(change, short, &mut known).await?),
                            None => None,
                        };
                        agreed.keys.insert(key, id);
                    }
                }
                Err(Lacking::Chain(wanted)) => {
                    let found = self.reached(change, first, (&wanted, &held), &mut known).await?;
                    agreed.chain = Some((wanted, found));
                }
            }
        };
        let mut entries: BTreeMap<StateKey, Option<ShortEventId>> =
            held.keys().map(|key| (key.clone(), None)).collect();
        for (key, id) in &resolved {
            entries.insert(key.clone(), known.events.get(id).map(|(event, _)| event.short));
        }
        let root = self.apply(change, first, &entries).await?;
        let resets = self.resets(change, &held, root).await?;
        if !resets.is_empty() {
            let record = self.reset_record(&known, &agreed, (&differing, &resolved), resets);
            self.raise_alarm(change, &record);
        }
        Ok(root)
    }

    fn reset_record(
        &self,
        known: &Known,
        agreed: &Agreed,
        (differing, resolved): (&[StateSet], &StateSet),
        resets: Vec<(StateKey, OwnedEventId)>,
    ) -> ResetRecord {
        let event = |(event, ranked): &(Arc<StoredEvent>, Ranked)| {
            let json = serde_json::from_slice(event.pdu.raw()).ok()?;
            Some((ranked.rank, event.pdu.is_rejected(), event.pdu.event_id().clone(), json))
        };
        ResetRecord {
            room_version: self.version.to_string(),
            differing: differing.iter().map(spelled).collect(),
            agreed: agreed
                .keys
                .iter()
                .map(|((kind, key), id)| (kind.clone(), key.clone(), id.clone()))
                .collect(),
            events: known.events.values().filter_map(event).collect(),
            resolved: spelled(resolved),
            lost: resets.into_iter().map(|((kind, key), event)| (kind, key, event)).collect(),
        }
    }

    async fn id_of(
        &self,
        change: &Change,
        short: ShortEventId,
        known: &mut Known,
    ) -> Result<OwnedEventId, RoomError> {
        match known.ids.get(&short) {
            Some(id) => Ok(id.clone()),
            None => Ok(known.add(self.event(change, short).await?)),
        }
    }

    /// Which of some events the agreed part of a state leads to; rarely asked for, since it reads all of that state.
    async fn reached(
        &self,
        change: &Change,
        root: StateRoot,
        (wanted, differing): (&BTreeSet<OwnedEventId>, &BTreeMap<StateKey, Vec<Option<ShortEventId>>>),
        known: &mut Known,
    ) -> Result<BTreeSet<OwnedEventId>, RoomError> {
        let mut reach = loop {
            match Reach::new(wanted.clone(), known) {
                Ok(reach) => break reach,
                Err(MissingEvents(ids)) => self.fetch_chain(change, ids, known).await?,
            }
        };
        for entry in self.state_entries(change, root).await? {
            if reach.is_done() {
                break;
            }
            if differing.contains_key(&(entry.kind, entry.state_key)) {
                continue;
            }
            let from = [self.id_of(change, entry.event, known).await?];
            while let Err(MissingEvents(ids)) = reach.walk(&from, known) {
                self.fetch_chain(change, ids, known).await?;
            }
        }
        Ok(reach.into_found())
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
            if known.events.contains_key(&id) {
                continue;
            }
            let event = self.known_event(change, &id).await?;
            let event = event.ok_or_else(|| ReadError::Lost(format!("auth event {id}")))?;
            left = left.saturating_sub(1);
            if left > 0 {
                open.extend(event.pdu.auth_events().iter().cloned());
            }
            known.add(event);
        }
        Ok(())
    }
}

/// The events that a resolution has seen so far.
#[derive(Default)]
struct Known {
    events: BTreeMap<OwnedEventId, (Arc<StoredEvent>, Ranked)>,
    ids: BTreeMap<ShortEventId, OwnedEventId>,
}

impl Known {
    fn add(&mut self, event: Arc<StoredEvent>) -> OwnedEventId {
        let id = event.pdu.event_id().clone();
        let ranked = Ranked { event: event.pdu.clone(), rank: event.rank };
        self.ids.insert(event.short, id.clone());
        self.events.insert(id.clone(), (event, ranked));
        id
    }
}

impl EventSource for Known {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.events.get(id).map(|(_, ranked)| ranked.clone())
    }
}

/// What all states agree on, as far as it was asked for.
#[derive(Default)]
struct Agreed {
    keys: BTreeMap<StateKey, Option<OwnedEventId>>,
    chain: Option<(BTreeSet<OwnedEventId>, BTreeSet<OwnedEventId>)>,
}

impl AgreedState for Agreed {
    fn get(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Lacking> {
        self.keys.get(key).cloned().ok_or_else(|| Lacking::Keys([key.clone()].into()))
    }

    fn leads_to(&self, events: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, Lacking> {
        match &self.chain {
            Some((wanted, found)) if wanted == events => Ok(found.clone()),
            _ => Err(Lacking::Chain(events.clone())),
        }
    }
}
