//! What relates to the events of a room, kept at hand and in step with its commits.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::TimelineIndex,
    room::relation::{REFERENCE, REPLACE, THREAD},
};
use parking_lot::Mutex;
use ruma::OwnedEventId;

use super::ROWS_MAX;
use crate::room::relations::{RelationChange, RelationRow};

/// Rows that a room keeps at hand for all its events together.
const CACHED_MAX: usize = 2 * ROWS_MAX;

/// What relates to an event, as far as it is bundled with it.
#[derive(Clone, Debug, Default)]
pub(in crate::room) struct Related {
    /// By the time and ID of the edit.
    pub(super) edits: imbl::OrdMap<(u64, OwnedEventId), Arc<RelationRow>>,
    pub(super) references: imbl::OrdMap<TimelineIndex, Arc<RelationRow>>,
    pub(super) thread: imbl::OrdMap<TimelineIndex, Arc<RelationRow>>,
}

impl Related {
    pub(super) fn add(&mut self, row: Arc<RelationRow>) {
        match row.rel_type.as_str() {
            REPLACE => drop(self.edits.insert((row.record.sent_ms, row.record.event_id.clone()), row)),
            REFERENCE => drop(self.references.insert(row.index, row)),
            THREAD => drop(self.thread.insert(row.index, row)),
            _ => {}
        }
    }

    fn len(&self) -> usize {
        self.edits.len() + self.references.len() + self.thread.len() + 1
    }
}

/// What relates to the events of a room that were lately looked at.
#[derive(Default)]
pub struct RelatedCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    /// How often what relates to any event has changed: a reader who was overtaken keeps nothing.
    changes: u64,
    rows: usize,
    entries: BTreeMap<OwnedEventId, Arc<Related>>,
}

impl RelatedCache {
    /// What is known of an event, or else the number of changes so far.
    pub(super) fn get(&self, target: &OwnedEventId) -> Result<Arc<Related>, u64> {
        let cached = self.0.lock();
        cached.entries.get(target).cloned().ok_or(cached.changes)
    }

    pub(super) fn keep(&self, target: &OwnedEventId, related: Arc<Related>, changes: u64) {
        let mut cached = self.0.lock();
        if cached.changes != changes {
            return;
        }
        if cached.rows + related.len() > CACHED_MAX {
            cached.entries.clear();
            cached.rows = 0;
        }
        cached.rows += related.len();
        cached.entries.insert(target.clone(), related);
    }

    /// Takes over what a commit changed.
    pub(in crate::room) fn change(&self, changes: Vec<RelationChange>) {
        if changes.is_empty() {
            return;
        }
        let mut cached = self.0.lock();
        cached.changes += 1;
        for change in changes {
            match change {
                RelationChange::Added(target, row) => {
                    if let Some(related) = cached.entries.get_mut(&target) {
                        Arc::make_mut(related).add(row);
                        cached.rows += 1;
                    }
                }
                RelationChange::Removed(target) => {
                    if let Some(related) = cached.entries.remove(&target) {
                        cached.rows = cached.rows.saturating_sub(related.len());
                    }
                }
            }
        }
    }
}
