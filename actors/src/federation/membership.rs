//! Joining, leaving, knocking on and inviting to rooms with the help of other servers.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms".

mod invite;
mod join;
mod template;

use engine::{
    pdu::Pdu,
    room_version::{self, SUPPORTED},
};
use ruma::{OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::{Map, Value};
use tracing::Instrument;

use self::template::version_of;
use super::{FederationError, introduction::is_too_much};
use crate::{
    homeserver::Homeserver,
    room::{Outside, RoomError, RoomMessage},
};

/// Servers that are asked to let a user in, one after the other.
const SERVERS_MAX: usize = 10;

/// A way into a room.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Join,
    Knock,
}

impl Homeserver {
    /// Whether this server takes part in a room, so that its users' memberships are its own affair.
    pub async fn is_resident(&self, room_id: &RoomId) -> Result<bool, RoomError> {
        match self.room(room_id).await {
            Ok(room) => Ok(room.snapshot().head.has_server(self.server_name())),
            Err(RoomError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The servers to ask about a room that this one is not in: those that are named, that of the invite, that of the ID.
    pub async fn ways_in(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let (mut servers, mut former) = (Vec::new(), Vec::new());
        match self.room(room_id).await {
            Ok(room) => {
                servers.extend(room.inviting_server(user).await?);
                former.extend(room.snapshot().head.census.servers.keys().cloned());
            }
            Err(RoomError::NotFound) => {}
            Err(error) => return Err(error),
        }
        servers.extend(via.iter().cloned());
        servers.extend(room_id.server_name().map(ToOwned::to_owned));
        // Who was there when we left may still be.
        servers.extend(former);
        let mut ways = Vec::new();
        for server in servers {
            if server != *self.server_name() && !ways.contains(&server) {
                ways.push(server);
            }
        }
        ways.truncate(SERVERS_MAX);
        Ok(ways)
    }

    /// Joins a room through one of its servers.
    pub async fn join_remote(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let (homeserver, user, room_id) = (self.clone(), user.to_owned(), room_id.to_owned());
        let (via, content) = (via.to_vec(), content.clone());
        // On its own: once the resident server has accepted the join, it counts, also if the client hangs up.
        let join = async move { homeserver.enter(Entry::Join, (&user, &room_id), &via, &content).await };
        tokio::spawn(join.in_current_span()).await.map_err(|_| RoomError::Crashed)?
    }

    /// Tries a room's servers one after the other until it works through one.
    async fn enter(
        &self,
        entry: Entry,
        (user, room_id): (&UserId, &RoomId),
        via: &[OwnedServerName],
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let mut last = RoomError::NotFound;
        for server in self.ways_in(user, room_id, via).await? {
            let entered = match entry {
                Entry::Join => self.join_through(&server, user, room_id, content).await,
                Entry::Knock => self.knock_through(&server, user, room_id, content).await,
            };
            match entered {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(%room_id, %server, %error, ?entry, "cannot enter through this server");
                    last = more_telling(last, error);
                }
            }
        }
        Err(last)
    }

    /// Knocks on a room through one of its servers.
    pub async fn knock_remote(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        self.enter(Entry::Knock, (user, room_id), via, content).await
    }

    async fn knock_through(
        &self,
        server: &OwnedServerName,
        user: &UserId,
        room_id: &RoomId,
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let remote = self.remote(server)?;
        let versions: Vec<_> = SUPPORTED.into_iter().filter(may_knock).collect();
        let template = remote.make("knock", room_id, user, &versions).await?;
        let (version, rules) = version_of(&template)?;
        let knock = self.complete(&template, ("knock", room_id, user), content, rules).await?;
        let answer = remote.send_knock(room_id, knock.event_id(), knock.raw().clone()).await?;
        let mut state = answer.knock_room_state;
        if is_too_much(&state) {
            tracing::info!(%room_id, %server, "what came in answer to a knock is too large; it is left out");
            state.clear();
        }
        if rules.authorization.room_create_event_id_as_room_id {
            // The knock is sent already; what does not prove to be of the room is not shown.
            let verified = self.verified(&state, rules).await;
            state = verified
                .iter()
                .filter(|pdu| *pdu.room_id() == *room_id)
                .filter_map(|pdu| serde_json::from_slice(pdu.raw()).ok())
                .collect();
        }
        let stripped = serde_json::to_vec(&state).unwrap_or_default();
        self.note_outside(room_id, version, user, Some(knock), Some(stripped.into())).await
    }

    /// Leaves a room that this server is not in: rejects an invite or takes back a knock.
    ///
    /// If no server of the room helps, the room is left as far as this server is concerned.
    pub async fn leave_remote(
        &self,
        user: &UserId,
        room_id: &RoomId,
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let version = self.room(room_id).await?.snapshot().version.clone();
        for server in self.ways_in(user, room_id, &[]).await? {
            match self.leave_through(&server, user, room_id, content).await {
                Ok((version, event)) => {
                    return self.note_outside(room_id, version, user, Some(event), None).await;
                }
                Err(error) => tracing::info!(%room_id, %server, %error, "cannot leave through this server"),
            }
        }
        self.note_outside(room_id, version, user, None, None).await
    }

    async fn leave_through(
        &self,
        server: &OwnedServerName,
        user: &UserId,
        room_id: &RoomId,
        content: &Map<String, Value>,
    ) -> Result<(RoomVersionId, Pdu), RoomError> {
        let remote = self.remote(server)?;
        let template = remote.make("leave", room_id, user, &[]).await?;
        let (version, rules) = version_of(&template)?;
        let leave = self.complete(&template, ("leave", room_id, user), content, rules).await?;
        remote.send_leave(room_id, leave.event_id(), leave.raw().clone()).await?;
        Ok((version, leave))
    }

    /// Takes note of a local user's membership in a room that this server is not in.
    pub(super) async fn note_outside(
        &self,
        room_id: &RoomId,
        version: RoomVersionId,
        user: &UserId,
        event: Option<Pdu>,
        stripped: Option<bytes::Bytes>,
    ) -> Result<(), RoomError> {
        let outside = Outside { version, user: user.to_owned(), event, stripped };
        let actor = self.room_actor(room_id).await?;
        actor.call(|reply| RoomMessage::Outside(Box::new(outside), reply)).await?
    }
}

fn may_knock(version: &RoomVersionId) -> bool {
    room_version::rules(version).is_some_and(|rules| rules.authorization.knocking)
}

/// Of two failures the one that says more: a refusal says more than silence.
fn more_telling(first: RoomError, second: RoomError) -> RoomError {
    match first {
        RoomError::Remote(FederationError::Status { .. }) | RoomError::Forbidden(_) => first,
        _ => second,
    }
}

/// Whether a user belongs to a server.
pub(super) fn belongs_to(user: &UserId, server: &ServerName) -> bool {
    user.server_name() == server
}

/// The user that a membership event is about.
pub(super) fn target_of(pdu: &Pdu) -> Option<OwnedUserId> {
    pdu.state_key().and_then(|key| UserId::parse(key).ok())
}
