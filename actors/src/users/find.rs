//! Finding users, and the rooms that one shares with them.

use std::collections::{BTreeMap, BTreeSet};

use engine::id::ShortRoomId;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use storage::{Direction, KeyRange, StoreError, schema};

use super::words::{wanted, words};
use crate::{
    homeserver::Homeserver,
    room::{ReadError, RoomError, content_string},
    session::SessionError,
};

/// Rows that a search looks at, at most.
const SCAN_MAX: usize = 5000;

/// A user who may be meant.
#[derive(Default)]
struct Candidate {
    /// The rooms in which they are called so.
    rooms: BTreeSet<ShortRoomId>,
    /// Whether they are in their profile.
    is_called_so: bool,
}

/// A user who was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundUser {
    /// The user.
    pub user_id: OwnedUserId,
    /// Their display name.
    pub display_name: Option<String>,
    /// Their avatar.
    pub avatar_url: Option<String>,
}

/// Why no users were looked for.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// A room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The profile of a user could not be read.
    #[error(transparent)]
    Profile(#[from] SessionError),
}

impl From<StoreError> for FindError {
    fn from(error: StoreError) -> Self {
        Self::Room(error.into())
    }
}

impl From<ReadError> for FindError {
    fn from(error: ReadError) -> Self {
        Self::Room(error.into())
    }
}

impl Homeserver {
    /// The users who match a term and whom a user may find, and whether there are more.
    ///
    /// Those share a room with the user, or are in a room that everyone may join or read. Local users are found by the name
    /// in their profile: that is for everybody, other than those that they may have in some rooms.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/user_directory/search`.
    pub async fn find_users(
        &self,
        user_id: &UserId,
        term: &str,
        limit: usize,
    ) -> Result<(Vec<FoundUser>, bool), FindError> {
        let wanted = wanted(term);
        // The longest word is the rarest, most likely.
        let Some(longest) = wanted.iter().max_by_key(|word| word.len()) else {
            return Ok((Vec::new(), false));
        };
        self.users().settle().await;
        let own = self.own_rooms(user_id).await?;
        let (candidates, mut limited) = self.users_beginning(longest).await?;
        let mut open = BTreeMap::new();
        let mut found = Vec::new();
        for (user, Candidate { rooms, is_called_so }) in candidates {
            let Ok(user) = UserId::parse(user) else { continue };
            let mut place = self.meeting_place(&own, rooms, &mut open).await?;
            if place.is_none() && is_called_so {
                // They may have other names where they can be met.
                let rooms = self.joined_rooms_of(&user).await?.into_iter().collect();
                place = self.meeting_place(&own, rooms, &mut open).await?;
            }
            let Some(room) = place else { continue };
            let user = self.found_user(user, room).await?;
            let has = words(&user.user_id, user.display_name.as_deref());
            if wanted.iter().all(|wanted| has.iter().any(|word| word.starts_with(wanted))) {
                found.push((rank(&user, term), user));
            }
        }
        found.sort_by(|(a, user_a), (b, user_b)| a.cmp(b).then_with(|| user_a.user_id.cmp(&user_b.user_id)));
        limited |= found.len() > limit;
        found.truncate(limit);
        Ok((found.into_iter().map(|(_, user)| user).collect(), limited))
    }

    /// The users of whose words one begins like this, by user ID, and whether there may be more.
    async fn users_beginning(&self, word: &str) -> Result<(BTreeMap<String, Candidate>, bool), StoreError> {
        let (from, before) = (word.to_owned(), format!("{word}\u{10FFFF}"));
        let range = KeyRange::all().from(&(from.clone(), String::new(), ShortRoomId(0))).before(&(
            before.clone(),
            String::new(),
            ShortRoomId(0),
        ));
        let in_rooms =
            self.storage().range(&schema::USER_WORDS, range, Direction::Ascending, SCAN_MAX).await?;
        let range = KeyRange::all().from(&(from, String::new())).before(&(before, String::new()));
        let called =
            self.storage().range(&schema::PROFILE_WORDS, range, Direction::Ascending, SCAN_MAX).await?;
        let is_limited = in_rooms.len() == SCAN_MAX || called.len() == SCAN_MAX;
        let mut candidates = BTreeMap::<String, Candidate>::new();
        for ((_, user, room), ()) in in_rooms {
            candidates.entry(user).or_default().rooms.insert(room);
        }
        for ((_, user), ()) in called {
            candidates.entry(user).or_default().is_called_so = true;
        }
        Ok((candidates, is_limited))
    }

    /// A room of these that is the searcher's own, or open to all.
    async fn meeting_place(
        &self,
        own: &BTreeMap<ShortRoomId, OwnedRoomId>,
        rooms: BTreeSet<ShortRoomId>,
        open: &mut BTreeMap<ShortRoomId, bool>,
    ) -> Result<Option<ShortRoomId>, RoomError> {
        if let Some(room) = rooms.iter().find(|room| own.contains_key(room)) {
            return Ok(Some(*room));
        }
        for room in rooms {
            let is_open = if let Some(is_open) = open.get(&room) {
                *is_open
            } else {
                let record = self.storage().get(&schema::DIRECTORY_ROOMS, &room).await?;
                record.is_some_and(|record| record.is_open)
            };
            open.insert(room, is_open);
            if is_open {
                return Ok(Some(room));
            }
        }
        Ok(None)
    }

    /// A user as they appear in their profile, or, since those of other servers are not kept, in a room.
    async fn found_user(&self, user_id: OwnedUserId, room: ShortRoomId) -> Result<FoundUser, FindError> {
        if user_id.server_name() == self.server_name() {
            let profile = self.member_content(&user_id).await?;
            let text = |field| profile.get(field).and_then(|value| value.as_str()).map(ToOwned::to_owned);
            return Ok(FoundUser {
                display_name: text("displayname"),
                avatar_url: text("avatar_url"),
                user_id,
            });
        }
        let member = self.storage().get(&schema::USER_ROOMS, &(&*user_id, room)).await?;
        let event = match member {
            Some(event) => Some(self.room_shared().store.event(event).await?),
            None => None,
        };
        let text = |field| event.as_ref().and_then(|event| content_string(&event.pdu, field));
        Ok(FoundUser { display_name: text("displayname"), avatar_url: text("avatar_url"), user_id })
    }

    /// The joined rooms of a local user.
    async fn own_rooms(&self, user_id: &UserId) -> Result<BTreeMap<ShortRoomId, OwnedRoomId>, StoreError> {
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage().range(&schema::MEMBERSHIPS, all, Direction::Ascending, usize::MAX).await?;
        let joined = rows.into_iter().filter(|(_, record)| record.membership == "join");
        Ok(joined.map(|((_, room_id), record)| (record.room, room_id)).collect())
    }

    /// The rooms that a local user and another one are both joined to, in an order that stays.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/mutual_rooms`.
    pub async fn mutual_rooms(
        &self,
        user_id: &UserId,
        other: &UserId,
    ) -> Result<BTreeMap<ShortRoomId, OwnedRoomId>, RoomError> {
        let mut own = self.own_rooms(user_id).await?;
        if other.server_name() != self.server_name() {
            self.users().settle().await;
        }
        let rooms = self.joined_rooms_of(other).await?;
        Ok(rooms.into_iter().filter_map(|room| own.remove_entry(&room)).collect())
    }

    /// The rooms that a user is joined to, of whichever server; those of other servers' users as far as they are known.
    pub(crate) async fn joined_rooms_of(&self, user_id: &UserId) -> Result<Vec<ShortRoomId>, StoreError> {
        if user_id.server_name() == self.server_name() {
            return Ok(self.own_rooms(user_id).await?.into_keys().collect());
        }
        let all = KeyRange::prefix(&(user_id,));
        let rows = self.storage().range(&schema::USER_ROOMS, all, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, room), _)| room).collect())
    }
}

/// Users in the order of their results: those whom the term names, then those who have a name at all.
fn rank(user: &FoundUser, term: &str) -> (bool, bool, bool) {
    let term = term.trim().to_lowercase();
    let localpart = user.user_id.localpart().to_lowercase();
    let name = user.display_name.as_deref().map(str::to_lowercase);
    let is_named = term == localpart || term == user.user_id.as_str().to_lowercase();
    let is_called = name.as_ref().is_some_and(|name| *name == term);
    (!(is_named || is_called), name.is_none_or(|name| !name.starts_with(&term)), user.display_name.is_none())
}
