//! What is bundled with an event of those that relate to it.
//!
//! Spec: client-server API, "Aggregations of child events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::{
    id::{ShortEventId, TimelineIndex},
    pdu::client::RoomIdField,
    room::relation::{ANNOTATION, REFERENCE, REPLACE, Relation, THREAD},
};
use ruma::{OwnedEventId, UserId};
use serde_json::{json, value::RawValue};
use storage::{Direction, KeyRange, schema};

use super::{cache::Related, thread::Thread};
use crate::room::{
    Access, PageDirection, RoomError, RoomHandle, StoredEvent, Viewer, read::Sights, relations::RelationRow,
};

/// Rows that are all that relates to most events: fewer are read at once.
const FEW: usize = 256;

/// Rows that are read at a time where there are more.
const ROWS: usize = 1024;

/// Edits, or messages of a thread, that are tried to find one that the reader may see. Those that are hidden along with
/// one are not tried.
const CANDIDATES_MAX: usize = 20;

/// Reads for one message of a thread, at most, between those of users whom the reader ignores.
const READS_MAX: usize = 8;

/// Who looks at a bundle.
pub(super) struct Reader<'a> {
    pub(super) user_id: &'a UserId,
    pub(super) access: &'a Access,
    pub(super) latest: TimelineIndex,
}

impl Reader<'_> {
    /// Whether the reader wants to see the event, and it came before they left, if they did.
    pub(super) fn knows(&self, row: &RelationRow) -> bool {
        row.index <= self.latest.min(self.until()) && !self.access.ignored.contains(&row.record.sender)
    }

    /// The last place that they know of.
    fn until(&self) -> TimelineIndex {
        self.access.joined_until.unwrap_or(TimelineIndex(i64::MAX))
    }

    /// Whether it came during the reader's present stay, so that they may see it.
    fn was_there_at(&self, row: &RelationRow) -> bool {
        self.access.joined_from.is_some_and(|from| row.index >= from)
    }
}

/// Where a reader has turned out to see nothing, so that it is found out once.
#[derive(Default)]
pub(super) struct Hidden {
    sights: Sights,
    /// By their last places, the last places before them.
    spans: BTreeMap<TimelineIndex, TimelineIndex>,
}

impl Hidden {
    /// The last place before the hidden ones of which this is one, as far as is known.
    fn before(&self, index: TimelineIndex) -> Option<TimelineIndex> {
        let (_, before) = self.spans.range(index..).next()?;
        Some(*before).filter(|before| *before < index)
    }
}

impl RoomHandle {
    /// What is bundled with events, by event: the member `m.relations` of their `unsigned` parts.
    pub(in crate::room) async fn bundles(
        &self,
        events: &[Arc<StoredEvent>],
        viewer: &Viewer,
        room_id: RoomIdField,
        is_nested: bool,
    ) -> Result<BTreeMap<ShortEventId, String>, RoomError> {
        let mut bundles = BTreeMap::new();
        let mut access = None;
        let mut hidden = Hidden::default();
        // State events get none.
        for event in events.iter().filter(|event| event.has_relations && event.pdu.state_key().is_none()) {
            let access = match &access {
                Some(access) => access,
                None => &*access.insert(self.access(&viewer.user_id).await?),
            };
            let reader = Reader { user_id: &viewer.user_id, access, latest: self.snapshot().head.latest };
            let related = self.related_to(event, &reader).await?;
            let mut members = Vec::new();
            if let Some(edit) = self.latest_edit(event, &related, &reader, &mut hidden).await? {
                let edit = self.render_bundled(edit, viewer, room_id).await?;
                members.push(format!("\"{REPLACE}\":{edit}"));
            }
            if let Some(chunk) = self.references(&related, &reader).await? {
                members.push(format!("\"{REFERENCE}\":{chunk}"));
            }
            if !is_nested
                && let Some(latest) = self.latest_reply(event, &related, &reader, &mut hidden).await?
            {
                let latest = self.render_bundled(latest, viewer, room_id).await?;
                members.push(format!("\"{THREAD}\":{}", thread_summary(event, &related, &reader, &latest)));
            }
            if !members.is_empty() {
                bundles.insert(event.short, format!("\"m.relations\":{{{}}}", members.join(",")));
            }
        }
        Ok(bundles)
    }

    /// What is bundled with a bundled event is one level deep: it ends there.
    async fn render_bundled(
        &self,
        event: Arc<StoredEvent>,
        viewer: &Viewer,
        room_id: RoomIdField,
    ) -> Result<Box<RawValue>, RoomError> {
        let mut rendered = Box::pin(self.render_nested(&[event], viewer, room_id, true)).await?;
        Ok(rendered.swap_remove(0))
    }

    /// Spec: client-server API, "Server-side aggregation of `m.replace` relationships".
    async fn latest_edit(
        &self,
        event: &StoredEvent,
        related: &Related,
        reader: &Reader<'_>,
        hidden: &mut Hidden,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let is_edit = Relation::of(&event.pdu).is_some_and(|relation| relation.rel_type == REPLACE);
        if event.redacted_by.is_some() || is_edit {
            return Ok(None);
        }
        let mut tried = 0;
        for row in related.edits.values().rev().filter(|row| reader.knows(row)) {
            if hidden.before(row.index).is_some() {
                continue;
            }
            if tried == CANDIDATES_MAX {
                break;
            }
            tried += 1;
            let edit = self.events(&[row.record.event]).await?.swap_remove(0);
            if self.is_visible(reader.user_id, reader.access, &edit, &mut hidden.sights).await? {
                return Ok(Some(edit));
            }
            self.pass_over(row.index, &edit, reader, hidden).await?;
        }
        Ok(None)
    }

    /// The newest message of a thread that a reader may and wants to see; none if the event starts no thread.
    pub(super) async fn latest_reply(
        &self,
        root: &StoredEvent,
        related: &Related,
        reader: &Reader<'_>,
        hidden: &mut Hidden,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        if Relation::of(&root.pdu).is_some() {
            return Ok(None);
        }
        let mut to = reader.latest.min(reader.until());
        for _ in 0..CANDIDATES_MAX {
            let Some((index, short)) = self.reply_up_to(root, &related.thread, to, reader).await? else {
                return Ok(None);
            };
            if let Some(before) = hidden.before(index) {
                to = before;
                continue;
            }
            let reply = self.events(&[short]).await?.swap_remove(0);
            if self.is_visible(reader.user_id, reader.access, &reply, &mut hidden.sights).await? {
                return Ok(Some(reply));
            }
            to = self.pass_over(index, &reply, reader, hidden).await?;
        }
        Ok(None)
    }

    /// Notes what is hidden along with an event, and comes before it; returns with the last place before that.
    async fn pass_over(
        &self,
        index: TimelineIndex,
        event: &StoredEvent,
        reader: &Reader<'_>,
        hidden: &mut Hidden,
    ) -> Result<TimelineIndex, RoomError> {
        let edge = self.edge(reader.user_id, event, PageDirection::Backward, &mut hidden.sights).await?;
        let before = match edge {
            Some(edge) => edge.first_other.and_then(|event| event.index).unwrap_or(TimelineIndex(i64::MIN)),
            // It has lost its place just now.
            None => TimelineIndex(index.0.saturating_sub(1)),
        };
        hidden.spans.insert(index, before);
        Ok(before)
    }

    /// The newest message of a thread up to a place whose sender the reader does not ignore.
    async fn reply_up_to(
        &self,
        root: &StoredEvent,
        thread: &Thread,
        to: TimelineIndex,
        reader: &Reader<'_>,
    ) -> Result<Option<(TimelineIndex, ShortEventId)>, RoomError> {
        if let Some(row) = thread.newest_to(to, reader) {
            return Ok(Some((row.index, row.record.event)));
        }
        let Some(to) = thread.counted_to(to, reader) else { return Ok(None) };
        let key = (self.snapshot().room, root.pdu.event_id().clone(), THREAD.to_owned());
        let (room, root, rel_type) = key.clone();
        let mut range = KeyRange::prefix(&key).up_to(&(room, root, rel_type, to));
        for _ in 0..READS_MAX {
            let rows =
                self.storage().range(&schema::RELATIONS, range.clone(), Direction::Descending, FEW).await?;
            let ignored = &reader.access.ignored;
            if let Some(((.., index), record)) = rows.iter().find(|(_, row)| !ignored.contains(&row.sender)) {
                return Ok(Some((*index, record.event)));
            }
            let Some((oldest, _)) = rows.last().filter(|_| rows.len() == FEW) else { break };
            range = range.before(oldest);
        }
        Ok(None)
    }

    /// The newest of what refers to an event, in the order in which it came.
    ///
    /// Spec: client-server API, "Server-side aggregation of `m.reference`".
    async fn references(&self, related: &Related, reader: &Reader<'_>) -> Result<Option<String>, RoomError> {
        let rows: Vec<_> = related.references.values().filter(|row| reader.knows(row)).collect();
        // What came during the reader's present stay need not be fetched.
        let doubtful: Vec<_> =
            rows.iter().filter(|row| !reader.was_there_at(row)).map(|row| row.record.event).collect();
        let seen: BTreeSet<_> = if doubtful.is_empty() {
            BTreeSet::new()
        } else {
            let events = self.events(&doubtful).await?;
            let visible = self.visible_to(reader.user_id, reader.access, events).await?;
            visible.iter().map(|event| event.short).collect()
        };
        let shown = rows.iter().filter(|row| reader.was_there_at(row) || seen.contains(&row.record.event));
        let chunk: Vec<_> = shown.map(|row| json!({ "event_id": row.record.event_id })).collect();
        Ok((!chunk.is_empty()).then(|| json!({ "chunk": chunk }).to_string()))
    }

    /// What relates to an event, as far as a reader knows of it: from the cache, or read.
    pub(super) async fn related_to(
        &self,
        target: &StoredEvent,
        reader: &Reader<'_>,
    ) -> Result<Arc<Related>, RoomError> {
        let key = (target.pdu.event_id().clone(), reader.until());
        let cache = self.related_cache();
        let changes = match cache.get(&key) {
            Ok(related) => return Ok(related),
            Err(changes) => changes,
        };
        if let Some(related) = self.read_few(target, reader.until()).await? {
            return Ok(cache.keep(key, related, changes, self.storage().issued()));
        }
        let _turn = cache.turn().await;
        let changes = match cache.get(&key) {
            Ok(related) => return Ok(related),
            Err(changes) => changes,
        };
        let related = self.read_many(target, reader.until()).await?;
        Ok(cache.keep(key, related, changes, self.storage().issued()))
    }

    /// Reads what relates to an event at once, if it is not much.
    async fn read_few(
        &self,
        target: &StoredEvent,
        until: TimelineIndex,
    ) -> Result<Option<Related>, RoomError> {
        let (room, id) = (self.snapshot().room, target.pdu.event_id());
        let edge = |rel_type: &str, until| (room, id.clone(), rel_type.to_owned(), until);
        // Annotations, which can be many, are not bundled: they come before the others.
        let range = KeyRange::prefix(&(room, id.clone()))
            .after(&edge(ANNOTATION, TimelineIndex(i64::MAX)))
            .up_to(&edge(THREAD, until));
        let rows = self.storage().range(&schema::RELATIONS, range, Direction::Descending, FEW).await?;
        if rows.len() == FEW {
            return Ok(None);
        }
        let mut related = Related::new(target.pdu.sender(), target.pdu.kind(), until);
        for ((_, _, rel_type, index), record) in rows {
            related.add_older(Arc::new(RelationRow { rel_type, index, record }));
        }
        Ok(Some(related))
    }

    /// Reads all that relates to an event, of each type as much as is of use: a thread has to be counted.
    async fn read_many(&self, target: &StoredEvent, until: TimelineIndex) -> Result<Related, RoomError> {
        let (room, id) = (self.snapshot().room, target.pdu.event_id());
        let mut related = Related::new(target.pdu.sender(), target.pdu.kind(), until);
        for rel_type in [REPLACE, REFERENCE, THREAD] {
            let key: (_, OwnedEventId, _) = (room, id.clone(), rel_type.to_owned());
            let mut range = KeyRange::prefix(&key).up_to(&(room, id.clone(), rel_type.to_owned(), until));
            loop {
                let rows = self
                    .storage()
                    .range(&schema::RELATIONS, range.clone(), Direction::Descending, ROWS)
                    .await?;
                let oldest = rows.last().filter(|_| rows.len() == ROWS).map(|(key, _)| key.clone());
                for ((_, _, rel_type, index), record) in rows {
                    related.add_older(Arc::new(RelationRow { rel_type, index, record }));
                }
                let Some(oldest) = oldest.filter(|_| !related.has_enough(rel_type)) else { break };
                range = range.before(&oldest);
            }
        }
        Ok(related)
    }
}

/// The count is that of the server, as far as the reader was there: it may hold events that they may not see.
///
/// Spec: client-server API, "Server-side aggregation of `m.thread` relationships".
fn thread_summary(root: &StoredEvent, related: &Related, reader: &Reader<'_>, latest: &RawValue) -> String {
    let count = related.thread.count(reader);
    let participated = root.pdu.sender() == reader.user_id || related.thread.has_sender(reader.user_id);
    format!("{{\"latest_event\":{latest},\"count\":{count},\"current_user_participated\":{participated}}}")
}
