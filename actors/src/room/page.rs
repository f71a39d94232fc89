//! Pages of a room's timeline, as `/messages` and `/context` give them.

use std::sync::Arc;

use engine::id::TimelineIndex;
use ruma::{UserId, api::client::filter::RoomEventFilter};

use super::{RoomError, RoomHandle, StoredEvent, read::Sights};
use crate::filter;

/// Events that are looked at, at most, to fill a page through a narrow filter.
const SCAN_MAX: usize = 2000;

/// Events that are fetched at a time, at least, once the first of them did not fill the page.
const REFILL_MIN: usize = 100;

/// Which way a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageDirection {
    /// To older events.
    Backward,
    /// To newer events.
    Forward,
}

/// What a page is to hold.
pub struct PageQuery<'a> {
    /// Who asks.
    pub user_id: &'a UserId,
    /// The boundary that the page starts from: after this place.
    pub from: TimelineIndex,
    /// The boundary that it does not pass.
    pub to: Option<TimelineIndex>,
    /// Which way it goes.
    pub direction: PageDirection,
    /// Most events to return.
    pub limit: usize,
    /// What to leave out.
    pub filter: &'a RoomEventFilter,
}

/// A page of a timeline.
pub struct Page {
    /// The events, in the direction of the page.
    pub events: Vec<Arc<StoredEvent>>,
    /// The boundary that the next page starts from; none at the end of the timeline.
    pub end: Option<TimelineIndex>,
}

impl RoomHandle {
    /// A page of the events that a user may see.
    pub async fn page(&self, query: &PageQuery<'_>) -> Result<Page, RoomError> {
        if !filter::applies_to_room(query.filter, &self.snapshot().room_id) {
            return Ok(Page { events: Vec::new(), end: None });
        }
        let access = self.access(query.user_id).await?;
        let mut sights = Sights::default();
        let mut events = Vec::new();
        let mut boundary = query.from;
        let mut scanned = 0;
        while scanned < SCAN_MAX {
            let missing = query.limit - events.len() + 1;
            let wanted = if scanned == 0 { missing } else { missing.max(REFILL_MIN) };
            let batch = match query.direction {
                PageDirection::Backward => self.timeline_back(boundary, wanted).await?,
                PageDirection::Forward => self.timeline_forward(boundary, wanted).await?,
            };
            let is_last = batch.len() < wanted;
            scanned += batch.len();
            for event in batch {
                let Some(index) = event.index else { continue };
                let is_past = query.to.is_some_and(|to| match query.direction {
                    PageDirection::Backward => index <= to,
                    PageDirection::Forward => index > to,
                });
                if is_past {
                    return Ok(Page { events, end: None });
                }
                if events.len() == query.limit {
                    return Ok(Page { events, end: Some(boundary) });
                }
                boundary = match query.direction {
                    PageDirection::Backward => TimelineIndex(index.0 - 1),
                    PageDirection::Forward => index,
                };
                if filter::passes(query.filter, &event.pdu)
                    && self.is_visible(query.user_id, &access, &event, &mut sights).await?
                {
                    events.push(event);
                }
            }
            if is_last {
                return Ok(Page { events, end: None });
            }
        }
        Ok(Page { events, end: Some(boundary) })
    }
}
