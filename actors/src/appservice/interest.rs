//! Which rooms concern a service: kept at hand, so that an event costs a look at a map.
//!
//! The users of a service that are in each room follow from the membership events as its task passes them: what it is
//! told of is decided by who was there then, also when it is told later.

use std::collections::{BTreeMap, BTreeSet};

use engine::{
    id::{Position, ShortRoomId},
    room::{StoredEvent, content},
};
use ruma::{OwnedUserId, RoomId, UserId};
use storage::{
    Direction, KeyRange, Storage, StoreError,
    schema::{self, MembershipRecord},
};

use super::{Service, watch::ServiceWatch};

/// Memberships that are read at a time when a task starts.
const PAGE: usize = 1000;

/// Rooms of which it is kept in mind whether their ID or aliases concern the service.
const NAMED_MAX: usize = 100_000;

/// What concerns a service.
pub(super) struct Interest {
    /// The users that were met, by a number: a large bridge's are in many rooms.
    users: BTreeMap<OwnedUserId, u32>,
    /// The service's users in each room.
    members: BTreeMap<ShortRoomId, BTreeSet<u32>>,
    /// Whether rooms concern the service by their names, as of some change of aliases.
    named: BTreeMap<ShortRoomId, bool>,
    aliases: u64,
}

/// How an event concerns a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Concern {
    /// It does not.
    Nothing,
    /// It happened where the service looks.
    Room,
    /// It changes the membership of one of its users.
    OwnMember,
}

impl Interest {
    /// What concerned the service at a position.
    pub(super) async fn load(service: &Service, storage: &Storage, at: Position) -> Result<Self, StoreError> {
        let (users, members, named) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut interest = Self { users, members, named, aliases: 0 };
        let mut range = KeyRange::all();
        let mut last: Option<(OwnedUserId, bool)> = None;
        loop {
            let rows = storage.range(&schema::MEMBERSHIPS, range, Direction::Ascending, PAGE).await?;
            let Some((end, _)) = rows.last() else { return Ok(interest) };
            range = KeyRange::all().after(end);
            for ((user_id, _), record) in rows {
                let is_own = match &last {
                    Some((known, is_own)) if *known == user_id => *is_own,
                    _ => service.has_user(&user_id),
                };
                if is_own && was_joined(&record, at) {
                    interest.joined(&user_id, record.room);
                }
                last = Some((user_id, is_own));
            }
        }
    }

    fn joined(&mut self, user_id: &UserId, room: ShortRoomId) {
        let next = u32::try_from(self.users.len()).unwrap_or(u32::MAX);
        let number = match self.users.get(user_id) {
            Some(number) => *number,
            None => *self.users.entry(user_id.to_owned()).or_insert(next),
        };
        self.members.entry(room).or_default().insert(number);
    }

    fn left(&mut self, user_id: &UserId, room: ShortRoomId) {
        let Some(number) = self.users.get(user_id) else { return };
        if let Some(members) = self.members.get_mut(&room) {
            members.remove(number);
            if members.is_empty() {
                self.members.remove(&room);
            }
        }
    }

    /// Passes an event: how it concerns the service.
    ///
    /// Spec: application service API, "Registration".
    pub(super) async fn pass(
        &mut self,
        service: &Service,
        (storage, watch): (&Storage, &ServiceWatch),
        event: &StoredEvent,
    ) -> Result<Concern, StoreError> {
        let was_there = self.members.contains_key(&event.room);
        if let Some(target) = own_target(service, event) {
            if content::membership(&event.pdu) == "join" {
                self.joined(&target, event.room);
            } else {
                self.left(&target, event.room);
            }
            return Ok(Concern::OwnMember);
        }
        let concerns = was_there
            || service.has_user(event.pdu.sender())
            || self.is_named(service, (storage, watch), (event.room, event.pdu.room_id())).await?;
        Ok(if concerns { Concern::Room } else { Concern::Nothing })
    }

    /// Whether what happens in a room concerns the service.
    pub(super) async fn has_room(
        &mut self,
        service: &Service,
        at: (&Storage, &ServiceWatch),
        (room, room_id): (ShortRoomId, &RoomId),
    ) -> Result<bool, StoreError> {
        Ok(self.members.contains_key(&room) || self.is_named(service, at, (room, room_id)).await?)
    }

    /// Whether one of the service's users is in one of these rooms.
    pub(super) fn is_in_any(&self, mut rooms: impl Iterator<Item = ShortRoomId>) -> bool {
        rooms.any(|room| self.members.contains_key(&room))
    }

    async fn is_named(
        &mut self,
        service: &Service,
        (storage, watch): (&Storage, &ServiceWatch),
        (room, room_id): (ShortRoomId, &RoomId),
    ) -> Result<bool, StoreError> {
        let aliases = watch.aliases();
        if self.aliases != aliases || self.named.len() >= NAMED_MAX {
            self.named.clear();
            self.aliases = aliases;
        }
        if let Some(known) = self.named.get(&room) {
            return Ok(*known);
        }
        let is_named = service.has_room(room_id) || has_alias_in(service, storage, room_id).await?;
        self.named.insert(room, is_named);
        Ok(is_named)
    }
}

async fn has_alias_in(service: &Service, storage: &Storage, room_id: &RoomId) -> Result<bool, StoreError> {
    if service.aliases.0.is_empty() {
        return Ok(false);
    }
    let all = KeyRange::prefix(&(room_id,));
    let rows = storage.range(&schema::ROOM_ALIASES, all, Direction::Ascending, usize::MAX).await?;
    Ok(rows.iter().any(|((_, alias), ())| service.has_alias(alias)))
}

/// The service's user whose membership an event changes.
pub(super) fn own_target(service: &Service, event: &StoredEvent) -> Option<OwnedUserId> {
    let target = event.pdu.state_key().filter(|_| event.pdu.kind() == "m.room.member")?;
    OwnedUserId::try_from(target).ok().filter(|user_id| service.has_user(user_id))
}

/// Whether a user was joined at a position, as far as it can be said later: who has left since and joined again is taken
/// for one who was.
fn was_joined(record: &MembershipRecord, at: Position) -> bool {
    let is_joined = record.membership == "join" && Position::from(record.since) <= at;
    is_joined || record.left.is_some_and(|left| Position::from(left) > at)
}

#[cfg(test)]
mod tests {
    use engine::id::{ShortEventId, TimelineIndex};

    use super::*;

    #[test]
    fn who_was_there_is_known_later() {
        let record = |membership: &str, since: i64, left: Option<i64>| MembershipRecord {
            room: ShortRoomId(1),
            membership: membership.to_owned(),
            event: ShortEventId(1),
            since: TimelineIndex(since),
            left: left.map(TimelineIndex),
            forgotten: false,
        };
        for (record, expected) in [
            (record("join", 5, None), true),
            (record("join", 10, None), true),
            (record("join", 11, None), false),
            (record("join", 15, Some(12)), true),
            (record("join", 15, Some(9)), false),
            (record("leave", 12, Some(12)), true),
            (record("leave", 9, Some(9)), false),
            (record("invite", 5, None), false),
        ] {
            assert_eq!(was_joined(&record, Position(10)), expected, "{record:?}");
        }
    }
}
