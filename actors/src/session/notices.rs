//! Which events notify a user: for pushers, and for the list of notifications.

use std::sync::Arc;

use engine::id::TimelineIndex;
use ruma::push::Action;

use super::{
    SessionHandle,
    unread::{ReadUpTo, context, judge, thread_of},
};
use crate::room::{RoomError, RoomHandle, StoredEvent};

/// An event that notifies a user.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The event.
    pub event: Arc<StoredEvent>,
    /// What the matching rule does.
    pub actions: Vec<Action>,
    /// Whether the event is highlighted.
    pub highlights: bool,
    /// Whether the user has read it.
    pub is_read: bool,
}

impl SessionHandle {
    /// Those of a room's events that notify the user, by the push rules as they are now.
    pub async fn notices(
        &self,
        room: &RoomHandle,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Notice>, RoomError> {
        let data = self.data();
        let context = context(&data, room, &self.shared.push_events).await?;
        let read = ReadUpTo::new(&data, room, TimelineIndex(i64::MIN));
        let notice = |event: &Arc<StoredEvent>| {
            let outcome = judge(&data, &context, &self.shared.push_events, event)?;
            Some(Notice {
                event: event.clone(),
                actions: outcome.actions.clone(),
                highlights: outcome.highlights,
                is_read: read.covers(event),
            })
        };
        Ok(events.iter().filter_map(notice).collect())
    }

    /// Whether the user has read an event.
    pub fn has_read(&self, room: &RoomHandle, event: &StoredEvent) -> bool {
        ReadUpTo::new(&self.data(), room, TimelineIndex(i64::MIN)).covers(event)
    }
}

impl ReadUpTo {
    fn covers(&self, event: &StoredEvent) -> bool {
        event.index.is_some_and(|index| index <= self.upto(thread_of(event).as_deref()))
    }
}
