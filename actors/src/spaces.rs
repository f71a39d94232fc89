//! Spaces: rooms that hold other rooms, and the tree that a user sees of them.
//!
//! Spec: client-server API, "Spaces".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use engine::pdu::client;
use futures_util::future::BoxFuture;
use js_int::UInt;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId,
    room::{JoinRuleSummary, RestrictedSummary, RoomSummary, RoomType},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::schema;

use crate::{
    aliases::PublicRoom,
    homeserver::Homeserver,
    room::{RoomError, RoomHandle, allowed_rooms, content_string, membership_of},
};

/// Rooms that a walk through a space looks at, at most.
const WALK_MAX: usize = 2000;

/// Children that a walk goes to once more, at most, since a shorter way leads to them: there can be many ways.
const AGAIN_MAX: usize = 10 * WALK_MAX;

/// How deep a walk goes, at most.
const DEPTH_MAX: usize = 20;

/// Children that another server is told of, at most.
const CHILDREN_MAX: usize = 50;

/// A room as part of a space.
#[derive(Clone, Debug)]
pub struct SpaceRoom {
    /// What it is.
    pub summary: RoomSummary,
    /// The rooms that it holds, in order; none if it is no space.
    pub children: Vec<SpaceChild>,
}

impl SpaceRoom {
    fn childless(summary: RoomSummary) -> Self {
        Self { summary, children: Vec::new() }
    }
}

/// A room that a space holds.
#[derive(Clone, Debug)]
pub struct SpaceChild {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Servers that are likely to know it.
    pub via: Vec<OwnedServerName>,
    /// The `m.space.child` event, stripped but for its time.
    pub event: Box<RawValue>,
}

/// What another server says of a space.
///
/// Spec: server-server API, `GET /_matrix/federation/v1/hierarchy/{roomId}`.
#[derive(Clone, Debug)]
pub struct ServerHierarchy {
    /// The space.
    pub room: SpaceRoom,
    /// Rooms in it that the asking server may know of.
    pub children: Vec<RoomSummary>,
    /// Rooms in it that the asking server may not know of.
    pub inaccessible_children: Vec<OwnedRoomId>,
}

/// Asks other servers for the rooms of spaces that this server is not in.
pub trait RemoteSpaces: Send + Sync {
    /// What one of these servers says of a space, if any of them does.
    fn hierarchy<'a>(
        &'a self,
        room_id: &'a RoomId,
        via: &'a [OwnedServerName],
        suggested_only: bool,
    ) -> BoxFuture<'a, Option<Arc<ServerHierarchy>>>;
}

/// Which part of a space a user asks for.
pub struct SpaceQuery<'a> {
    /// Who asks.
    pub user_id: &'a UserId,
    /// The space.
    pub room_id: &'a RoomId,
    /// Whether only suggested rooms are wanted.
    pub suggested_only: bool,
    /// How many levels to go down, if not all.
    pub max_depth: Option<usize>,
    /// How many rooms of the walk were returned before.
    pub skip: usize,
    /// Most rooms to return.
    pub limit: usize,
}

/// A page of a walk through a space.
pub struct SpacePage {
    /// The rooms, each before those that it holds.
    pub rooms: Vec<SpaceRoom>,
    /// Whether there are more.
    pub has_more: bool,
}

/// A room that a walk has yet to look at.
#[derive(Clone)]
struct Step {
    room_id: OwnedRoomId,
    via: Vec<OwnedServerName>,
    depth: usize,
    /// What another server said of it along with its parent.
    told: Option<RoomSummary>,
}

/// A room that a walk has been to.
struct Visit {
    /// How deep it was when its children were last gone to.
    depth: usize,
    /// Its children, the last one first.
    children: Vec<Step>,
}

/// Where a walk has been and where it has yet to go.
struct Walk {
    max_depth: usize,
    /// The next step is the last one.
    steps: Vec<Step>,
    visits: BTreeMap<OwnedRoomId, Visit>,
    /// Children that may still be gone to once more.
    again: usize,
}

impl Walk {
    /// The next room to look at.
    ///
    /// One that was seen before is not looked at again; but if it is less deep this time, more of what is below it
    /// is within reach.
    fn next(&mut self) -> Option<Step> {
        while let Some(step) = self.steps.pop() {
            let Some(visit) = self.visits.get_mut(&step.room_id) else {
                if self.visits.len() < WALK_MAX {
                    return Some(step);
                }
                continue;
            };
            if step.depth < visit.depth && visit.children.len() <= self.again {
                self.again -= visit.children.len();
                visit.depth = step.depth;
                Self::descend(&mut self.steps, visit, self.max_depth);
            }
        }
        None
    }

    /// Notes what was found, and goes on to the children.
    fn visit(&mut self, room_id: OwnedRoomId, depth: usize, children: Vec<Step>) {
        let visit = Visit { depth, children };
        Self::descend(&mut self.steps, &visit, self.max_depth);
        self.visits.insert(room_id, visit);
    }

    fn descend(steps: &mut Vec<Step>, visit: &Visit, max_depth: usize) {
        if visit.depth < max_depth {
            let depth = visit.depth + 1;
            steps.extend(visit.children.iter().map(|child| Step { depth, ..child.clone() }));
        }
    }
}

impl Homeserver {
    /// A page of the rooms of a space that a user may know of, in depth-first order.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`.
    pub async fn space(
        &self,
        query: &SpaceQuery<'_>,
        remotes: &dyn RemoteSpaces,
    ) -> Result<SpacePage, RoomError> {
        let max_depth = query.max_depth.unwrap_or(DEPTH_MAX).min(DEPTH_MAX);
        // Whoever invited the user can say what the space is.
        let via = self.ways_in(query.user_id, query.room_id, &[]).await?;
        let root = Step { room_id: query.room_id.to_owned(), via, depth: 0, told: None };
        let mut walk = Walk { max_depth, steps: vec![root], visits: BTreeMap::new(), again: AGAIN_MAX };
        // Children that another server has called inaccessible, which are not asked for again.
        let mut closed = BTreeSet::new();
        let mut page = SpacePage { rooms: Vec::new(), has_more: false };
        let mut skipped = 0;
        while let Some(step) = walk.next() {
            let (room, told) = match self.local_space_room(&step.room_id, query.suggested_only).await? {
                Some(room) => (Some(room), Vec::new()),
                None if closed.contains(&step.room_id) => (None, Vec::new()),
                None => {
                    let answer = remotes.hierarchy(&step.room_id, &step.via, query.suggested_only).await;
                    answer.map_or_else(
                        // Of a room that is no space, its parent's server has told everything.
                        || (step.told.map(SpaceRoom::childless), Vec::new()),
                        |answer| {
                            closed.extend(answer.inaccessible_children.iter().cloned());
                            (Some(answer.room.clone()), answer.children.clone())
                        },
                    )
                }
            };
            let room = match room {
                Some(room) if self.may_know(query.user_id, &room.summary).await? => room,
                _ if step.depth == 0 => {
                    return Err(RoomError::NotAllowed("you may not view this room".to_owned()));
                }
                _ => {
                    walk.visit(step.room_id, step.depth, Vec::new());
                    continue;
                }
            };
            let children = room.children.iter().rev().map(|child| Step {
                room_id: child.room_id.clone(),
                via: child.via.clone(),
                depth: step.depth + 1,
                told: told.iter().find(|summary| summary.room_id == child.room_id).cloned(),
            });
            walk.visit(step.room_id, step.depth, children.collect());
            if skipped < query.skip {
                skipped += 1;
            } else if page.rooms.len() == query.limit {
                page.has_more = true;
                break;
            } else {
                page.rooms.push(room);
            }
        }
        Ok(page)
    }

    /// A space and the rooms in it, as far as another server may know of them.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/hierarchy/{roomId}`.
    pub async fn space_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<ServerHierarchy, RoomError> {
        let room = self.local_space_room(room_id, suggested_only).await?.ok_or(RoomError::NotFound)?;
        if !self.server_may_know(server, &room.summary).await? {
            return Err(RoomError::NotFound);
        }
        let mut children = Vec::new();
        let mut inaccessible_children = Vec::new();
        for child in room.children.iter().take(CHILDREN_MAX) {
            let Some(known) = self.local_space_room(&child.room_id, suggested_only).await? else { continue };
            if self.server_may_know(server, &known.summary).await? {
                children.push(known.summary);
            } else {
                inaccessible_children.push(child.room_id.clone());
            }
        }
        Ok(ServerHierarchy { room, children, inaccessible_children })
    }

    /// A room that this server is in.
    async fn local_space_room(
        &self,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<SpaceRoom>, RoomError> {
        let room = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(None),
            result => result?,
        };
        if !room.snapshot().head.has_server(self.server_name()) {
            return Ok(None);
        }
        let summary = room.summary().await?;
        let is_space = summary.room_type == Some(RoomType::Space);
        let children = if is_space { room.space_children(suggested_only).await? } else { Vec::new() };
        Ok(Some(SpaceRoom { summary, children }))
    }

    /// What a room is, and the user's membership in it, if the user may know of it; else it is as if it did not exist.
    ///
    /// Of a room that this server is not in, others are asked: those that are named first.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.
    pub async fn room_summary(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<(RoomSummary, String), RoomError> {
        let summary = if let Some(room) = self.local_space_room(room_id, false).await? {
            Some(room.summary)
        } else {
            let ways = self.ways_in(user_id, room_id, via).await?;
            let told = RemoteSpaces::hierarchy(self, room_id, &ways, false).await;
            told.map(|told| told.room.summary.clone())
        };
        let summary = summary.ok_or(RoomError::NotFound)?;
        if !self.may_know(user_id, &summary).await? {
            return Err(RoomError::NotFound);
        }
        let membership = self.membership(user_id, room_id).await?;
        Ok((summary, membership.unwrap_or_else(|| "leave".to_owned())))
    }

    /// Whether a user may know what a room is: they are in it, may read it, or may ask to be let in.
    ///
    /// Spec: client-server API, `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`.
    pub async fn may_know(&self, user_id: &UserId, summary: &RoomSummary) -> Result<bool, RoomError> {
        let membership = self.membership(user_id, &summary.room_id).await?;
        // Whoever is banned may neither join nor knock.
        if membership.as_deref() == Some("ban") {
            return Ok(summary.world_readable);
        }
        if is_open(summary) {
            return Ok(true);
        }
        if matches!(membership.as_deref(), Some("join" | "invite" | "knock")) {
            return Ok(true);
        }
        for allowed in allowed_by(summary) {
            if self.membership(user_id, allowed).await?.as_deref() == Some("join") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn membership(&self, user_id: &UserId, room_id: &RoomId) -> Result<Option<String>, RoomError> {
        let record = self.storage().get(&schema::MEMBERSHIPS, &(user_id, room_id)).await?;
        Ok(record.map(|record| record.membership))
    }

    /// Whether a server may know what a room is: its users are in it, may read it, or could get in.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/hierarchy/{roomId}`.
    async fn server_may_know(&self, server: &ServerName, summary: &RoomSummary) -> Result<bool, RoomError> {
        if summary.world_readable {
            return Ok(true);
        }
        // Whatever its join rule is, nobody of theirs gets into a room of this server's users alone.
        if !self.room(&summary.room_id).await?.federates().await? {
            return Ok(false);
        }
        if is_open(summary) {
            return Ok(true);
        }
        for room_id in std::iter::once(&summary.room_id).chain(allowed_by(summary)) {
            match self.room(room_id).await {
                Ok(room) if room.snapshot().head.has_server(server) => return Ok(true),
                Ok(room) if *room_id == summary.room_id && room.invites_from(server).await? => {
                    return Ok(true);
                }
                Ok(_) | Err(RoomError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Whether everyone may know what a room is.
fn is_open(summary: &RoomSummary) -> bool {
    let asks_nothing = matches!(
        summary.join_rule,
        JoinRuleSummary::Public | JoinRuleSummary::Knock | JoinRuleSummary::KnockRestricted(_)
    );
    summary.world_readable || asks_nothing
}

/// The rooms whose members may join.
fn allowed_by(summary: &RoomSummary) -> &[OwnedRoomId] {
    match &summary.join_rule {
        JoinRuleSummary::Restricted(restricted) => &restricted.allowed_room_ids,
        _ => &[],
    }
}

#[derive(Deserialize)]
struct ChildContent {
    via: Vec<OwnedServerName>,
    #[serde(default)]
    order: Option<serde_json::Value>,
    #[serde(default)]
    suggested: Option<serde_json::Value>,
}

impl ChildContent {
    /// The order, if it is one.
    ///
    /// Spec: client-server API, `m.space.child`, `order`.
    fn order(&self) -> Option<&str> {
        let order = self.order.as_ref()?.as_str()?;
        let is_valid = order.len() <= 50 && order.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        is_valid.then_some(order)
    }
}

impl RoomHandle {
    /// What the room is, for those who may know of it.
    ///
    /// Spec: client-server API, "Room Summaries".
    pub async fn summary(&self) -> Result<RoomSummary, RoomError> {
        let PublicRoom { room_id, joined, face } = self.public_face().await?;
        let rules = self.current("m.room.join_rules", "").await?;
        let allowed = rules.map(|event| allowed_rooms(&event.pdu)).unwrap_or_default();
        let join_rule = match face.join_rule.as_str() {
            "restricted" => JoinRuleSummary::Restricted(RestrictedSummary::new(allowed)),
            "knock_restricted" => JoinRuleSummary::KnockRestricted(RestrictedSummary::new(allowed)),
            "public" => JoinRuleSummary::Public,
            "knock" => JoinRuleSummary::Knock,
            "private" => JoinRuleSummary::Private,
            // An unknown rule lets nobody in without an invite.
            _ => JoinRuleSummary::Invite,
        };
        let joined = UInt::new_saturating(joined);
        let mut summary =
            RoomSummary::new(room_id, join_rule, face.guest_can_join, joined, face.world_readable);
        summary.canonical_alias = face.canonical_alias;
        summary.name = face.name;
        summary.topic = face.topic;
        summary.avatar_url = face.avatar_url.map(Into::into);
        summary.room_type = face.room_type.map(RoomType::from);
        let encryption = self.current("m.room.encryption", "").await?;
        let algorithm = encryption.and_then(|event| content_string(&event.pdu, "algorithm"));
        summary.encryption = algorithm.map(Into::into);
        summary.room_version = Some(self.snapshot().version.clone());
        Ok(summary)
    }

    /// Whether a user of a server is invited.
    async fn invites_from(&self, server: &ServerName) -> Result<bool, RoomError> {
        let snapshot = self.snapshot();
        if snapshot.head.census.invited == 0 {
            return Ok(false);
        }
        let members = self.state(snapshot.head.root, Some("m.room.member")).await?;
        Ok(members.iter().any(|member| {
            let user = member.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
            user.is_some_and(|user| user.server_name() == server) && membership_of(&member.pdu) == "invite"
        }))
    }

    /// The rooms that this space holds, in order.
    ///
    /// Spec: client-server API, "Ordering of children within a space".
    async fn space_children(&self, suggested_only: bool) -> Result<Vec<SpaceChild>, RoomError> {
        let events = self.state(self.snapshot().head.root, Some("m.space.child")).await?;
        let stripped: Vec<_> = events.iter().map(|event| client::stripped_with_time(&event.pdu)).collect();
        Ok(told_children(&stripped, suggested_only))
    }
}

/// The rooms that valid `m.space.child` events name, in order; each is stripped but for its time.
///
/// Spec: client-server API, "Ordering of children within a space".
pub(crate) fn told_children(events: &[Box<RawValue>], suggested_only: bool) -> Vec<SpaceChild> {
    let mut children = Vec::with_capacity(events.len());
    for event in events {
        if let Some((sent, content, child)) = child_of(event)
            && (!suggested_only || content.suggested == Some(true.into()))
        {
            let order = content.order().map(ToOwned::to_owned);
            children.push(((order.is_none(), order, sent, child.room_id.clone()), child));
        }
    }
    children.sort_by(|(a, _), (b, _)| a.cmp(b));
    children.into_iter().map(|(_, child)| child).collect()
}

#[derive(Deserialize)]
struct ChildEvent {
    #[serde(rename = "type")]
    kind: String,
    state_key: OwnedRoomId,
    content: ChildContent,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
}

/// The room that a valid `m.space.child` event names.
fn child_of(event: &RawValue) -> Option<(MilliSecondsSinceUnixEpoch, ChildContent, SpaceChild)> {
    let child: ChildEvent = serde_json::from_str(event.get()).ok()?;
    if child.kind != "m.space.child" || child.content.via.is_empty() {
        return None;
    }
    let via = child.content.via.clone();
    let room = SpaceChild { room_id: child.state_key, via, event: event.to_owned() };
    Some((child.origin_server_ts, child.content, room))
}
