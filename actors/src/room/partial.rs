//! Rooms that were joined with a state that lacks members: usable at once, completed in the background.
//!
//! Until then, what authorises an event is taken from its own auth events where the state lacks a member, the servers
//! in the room are those that the resident server named, and whoever asks for members waits.
//!
//! Spec: server-server API, `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, `omit_members` (MSC3706, MSC3902).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use engine::{
    id::{ShortEventId, TimelineIndex},
    room::{census::Census, content},
    state::{self, StateRoot},
};
use ruma::{OwnedEventId, OwnedServerName, UserId};
use storage::{
    Direction, KeyRange,
    schema::{self, PartialRoomRecord},
};

use super::{ActiveRoom, GivenState, ReadError, RoomError, RoomHandle, StoredEvent, change::Change};

/// Servers of a room that are remembered to complete its state from.
const SERVERS_MAX: usize = 50;

/// The state before the join of a room that was joined without its members.
#[derive(Clone, Debug)]
pub struct Complete {
    /// The join that it is the state before.
    pub join: OwnedEventId,
    /// The state; what it does not lack is known here.
    pub state: GivenState,
}

impl ActiveRoom {
    /// Notes that the state lacks members, and which servers the room has.
    pub(super) fn begin_partial(
        &self,
        change: &mut Change,
        join: OwnedEventId,
        origin: &OwnedServerName,
        mut servers: Vec<OwnedServerName>,
    ) {
        // Whatever it says of itself, the resident server is in the room.
        if !servers.contains(origin) {
            servers.push(origin.clone());
        }
        for server in &servers {
            if let Some(count) = change.head.census.server_named(server) {
                self.store_count(change, count);
            }
        }
        let own = &self.shared.server_name;
        let others = servers.into_iter().filter(|server| server != own && server != origin);
        let servers = std::iter::once(origin.clone()).chain(others).take(SERVERS_MAX).collect();
        let record = PartialRoomRecord {
            room_id: self.room_id.clone(),
            join,
            servers,
            completed: None,
            corrected: false,
        };
        change.batch.put(&schema::PARTIAL_ROOMS, &self.room, &record);
        change.head.lacks_members = true;
    }

    /// Takes in the members that the state lacked, and judges anew what came since the join.
    pub(super) async fn complete(&self, change: &mut Change, complete: Complete) -> Result<(), RoomError> {
        let Complete { join, state } = complete;
        let record = self.shared.store.storage().get(&schema::PARTIAL_ROOMS, &self.room).await?;
        let Some(mut record) = record.filter(|record| change.head.lacks_members && record.join == join)
        else {
            return Ok(());
        };
        let join = self.known_event(change, &join).await?;
        let join = join.ok_or_else(|| ReadError::Lost("the join of a room".to_owned()))?;
        let full = self.decide(change, |room| room.state_of(&state.events)).await?;
        if full.is_empty() {
            return Err(RoomError::Invalid("the resident server sent no state".to_owned()));
        }
        let known_root = change.head.root;
        change.head.lacks_members = false;
        let rejudged = self.judge_anew(change, &join, full).await?;
        if rejudged.is_different() {
            let (out, came) = (rejudged.out, rejudged.came.len());
            tracing::info!(room.id = %self.room_id, out, came, "judged events otherwise once all members were there");
        }
        let root = std::mem::replace(&mut change.head.root, known_root);
        let ticket = self.shared.store.storage().reserve(1);
        let moves = self.decide(change, |room| room.moves(root)).await?;
        self.move_state(change, moves, TimelineIndex::from(ticket.last())).await?;
        change.head.completed = ticket.last();
        change.head.corrected = rejudged.is_different();
        self.recount(change, root).await?;
        self.note_lacking(change, join.short, &state.lacking);
        self.forget_noted(change).await?;
        record.completed = Some(ticket.last());
        record.corrected = rejudged.is_different();
        change.batch.put(&schema::PARTIAL_ROOMS, &self.room, &record);
        change.tickets.push(ticket);
        Ok(())
    }

    /// Forward extremities from before this server joined again, which wait for the members.
    pub(super) async fn noted_tips(&self) -> Result<Vec<ShortEventId>, RoomError> {
        let own = KeyRange::prefix(&(self.room,));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::PARTIAL_TIPS, own, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, short), ())| short).collect())
    }

    /// The forward extremities from before this server joins (again): the present ones, and those that wait still.
    pub(super) async fn former_tips(&self, change: &Change) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut shorts: BTreeSet<_> = self.noted_tips().await?.into_iter().collect();
        shorts.extend(change.head.tips.iter().map(|tip| tip.short));
        self.events(change, shorts).await
    }

    /// Notes forward extremities of which the members will tell whether the others know them.
    pub(super) fn note_former_tips(&self, change: &mut Change, former: &[Arc<StoredEvent>]) {
        for tip in former.iter().filter(|tip| tip.has_state()) {
            change.batch.put(&schema::PARTIAL_TIPS, &(self.room, tip.short), &());
        }
    }

    /// Marks what came since a join whose members never came: nothing may be concluded from the states there.
    pub(super) async fn give_up_members(&self, change: &mut Change) -> Result<(), RoomError> {
        let record = self.shared.store.storage().get(&schema::PARTIAL_ROOMS, &self.room).await?;
        let Some(record) = record else { return Ok(()) };
        let join = self.known_event(change, &record.join).await?;
        let join = join.ok_or_else(|| ReadError::Lost("the join of a room".to_owned()))?;
        for event in self.events_since_join(change, &join).await?.events {
            change.replace(&Arc::new(StoredEvent { lacks_members: true, ..(*event).clone() }));
        }
        Ok(())
    }

    /// Counts the joined members of each server anew.
    async fn recount(&self, change: &mut Change, root: StateRoot) -> Result<(), RoomError> {
        let mut members = Vec::new();
        for entry in self.with_nodes(change, |nodes| state::entries(nodes, root)).await? {
            if entry.kind == "m.room.member"
                && let Ok(user) = UserId::parse(&entry.state_key)
            {
                members.push((user, content::membership(&self.event(change, entry.event).await?.pdu)));
            }
        }
        self.set_census(change, Census::of(members));
        Ok(())
    }
}

impl RoomHandle {
    /// Whether the state lacks members yet.
    pub fn lacks_members(&self) -> bool {
        self.snapshot().head.lacks_members
    }

    /// Waits until the state has all members.
    pub async fn wait_for_members(&self, limit: Duration) -> Result<(), RoomError> {
        let mut commits = self.storage().watermark_changed();
        let complete = async {
            while self.lacks_members() {
                commits.changed().await;
            }
        };
        // Whether it was in time is seen from the room itself.
        let _ = tokio::time::timeout(limit, complete).await;
        if self.lacks_members() { Err(RoomError::Incomplete) } else { Ok(()) }
    }
}
