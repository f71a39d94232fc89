//! What follows from a changed member: the counts, the list of servers, a local user's rooms.

use std::sync::Arc;

use engine::{
    id::{ShortEventId, TimelineIndex},
    room::{
        admit::{MemberMoved, Moves},
        census::{Census, ServerCount},
        content,
        membership::Stay,
    },
};
use ruma::{OwnedUserId, UserId};
use storage::schema::{self, MembershipRecord};

use super::{ActiveRoom, RoomError, StoredEvent, change::Change};

/// What a local user's relation to the room becomes.
pub(super) struct Membership {
    /// Whose it is.
    pub(super) user: OwnedUserId,
    /// The membership event.
    pub(super) event: ShortEventId,
    /// Where in the timeline it changes.
    pub(super) at: TimelineIndex,
    /// What it becomes.
    pub(super) after: String,
}

impl ActiveRoom {
    /// The relation of a local user to this room, durable or not.
    pub(super) async fn membership_record(
        &self,
        user: &UserId,
    ) -> Result<Option<MembershipRecord>, RoomError> {
        if let Some(pending) = self.pending.membership(user) {
            return Ok(Some(pending.clone()));
        }
        let key = (user.to_owned(), self.room_id.clone());
        Ok(self.shared.store.storage().get(&schema::MEMBERSHIPS, &key).await?)
    }

    /// Makes a state the current one, with all that follows for members.
    pub(super) async fn move_state(
        &self,
        change: &mut Change,
        moves: Moves,
        at: TimelineIndex,
    ) -> Result<(), RoomError> {
        change.head.root = moves.root;
        for (key, _) in &moves.keys {
            change.hot.remove(key);
        }
        for member in &moves.members {
            self.member_moved(change, member, at).await?;
        }
        Ok(())
    }

    /// Takes note of a changed member: in the counts, in the list of servers, in a local user's rooms.
    async fn member_moved(
        &self,
        change: &mut Change,
        member: &MemberMoved,
        at: TimelineIndex,
    ) -> Result<(), RoomError> {
        let membership = |event: &Option<Arc<StoredEvent>>| {
            event.as_ref().map_or_else(|| "leave".to_owned(), |event| content::membership(&event.pdu))
        };
        let (before, after) = (membership(&member.before), membership(&member.after));
        let Some(held) = member.after.as_ref().or(member.before.as_ref()) else { return Ok(()) };
        let Some(user) = held.pdu.state_key().and_then(|key| UserId::parse(key).ok()) else { return Ok(()) };
        let is_own = user.server_name() == self.shared.server_name;
        // Of other servers' members some may be not known here yet.
        let least = u64::from(change.head.lacks_members && !is_own);
        let is_newcomer = !is_own && !change.head.has_server(user.server_name());
        if let Some(count) = change.head.census.member_moved(&user, &before, &after, least) {
            if is_newcomer && count.joined > 0 {
                change.newcomers.push(count.server.clone());
            }
            self.store_count(change, count);
        }
        if is_own {
            let membership = Membership { user, event: held.short, at, after };
            self.set_membership(change, membership, &before).await?;
        }
        Ok(())
    }

    /// Stores a server's number of joined members.
    pub(super) fn store_count(&self, change: &mut Change, ServerCount { server, joined }: ServerCount) {
        let key = (self.room, server);
        if joined == 0 {
            change.batch.delete(&schema::ROOM_SERVERS, &key);
        } else {
            change.batch.put(&schema::ROOM_SERVERS, &key, &joined);
        }
    }

    /// Counts anew.
    pub(super) fn set_census(&self, change: &mut Change, census: Census) {
        for count in change.head.census.moved_to(&census) {
            self.store_count(change, count);
        }
        change.head.census = census;
    }

    /// Stores a local user's relation to the room.
    pub(super) async fn set_membership(
        &self,
        change: &mut Change,
        membership: Membership,
        before: &str,
    ) -> Result<(), RoomError> {
        let Membership { user, event, at: index, after } = membership;
        let known = match change.memberships.iter().rev().find(|(known, _)| *known == user) {
            Some((_, record)) => Some(record.clone()),
            None => self.membership_record(&user).await?,
        };
        let known =
            known.map(|known| Stay { membership: known.membership, since: known.since, left: known.left });
        let Stay { membership, since, left } = Stay::after(known, before, after, index);
        let record = MembershipRecord { room: self.room, membership, event, since, left, forgotten: false };
        change.batch.put(&schema::MEMBERSHIPS, &(user.clone(), self.room_id.clone()), &record);
        change.memberships.push((user, record));
        Ok(())
    }
}
