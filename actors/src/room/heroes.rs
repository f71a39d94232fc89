//! The members that a room without a name is named after.
//!
//! Spec: client-server API, `RoomSummary` of `GET /_matrix/client/v3/sync`, `m.heroes`.

use std::sync::Arc;

use engine::{id::ShortEventId, state::StateRoot};
use parking_lot::Mutex;
use ruma::UserId;

use super::{RoomError, RoomHandle, StoredEvent, membership_of};

/// How many members name a room.
const HEROES: usize = 5;

/// How many are found, so that there are enough without the reader, too.
const CANDIDATES: usize = HEROES + 1;

/// Membership events that are read at a time.
const PAGE: usize = 32;

/// Membership events that are read to find them, at most: who joins and leaves a room in great numbers does not hold
/// up those who read it.
const SCAN_MAX: usize = 10_000;

/// The first members of a state, in the order in which their membership events arrived.
#[derive(Default)]
struct FirstMembers {
    /// Who is joined or invited.
    present: Vec<ShortEventId>,
    /// Who left or is banned.
    absent: Vec<ShortEventId>,
}

/// The first members of the state for which they were asked last. Their events are not kept: they may be redacted.
#[derive(Default)]
pub struct HeroesCache(Mutex<Option<(StateRoot, Arc<FirstMembers>)>>);

impl RoomHandle {
    /// The membership events of the users that a room is named after in a state, for one of its users, who is not
    /// among them: the first who are joined or invited, or who were if there is nobody else.
    pub async fn heroes(&self, root: StateRoot, reader: &UserId) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let first = self.first_members(root).await?;
        let others = async |members: &[ShortEventId]| -> Result<Vec<_>, RoomError> {
            let mut members = self.events(members).await?;
            members.retain(|member| member.pdu.state_key() != Some(reader.as_str()));
            members.truncate(HEROES);
            Ok(members)
        };
        let present = others(&first.present).await?;
        if present.is_empty() { others(&first.absent).await } else { Ok(present) }
    }

    async fn first_members(&self, root: StateRoot) -> Result<Arc<FirstMembers>, RoomError> {
        let known = self.heroes_cache().0.lock().clone();
        if let Some((_, first)) = known.filter(|(known, _)| *known == root) {
            return Ok(first);
        }
        let entries = self.state_entries(root, Some("m.room.member")).await?;
        let mut shorts: Vec<_> = entries.into_iter().map(|entry| entry.event).collect();
        shorts.sort_unstable();
        shorts.truncate(SCAN_MAX);
        let mut first = FirstMembers::default();
        for page in shorts.chunks(PAGE) {
            for member in self.events(page).await? {
                let kind = match membership_of(&member.pdu).as_str() {
                    "join" | "invite" => &mut first.present,
                    "leave" | "ban" => &mut first.absent,
                    _ => continue,
                };
                if kind.len() < CANDIDATES {
                    kind.push(member.short);
                }
            }
            if first.present.len() == CANDIDATES {
                break;
            }
        }
        let first = Arc::new(first);
        *self.heroes_cache().0.lock() = Some((root, first.clone()));
        Ok(first)
    }
}
