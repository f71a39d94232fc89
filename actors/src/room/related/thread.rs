//! A thread's messages, summed up: the newest are at hand, older ones are only counted.

use std::sync::Arc;

use engine::id::TimelineIndex;
use imbl::OrdMap;
use ruma::{OwnedUserId, UserId};

use super::Reader;
use crate::room::relations::RelationRow;

/// Messages that are at hand at least, if there are as many; up to twice as many are.
const KEPT: usize = 64;

/// What a thread holds, in memory that does not grow with its messages.
#[derive(Clone, Debug, Default)]
pub(in crate::room) struct Thread {
    /// The newest messages.
    newest: OrdMap<TimelineIndex, Arc<RelationRow>>,
    /// The place up to which messages are only counted.
    counted_to: Option<TimelineIndex>,
    /// Who sent those.
    senders: OrdMap<OwnedUserId, Share>,
    /// How many they are.
    counted: u64,
}

/// What a user has sent of the messages that are only counted.
#[derive(Clone, Copy, Debug)]
struct Share {
    count: u64,
    /// None of them is newer.
    until: TimelineIndex,
}

impl Thread {
    /// Adds a message that is older than all others.
    pub(super) fn add_older(&mut self, row: Arc<RelationRow>) {
        if self.newest.len() < 2 * KEPT {
            self.newest.insert(row.index, row);
        } else {
            self.count_in(&row);
        }
    }

    /// Adds a message; `false` if it may have been counted before.
    pub(super) fn add(&mut self, row: Arc<RelationRow>, is_new: bool) -> bool {
        if self.is_counted(&row) {
            if is_new {
                self.count_in(&row);
            }
            return is_new;
        }
        self.newest.insert(row.index, row);
        if self.newest.len() > 2 * KEPT {
            let surplus = self.newest.len() - KEPT;
            let oldest: Vec<_> = self.newest.values().take(surplus).cloned().collect();
            for row in oldest {
                self.newest.remove(&row.index);
                self.count_in(&row);
            }
        }
        true
    }

    /// Takes a message away; `false` if it may have been taken away before.
    pub(super) fn remove(&mut self, row: &RelationRow, is_new: bool) -> bool {
        if !self.is_counted(row) {
            self.newest.remove(&row.index);
            return true;
        }
        match self.senders.get_mut(&row.record.sender).filter(|share| is_new && share.count > 0) {
            Some(share) => share.count -= 1,
            None => return false,
        }
        self.counted -= 1;
        true
    }

    fn is_counted(&self, row: &RelationRow) -> bool {
        self.counted_to.is_some_and(|to| row.index <= to)
    }

    fn count_in(&mut self, row: &RelationRow) {
        self.counted += 1;
        self.counted_to = self.counted_to.max(Some(row.index));
        let share = self.senders.entry(row.record.sender.clone());
        let share = share.or_insert(Share { count: 0, until: row.index });
        share.count += 1;
        share.until = share.until.max(row.index);
    }

    /// How many messages a reader knows of.
    pub(super) fn count(&self, reader: &Reader<'_>) -> u64 {
        let newest = self.newest.values().filter(|row| reader.knows(row)).count() as u64;
        let ignored = &reader.access.ignored;
        let unwanted: u64 = if ignored.is_empty() {
            0
        } else {
            self.senders.iter().filter(|(user, _)| ignored.contains(user)).map(|(_, share)| share.count).sum()
        };
        newest + self.counted - unwanted
    }

    /// Whether a user has sent any of them.
    pub(super) fn has_sender(&self, user_id: &UserId) -> bool {
        self.senders.get(user_id).is_some_and(|share| share.count > 0)
            || self.newest.values().any(|row| row.record.sender == user_id)
    }

    /// The newest message at hand that a reader knows of, up to a place.
    pub(super) fn newest_to(&self, to: TimelineIndex, reader: &Reader<'_>) -> Option<&RelationRow> {
        let mut rows = self.newest.range(..=to).rev().map(|(_, row)| &**row);
        rows.find(|row| reader.knows(row))
    }

    /// A place up to which there are messages that are only counted, and that a reader knows of.
    pub(super) fn counted_to(&self, to: TimelineIndex, reader: &Reader<'_>) -> Option<TimelineIndex> {
        let ignored = &reader.access.ignored;
        let known = self.senders.iter().filter(|(user, share)| share.count > 0 && !ignored.contains(user));
        known.map(|(_, share)| share.until.min(to)).max()
    }

    /// How much it holds.
    pub(super) fn len(&self) -> usize {
        self.newest.len() + self.senders.len()
    }
}
