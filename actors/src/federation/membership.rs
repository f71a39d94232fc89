//! Joining, leaving, knocking on and inviting to rooms with the help of other servers.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms".

use std::time::Duration;

use engine::{
    pdu::{self, Pdu},
    room::local,
    room_version::{self, RoomVersion, SUPPORTED},
};
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName,
    OwnedUserId, RoomId, RoomVersionId, ServerName, UserId, events::TimelineEventType,
};
use serde_json::{Map, Value, value::RawValue};
use tracing::Instrument;

use super::{
    FederationError,
    introduction::is_too_much,
    remote::{Invite, Template},
    verify::SoFar,
};
use crate::{
    homeserver::Homeserver,
    room::{
        Adopt, Adopted, Lacking, MembershipAction, MembershipChange, Outside, Receive, RoomError, RoomHandle,
        RoomMessage, RoomSnapshot, Send,
    },
};

/// Servers that are asked to let a user in, one after the other.
const SERVERS_MAX: usize = 10;

/// Events in a transaction, at most, by the specification.
const PDUS_MAX: usize = 50;

/// How long a join waits for the members of the room, if they come apart from it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a join waits for the members of the former one.
const PATIENCE_FORMER: Duration = Duration::from_secs(10);

/// Versions from whose events on the room ID alone says nothing about a server to ask.
const UNVERSIONED: RoomVersionId = RoomVersionId::V1;

/// The field of a join's content that names who lets the user into a restricted room.
const AUTHORISED: &str = "join_authorised_via_users_server";

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

    async fn join_through(
        &self,
        server: &OwnedServerName,
        user: &UserId,
        room_id: &RoomId,
        content: &Map<String, Value>,
    ) -> Result<(), RoomError> {
        let remote = self.remote(server)?;
        self.bring_last_events(server, room_id).await?;
        self.complete_former(server, room_id, PATIENCE_FORMER).await;
        let template = remote.make("join", room_id, user, &SUPPORTED).await?;
        let (version, rules) = version_of(&template)?;
        self.check_version(room_id, &version).await?;
        let join = self.complete(&template, ("join", room_id, user), content, rules).await?;
        let lacks_members = self.joining(room_id, self.take_over(server, (version, rules), join)).await?;
        if lacks_members {
            self.begin_completing(room_id).await?;
            // Small rooms are complete before anybody looks; others are used as they are.
            let _ = self.room(room_id).await?.wait_for_members(PATIENCE).await;
        }
        Ok(())
    }

    /// Checks what version another server says that a room has, before it is believed: a room that this one was in keeps
    /// its version. Of others nobody knows it yet, whatever an invite said.
    async fn check_version(&self, room_id: &RoomId, version: &RoomVersionId) -> Result<(), RoomError> {
        let snapshot = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(()),
            room => room?.snapshot(),
        };
        if snapshot.head.root.is_empty() || snapshot.version == *version {
            return Ok(());
        }
        let wrong = format!("the room has version {}, not {version}", snapshot.version);
        Err(FederationError::BadBody(wrong).into())
    }

    /// Sends a server what this one said last in a room that it left: a leave that did not arrive yet, because nobody
    /// could be reached, would end a join that does not come after it. An error says that the server cannot be reached.
    async fn bring_last_events(&self, server: &ServerName, room_id: &RoomId) -> Result<(), RoomError> {
        let room = match self.room(room_id).await {
            Err(RoomError::NotFound) => return Ok(()),
            room => room?,
        };
        let snapshot = room.snapshot();
        // Servers that were not in the room with us are told nothing of it.
        if snapshot.head.has_server(self.server_name()) || !snapshot.head.has_server(server) {
            return Ok(());
        }
        let tips = snapshot.head.tips.iter().rev();
        let own: Vec<_> = tips
            .filter(|tip| belongs_to(tip.pdu.sender(), self.server_name()))
            .take(PDUS_MAX)
            .filter_map(|tip| serde_json::from_slice::<Box<RawValue>>(tip.pdu.raw()).ok())
            .collect();
        if own.is_empty() {
            return Ok(());
        }
        let env = self.env();
        let sent = self
            .remote(server)?
            .send_pdus(&env.entropy.token(24), self.server_name(), env.clock.now_ms(), &own)
            .await;
        match sent {
            // What it makes of them is seen from the state that it gives.
            Ok(()) | Err(FederationError::Status { .. } | FederationError::BadBody(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a join, and takes the room over as the resident server gives it; returns whether it lacks members.
    async fn take_over(
        &self,
        server: &OwnedServerName,
        (version, rules): (RoomVersionId, &'static RoomVersion),
        join: Pdu,
    ) -> Result<bool, RoomError> {
        let room_id = join.room_id().to_owned();
        let answer = self.remote(server)?.send_join(&room_id, join.event_id(), join.raw().clone()).await?;
        // A restricted room's resident server adds its signature.
        let join = match &answer.event {
            Some(event) => {
                let mut countersigned = self.verified(std::slice::from_ref(event), rules).await;
                countersigned.retain(|pdu| pdu.event_id() == join.event_id());
                countersigned.pop().unwrap_or(join)
            }
            None => join,
        };
        // A join cannot wait for a server of which keys are lacking.
        let SoFar { pdus: state, waiting, gone: mut lacking } =
            self.verified_so_far(&answer.state, rules).await;
        lacking.extend(waiting);
        let chain = self.verified_so_far(&answer.auth_chain, rules).await;
        let unchecked: Lacking = lacking.clone().into_iter().chain(chain.waiting).chain(chain.gone).collect();
        let auth_chain = chain.pdus;
        let partial = answer.members_omitted.then_some(answer.servers_in_room);
        let is_partial = partial.is_some();
        let (join_event, origin) = (join.clone(), server.clone());
        let adopt = Adopt {
            version,
            state,
            lacking,
            auth_chain,
            unchecked: unchecked.clone(),
            join: join_event,
            origin,
            partial,
        };
        let actor = self.room_actor(&room_id).await?;
        match actor.call(|reply| RoomMessage::Adopt(Box::new(adopt), reply)).await?? {
            Adopted::Done => {
                self.wait_for_keys(&room_id, &unchecked).await;
                Ok(is_partial)
            }
            Adopted::Resident => {
                let room = self.room(&room_id).await?;
                self.take_in_answer(&room, server, join).await?;
                Ok(false)
            }
        }
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

    /// The invite of another server's user that an event is to be, if it is one and there is a way to that server.
    pub fn foreign_invite(&self, send: &Send) -> Option<MembershipChange> {
        let target = send.draft.state_key.as_deref().and_then(|key| UserId::parse(key).ok())?;
        let is_member = send.draft.kind == TimelineEventType::RoomMember;
        if !is_member || !self.federates() || target.server_name() == self.server_name() {
            return None;
        }
        let content: Map<String, Value> = serde_json::from_str(send.draft.content.get()).ok()?;
        let action = MembershipAction::Invite;
        let invites = content.get("membership").is_some_and(|membership| membership == "invite");
        invites.then(|| MembershipChange { sender: send.sender.clone(), target, action, content })
    }

    /// Invites a user of another server: their server signs the invite before it counts.
    pub async fn invite_remote(
        &self,
        room: &RoomHandle,
        invite: MembershipChange,
    ) -> Result<OwnedEventId, RoomError> {
        let snapshot = room.snapshot();
        let server = invite.target.server_name().to_owned();
        let pdu = room.recommended(room.prepare_membership(invite).await?).await?;
        let event =
            serde_json::from_slice(pdu.raw()).map_err(|error| RoomError::Invalid(error.to_string()))?;
        let body = Invite {
            room_version: snapshot.version.clone(),
            event,
            invite_room_state: room.introduction(pdu.sender()).await?,
            via: None,
        };
        let event = self.invited_event(&server, &snapshot, &pdu, &body).await?;
        let mut signed = self.verified(std::slice::from_ref(&event), snapshot.rules).await;
        signed.retain(|signed| signed.event_id() == pdu.event_id());
        let pdu = signed.pop().ok_or_else(|| {
            FederationError::BadBody("the invited server returned another event".to_owned())
        })?;
        let event_id = pdu.event_id().to_owned();
        let receive = Receive { relay: true, ..Receive::new(pdu, self.server_name().to_owned()) };
        room.accept(receive).await?;
        Ok(event_id)
    }

    /// The invite, signed by the invited user's server.
    async fn invited_event(
        &self,
        server: &ServerName,
        snapshot: &RoomSnapshot,
        pdu: &Pdu,
        body: &Invite,
    ) -> Result<Box<RawValue>, RoomError> {
        let remote = self.remote(server)?;
        let is_old = matches!(snapshot.version, RoomVersionId::V1 | RoomVersionId::V2);
        match remote.invite(&snapshot.room_id, pdu.event_id(), body).await {
            Ok(answer) => Ok(answer.event),
            // Servers from before the present endpoint know only these versions.
            Err(FederationError::Status { status, .. })
                if is_old && matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) =>
            {
                Ok(remote.invite_v1(&snapshot.room_id, pdu.event_id(), body).await?)
            }
            Err(FederationError::Status { errcode, .. }) if errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
                Err(RoomError::UnsupportedThere(snapshot.version.clone()))
            }
            // What is wrong with the request is this server's doing, not the user's.
            Err(FederationError::Status { errcode, error, .. })
                if matches!(errcode.as_str(), "M_MISSING_PARAM" | "M_INVALID_PARAM") =>
            {
                Err(FederationError::BadBody(format!("the invite was refused: {errcode}: {error}")).into())
            }
            Err(error) => Err(error.into()),
        }
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

    /// Checks the template of a membership event, fills it in, hashes and signs it.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/make_join/{roomId}/{userId}` and its likes.
    async fn complete(
        &self,
        template: &Template,
        (membership, room_id, user): (&str, &RoomId, &UserId),
        content: &Map<String, Value>,
        rules: &'static RoomVersion,
    ) -> Result<Pdu, RoomError> {
        let bad = |what: &str| FederationError::BadBody(format!("the template has {what}"));
        let mut object: CanonicalJsonObject =
            serde_json::from_str(template.event.get()).map_err(|error| bad(&error.to_string()))?;
        for (field, expected) in [
            ("type", "m.room.member"),
            ("room_id", room_id.as_str()),
            ("sender", user.as_str()),
            ("state_key", user.as_str()),
        ] {
            if object.get(field).and_then(CanonicalJsonValue::as_str) != Some(expected) {
                return Err(bad(&format!("another {field}")).into());
            }
        }
        let proposed = object.get("content").and_then(CanonicalJsonValue::as_object);
        let stated = proposed.and_then(|content| content.get("membership"));
        if stated.and_then(CanonicalJsonValue::as_str) != Some(membership) {
            return Err(bad("another membership").into());
        }
        let authorised = proposed.and_then(|content| content.get(AUTHORISED)).cloned();
        for field in ["event_id", "hashes", "signatures", "unsigned", "origin"] {
            object.remove(field);
        }
        let mut own: Map<String, Value> = content.clone();
        own.insert("membership".to_owned(), membership.into());
        let mut content: CanonicalJsonObject = serde_json::from_value(Value::Object(own))
            .map_err(|error| RoomError::Invalid(error.to_string()))?;
        content.extend(authorised.map(|user| (AUTHORISED.to_owned(), user)));
        object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
        let date = self.date_of_membership(room_id, user).await?.get();
        object.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(date.into()));
        if rules.event_format.require_event_id {
            let id = format!("${}:{}", self.env().entropy.token(18), self.server_name());
            object.insert("event_id".to_owned(), id.into());
        }
        Ok(pdu::seal(object, &self.room_shared().signing_key, self.server_name(), rules)?)
    }

    /// The date of a local user's next membership event in a room that this server is not in.
    async fn date_of_membership(
        &self,
        room_id: &RoomId,
        user: &UserId,
    ) -> Result<MilliSecondsSinceUnixEpoch, RoomError> {
        let held = match self.room(room_id).await {
            Ok(room) => room.membership_event(user).await?,
            Err(RoomError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let replaced = held.as_ref().map(|event| &*event.pdu);
        Ok(local::date(self.env().clock.now(), replaced, self.server_name()))
    }
}

fn may_knock(version: &RoomVersionId) -> bool {
    room_version::rules(version).is_some_and(|rules| rules.authorization.knocking)
}

fn version_of(template: &Template) -> Result<(RoomVersionId, &'static RoomVersion), RoomError> {
    let version = template.room_version.clone().unwrap_or(UNVERSIONED);
    let rules = room_version::rules(&version).ok_or_else(|| {
        FederationError::BadBody(format!("the room has version {version}, which is not supported here"))
    })?;
    Ok((version, rules))
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
