//! What this server does for others in rooms that it is in: lets their users in and out, and tells them of the room.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms",
//! "Retrieving events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use engine::{
    pdu::{self, Pdu, PduError},
    room_version::{self, RoomVersion},
};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
};
use serde_json::{Map, value::RawValue};
use storage::schema::Standing;

use super::{
    membership::{belongs_to, target_of},
    remote::Invite,
    verify::Unverified,
};
use crate::{
    homeserver::Homeserver,
    room::{
        MembershipAction, MembershipChange, Receive, Received, RoomError, RoomHandle, StoredEvent,
        content_string, membership_of,
    },
};

/// Events that are looked at to answer a question about history, at most.
const WALK_MAX: usize = 1000;

/// A room's state at an event, and what authorises it.
pub struct RoomState {
    /// The events of the state.
    pub state: Vec<Arc<StoredEvent>>,
    /// Their auth chain.
    pub auth_chain: Vec<Arc<StoredEvent>>,
}

/// Whether members are wanted in the answer to a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omit {
    /// All of them.
    Nothing,
    /// Only those whom the room is named after.
    Members,
}

/// What a server is told of a room that a user of it joins.
pub struct JoinAnswer {
    /// The state before the join.
    pub state: Vec<Arc<StoredEvent>>,
    /// What authorises it, and the join; without what is in the state anyway, if members are omitted.
    pub auth_chain: Vec<Arc<StoredEvent>>,
    /// The servers in the room before the join.
    pub servers: Vec<OwnedServerName>,
}

/// How long another server waits for a room that this one joined just now.
const COMPLETE_MAX: Duration = Duration::from_secs(10);

impl Homeserver {
    /// A room that this server is in and another may ask about, with all of its members.
    pub async fn whole_room(&self, origin: &ServerName, room_id: &RoomId) -> Result<RoomHandle, RoomError> {
        let room = self.shared_room(origin, room_id).await?;
        room.wait_for_members(COMPLETE_MAX).await?;
        Ok(room)
    }

    /// A room that this server is in and another may ask about.
    pub async fn shared_room(&self, origin: &ServerName, room_id: &RoomId) -> Result<RoomHandle, RoomError> {
        let room = self.room(room_id).await?;
        if !room.snapshot().head.has_server(self.server_name()) {
            return Err(RoomError::NotFound);
        }
        self.admit(origin, room).await
    }

    /// A room that this server is in, or was in with another one, which may ask for its events: often nobody else has
    /// what the leave comes after by which this server went.
    pub async fn known_room(&self, origin: &ServerName, room_id: &RoomId) -> Result<RoomHandle, RoomError> {
        let room = self.room(room_id).await?;
        let head = &room.snapshot().head;
        if !head.has_server(self.server_name()) && !head.has_server(origin) {
            return Err(RoomError::NotFound);
        }
        self.admit(origin, room).await
    }

    async fn admit(&self, origin: &ServerName, room: RoomHandle) -> Result<RoomHandle, RoomError> {
        if !room.admits_server(origin).await? {
            return Err(RoomError::NotAllowed("your server is not allowed in the room".to_owned()));
        }
        Ok(room)
    }

    /// The template of a membership event of another server's user: `join`, `leave` or `knock`.
    pub async fn membership_template(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        membership: &str,
    ) -> Result<(RoomVersionId, CanonicalJsonObject), RoomError> {
        if !belongs_to(user, origin) {
            return Err(RoomError::NotAllowed("the user belongs to another server".to_owned()));
        }
        let room = self.whole_room(origin, room_id).await?;
        let action = match membership {
            "join" => {
                MembershipAction::Join { meets_allow_rule: self.meets_allow_rule(user, room_id).await? }
            }
            "knock" => MembershipAction::Knock,
            _ => MembershipAction::Leave,
        };
        let change = MembershipChange {
            sender: user.to_owned(),
            target: user.to_owned(),
            action,
            content: Map::new(),
        };
        let mut template = room.prepare_membership(change).await?.to_object()?;
        for field in ["event_id", "hashes", "signatures"] {
            template.remove(field);
        }
        Ok((room.snapshot().version.clone(), template))
    }

    /// Takes in the membership event of another server's user: `join`, `leave` or `knock`; passes it on to the room.
    ///
    /// Returns it as it is now in the room, with this server's signature where that is needed.
    pub async fn take_membership(
        &self,
        origin: &ServerName,
        (room_id, event_id): (&RoomId, &EventId),
        membership: &str,
        event: &RawValue,
    ) -> Result<(RoomHandle, Arc<StoredEvent>), RoomError> {
        let room = self.whole_room(origin, room_id).await?;
        let rules = room.snapshot().rules;
        let raw = [RawValue::from_string(event.get().to_owned())
            .map_err(|error| RoomError::Invalid(error.to_string()))?];
        // The signature of our own user's server comes with our consent below.
        let pdu = if let Some(pdu) = self.countersign_restricted(&room, &raw[0]).await? {
            pdu
        } else {
            let (_, checked) = self.verify(&raw, rules).await.pop().ok_or_else(|| no_event(event, rules))?;
            checked?
        };
        check_membership(&pdu, origin, (room_id, event_id), membership)?;
        let (pdu, advice) = room.advice(pdu).await?;
        let receive = Receive { relay: true, advice, ..Receive::new(pdu, origin.to_owned()) };
        room.accept(receive).await?;
        let stored = room.any_event(event_id).await?.ok_or(RoomError::EventNotFound)?;
        Ok((room, stored))
    }

    /// Signs a join that names one of our users as the one who lets the joining user in, if that is in order.
    async fn countersign_restricted(
        &self,
        room: &RoomHandle,
        event: &RawValue,
    ) -> Result<Option<Pdu>, RoomError> {
        let rules = room.snapshot().rules;
        if !rules.authorization.restricted_join_rule {
            return Ok(None);
        }
        // Not signed, and grown by whoever passed it on; parsing it with everything else refuses what is too large.
        let Ok(pdu) = Unverified::parse(event, rules).map(Unverified::into_pdu) else { return Ok(None) };
        let Some(authorised) = content_string(&pdu, "join_authorised_via_users_server") else {
            return Ok(None);
        };
        let is_ours = UserId::parse(&authorised).is_ok_and(|user| belongs_to(&user, self.server_name()));
        if !is_ours {
            return Ok(None);
        }
        let room_id = &room.snapshot().room_id;
        if !room.is_invited(pdu.sender()).await? && !room.is_joined(pdu.sender()).await? {
            let meets_allow_rule = self.meets_allow_rule(pdu.sender(), room_id).await?;
            if !meets_allow_rule.ok_or(RoomError::UnableToAuthoriseJoin)? {
                return Err(RoomError::NotAllowed(
                    "the user is in none of the rooms that may join".to_owned(),
                ));
            }
        }
        let signed = pdu::countersign(&pdu, &self.room_shared().signing_key, self.server_name(), rules)?;
        let raw = serde_json::from_slice::<Box<RawValue>>(signed.raw())
            .map_err(|error| RoomError::Invalid(error.to_string()))?;
        let (_, checked) = self.verify(&[raw], rules).await.pop().ok_or_else(|| no_event(event, rules))?;
        checked.map(Some).map_err(|error| RoomError::NotAllowed(error.to_string()))
    }

    /// Signs an invite of a local user, and takes note of it.
    pub async fn take_invite(
        &self,
        origin: &ServerName,
        (room_id, event_id): (&RoomId, &EventId),
        invite: Invite,
    ) -> Result<Pdu, RoomError> {
        let version = invite.room_version;
        let rules =
            room_version::rules(&version).ok_or_else(|| RoomError::IncompatibleVersion(version.clone()))?;
        let checked = self.verify(std::slice::from_ref(&invite.event), rules).await.pop();
        let (_, checked) = checked.ok_or_else(|| no_event(&invite.event, rules))?;
        let pdu = checked?;
        check_membership(&pdu, origin, (room_id, event_id), "invite")?;
        let target = target_of(&pdu).filter(|user| belongs_to(user, self.server_name()));
        let target =
            target.ok_or_else(|| RoomError::Invalid("the user belongs to another server".to_owned()))?;
        self.check_introduction(room_id, &invite.invite_room_state, rules).await?;
        if !self.is_active_user(&target).await? {
            return Err(RoomError::NotAllowed("there is no such user".to_owned()));
        }
        self.room_shared().check_invitable(&target).await?;
        let resident = self.is_resident(room_id).await?;
        let room = if resident { Some(self.shared_room(origin, room_id).await?) } else { None };
        if let Some(room) = &room {
            check_version(room, rules)?;
        }
        let signed = pdu::countersign(&pdu, &self.room_shared().signing_key, self.server_name(), rules)?;
        if let Some(room) = room {
            let (pdu, advice) = room.advice(signed.clone()).await?;
            let receive = Receive { advice, ..Receive::new(pdu, origin.to_owned()) };
            // What it may lack comes with the room's transactions.
            room.receive(receive).await?;
            return Ok(signed);
        }
        let stripped = serde_json::to_vec(&invite.invite_room_state).unwrap_or_default();
        self.note_outside(room_id, version, &target, Some(signed.clone()), Some(stripped.into())).await?;
        Ok(signed)
    }

    pub(super) async fn is_active_user(&self, user: &UserId) -> Result<bool, RoomError> {
        let account = match self.storage().get(&storage::schema::ACCOUNTS, user).await? {
            // An application service may make the user just now.
            None => return Ok(self.summon_user(user).await),
            account => account,
        };
        Ok(account.is_some_and(|account| !account.is_deactivated))
    }
}

impl RoomHandle {
    /// Takes in an event that must be accepted for anything to come of it.
    pub(super) async fn accept(&self, receive: Receive) -> Result<(), RoomError> {
        match self.receive(receive).await? {
            Received::Accepted => Ok(()),
            Received::SoftFailed => {
                Err(RoomError::NotAllowed("the room does not allow it any more".to_owned()))
            }
            Received::Rejected(reason) => Err(RoomError::NotAllowed(reason)),
            Received::Lacks { .. } => {
                Err(RoomError::Invalid("the event refers to events that are not known here".to_owned()))
            }
        }
    }

    /// Whether a user is invited.
    pub async fn is_invited(&self, user: &UserId) -> Result<bool, RoomError> {
        let member = self.current("m.room.member", user.as_str()).await?;
        Ok(member.is_some_and(|event| membership_of(&event.pdu) == "invite"))
    }

    /// The state before an event, with its auth chain.
    pub async fn state_at(&self, event: &StoredEvent) -> Result<RoomState, RoomError> {
        let state = self.state(event.before, None).await?;
        let auth_chain =
            self.auth_chain(state.iter().flat_map(|event| event.pdu.auth_events().iter().cloned())).await?;
        Ok(RoomState { state, auth_chain })
    }

    /// What a server is told of the room that a user of it joins with `join`.
    ///
    /// Spec: server-server API, `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`.
    pub async fn join_answer(&self, join: &StoredEvent, omit: Omit) -> Result<JoinAnswer, RoomError> {
        let joining = join.pdu.sender().server_name();
        let servers = self.snapshot().head.census.servers.clone();
        let is_before = |(server, count): &(OwnedServerName, u64)| *server != joining || *count > 1;
        let servers = servers.into_iter().filter(is_before).map(|(server, _)| server).collect();
        if omit == Omit::Nothing {
            let RoomState { state, auth_chain } = self.state_at(join).await?;
            return Ok(JoinAnswer { state, auth_chain, servers });
        }
        let mut state = self.state_without_members(join.before).await?;
        let names_room = |event: &Arc<StoredEvent>| {
            let field = match event.pdu.kind() {
                "m.room.name" => "name",
                "m.room.canonical_alias" => "alias",
                _ => return false,
            };
            event.pdu.state_key() == Some("") && content_string(&event.pdu, field).is_some()
        };
        if !state.iter().any(names_room) {
            let user = join.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
            state.extend(self.heroes(join.before, user.unwrap_or(join.pdu.sender())).await?);
        }
        let roots = state.iter().flat_map(|event| event.pdu.auth_events());
        let roots: BTreeSet<_> = roots.chain(join.pdu.auth_events()).cloned().collect();
        let mut auth_chain = self.auth_chain(roots).await?;
        let known: BTreeSet<_> = state.iter().map(|event| event.short).collect();
        auth_chain.retain(|event| !known.contains(&event.short));
        Ok(JoinAnswer { state, auth_chain, servers })
    }

    /// Some events with everything that authorises them.
    pub async fn auth_chain(
        &self,
        from: impl IntoIterator<Item = OwnedEventId>,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut found = BTreeMap::<OwnedEventId, Arc<StoredEvent>>::new();
        let mut open: BTreeSet<OwnedEventId> = from.into_iter().collect();
        while let Some(id) = open.pop_first() {
            let Some(event) = self.any_event(&id).await? else { continue };
            open.extend(event.pdu.auth_events().iter().filter(|id| !found.contains_key(*id)).cloned());
            found.insert(id, event);
        }
        Ok(found.into_values().collect())
    }

    /// Events before others, newest first, those included: what `backfill` asks for.
    pub async fn events_before(
        &self,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = BTreeMap::new();
        for id in from {
            self.open(id, &mut seen, &mut open).await?;
        }
        let mut walked = 0;
        while found.len() < limit
            && walked < WALK_MAX
            && let Some((_, event)) = open.pop_last()
        {
            for prev in event.pdu.prev_events() {
                self.open(prev, &mut seen, &mut open).await?;
            }
            walked += 1;
            found.extend(Some(event).filter(|event| event.standing != Standing::Rejected));
        }
        Ok(found)
    }

    /// Events between those that a server has and those that it got, oldest first: what `get_missing_events` asks for.
    pub async fn events_between(
        &self,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
        min_depth: u64,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut seen: BTreeSet<OwnedEventId> = earliest.iter().cloned().collect();
        let mut open = BTreeMap::new();
        let mut found = Vec::new();
        for id in latest {
            if let Some(event) = self.any_event(id).await? {
                for prev in event.pdu.prev_events() {
                    self.open(prev, &mut seen, &mut open).await?;
                }
            }
        }
        let mut walked = 0;
        while found.len() < limit
            && walked < WALK_MAX
            && let Some((_, event)) = open.pop_last()
        {
            walked += 1;
            if event.pdu.depth() < min_depth {
                continue;
            }
            for prev in event.pdu.prev_events() {
                self.open(prev, &mut seen, &mut open).await?;
            }
            found.extend(Some(event).filter(|event| event.standing != Standing::Rejected));
        }
        found.reverse();
        Ok(found)
    }

    async fn open(
        &self,
        id: &EventId,
        seen: &mut BTreeSet<OwnedEventId>,
        open: &mut BTreeMap<(u64, OwnedEventId), Arc<StoredEvent>>,
    ) -> Result<(), RoomError> {
        if !seen.insert(id.to_owned()) {
            return Ok(());
        }
        // Soft-failed events come along with what refers to them; rejected ones only lead on.
        if let Some(event) = self.any_event(id).await?
            && event.has_place()
        {
            open.insert((event.pdu.depth(), id.to_owned()), event);
        }
        Ok(())
    }
}

/// Why something that came as an event has not even an ID.
///
/// Spec: room version 6, "Canonical JSON".
fn no_event(event: &RawValue, rules: &RoomVersion) -> RoomError {
    match Unverified::parse(event, rules) {
        Err(error @ PduError::Json(_)) => RoomError::Pdu(error),
        _ => RoomError::Invalid("the body is no event".to_owned()),
    }
}

/// Whether an event that was read by the rules of one version is an event of a room: by others it would have another ID.
///
/// The first form of the endpoint does not say which of the first two versions it is, which write events alike.
fn check_version(room: &RoomHandle, rules: &RoomVersion) -> Result<(), RoomError> {
    let own = room.snapshot().rules;
    if own.id == rules.id || own.references_have_hashes && rules.references_have_hashes {
        return Ok(());
    }
    Err(RoomError::Invalid(format!("the room is of version {}", own.id)))
}

/// Whether a membership event is what the endpoint is for.
fn check_membership(
    pdu: &Pdu,
    origin: &ServerName,
    (room_id, event_id): (&RoomId, &EventId),
    membership: &str,
) -> Result<(), RoomError> {
    let wrong = |what: &str| Err(RoomError::Invalid(format!("the event has another {what}")));
    if *pdu.event_id() != event_id {
        return wrong("ID than the path");
    }
    if *pdu.room_id() != *room_id {
        return wrong("room than the path");
    }
    if pdu.kind() != "m.room.member" || membership_of(pdu) != membership {
        return wrong("type or membership than the endpoint is for");
    }
    if !belongs_to(pdu.sender(), origin) {
        return Err(RoomError::Invalid("the sender belongs to another server".to_owned()));
    }
    if membership != "invite" && pdu.state_key() != Some(pdu.sender().as_str()) {
        return wrong("user than its sender");
    }
    Ok(())
}
