//! Creating rooms.
//!
//! Spec: client-server API, "Room creation".

use std::sync::atomic::Ordering;

use engine::{
    pdu::{self, BuildContext, Draft, Pdu},
    room::create::{self, NewRoom},
    room_version::{self, RoomVersion},
};
use futures_util::{StreamExt, stream};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomId, UserId};
use storage::schema;

use super::Homeserver;
use crate::room::{Create, MembershipChange, RoomError, RoomMessage};

/// Invites to other servers that are under way at the same time.
const INVITES_AT_A_TIME: usize = 10;

impl Homeserver {
    /// Creates a room and returns its ID.
    ///
    /// An invite of another server's user that does not come about is an error although the room is there.
    pub async fn create_room(
        &self,
        new: NewRoom,
        invites: Vec<MembershipChange>,
        is_public: bool,
    ) -> Result<OwnedRoomId, RoomError> {
        self.create_replacement(new, invites, is_public, None).await
    }

    /// The same for a room that may replace another one: that it does is stored with it, until [`Effect::Upgrade`] has come about.
    pub(crate) async fn create_replacement(
        &self,
        new: NewRoom,
        invites: Vec<MembershipChange>,
        is_public: bool,
        replaces: Option<OwnedRoomId>,
    ) -> Result<OwnedRoomId, RoomError> {
        let plan = create::plan(&new)?;
        let is_foreign = |invite: &MembershipChange| invite.target.server_name() != self.server_name();
        let (foreign, invites) =
            invites.into_iter().partition(|invite| self.federates() && is_foreign(invite));
        let rules = room_version::rules(&new.version)
            .ok_or_else(|| create::NewRoomError::UnsupportedVersion(new.version.clone()))?;
        let event = self.create_event(&new.creator, plan.create, rules).await?;
        let room_id = event.room_id().to_owned();
        let create = Create {
            version: new.version,
            create: event,
            creator: new.creator,
            rest: plan.rest,
            invites,
            alias: new.alias.map(|alias| self.claim_alias(&alias)).transpose()?,
            is_public,
            replaces,
        };
        let actor = self.0.rooms.get(&room_id).await.map_err(RoomError::Activate)?;
        actor.call(|reply| RoomMessage::Create(Box::new(create), reply)).await??;
        self.invite_others(&room_id, foreign).await?;
        Ok(room_id)
    }

    /// Invites users of other servers to a new room, whose servers sign the invites first.
    ///
    /// One that fails leaves the room as it is, and everybody else invited.
    async fn invite_others(&self, room_id: &RoomId, invites: Vec<MembershipChange>) -> Result<(), RoomError> {
        if invites.is_empty() {
            return Ok(());
        }
        let room = self.room(room_id).await?;
        let sent = stream::iter(invites).map(|invite| self.invite_remote(&room, invite));
        let outcomes: Vec<_> = sent.buffered(INVITES_AT_A_TIME).collect().await;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// The create event of a new room.
    ///
    /// From version 12 on it names the room: a room that was created alike in the same millisecond would have the same ID, so no
    /// two are dated alike. Those of before a start may be, if the clock was set back.
    async fn create_event(
        &self,
        creator: &UserId,
        draft: Draft,
        rules: &'static RoomVersion,
    ) -> Result<Pdu, RoomError> {
        let names_room = rules.authorization.room_create_event_id_as_room_id;
        let room_id = (!names_room).then(|| self.new_room_id());
        let seed = self.0.env.entropy.token(18);
        loop {
            let origin_server_ts =
                if names_room { self.next_creation_time() } else { self.0.env.clock.now() };
            let context = BuildContext {
                room_id: room_id.as_deref(),
                sender: creator,
                origin_server_ts,
                prev_events: &[],
                auth_events: &[],
                event_id_localpart: &seed,
                rules,
                key: &self.0.room_shared.signing_key,
                server_name: &self.0.server_name,
            };
            let event = pdu::build(draft.clone(), &context)?;
            if self.0.storage.get(&schema::ROOM_IDS, event.room_id()).await?.is_none() {
                return Ok(event);
            }
        }
    }

    /// The time, or somewhat later: one that no other room that is named by its create event got.
    fn next_creation_time(&self) -> MilliSecondsSinceUnixEpoch {
        let now = self.0.env.clock.now_ms();
        let after = |last: u64| now.max(last.saturating_add(1));
        let last = self
            .0
            .last_creation_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        let time = after(last.unwrap_or_else(|last| last));
        MilliSecondsSinceUnixEpoch(js_int::UInt::new_saturating(time))
    }

    fn new_room_id(&self) -> OwnedRoomId {
        let localpart = self.0.env.entropy.token(18);
        OwnedRoomId::try_from(format!("!{localpart}:{}", self.0.server_name))
            .expect("a token of letters and digits and a server name make a room ID")
    }
}
