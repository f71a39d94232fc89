//! What relates to the events of a room, kept at hand and in step with its commits.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use engine::{
    id::{Position, TimelineIndex},
    room::relation::{REFERENCE, REPLACE, THREAD},
};
use imbl::OrdMap;
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedUserId, UserId};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::thread::Thread;
use crate::room::relations::{RelationChange, RelationRow};

/// The edits of an event that are at hand, at most: the newest.
const EDITS_MAX: usize = 1024;

/// The references to an event that are at hand, and listed with it, at most: the newest.
const REFERENCES_MAX: usize = 1000;

/// Rows that a room keeps at hand for all its events together.
const CACHED_MAX: usize = 8192;

/// Changes that a reader may be overtaken by and still keep what was read.
const RECENT_MAX: usize = 64;

/// What is known by: the event that it relates to, and the place up to which it counts.
pub(super) type Key = (OwnedEventId, TimelineIndex);

/// What relates to an event, as far as it is bundled with it and stands no later than at some place.
#[derive(Clone, Debug)]
pub(in crate::room) struct Related {
    /// Who sent the event, and its type: what has others does not edit it.
    original: (OwnedUserId, String),
    until: TimelineIndex,
    /// By the time and ID of the edit.
    pub(super) edits: OrdMap<(u64, OwnedEventId), Arc<RelationRow>>,
    pub(super) references: OrdMap<TimelineIndex, Arc<RelationRow>>,
    pub(super) thread: Thread,
    /// Changes up to this position may have been in the store already when it was read.
    settled: Position,
}

impl Related {
    /// Nothing yet, for an event of this sender and type.
    pub(super) fn new(sender: &UserId, kind: &str, until: TimelineIndex) -> Self {
        Self {
            original: (sender.to_owned(), kind.to_owned()),
            until,
            edits: OrdMap::new(),
            references: OrdMap::new(),
            thread: Thread::default(),
            settled: Position(0),
        }
    }

    /// Adds what is older than the rest of its type.
    pub(super) fn add_older(&mut self, row: Arc<RelationRow>) {
        if row.rel_type == THREAD && row.index <= self.until {
            self.thread.add_older(row);
        } else {
            self.add(row, true);
        }
    }

    /// Whether more of a type would not be kept.
    pub(super) fn has_enough(&self, rel_type: &str) -> bool {
        match rel_type {
            REPLACE => self.edits.len() >= EDITS_MAX,
            REFERENCE => self.references.len() >= REFERENCES_MAX,
            _ => false,
        }
    }

    fn add(&mut self, row: Arc<RelationRow>, is_new: bool) -> bool {
        if row.index > self.until {
            return true;
        }
        match row.rel_type.as_str() {
            REPLACE if self.is_edited_by(&row) => {
                self.edits.insert((row.record.sent_ms, row.record.event_id.clone()), row);
                if self.edits.len() > EDITS_MAX
                    && let Some((oldest, _)) = self.edits.get_min().cloned()
                {
                    self.edits.remove(&oldest);
                }
            }
            REFERENCE => {
                self.references.insert(row.index, row);
                if self.references.len() > REFERENCES_MAX
                    && let Some((oldest, _)) = self.references.get_min().cloned()
                {
                    self.references.remove(&oldest);
                }
            }
            THREAD => return self.thread.add(row, is_new),
            _ => {}
        }
        true
    }

    /// Spec: client-server API, "Validity of replacement events".
    fn is_edited_by(&self, row: &RelationRow) -> bool {
        let record = &row.record;
        let (sender, kind) = &self.original;
        record.can_replace && record.sender == *sender && record.kind == *kind
    }

    fn remove(&mut self, row: &RelationRow, is_new: bool) -> bool {
        if row.index > self.until {
            return true;
        }
        // Where more was not kept, something older takes the place.
        let had_enough = self.has_enough(&row.rel_type);
        match row.rel_type.as_str() {
            REPLACE => {
                let edit = (row.record.sent_ms, row.record.event_id.clone());
                self.edits.remove(&edit).is_none() || !had_enough
            }
            REFERENCE => self.references.remove(&row.index).is_none() || !had_enough,
            THREAD => self.thread.remove(row, is_new),
            _ => true,
        }
    }

    /// Takes over a change; `false` if it has to be read anew.
    fn apply(&mut self, change: &RelationChange, position: Position) -> bool {
        let is_new = position > self.settled;
        match change {
            RelationChange::Added(_, row) => self.add(row.clone(), is_new),
            RelationChange::Removed(_, row) => self.remove(row, is_new),
        }
    }

    fn len(&self) -> usize {
        self.edits.len() + self.references.len() + self.thread.len() + 1
    }
}

/// What relates to the events of a room that were lately looked at.
pub struct RelatedCache {
    cached: Mutex<Cached>,
    /// Who reads much reads alone.
    turns: Semaphore,
}

impl Default for RelatedCache {
    fn default() -> Self {
        Self { cached: Mutex::default(), turns: Semaphore::new(1) }
    }
}

#[derive(Default)]
struct Cached {
    /// How often what relates to any event has changed.
    changes: u64,
    /// The last changes.
    recent: VecDeque<(Position, RelationChange)>,
    rows: usize,
    entries: BTreeMap<Key, Arc<Related>>,
}

impl RelatedCache {
    /// What is known of an event, or else the number of changes so far.
    pub(super) fn get(&self, key: &Key) -> Result<Arc<Related>, u64> {
        let cached = self.cached.lock();
        cached.entries.get(key).cloned().ok_or(cached.changes)
    }

    /// Waits for the others who read all that relates to an event: one of them may have read the same.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// Keeps what was read since there were so many changes, when positions up to `settled` had been handed out.
    pub(super) fn keep(
        &self,
        key: Key,
        mut related: Related,
        changes: u64,
        settled: Position,
    ) -> Arc<Related> {
        related.settled = settled;
        let mut cached = self.cached.lock();
        let missed = usize::try_from(cached.changes - changes).unwrap_or(usize::MAX);
        let Some(known) = cached.recent.len().checked_sub(missed) else { return Arc::new(related) };
        for (position, change) in cached.recent.iter().skip(known) {
            if *change.target() == key.0 && !related.apply(change, *position) {
                return Arc::new(related);
            }
        }
        if cached.rows + related.len() > CACHED_MAX {
            cached.entries.clear();
            cached.rows = 0;
        }
        cached.rows += related.len();
        let related = Arc::new(related);
        if let Some(other) = cached.entries.insert(key, related.clone()) {
            cached.rows = cached.rows.saturating_sub(other.len());
        }
        related
    }

    /// Takes over what a commit changed, whose newest position this is.
    pub(in crate::room) fn change(&self, changes: Vec<RelationChange>, position: Position) {
        if changes.is_empty() {
            return;
        }
        let mut cached = self.cached.lock();
        for change in changes {
            cached.apply(&change, position);
            cached.changes += 1;
            if cached.recent.len() == RECENT_MAX {
                cached.recent.pop_front();
            }
            cached.recent.push_back((position, change));
        }
    }
}

impl Cached {
    fn apply(&mut self, change: &RelationChange, position: Position) {
        let key = |until| (change.target().clone(), TimelineIndex(until));
        let mut outdated = Vec::new();
        for (key, related) in self.entries.range_mut(key(i64::MIN)..=key(i64::MAX)) {
            self.rows = self.rows.saturating_sub(related.len());
            if Arc::make_mut(related).apply(change, position) {
                self.rows += related.len();
            } else {
                outdated.push(key.clone());
            }
        }
        for key in outdated {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
