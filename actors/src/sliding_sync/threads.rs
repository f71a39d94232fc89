//! Which threads the user subscribed to, or unsubscribed from.
//!
//! Spec: MSC4308.

use std::collections::BTreeMap;

use engine::id::Position;
use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::client::threads::get_thread_subscriptions_changes::unstable::{
        ThreadSubscription, ThreadUnsubscription,
    },
};
use serde::Serialize;
use storage::schema::ThreadStatus;

use super::Turn;
use crate::{session::ThreadChanges, token::Token};

/// Changes that one response holds at most.
pub const LIMIT_MAX: usize = 100;

/// Changes, by room and root.
#[derive(Debug, Default, Serialize)]
pub struct ThreadSubscriptions {
    /// Threads that the user has subscribed to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, ThreadSubscription>>,
    /// Threads that the user has unsubscribed from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unsubscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, ThreadUnsubscription>>,
    /// Where earlier changes are to be found, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
}

impl From<ThreadChanges> for ThreadSubscriptions {
    fn from(found: ThreadChanges) -> Self {
        let prev_batch = found.rest.map(|rest| Token::Sync(rest).to_string());
        let mut told = Self { prev_batch, ..Self::default() };
        for (room_id, root, record) in found.changes {
            let bump_stamp = UInt::new_saturating(record.position.0);
            let is_automatic = match record.status {
                ThreadStatus::Manual => false,
                ThreadStatus::Automatic => true,
                ThreadStatus::Unsubscribed(_) => {
                    let change = ThreadUnsubscription::new(bump_stamp);
                    told.unsubscribed.entry(room_id).or_default().insert(root, change);
                    continue;
                }
            };
            let change = ThreadSubscription::new(is_automatic, bump_stamp);
            told.subscribed.entry(room_id).or_default().insert(root, change);
        }
        told
    }
}

impl Turn<'_> {
    /// The newest changes since the client's `pos`, if it wants them.
    pub(super) fn threads(&self) -> Option<ThreadSubscriptions> {
        let wanted = &self.request.body.extensions.thread_subscriptions;
        if wanted.enabled != Some(true) || !self.homeserver.has_thread_subscriptions() {
            return None;
        }
        let limit = wanted.limit.map_or(LIMIT_MAX, |limit| usize::try_from(limit).unwrap_or(LIMIT_MAX));
        let since: Position = self.since().unwrap_or_default();
        let found = self.session.data().threads().changes(since, self.upto, limit.clamp(1, LIMIT_MAX));
        (!found.changes.is_empty()).then(|| found.into())
    }
}
