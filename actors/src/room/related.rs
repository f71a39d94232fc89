//! What relates to an event, as clients ask for it and as it is bundled with the event.
//!
//! Spec: client-server API, "Aggregations of child events".

mod cache;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
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

use self::cache::Related;
pub use self::cache::RelatedCache;
use super::{
    Access, Page, PageDirection, RoomError, RoomHandle, StoredEvent, Viewer, read::Sights,
    relations::RelationRow,
};

/// Rows that are read of what relates to one event, to bundle it; older ones are not counted.
const ROWS_MAX: usize = 4096;

/// Edits, or messages of a thread, that are tried to find one that the reader may see.
const CANDIDATES_MAX: usize = 20;

/// References that are listed with an event.
const REFERENCES_MAX: usize = 100;

/// Rows that are looked at, at most, to fill a page.
const SCAN_MAX: usize = 2000;

/// Events that a recursive query looks through, at most.
const RECURSION_MAX: usize = 1000;

/// Levels of relations that a recursive query follows.
pub const RECURSION_DEPTH: u32 = 3;

/// Which of the events that relate to an event are wanted.
pub struct RelationQuery<'a> {
    /// Who asks.
    pub user_id: &'a UserId,
    /// The event that they relate to.
    pub target: &'a StoredEvent,
    /// How they relate to it, if that matters.
    pub rel_type: Option<&'a str>,
    /// Their type, if that matters.
    pub kind: Option<&'a str>,
    /// The boundary that the page starts from: after this place.
    pub from: TimelineIndex,
    /// The boundary that it does not pass.
    pub to: Option<TimelineIndex>,
    /// Which way it goes.
    pub direction: PageDirection,
    /// Most events to return.
    pub limit: usize,
    /// Whether to follow relations to what relates to the event.
    pub recurse: bool,
}

impl RelationQuery<'_> {
    /// The first and the last place that the page may hold.
    fn span(&self, latest: TimelineIndex) -> (TimelineIndex, TimelineIndex) {
        let next = |boundary: TimelineIndex| TimelineIndex(boundary.0.saturating_add(1));
        let min = TimelineIndex(i64::MIN);
        match self.direction {
            PageDirection::Backward => (self.to.map_or(min, next), self.from.min(latest)),
            PageDirection::Forward => (next(self.from), self.to.unwrap_or(latest).min(latest)),
        }
    }

    fn order(&self) -> Direction {
        match self.direction {
            PageDirection::Backward => Direction::Descending,
            PageDirection::Forward => Direction::Ascending,
        }
    }
}

/// A relating event's place, number and type.
type Child = (TimelineIndex, ShortEventId, String);

impl RoomHandle {
    /// A page of the events that relate to an event.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`.
    pub async fn relations(&self, query: &RelationQuery<'_>) -> Result<Page, RoomError> {
        let access = self.access(query.user_id).await?;
        let target = query.target.pdu.event_id();
        let (mut first, mut last) = query.span(self.snapshot().head.latest);
        let mut sights = Sights::default();
        let mut page = Page { events: Vec::new(), end: None };
        let mut scanned = 0;
        let all = if query.recurse { Some(self.descendants(query).await?) } else { None };
        loop {
            let wanted = (query.limit + 1 - page.events.len()).max(20);
            let rows = match &all {
                Some(all) => all.iter().filter(|(at, ..)| first <= *at && *at <= last).cloned().collect(),
                None => self.children(target, query.rel_type, (first, last), query.order(), wanted).await?,
            };
            let is_last = all.is_some() || rows.len() < wanted;
            scanned += rows.len();
            for (index, short, kind) in rows {
                if query.kind.is_none_or(|wanted| wanted == kind) {
                    let event = self.events(&[short]).await?.swap_remove(0);
                    if self.is_visible(query.user_id, &access, &event, &mut sights).await? {
                        if page.events.len() == query.limit {
                            page.end = Some(match query.direction {
                                PageDirection::Backward => last,
                                PageDirection::Forward => TimelineIndex(first.0.saturating_sub(1)),
                            });
                            return Ok(page);
                        }
                        page.events.push(event);
                    }
                }
                match query.direction {
                    PageDirection::Backward => last = TimelineIndex(index.0.saturating_sub(1)),
                    PageDirection::Forward => first = TimelineIndex(index.0.saturating_add(1)),
                }
            }
            if is_last {
                return Ok(page);
            }
            if scanned > SCAN_MAX {
                page.end = Some(match query.direction {
                    PageDirection::Backward => last,
                    PageDirection::Forward => TimelineIndex(first.0.saturating_sub(1)),
                });
                return Ok(page);
            }
        }
    }

    /// The first `limit` events of a span that relate to an event, by their places.
    async fn children(
        &self,
        target: &OwnedEventId,
        rel_type: Option<&str>,
        (first, last): (TimelineIndex, TimelineIndex),
        order: Direction,
        limit: usize,
    ) -> Result<Vec<Child>, RoomError> {
        if first > last {
            return Ok(Vec::new());
        }
        let room = self.snapshot().room;
        let rel_types = match rel_type {
            Some(rel_type) => vec![rel_type.to_owned()],
            None => self.relation_types(target).await?,
        };
        let mut found = Vec::new();
        for rel_type in rel_types {
            let key = |index| (room, target.clone(), rel_type.clone(), index);
            let prefix = (room, target.clone(), rel_type.clone());
            let range = KeyRange::prefix(&prefix).from(&key(first)).up_to(&key(last));
            let rows = self.storage().range(&schema::RELATIONS, range, order, limit).await?;
            found.extend(rows.into_iter().map(|((_, _, _, index), row)| (index, row.event, row.kind)));
        }
        found.sort();
        if order == Direction::Descending {
            found.reverse();
        }
        found.truncate(limit);
        Ok(found)
    }

    /// How events relate to an event, each way once.
    async fn relation_types(&self, target: &OwnedEventId) -> Result<Vec<String>, RoomError> {
        let room = self.snapshot().room;
        let mut range = KeyRange::prefix(&(room, target.clone()));
        let mut found = Vec::new();
        while found.len() < CANDIDATES_MAX {
            let rows =
                self.storage().range(&schema::RELATIONS, range.clone(), Direction::Ascending, 1).await?;
            let Some(((_, _, rel_type, _), _)) = rows.into_iter().next() else { break };
            range = range.after(&(room, target.clone(), rel_type.clone(), TimelineIndex(i64::MAX)));
            found.push(rel_type);
        }
        Ok(found)
    }

    /// What relates to an event over some levels, in the order of the query.
    async fn descendants(&self, query: &RelationQuery<'_>) -> Result<Vec<Child>, RoomError> {
        let mut parents = vec![query.target.pdu.event_id().clone()];
        let mut seen = BTreeSet::from([query.target.short]);
        let mut found = Vec::new();
        let everything = (TimelineIndex(i64::MIN), self.snapshot().head.latest);
        for _ in 0..RECURSION_DEPTH {
            let mut shorts = Vec::new();
            for parent in &parents {
                for rel_type in self.relation_types(parent).await? {
                    let left = RECURSION_MAX.saturating_sub(seen.len());
                    let rows =
                        self.children(parent, Some(&rel_type), everything, query.order(), left).await?;
                    for row in rows {
                        if seen.insert(row.1) {
                            shorts.push(row.1);
                            if query.rel_type.is_none_or(|wanted| wanted == rel_type) {
                                found.push(row);
                            }
                        }
                    }
                }
            }
            let events = self.events(&shorts).await?;
            let related = events.iter().filter(|event| event.has_relations);
            parents = related.map(|event| event.pdu.event_id().clone()).collect();
        }
        found.sort();
        if query.direction == PageDirection::Backward {
            found.reverse();
        }
        Ok(found)
    }

    /// A page of the roots of the room's threads, by the threads' latest events, newest first.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/threads`.
    pub async fn threads(
        &self,
        user_id: &UserId,
        only_participated: bool,
        from: Option<TimelineIndex>,
        limit: usize,
    ) -> Result<Page, RoomError> {
        let access = self.access(user_id).await?;
        let snapshot = self.snapshot();
        let room = snapshot.room;
        let newest = from.unwrap_or(snapshot.head.latest).min(snapshot.head.latest);
        let mut range = KeyRange::prefix(&(room,)).up_to(&(room, newest));
        let mut sights = Sights::default();
        let mut events = Vec::new();
        for _ in 0..=SCAN_MAX / (limit + 1) {
            let rows = self
                .storage()
                .range(&schema::THREADS, range.clone(), Direction::Descending, limit + 1)
                .await?;
            let is_last = rows.len() <= limit;
            for ((_, index), root) in rows {
                if events.len() == limit {
                    return Ok(Page { events, end: Some(index) });
                }
                range = range.before(&(room, index));
                let Some(event) = self.event(&root).await? else { continue };
                if !self.is_permitted(user_id, &access, &event, &mut sights).await? {
                    continue;
                }
                if !only_participated || self.participates(user_id, &event).await? {
                    // The thread is there, its first message is not for this reader.
                    let is_hidden = access.ignored.hides(&event.pdu);
                    events.push(if is_hidden { self.redacted(&event)? } else { event });
                }
            }
            if is_last {
                break;
            }
        }
        Ok(Page { events, end: None })
    }

    async fn participates(&self, user_id: &UserId, root: &StoredEvent) -> Result<bool, RoomError> {
        if root.pdu.sender() == user_id {
            return Ok(true);
        }
        let related = self.related_to(root.pdu.event_id()).await?;
        Ok(related.thread.values().any(|row| row.record.sender == user_id))
    }

    /// What relates to an event, from the cache or with one read.
    async fn related_to(&self, target: &OwnedEventId) -> Result<Arc<Related>, RoomError> {
        let changes = match self.related_cache().get(target) {
            Ok(related) => return Ok(related),
            Err(changes) => changes,
        };
        let room = self.snapshot().room;
        // Annotations, which can be many, are not bundled: they come before the others.
        let edge = |rel_type: &str| (room, target.clone(), rel_type.to_owned(), TimelineIndex(i64::MAX));
        let range = KeyRange::prefix(&(room, target.clone())).after(&edge(ANNOTATION)).up_to(&edge(THREAD));
        let rows = self.storage().range(&schema::RELATIONS, range, Direction::Descending, ROWS_MAX).await?;
        let mut related = Related::default();
        for ((_, _, rel_type, index), record) in rows {
            related.add(Arc::new(RelationRow { rel_type, index, record }));
        }
        let related = Arc::new(related);
        self.related_cache().keep(target, related.clone(), changes);
        Ok(related)
    }

    /// What is bundled with events, by event: the member `m.relations` of their `unsigned` parts.
    pub(super) async fn bundles(
        &self,
        events: &[Arc<StoredEvent>],
        viewer: &Viewer,
        room_id: RoomIdField,
        is_nested: bool,
    ) -> Result<BTreeMap<ShortEventId, String>, RoomError> {
        let mut bundles = BTreeMap::new();
        let mut access = None;
        // State events get none.
        for event in events.iter().filter(|event| event.has_relations && event.pdu.state_key().is_none()) {
            let access = match &access {
                Some(access) => access,
                None => &*access.insert(self.access(&viewer.user_id).await?),
            };
            let related = self.related_to(event.pdu.event_id()).await?;
            let reader = Reader { viewer, access, room_id, latest: self.snapshot().head.latest };
            let mut members = Vec::new();
            if let Some(edit) = self.latest_edit(event, &related, &reader).await? {
                members.push(format!("\"{REPLACE}\":{}", edit.get()));
            }
            if let Some(chunk) = self.references(&related, &reader).await? {
                members.push(format!("\"{REFERENCE}\":{chunk}"));
            }
            if !is_nested && let Some(thread) = self.thread_summary(event, &related, &reader).await? {
                members.push(format!("\"{THREAD}\":{thread}"));
            }
            if !members.is_empty() {
                bundles.insert(event.short, format!("\"m.relations\":{{{}}}", members.join(",")));
            }
        }
        Ok(bundles)
    }

    /// Spec: client-server API, "Server-side aggregation of `m.replace` relationships".
    async fn latest_edit(
        &self,
        event: &StoredEvent,
        related: &Related,
        reader: &Reader<'_>,
    ) -> Result<Option<Box<RawValue>>, RoomError> {
        let is_edit = Relation::of(&event.pdu).is_some_and(|relation| relation.rel_type == REPLACE);
        if event.redacted_by.is_some() || is_edit {
            return Ok(None);
        }
        let valid = related.edits.values().rev().filter(|row| {
            let record = &row.record;
            record.can_replace && record.kind == event.pdu.kind() && record.sender == event.pdu.sender()
        });
        self.first_visible(valid, reader).await
    }

    /// The count is that of the server, as far as the reader was there: it may hold events that they may not see.
    ///
    /// Spec: client-server API, "Server-side aggregation of `m.thread` relationships".
    async fn thread_summary(
        &self,
        root: &StoredEvent,
        related: &Related,
        reader: &Reader<'_>,
    ) -> Result<Option<String>, RoomError> {
        if related.thread.is_empty() || Relation::of(&root.pdu).is_some() {
            return Ok(None);
        }
        let Some(latest) = self.first_visible(related.thread.values().rev(), reader).await? else {
            return Ok(None);
        };
        let user_id = &reader.viewer.user_id;
        let mut count = 0_u64;
        let mut participated = root.pdu.sender() == user_id;
        for row in related.thread.values().filter(|row| reader.knows(row)) {
            count += 1;
            participated |= row.record.sender == *user_id;
        }
        let mut summary = String::new();
        let _ = write!(
            summary,
            "{{\"latest_event\":{},\"count\":{count},\"current_user_participated\":{participated}}}",
            latest.get()
        );
        Ok(Some(summary))
    }

    /// Spec: client-server API, "Server-side aggregation of `m.reference`".
    async fn references(&self, related: &Related, reader: &Reader<'_>) -> Result<Option<String>, RoomError> {
        let Reader { viewer, access, .. } = reader;
        let mut chunk = Vec::new();
        let mut sights = Sights::default();
        for row in related.references.values().filter(|row| reader.knows(row)).take(REFERENCES_MAX) {
            // What came during the reader's present stay they may see: it need not be fetched.
            let is_visible = if access.joined_from.is_some_and(|from| row.index >= from) {
                true
            } else {
                let event = self.events(&[row.record.event]).await?.swap_remove(0);
                self.is_visible(&viewer.user_id, access, &event, &mut sights).await?
            };
            if is_visible {
                chunk.push(json!({ "event_id": row.record.event_id }));
            }
        }
        Ok((!chunk.is_empty()).then(|| json!({ "chunk": chunk }).to_string()))
    }

    /// The first of some events that the reader may see, in client format.
    async fn first_visible(
        &self,
        rows: impl Iterator<Item = &Arc<RelationRow>>,
        reader: &Reader<'_>,
    ) -> Result<Option<Box<RawValue>>, RoomError> {
        let Reader { viewer, access, room_id, .. } = reader;
        let known = rows.filter(|row| reader.knows(row)).take(CANDIDATES_MAX);
        for short in known.map(|row| row.record.event) {
            let events = self.visible_to(&viewer.user_id, access, self.events(&[short]).await?).await?;
            if !events.is_empty() {
                // What is bundled with a bundled event is one level deep: it ends there.
                let rendered = Box::pin(self.render_nested(&events, viewer, *room_id, true)).await?;
                return Ok(rendered.into_iter().next());
            }
        }
        Ok(None)
    }
}

/// Who looks at a bundle.
struct Reader<'a> {
    viewer: &'a Viewer,
    access: &'a Access,
    room_id: RoomIdField,
    latest: TimelineIndex,
}

impl Reader<'_> {
    /// Whether the reader wants to see the event, and it came before they left, if they did.
    fn knows(&self, row: &RelationRow) -> bool {
        row.index <= self.latest
            && self.access.joined_until.is_none_or(|until| row.index <= until)
            && !self.access.ignored.contains(&row.record.sender)
    }
}
