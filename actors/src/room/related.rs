//! What relates to an event, as clients ask for it and as it is bundled with the event.
//!
//! Spec: client-server API, "Aggregations of child events".

mod bundle;
mod cache;
mod thread;

use std::collections::BTreeSet;

use engine::id::{ShortEventId, TimelineIndex};
use ruma::{OwnedEventId, UserId};
use storage::{Direction, KeyRange, schema};

use self::bundle::{Hidden, Reader};
pub use self::cache::RelatedCache;
use super::{Page, PageDirection, RoomError, RoomHandle, StoredEvent, read::Sights};

/// Ways to relate to an event that are told apart where all are asked for, at most.
const TYPES_MAX: usize = 20;

/// Rows that are looked at, at most, to fill a page.
const SCAN_MAX: usize = 2000;

/// Threads that are looked at together, once the first of them did not fill the page.
const REFILL: usize = 100;

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
        while found.len() < TYPES_MAX {
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
        let reader = Reader { user_id, access: &access, latest: snapshot.head.latest };
        let newest = from.unwrap_or(snapshot.head.latest).min(snapshot.head.latest);
        let mut range = KeyRange::prefix(&(room,)).up_to(&(room, newest));
        let (mut sights, mut hidden) = (Sights::default(), Hidden::default());
        let mut page = Page { events: Vec::new(), end: None };
        let mut scanned = 0;
        loop {
            let wanted = if scanned == 0 { limit + 1 } else { REFILL };
            let rows =
                self.storage().range(&schema::THREADS, range.clone(), Direction::Descending, wanted).await?;
            let is_last = rows.len() < wanted;
            scanned += rows.len();
            for ((_, index), root) in rows {
                if page.events.len() == limit {
                    page.end = Some(index);
                    return Ok(page);
                }
                range = range.before(&(room, index));
                page.end = Some(TimelineIndex(index.0.saturating_sub(1)));
                let Some(event) = self.event(&root).await? else { continue };
                if !self.is_permitted(user_id, &access, &event, &mut sights).await? {
                    continue;
                }
                let related = self.related_to(&event, &reader).await?;
                let participates = event.pdu.sender() == user_id || related.thread.has_sender(user_id);
                if (only_participated && !participates)
                    || self.latest_reply(&event, &related, &reader, &mut hidden).await?.is_none()
                {
                    continue;
                }
                // The thread is there, its first message is not for this reader.
                let is_hidden = access.ignored.hides(&event.pdu);
                page.events.push(if is_hidden { self.redacted(&event)? } else { event });
            }
            if is_last {
                page.end = None;
                return Ok(page);
            }
            if scanned > SCAN_MAX {
                return Ok(page);
            }
        }
    }
}
