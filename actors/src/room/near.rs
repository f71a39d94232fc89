//! The event closest to a moment, and where in the timeline a user's view of the room changes.

use std::sync::Arc;

use engine::id::{ShortEventId, TimelineIndex};
use ruma::{MilliSecondsSinceUnixEpoch, UserId};
use storage::{Direction, KeyRange, schema};

use super::{PageDirection, RoomError, RoomHandle, StoredEvent, read::Sights};

/// Events that are looked at in a row, at most, before those that are hidden together are passed over.
const SCAN_MAX: usize = 2000;

/// Events that are looked at together.
const PAGE: usize = 100;

/// How often events that are hidden together are passed over, at most.
const LEAPS_MAX: usize = 20;

/// Where a user's view of the room changes.
pub(super) struct Edge {
    /// The last event that is seen as the one that was started from.
    pub(super) last_alike: Arc<StoredEvent>,
    /// The first that is seen otherwise, if there is any.
    pub(super) first_other: Option<Arc<StoredEvent>>,
}

impl RoomHandle {
    /// The event closest to a moment, looking in one direction, whoever may see it.
    pub async fn any_event_near(
        &self,
        moment: MilliSecondsSinceUnixEpoch,
        direction: PageDirection,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let (range, order) = self.by_time(u64::from(moment.get()), direction);
        let rows = self.storage().range(&schema::EVENTS_BY_TIME, range, order, 1).await?;
        let shorts: Vec<_> = rows.iter().map(|((_, _, short), ())| *short).collect();
        Ok(self.events(&shorts).await?.into_iter().next())
    }

    /// The event closest to a moment, looking in one direction.
    ///
    /// Beyond [`SCAN_MAX`] events that the user may not see, those that are hidden for one reason are passed over
    /// together, in the timeline's order: an event that is dated otherwise than its neighbours may be missed there.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`.
    pub async fn event_near(
        &self,
        user_id: &UserId,
        moment: MilliSecondsSinceUnixEpoch,
        direction: PageDirection,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let (mut range, order) = self.by_time(u64::from(moment.get()), direction);
        let access = self.access(user_id).await?;
        let mut sights = Sights::default();
        for page in 0..SCAN_MAX / PAGE + LEAPS_MAX {
            let rows = self.storage().range(&schema::EVENTS_BY_TIME, range.clone(), order, PAGE).await?;
            let Some(&(last, ())) = rows.last() else { return Ok(None) };
            let shorts: Vec<_> = rows.iter().map(|((_, _, short), ())| *short).collect();
            let mut events = self.events(&shorts).await?;
            events.retain(|event| event.index.is_some_and(|index| index <= self.snapshot().head.latest));
            let mut hidden = None;
            for event in events {
                if !self.is_permitted(user_id, &access, &event, &mut sights).await? {
                    hidden = Some(event);
                } else if !access.ignored.hides(&event.pdu) {
                    return Ok(Some(event));
                }
            }
            range = match direction {
                PageDirection::Forward => range.after(&last),
                PageDirection::Backward => range.before(&last),
            };
            if let Some(hidden) = hidden.filter(|_| page >= SCAN_MAX / PAGE) {
                let Some(next) = self.leap(user_id, &hidden, direction, &mut sights).await? else {
                    return Ok(None);
                };
                let next_ms = u64::from(next.pdu.origin_server_ts().get());
                let is_ahead = match direction {
                    PageDirection::Forward => next_ms > last.1,
                    PageDirection::Backward => next_ms < last.1,
                };
                if is_ahead {
                    range = self.by_time(next_ms, direction).0;
                }
            }
        }
        Ok(None)
    }

    /// The room's events from a moment on, in the order of the direction.
    fn by_time(
        &self,
        moment_ms: u64,
        direction: PageDirection,
    ) -> (KeyRange<(engine::id::ShortRoomId, u64, ShortEventId)>, Direction) {
        let room = self.snapshot().room;
        let all = KeyRange::prefix(&(room,));
        match direction {
            PageDirection::Forward => (all.from(&(room, moment_ms, ShortEventId(0))), Direction::Ascending),
            PageDirection::Backward => {
                (all.up_to(&(room, moment_ms, ShortEventId(u64::MAX))), Direction::Descending)
            }
        }
    }

    /// Where to go on behind events that are hidden for the same reason as this one, if they end.
    async fn leap(
        &self,
        user_id: &UserId,
        hidden: &StoredEvent,
        direction: PageDirection,
        sights: &mut Sights,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let Some(edge) = self.edge(user_id, hidden, direction, sights).await? else { return Ok(None) };
        Ok(match direction {
            // What changes the view still counts as before it, and yet may be shown: the user's own join is.
            PageDirection::Forward if edge.last_alike.short != hidden.short => Some(edge.last_alike),
            _ => edge.first_other,
        })
    }

    /// Where, from an event on in one direction, what decides on a user's view of the room changes.
    ///
    /// It looks at few events on the way, ever further apart: between two that are seen alike, all are taken to be.
    /// They are, unless the room's branches saw the user come and go otherwise.
    pub(super) async fn edge(
        &self,
        user_id: &UserId,
        from: &StoredEvent,
        direction: PageDirection,
        sights: &mut Sights,
    ) -> Result<Option<Edge>, RoomError> {
        let Some(start) = from.index else { return Ok(None) };
        let here = self.view_of(user_id, from, sights).await?;
        let mut edge = Edge { last_alike: Arc::new(from.clone()), first_other: None };
        // Distances from the start: up to `near` the view is the same, from `far` on another.
        let (mut near, mut far, mut step) = (0_u64, None, 1_u64);
        loop {
            let probe = match far {
                None => near.saturating_add(step),
                Some(far) if far - near > 1 => near + (far - near) / 2,
                Some(_) => return Ok(Some(edge)),
            };
            step = step.saturating_mul(2);
            let found = self.next_at(start, probe, direction).await?;
            let is_alike = match &found {
                Some(event) => self.view_of(user_id, event, sights).await? == here,
                None => false,
            };
            match found {
                Some(event) if is_alike => {
                    near = event.index.map_or(probe, |index| index.0.abs_diff(start.0)).max(probe);
                    edge.last_alike = event;
                }
                other => {
                    far = Some(probe);
                    edge.first_other = other;
                }
            }
        }
    }

    /// The first event that is at least as far away as this.
    async fn next_at(
        &self,
        start: TimelineIndex,
        distance: u64,
        direction: PageDirection,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let found = match direction {
            PageDirection::Backward => {
                self.timeline_back(TimelineIndex(start.0.saturating_sub_unsigned(distance)), 1).await?
            }
            PageDirection::Forward => {
                let before = start.0.saturating_add_unsigned(distance - 1);
                self.timeline_forward(TimelineIndex(before), 1).await?
            }
        };
        Ok(found.into_iter().next())
    }
}
