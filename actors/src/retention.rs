//! Messages that are kept for a time only, where the operator has it so.
//!
//! A task goes through the rooms now and then, and has those rooms let go of their old messages whose state or the
//! configuration limits how long messages are kept.
//!
//! Spec: MSC1763, "Server behaviour"; the room's `m.room.retention`.

use std::time::Duration;

use engine::pdu::Pdu;
use ruma::OwnedRoomId;
use serde::Deserialize;
use storage::{Direction, KeyRange, schema};

use crate::{background::Background, homeserver::Homeserver, room::RoomError};

/// Rooms that are looked at at a time.
const ROOMS_PAGE: usize = 500;

/// How long messages are kept.
#[derive(Clone, Debug, Default)]
pub struct RetentionConfig {
    /// How often old messages are looked for; none keeps all messages, whatever rooms say.
    pub every: Option<Duration>,
    /// How long messages are kept in rooms that say nothing of it, if not for ever.
    pub default: Option<Duration>,
    /// Rooms cannot have messages kept for less.
    pub min: Option<Duration>,
    /// Rooms cannot have messages kept for longer.
    pub max: Option<Duration>,
}

#[derive(Default, Deserialize)]
struct Content {
    max_lifetime: Option<u64>,
}

impl RetentionConfig {
    /// How long a room's messages are kept, if not for ever.
    pub fn lifetime(&self, retention: Option<&Pdu>) -> Option<Duration> {
        // Content of another shape says nothing.
        let content = retention.map_or("{}", |pdu| pdu.content().get());
        let content: Content = serde_json::from_str(content).unwrap_or_default();
        let asked = content.max_lifetime.map(Duration::from_millis).or(self.default)?;
        Some(asked.max(self.min.unwrap_or_default()).min(self.max.unwrap_or(Duration::MAX)))
    }
}

/// The task that looks for old messages.
pub(crate) struct Retention {
    task: Background,
}

impl Retention {
    pub(crate) fn new() -> Self {
        Self { task: Background::new("the purging of old messages") }
    }

    /// Starts the task.
    pub(crate) fn start(&self, homeserver: &Homeserver) {
        let Some(every) = homeserver.conversation().retention.every else { return };
        let homeserver = homeserver.clone();
        self.task.keep(move || homeserver.clone().purge_now_and_then(every));
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }
}

impl Homeserver {
    async fn purge_now_and_then(self, every: Duration) {
        let mut stopping = self.retention().task.stopping();
        loop {
            if let Err(error) = self.purge_rooms().await {
                tracing::error!(%error, "cannot look for old messages");
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    async fn purge_rooms(&self) -> Result<(), RoomError> {
        let store = &self.room_shared().store;
        let mut range = KeyRange::all();
        loop {
            let page = store
                .storage()
                .range(&schema::ROOMS, range.clone(), Direction::Ascending, ROOMS_PAGE)
                .await?;
            for (_, head) in &page {
                if self.retention().task.is_stopping() {
                    return Ok(());
                }
                let retention = store.state_event(head.root, "m.room.retention", "").await?;
                let retention = retention.as_ref().map(|event| &*event.pdu);
                if let Some(lifetime) = self.conversation().retention.lifetime(retention)
                    && let Err(error) = self.purge_room(&head.room_id, lifetime).await
                {
                    tracing::warn!(room.id = %head.room_id, %error, "old messages of a room were not purged");
                }
            }
            match page.last() {
                Some((room, _)) if page.len() == ROOMS_PAGE => range = range.after(room),
                _ => return Ok(()),
            }
        }
    }

    async fn purge_room(&self, room_id: &OwnedRoomId, lifetime: Duration) -> Result<(), RoomError> {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let before_ms = self.env().clock.now_ms().saturating_sub(lifetime_ms);
        let room = self.room(room_id).await?;
        let mut purged = 0;
        let mut from = None;
        loop {
            let page = room.purge(before_ms, from).await?;
            purged += page.purged;
            self.searching().purged();
            from = page.next;
            if from.is_none() || self.retention().task.is_stopping() {
                break;
            }
        }
        if purged > 0 {
            tracing::info!(room.id = %room_id, purged, "old messages were purged");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_stays_within_what_the_operator_allows() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let config = RetentionConfig {
            every: Some(hours(1)),
            default: Some(hours(48)),
            min: Some(hours(24)),
            max: Some(hours(72)),
        };
        assert_eq!(config.lifetime(None), Some(hours(48)));
        let open = RetentionConfig::default();
        assert_eq!(open.lifetime(None), None);
        let long = RetentionConfig { default: Some(hours(100)), ..config.clone() };
        assert_eq!(long.lifetime(None), Some(hours(72)));
        let short = RetentionConfig { default: Some(hours(1)), ..config };
        assert_eq!(short.lifetime(None), Some(hours(24)));
    }
}
