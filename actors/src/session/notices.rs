//! Which events notify a user: for pushers, and for the list of notifications.

use std::sync::Arc;

use engine::id::TimelineIndex;
use ruma::{EventId, push::Action};

use super::{
    SessionHandle,
    unread::{ReadUpTo, context, judge},
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
        let mut notices = Vec::new();
        for event in events {
            let Some(outcome) = judge(&data, &context, &self.shared.push_events, event) else { continue };
            notices.push(Notice {
                event: event.clone(),
                actions: outcome.actions.clone(),
                highlights: outcome.highlights,
                is_read: read.covers(room, event).await?,
            });
        }
        // What the user has sent is looked for only where it may matter.
        if notices.iter().any(|notice| !notice.is_read) {
            let read = self.read_up_to(room).await?;
            for notice in &mut notices {
                notice.is_read = read.covers(room, &notice.event).await?;
            }
        }
        Ok(notices)
    }

    /// Whether the user has read an event.
    pub async fn has_read(&self, room: &RoomHandle, event: &StoredEvent) -> Result<bool, RoomError> {
        self.read_up_to(room).await?.covers(room, event).await
    }
}

impl ReadUpTo {
    async fn covers(&self, room: &RoomHandle, event: &StoredEvent) -> Result<bool, RoomError> {
        let thread = room.thread_root(event).await?;
        let upto = self.upto(thread.as_deref().map(EventId::as_str));
        Ok(event.index.is_some_and(|index| index <= upto))
    }
}
