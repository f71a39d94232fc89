//! Users who asked for the erasure of what they sent.
//!
//! Whoever comes to a room after the request gets their messages redacted; those who could see them before still do.
//! Nothing is changed in the store: it is decided when events are shown. State stays as it is, or rooms would lose
//! their names, but for the members' own events, which hold names and pictures.
//!
//! Spec: client-server API, `POST /_matrix/client/v3/account/deactivate`, `erase`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use engine::{
    id::{Position, TimelineIndex},
    state::StateRoot,
    visibility::Presence,
};
use ruma::{OwnedUserId, ServerName, UserId};
use storage::{Direction, KeyRange, Storage, StoreError, schema};
use tokio::sync::OnceCell;

use super::{Access, RoomError, RoomHandle, StoredEvent, Viewer, membership_of, read::Sights};

/// The erased users of this server, and when each asked for it.
#[derive(Default)]
pub struct Erasures(OnceCell<ArcSwap<imbl::OrdMap<OwnedUserId, Position>>>);

impl Erasures {
    /// All of them; read from the store when they are first asked for.
    async fn all(&self, storage: &Storage) -> Result<Arc<imbl::OrdMap<OwnedUserId, Position>>, StoreError> {
        let read = async || {
            let all = KeyRange::all();
            let rows = storage.range(&schema::ERASED_USERS, all, Direction::Ascending, usize::MAX).await?;
            Ok(ArcSwap::from_pointee(rows.into_iter().collect()))
        };
        Ok(self.0.get_or_try_init(read).await?.load_full())
    }

    /// Notes that a user's request is durable.
    pub(crate) fn add(&self, user_id: &UserId, since: Position) {
        // Whoever has not read the store yet will find it there.
        if let Some(known) = self.0.get() {
            known.rcu(|known| known.update(user_id.to_owned(), since));
        }
    }
}

fn is_personal(event: &StoredEvent) -> bool {
    event.pdu.state_key().is_none() || event.pdu.kind() == "m.room.member"
}

impl RoomHandle {
    /// Events as a reader is shown them; none if they are shown as they are.
    pub(crate) async fn erased_for(
        &self,
        events: &[Arc<StoredEvent>],
        viewer: &Viewer,
    ) -> Result<Option<Vec<Arc<StoredEvent>>>, RoomError> {
        let erased = self.erasures().all(self.storage()).await?;
        let is_concerned = |event: &&Arc<StoredEvent>| erased.contains_key(event.pdu.sender());
        if erased.is_empty() || !events.iter().any(|event| is_concerned(&event)) {
            return Ok(None);
        }
        let access = self.access(&viewer.user_id).await?;
        let mut sights = Sights::default();
        let mut shown = Vec::with_capacity(events.len());
        for event in events {
            let since = erased.get(event.pdu.sender()).filter(|_| is_personal(event));
            let is_shown = match since {
                Some(since) => {
                    let at_event = self.presence_at(event.before, &viewer.user_id, &mut sights).await?;
                    saw(&access, at_event, event, TimelineIndex::from(*since))
                }
                None => true,
            };
            shown.push(if is_shown { event.clone() } else { self.redacted(event)? });
        }
        Ok(Some(shown))
    }

    /// Whether a server is to get an event redacted, because its sender was erased before the server came.
    pub(super) async fn is_erased_for_server(
        &self,
        server: &ServerName,
        event: &StoredEvent,
    ) -> Result<bool, RoomError> {
        let erased = self.erasures().all(self.storage()).await?;
        let Some(since) = erased.get(event.pdu.sender()).filter(|_| is_personal(event)) else {
            return Ok(false);
        };
        let then = self.root_at(TimelineIndex::from(*since)).await?;
        Ok(!self.has_member_of(server, event.before).await? && !self.has_member_of(server, then).await?)
    }

    async fn has_member_of(&self, server: &ServerName, root: StateRoot) -> Result<bool, RoomError> {
        let members = self.state(root, Some("m.room.member")).await?;
        Ok(members.iter().any(|event| {
            let user = event.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
            user.is_some_and(|user| user.server_name() == server) && membership_of(&event.pdu) == "join"
        }))
    }
}

/// Whether a reader could see an event before its sender was erased.
fn saw(access: &Access, at_event: Presence, event: &StoredEvent, erased: TimelineIndex) -> bool {
    let stays_since_before = access.joined_from.is_some_and(|from| from <= erased);
    let left_before = access.joined_from.is_none()
        && access.joined_until.is_some_and(|left| left <= erased && event.index <= Some(left));
    at_event == Presence::Joined || stays_since_before || left_before
}
