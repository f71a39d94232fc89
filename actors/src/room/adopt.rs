//! Rooms of other servers: joining them through a resident server, being invited to them, leaving them.
//!
//! Spec: server-server API, "Joining Rooms", "Inviting to a room", "Knocking upon a room".

use std::sync::Arc;

use bytes::Bytes;
use engine::{
    id::{Position, ShortEventId, TimelineIndex},
    pdu::{Draft, Pdu},
    room::{
        admit::{Former, Placement},
        census::Census,
        content,
        event::Standing,
        hole::HOLE_PLACES,
    },
    state::StateRoot,
};
use ruma::{OwnedServerName, OwnedUserId, RoomVersionId};
use storage::{
    Batch,
    schema::{self, GapRecord, StrippedStateRecord},
};

use super::{
    ActiveRoom, Empty, Lacking, RoomError, change::Change, load::supported, members::Membership,
    receive::Source,
};

/// Before every place of a timeline.
const BEFORE_ALL: TimelineIndex = TimelineIndex(i64::MIN / 2);

/// A room as a resident server gave it to us when a local user joined.
#[derive(Clone, Debug)]
pub struct Adopt {
    /// The room's version.
    pub version: RoomVersionId,
    /// The state before the join.
    pub state: Vec<Pdu>,
    /// What of the state could not be checked.
    pub lacking: Lacking,
    /// Whatever authorises the state.
    pub auth_chain: Vec<Pdu>,
    /// What of both could not be checked.
    pub unchecked: Lacking,
    /// The join of our user.
    pub join: Pdu,
    /// The resident server.
    pub origin: OwnedServerName,
    /// The servers in the room, if the state lacks members.
    pub partial: Option<Vec<OwnedServerName>>,
}

/// What became of a room that was to be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is as the resident server gave it.
    Done,
    /// This server is in the room already, so that the join is an event like others.
    Resident,
}

/// A membership of a local user in a room that this server is not in: an invite, a knock, or the end of either.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The room's version.
    pub version: RoomVersionId,
    /// Whose membership it is.
    pub user: OwnedUserId,
    /// The membership event; none to leave without the help of another server.
    pub event: Option<Pdu>,
    /// What the other server tells of the room, a JSON array of stripped state.
    pub stripped: Option<Bytes>,
}

impl Empty {
    /// The room as a resident server gave it.
    pub(super) async fn adopt(&self, adopt: Adopt) -> Result<(ActiveRoom, Change, Batch), RoomError> {
        let mut room = self.fresh(&adopt.version)?;
        let mut change = Change::new(&room);
        let extra = self.registration(&room);
        room.adopt(&mut change, adopt).await?;
        Ok((room, change, extra))
    }

    /// A room of which we know no more than that a local user is invited or knocks.
    pub(super) async fn outside(&self, outside: Outside) -> Result<(ActiveRoom, Change, Batch), RoomError> {
        let mut room = self.fresh(&outside.version)?;
        let mut change = Change::new(&room);
        let extra = self.registration(&room);
        room.outside(&mut change, outside).await?;
        Ok((room, change, extra))
    }

    fn registration(&self, room: &ActiveRoom) -> Batch {
        let mut extra = Batch::default();
        extra.expect_absent(&schema::ROOM_IDS, &self.room_id);
        extra.put(&schema::ROOM_IDS, &self.room_id, &room.room);
        extra
    }
}

impl ActiveRoom {
    /// Whether this server takes part in the room.
    pub(super) fn is_resident(&self, change: &Change) -> bool {
        change.head.has_server(&self.shared.server_name)
    }

    /// Takes another version for the room's, as long as this server was never in it: until then nobody proved the former,
    /// and an invite may have said anything.
    fn take_version(&mut self, version: &RoomVersionId) -> Result<(), RoomError> {
        if self.version == *version {
            return Ok(());
        }
        if !self.head.root.is_empty() {
            return Err(RoomError::Invalid(format!("the room has version {}, not {version}", self.version)));
        }
        self.rules = supported(version)?;
        self.version = version.clone();
        Ok(())
    }

    /// Starts (again) from the state that a resident server gave.
    pub(super) async fn adopt(&mut self, change: &mut Change, adopt: Adopt) -> Result<(), RoomError> {
        let Adopt { version, state, mut lacking, auth_chain, unchecked, join, origin, partial } = adopt;
        self.take_version(&version)?;
        let state_ids: Vec<_> = state.iter().map(|pdu| pdu.event_id().clone()).collect();
        let given: Vec<_> = auth_chain.into_iter().chain(state).collect();
        let given_ids: Vec<_> = given.iter().map(|pdu| pdu.event_id().clone()).collect();
        self.store_outliers(change, given).await?;
        lacking.extend(self.unknown_for_want_of(change, &state_ids, &unchecked).await?);
        let join = Arc::new(join);
        let named_by = partial.is_some().then_some(&*join);
        let before = self.decide(change, |room| room.state_given(&state_ids, named_by)).await?;
        if before.is_empty() {
            return Err(RoomError::Invalid("the resident server sent no state".to_owned()));
        }
        if change.head.lacks_members {
            self.give_up_members(change).await?;
        }
        let former = self.former_tips(change).await?;
        // What was known of the room before is out of date: the counts start over with the state.
        self.set_census(change, Census::default());
        change.head.root = StateRoot::default();
        change.head.tips = Vec::new();
        change.head.lacks_members = false;
        change.head.completed = Position(0);
        change.head.corrected = false;
        change.batch.delete(&schema::PARTIAL_ROOMS, &self.room);
        self.forget_noted(change).await?;
        self.forget_lacking(change);
        change.hot = imbl::OrdMap::new();
        let floor = if change.head.latest == TimelineIndex(0) { BEFORE_ALL } else { change.head.latest };
        // What happened while this server was away has its places before the join.
        let places = if floor == BEFORE_ALL { 1 } else { HOLE_PLACES + 1 };
        let at = TimelineIndex::from(self.shared.store.storage().reserve(places).last());
        let moves = self.decide(change, |room| room.moves(before)).await?;
        self.move_state(change, moves, at).await?;
        let missing = join.prev_events().to_vec();
        let placement = self.decide(change, |room| room.enter(&join, before)).await??;
        // A state without its members is not resolved with others.
        if partial.is_some() {
            self.note_former_tips(change, &former);
        } else {
            change.head.tips = self.decide(change, |room| room.unknown_there(&former, before)).await?;
        }
        let source = Source { origin: origin.clone(), sent_by: None };
        let event = self.accept(change, &join, placement, source).await?;
        // By the state that was given.
        self.redact_unseen(change, &given_ids).await?;
        self.note_lacking(change, event.short, &lacking);
        if let Some(servers) = partial {
            self.begin_partial(change, event.pdu.event_id().clone(), &origin, servers);
        }
        if let Some(at) = event.index {
            self.open_gap(change, at, GapRecord { missing, floor, origin, root: None });
        }
        Ok(())
    }

    /// Takes note of a local user's membership in a room that this server is not in.
    pub(super) async fn outside(&mut self, change: &mut Change, outside: Outside) -> Result<(), RoomError> {
        let Outside { version, user, event, stripped } = outside;
        self.take_version(&version)?;
        let pdu = match event {
            Some(pdu) => pdu,
            None => self.own_leave(change, &user)?,
        };
        let after = content::membership(&pdu);
        let before = self.membership_record(&user).await?.map(|record| record.membership);
        let event = self.keep_outside(change, pdu).await?;
        let at = change.position().into();
        let membership = Membership { user: user.clone(), event, at, after: after.clone() };
        self.set_membership(change, membership, before.as_deref().unwrap_or("leave")).await?;
        let key = (user, self.room_id.clone());
        match stripped {
            Some(events) if after != "leave" => {
                change.batch.put(&schema::STRIPPED_STATES, &key, &StrippedStateRecord { events });
            }
            _ => drop(change.batch.delete(&schema::STRIPPED_STATES, &key)),
        }
        Ok(())
    }

    /// Keeps a membership event as an outlier; from when this server was in the room it may have its place in the graph.
    async fn keep_outside(&self, change: &mut Change, pdu: Pdu) -> Result<ShortEventId, RoomError> {
        if self.decide(change, |room| room.is_elsewhere(pdu.event_id())).await? {
            return Err(RoomError::Invalid("an event of another room has this ID".to_owned()));
        }
        let known = self.known_event(change, pdu.event_id()).await?;
        if let Some(placed) = known.as_ref().filter(|known| known.has_place()) {
            change.tickets.push(self.shared.store.storage().reserve(1));
            return Ok(placed.short);
        }
        let placement = Placement { former: known.as_deref().map(Former::from), ..Placement::default() };
        Ok(self.hide(change, &Arc::new(pdu), Standing::Outlier, &placement))
    }

    /// A leave that only this server knows of, for when no other server can be reached.
    fn own_leave(&self, change: &Change, user: &ruma::UserId) -> Result<Pdu, RoomError> {
        let content = serde_json::value::to_raw_value(&serde_json::json!({ "membership": "leave" }))
            .map_err(|error| RoomError::Invalid(error.to_string()))?;
        let draft = Draft {
            kind: "m.room.member".into(),
            state_key: Some(user.to_string()),
            content,
            redacts: None,
            dated: None,
        };
        Ok(self.author().build(&self.machine_head(change), (&[], &[]), None, (user, draft))?)
    }
}
