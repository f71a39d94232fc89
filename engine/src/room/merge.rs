//! One state from several that disagree, at a cost of what they differ in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId};

use super::{
    event::StoredEvent,
    machine::{Need, Room},
    reset::{ResetRecord, spelled},
};
use crate::{
    id::ShortEventId,
    resolve::{AgreedState, EventSource, Lacking, Ranked, Reach, StateKey, StateSet, resolve_differing},
    state::{self, StateRoot},
};

/// What each of several states has in the keys that are not the same in all of them.
pub(super) type Differences = BTreeMap<StateKey, Vec<Option<ShortEventId>>>;

impl EventSource for Room<'_> {
    fn event(&self, id: &EventId) -> Option<Ranked> {
        self.look_up(id).known().map(|event| event.ranked())
    }
}

impl Room<'_> {
    /// One state from several, by the resolution algorithm of the room's version.
    pub fn merge(&mut self, roots: BTreeSet<StateRoot>) -> Result<StateRoot, Need> {
        let Some(first) = roots.first().copied() else { return Ok(StateRoot::default()) };
        if roots.len() == 1 {
            return Ok(first);
        }
        let roots: Vec<_> = roots.into_iter().collect();
        let here = self.findings.merged.iter().find(|(known, _)| *known == roots).map(|(_, root)| root);
        if let Some(root) = here.or_else(|| self.head.merged.get(&roots)) {
            return Ok(*root);
        }
        let root = self.resolve(first, &roots)?;
        self.findings.merged.push((roots, root));
        Ok(root)
    }

    fn resolve(&mut self, first: StateRoot, roots: &[StateRoot]) -> Result<StateRoot, Need> {
        let held = self.differences(first, roots)?;
        let events = self.events(held.values().flatten().flatten().copied())?;
        let mut differing = vec![StateSet::new(); roots.len()];
        for (key, shorts) in &held {
            for (set, short) in differing.iter_mut().zip(shorts) {
                if let Some(event) = short.and_then(|short| events.get(&short)) {
                    set.insert(key.clone(), event.pdu.event_id().clone());
                }
            }
        }
        let mut agreed = Agreed::default();
        let resolved = loop {
            match resolve_differing(self.head.rules, &differing, &agreed, self) {
                Ok(resolved) => break resolved,
                Err(Lacking::Events(missing)) => return Err(missing.into()),
                Err(Lacking::Keys(keys)) => {
                    let found = self.held(first, keys.iter().cloned())?;
                    agreed.keys.extend(keys.into_iter().map(|key| {
                        let id = found.get(&key).map(|event| event.pdu.event_id().clone());
                        (key, id)
                    }));
                }
                Err(Lacking::Chain(wanted)) => {
                    let found = self.reached(first, &wanted, &held)?;
                    agreed.chain = Some((wanted, found));
                }
            }
        };
        let mut entries: BTreeMap<StateKey, Option<ShortEventId>> =
            held.keys().map(|key| (key.clone(), None)).collect();
        for (key, id) in &resolved {
            entries.insert(key.clone(), self.known(id)?.map(|event| event.short));
        }
        let root = self.apply(first, &entries)?;
        let lost = self.resets(&held, root)?;
        if !lost.is_empty() {
            let record = self.reset_record(&agreed, (&differing, &resolved), lost);
            self.findings.resets.push(record);
        }
        Ok(root)
    }

    fn differences(&self, first: StateRoot, roots: &[StateRoot]) -> Result<Differences, Need> {
        let mut held = Differences::new();
        for (number, root) in roots.iter().enumerate().skip(1) {
            for moved in state::diff(self, first, *root)? {
                let key = (moved.kind, moved.state_key);
                held.entry(key).or_insert_with(|| vec![moved.before; roots.len()])[number] = moved.after;
            }
        }
        Ok(held)
    }

    /// Which of some events the agreed part of a state leads to; rarely asked for, since it reads all of that state.
    fn reached(
        &self,
        root: StateRoot,
        wanted: &BTreeSet<OwnedEventId>,
        differing: &Differences,
    ) -> Result<BTreeSet<OwnedEventId>, Need> {
        let entries = state::entries(self, root)?.into_iter();
        let agreed = entries
            .filter(|entry| !differing.contains_key(&(entry.kind.clone(), entry.state_key.clone())))
            .map(|entry| entry.event);
        let ids: Vec<_> =
            self.events(agreed)?.into_values().map(|event| event.pdu.event_id().clone()).collect();
        let mut reach = Reach::new(wanted.clone(), self)?;
        reach.walk(&ids, self)?;
        Ok(reach.into_found())
    }

    fn reset_record(
        &self,
        agreed: &Agreed,
        (differing, resolved): (&[StateSet], &StateSet),
        lost: Vec<(StateKey, OwnedEventId)>,
    ) -> ResetRecord {
        // What the resolution looked at: the events in question, what all states had, and what authorises them.
        let mut open: Vec<_> = differing.iter().flat_map(|set| set.values().cloned()).collect();
        open.extend(agreed.keys.values().flatten().cloned());
        let mut events = BTreeMap::<OwnedEventId, Arc<StoredEvent>>::new();
        while let Some(id) = open.pop() {
            if let Some(event) = self.look_up(&id).known()
                && !events.contains_key(&id)
            {
                open.extend(event.pdu.auth_events().iter().cloned());
                events.insert(id, event);
            }
        }
        let written = |event: &Arc<StoredEvent>| {
            let json = serde_json::from_slice(event.pdu.raw()).ok()?;
            Some((event.rank, event.pdu.is_rejected(), event.pdu.event_id().clone(), json))
        };
        ResetRecord {
            room_version: self.head.rules.id.to_string(),
            differing: differing.iter().map(spelled).collect(),
            agreed: agreed
                .keys
                .iter()
                .map(|((kind, key), id)| (kind.clone(), key.clone(), id.clone()))
                .collect(),
            events: events.values().filter_map(written).collect(),
            resolved: spelled(resolved),
            lost: lost.into_iter().map(|((kind, key), event)| (kind, key, event)).collect(),
        }
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
