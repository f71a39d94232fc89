//! What a `/sync` response holds for end-to-end encryption.
//!
//! Spec: client-server API, "End-to-End Encryption" and "Send-to-Device messaging", extensions to `/sync`.

use std::collections::BTreeSet;

use engine::{
    id::{Position, ShortRoomId, TimelineIndex},
    state::StateRoot,
};
use ruma::{OwnedUserId, RoomId, UserId};
use storage::{Direction, KeyRange, schema};

use super::{DeviceLists, Pass, SyncError, SyncRequest, SyncResponse};
use crate::{
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, StoredEvent, membership_of},
    session::{INBOX_PAGE, RoomEntry, SessionError, SessionHandle},
    token::Token,
};

/// Membership events of one user that are followed back, at most.
const REPLACED_MAX: usize = 50;

/// What changed in who shares a room with a user.
#[derive(Default)]
pub(super) struct Neighbors {
    pub(super) came: BTreeSet<OwnedUserId>,
    went: BTreeSet<OwnedUserId>,
}

impl SyncResponse {
    /// Adds the device's key counts, which clients take as news in themselves.
    pub(super) fn add_counts(&mut self, session: &SessionHandle, request: &SyncRequest) {
        let data = session.data();
        let keys = data.keys();
        self.device_one_time_keys_count = keys.one_time_counts(&request.device_id);
        self.device_unused_fallback_key_types = keys.unused_fallback_types(&request.device_id);
        self.has_new_counts = keys.touched(&request.device_id) > request.since.unwrap_or_default();
    }
}

impl Pass<'_> {
    pub(super) async fn add_encryption(
        &self,
        response: &mut SyncResponse,
        neighbors: Neighbors,
    ) -> Result<(), SyncError> {
        response.add_counts(self.session, self.request);
        if self.request.takes_messages {
            self.add_messages(response).await?;
        }
        if !self.is_initial() {
            let lists = self.homeserver.device_lists(self.session, neighbors, self.since, self.upto);
            response.device_lists = lists.await?;
        }
        Ok(())
    }

    /// Adds what was sent to the device; what the client has of it is let go of.
    async fn add_messages(&self, response: &mut SyncResponse) -> Result<(), SyncError> {
        let acknowledged = self.request.inbox_since.unwrap_or(self.since);
        let device_id = &self.request.device_id;
        self.session.acknowledge(device_id, acknowledged);
        let waiting = self.session.waiting(device_id, acknowledged, self.upto).await?;
        debug_assert!(waiting.messages.len() <= INBOX_PAGE);
        response.to_device = waiting.messages.into();
        if let Some(inbox) = waiting.more_after {
            response.next_batch = Token::SyncInbox { position: self.upto, inbox }.to_string();
        }
        Ok(())
    }
}

impl Homeserver {
    /// The users whose devices a user has to look at again, and those whose devices are no concern any more.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v3/keys/changes`, "Tracking the device list for a user".
    pub async fn device_list_changes(
        &self,
        session: &SessionHandle,
        since: Position,
        upto: Position,
    ) -> Result<DeviceLists, SyncError> {
        let neighbors = self.neighbors(session, since).await?;
        self.device_lists(session, neighbors, since, upto).await
    }

    /// What changed since a position in who shares a room with a user.
    pub(super) async fn neighbors(
        &self,
        session: &SessionHandle,
        since: Position,
    ) -> Result<Neighbors, SyncError> {
        let mut neighbors = Neighbors::default();
        for (room_id, entry) in session.view().rooms_changed(since) {
            if let Err(error) = self.add_neighbors(session, &room_id, &entry, since, &mut neighbors).await {
                if self.may_read_later(&error).await {
                    return Err(error.into());
                }
                tracing::error!(room.id = %room_id, %error, "a room's members left out of the device lists");
            }
        }
        Ok(neighbors)
    }

    async fn device_lists(
        &self,
        session: &SessionHandle,
        neighbors: Neighbors,
        since: Position,
        upto: Position,
    ) -> Result<DeviceLists, SyncError> {
        let own = session.user_id();
        let mut lists = DeviceLists { changed: neighbors.came, left: BTreeSet::new() };
        let rooms = session.view().rooms().into_iter();
        let rooms: BTreeSet<_> =
            rooms.filter(|(_, entry)| entry.is_joined()).map(|(_, entry)| entry.room).collect();
        let changed = self.changed_devices(session, since, upto).await?;
        let is_remote = |user_id: &OwnedUserId| user_id.server_name() != self.server_name();
        if changed.iter().chain(&neighbors.went).any(is_remote) {
            // In which rooms other servers' users are, only the user directory knows.
            self.users().settle().await;
        }
        for user_id in changed {
            if user_id == own || self.is_in_any(&rooms, &user_id).await? {
                lists.changed.insert(user_id);
            }
        }
        lists.changed.extend(session.data().keys().signed_since(since).cloned());
        for user_id in neighbors.went {
            if user_id != own
                && !lists.changed.contains(&user_id)
                && !self.is_in_any(&rooms, &user_id).await?
            {
                lists.left.insert(user_id);
            }
        }
        Ok(lists)
    }

    async fn is_in_any(&self, rooms: &BTreeSet<ShortRoomId>, user_id: &UserId) -> Result<bool, RoomError> {
        Ok(self.joined_rooms_of(user_id).await?.iter().any(|room| rooms.contains(room)))
    }

    /// Users whose devices changed: those who share a room among them.
    async fn changed_devices(
        &self,
        session: &SessionHandle,
        since: Position,
        upto: Position,
    ) -> Result<Vec<OwnedUserId>, SyncError> {
        if let Some(changed) = session.view().device_lists_changed(since) {
            return Ok(changed);
        }
        let range = KeyRange::all().after(&since).up_to(&upto);
        let rows =
            self.storage().range(&schema::DEVICE_LIST_CHANGES, range, Direction::Ascending, usize::MAX);
        let rows = rows.await.map_err(SessionError::Store)?;
        Ok(rows.into_iter().map(|(_, user_id)| user_id).collect())
    }

    /// Finds who came to share a room, and who went from it; or all its members, if the user came or went.
    async fn add_neighbors(
        &self,
        session: &SessionHandle,
        room_id: &RoomId,
        entry: &RoomEntry,
        since: Position,
        neighbors: &mut Neighbors,
    ) -> Result<(), RoomError> {
        let before = TimelineIndex::from(since);
        if entry.is_joined() {
            let is_new = Position::from(entry.since) > since;
            if is_new || session.view().state_changed(room_id, since) {
                let room = self.room(room_id).await?;
                let head = &room.snapshot().head;
                // The members of a room that lacked them are there from the user's join on, but nobody was told of them.
                let is_whole = is_new || head.completed > since;
                let from = if is_whole { StateRoot::default() } else { room.root_at(before).await? };
                let (came, went) = joined(&room, from, head.root).await?;
                neighbors.came.extend(came);
                neighbors.went.extend(went);
            }
        } else if entry.left.is_some_and(|left| left > before) {
            let room = self.room(room_id).await?;
            let root = room.root_at(before).await?;
            neighbors.went.extend(joined(&room, StateRoot::default(), root).await?.0);
        }
        Ok(())
    }
}

/// Who is joined in the second state and was not, or not all the time, since the first; and who is not any more.
async fn joined(
    room: &RoomHandle,
    from: StateRoot,
    to: StateRoot,
) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>), RoomError> {
    let (mut came, mut went) = (Vec::new(), Vec::new());
    if from == to {
        return Ok((came, went));
    }
    let mut changes = room.state_diff(from, to).await?;
    changes.retain(|change| change.kind == "m.room.member");
    let shorts: Vec<_> = changes.iter().flat_map(|change| [change.before, change.after]).flatten().collect();
    let mut events = room.events(&shorts).await?.into_iter();
    for change in changes {
        let mut joined = |short: Option<_>| {
            let event = short.and_then(|_| events.next());
            event.filter(|event| membership_of(&event.pdu) == "join")
        };
        let (was, is) = (joined(change.before), joined(change.after));
        let Ok(user_id) = UserId::parse(change.state_key) else { continue };
        match (was, is) {
            (None, Some(_)) => came.push(user_id),
            (Some(_), None) => went.push(user_id),
            (Some(before), Some(after)) if !stayed(room, &before, &after).await? => came.push(user_id),
            _ => {}
        }
    }
    Ok((came, went))
}

/// Whether a member was joined from one membership event to another all the time.
///
/// Who was away meanwhile may have new devices that nobody here was told of. What cannot be followed counts as such.
async fn stayed(room: &RoomHandle, before: &StoredEvent, after: &StoredEvent) -> Result<bool, RoomError> {
    let mut replaced = after.replaces;
    for _ in 0..REPLACED_MAX {
        let Some(short) = replaced else { return Ok(false) };
        if short == before.short {
            return Ok(true);
        }
        let event = room.store().event(short).await?;
        if membership_of(&event.pdu) != "join" {
            return Ok(false);
        }
        replaced = event.replaces;
    }
    Ok(false)
}
