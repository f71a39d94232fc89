//! Which events relate to which: kept in step with the timeline.
//!
//! Spec: client-server API, "Forming relationships between events".

use std::{collections::BTreeSet, sync::Arc};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::Draft,
    room::relation::{Relation, THREAD},
};
use ruma::{EventId, OwnedEventId, UserId};
use storage::{
    Direction, KeyRange,
    schema::{self, RelationRecord},
};

use super::{ActiveRoom, RoomError, RoomHandle, StoredEvent, change::Change};

/// The newest rows of a thread that are looked at, to find one that no redaction under way removes.
const THREAD_ROWS: usize = 16;

/// An event that relates to another one, with its place in the timeline.
#[derive(Clone, Debug)]
pub(super) struct RelationRow {
    /// How it relates to its target.
    pub(super) rel_type: String,
    /// Its place.
    pub(super) index: TimelineIndex,
    /// What is known of it.
    pub(super) record: RelationRecord,
}

/// A change of what relates to an event.
#[derive(Clone, Debug)]
pub(super) enum RelationChange {
    /// Another event relates to this one.
    Added(OwnedEventId, Arc<RelationRow>),
    /// An event that related to this one does so no more: it was redacted, say.
    Removed(OwnedEventId, Arc<RelationRow>),
}

impl RelationChange {
    /// What the other event relates, or related, to.
    pub(super) fn target(&self) -> &OwnedEventId {
        match self {
            Self::Added(target, _) | Self::Removed(target, _) => target,
        }
    }
}

impl RelationRow {
    fn new(event: &StoredEvent, relation: &Relation, index: TimelineIndex) -> Self {
        let is_encrypted = event.pdu.kind() == "m.room.encrypted";
        let record = RelationRecord {
            event: event.short,
            event_id: event.pdu.event_id().clone(),
            kind: event.pdu.kind().to_owned(),
            sender: event.pdu.sender().to_owned(),
            sent_ms: u64::from(event.pdu.origin_server_ts().get()),
            can_replace: event.pdu.state_key().is_none() && (is_encrypted || relation.has_new_content),
        };
        Self { rel_type: relation.rel_type.clone(), index, record }
    }
}

impl ActiveRoom {
    /// Refuses an event of a local user whose relation the specification rules out.
    ///
    /// Spec: client-server API, "Avoiding duplicate annotations", "Validation of `m.thread` relationships".
    pub(super) async fn check_relation(
        &self,
        change: &Change,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<(), RoomError> {
        let Some(relation) = Relation::read(&draft.content) else { return Ok(()) };
        if relation.rel_type == THREAD
            && let Some(target) = self.known_event(change, &relation.target).await?
            && relation.is_thread_on_relation(&target.pdu)
        {
            return Err(RoomError::BadRelation(
                "a thread cannot start from an event that relates to another",
            ));
        }
        let kind = draft.kind.to_string();
        let Some(annotation) = relation.annotation(&kind) else { return Ok(()) };
        let is_same = |event: &StoredEvent| relation.is_annotated_by(&event.pdu, sender, &kind);
        let key = (self.room, relation.target.clone(), sender.to_owned(), annotation);
        let stored = self.shared.store.storage().get(&schema::ANNOTATIONS, &key).await?;
        // The stored row may be that of an annotation whose redaction is not durable yet.
        let held = match stored {
            Some(short) => is_same(&*self.event(change, short).await?),
            None => false,
        };
        if held || self.in_flight(change).iter().any(|event| is_same(event)) {
            return Err(RoomError::DuplicateAnnotation);
        }
        Ok(())
    }

    /// Indexes an event of the timeline under the event that it relates to.
    pub(super) async fn relate(&self, change: &mut Change, event: &StoredEvent) -> Result<(), RoomError> {
        let (Some(relation), Some(index)) = (Relation::of(&event.pdu), event.index) else { return Ok(()) };
        let row = RelationRow::new(event, &relation, index);
        let key = (self.room, relation.target.clone(), relation.rel_type.clone(), index);
        change.batch.put(&schema::RELATIONS, &key, &row.record);
        if let Some(annotation) = relation.annotation(event.pdu.kind()) {
            let key = (self.room, relation.target.clone(), row.record.sender.clone(), annotation);
            change.batch.put(&schema::ANNOTATIONS, &key, &event.short);
        }
        let target = self.known_event(change, &relation.target).await?;
        if let Some(target) = &target
            && target.index.is_some()
            && !target.has_relations
        {
            Self::mark_related(change, target);
        }
        if relation.rel_type == THREAD && target.is_none_or(|target| Relation::of(&target.pdu).is_none()) {
            let before = self.thread_latest(change, &relation.target, event.short).await?;
            if before.is_none_or(|before| before < index) {
                self.move_thread(change, &relation.target, before, Some(index));
            }
        }
        change.relations.push(RelationChange::Added(relation.target, Arc::new(row)));
        Ok(())
    }

    /// Takes an event that is about to be redacted out of the index.
    pub(super) async fn unrelate(&self, change: &mut Change, event: &StoredEvent) -> Result<(), RoomError> {
        let (Some(relation), Some(index)) = (Relation::of(&event.pdu), event.index) else { return Ok(()) };
        let key = (self.room, relation.target.clone(), relation.rel_type.clone(), index);
        change.batch.delete(&schema::RELATIONS, &key);
        if let Some(annotation) = relation.annotation(event.pdu.kind()) {
            let key = (self.room, relation.target.clone(), event.pdu.sender().to_owned(), annotation);
            change.batch.delete(&schema::ANNOTATIONS, &key);
        }
        if relation.rel_type == THREAD {
            let after = self.thread_latest(change, &relation.target, event.short).await?;
            if after.is_none_or(|after| after < index) {
                self.move_thread(change, &relation.target, Some(index), after);
            }
        }
        let row = RelationRow::new(event, &relation, index);
        change.relations.push(RelationChange::Removed(relation.target, Arc::new(row)));
        Ok(())
    }

    /// Whether events that came earlier relate to this one.
    pub(super) async fn has_relations(&self, change: &Change, event_id: &EventId) -> Result<bool, RoomError> {
        let is_child = |event: &Arc<StoredEvent>| {
            Relation::of(&event.pdu).is_some_and(|relation| relation.target == event_id)
        };
        if self.in_flight(change).iter().any(is_child) {
            return Ok(true);
        }
        let range = KeyRange::prefix(&(self.room, event_id.to_owned()));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::RELATIONS, range, Direction::Ascending, 1).await?;
        Ok(!rows.is_empty())
    }

    fn mark_related(change: &mut Change, target: &StoredEvent) {
        let marked = Arc::new(StoredEvent {
            pdu: target.pdu.clone(),
            sent_by: target.sent_by.clone(),
            has_relations: true,
            ..*target
        });
        change.replace(&marked);
    }

    /// What is not durable yet, each event in its newest form.
    pub(super) fn in_flight(&self, change: &Change) -> Vec<Arc<StoredEvent>> {
        let mut seen = BTreeSet::new();
        self.versions_in_flight(change).filter(|event| seen.insert(event.short)).cloned().collect()
    }

    /// The same, an event as often as it was changed, its newest version first.
    pub(super) fn versions_in_flight<'a>(
        &'a self,
        change: &'a Change,
    ) -> impl Iterator<Item = &'a Arc<StoredEvent>> {
        let own = change.replaced.iter().rev().chain(&change.events).chain(change.hidden.values());
        own.chain(self.pending.events())
    }

    fn move_thread(
        &self,
        change: &mut Change,
        root: &OwnedEventId,
        from: Option<TimelineIndex>,
        to: Option<TimelineIndex>,
    ) {
        if let Some(from) = from {
            change.batch.delete(&schema::THREADS, &(self.room, from));
        }
        if let Some(to) = to {
            change.batch.put(&schema::THREADS, &(self.room, to), root);
        }
    }

    /// The place of the newest event of a thread, one of them left out.
    async fn thread_latest(
        &self,
        change: &Change,
        root: &OwnedEventId,
        without: ShortEventId,
    ) -> Result<Option<TimelineIndex>, RoomError> {
        let in_flight = self.in_flight(change);
        let changed: BTreeSet<_> = in_flight.iter().map(|event| event.short).collect();
        let is_in_thread = |event: &Arc<StoredEvent>| {
            let relation = Relation::of(&event.pdu);
            event.short != without
                && relation.is_some_and(|relation| relation.rel_type == THREAD && relation.target == *root)
        };
        let newest =
            in_flight.iter().filter(|event| is_in_thread(event)).filter_map(|event| event.index).max();
        let range = KeyRange::prefix(&(self.room, root.clone(), THREAD.to_owned()));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::RELATIONS, range, Direction::Descending, THREAD_ROWS).await?;
        let stored = rows.into_iter().find(|(_, row)| row.event != without && !changed.contains(&row.event));
        Ok(newest.max(stored.map(|((_, _, _, index), _)| index)))
    }
}

/// Relations other than `m.thread` that are followed from an event to find its thread, as the
/// specification recommends.
const HOPS_MAX: usize = 3;

/// Where in its room an event stands, as threads have it.
enum Thread {
    /// In the main timeline.
    Main,
    /// In the thread of this root.
    Of(OwnedEventId),
    /// What it relates to is not known here: it may be in any thread.
    Unknown,
}

impl RoomHandle {
    /// The root of the thread that an event is in; none for one of the main timeline, as far as is known.
    ///
    /// An event that relates to one of a thread is in that thread. Spec: as of [`Self::is_in_thread`].
    pub async fn thread_root(&self, event: &StoredEvent) -> Result<Option<OwnedEventId>, RoomError> {
        Ok(match self.thread(event).await? {
            Thread::Of(root) => Some(root),
            Thread::Main | Thread::Unknown => None,
        })
    }

    /// Whether an event is in a thread, by the ID of the thread's root or `main`; a root counts as in both.
    ///
    /// What an event relates to may not be known here: such an event may be in any thread.
    /// Spec: client-server API, "Threaded read receipts".
    pub async fn is_in_thread(&self, event: &StoredEvent, thread: &str) -> Result<bool, RoomError> {
        if event.pdu.event_id() == thread {
            return Ok(true);
        }
        Ok(match self.thread(event).await? {
            Thread::Main => thread == "main",
            Thread::Of(root) => root == thread,
            Thread::Unknown => true,
        })
    }

    async fn thread(&self, event: &StoredEvent) -> Result<Thread, RoomError> {
        let mut relation = Relation::of(&event.pdu);
        for _ in 0..HOPS_MAX {
            let Some(stated) = relation.as_ref().filter(|stated| stated.rel_type != THREAD) else { break };
            let Some(target) = self.event(&stated.target).await? else { return Ok(Thread::Unknown) };
            relation = Relation::of(&target.pdu);
        }
        Ok(match relation {
            Some(relation) if relation.rel_type == THREAD => Thread::Of(relation.target),
            _ => Thread::Main,
        })
    }
}
