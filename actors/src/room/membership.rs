//! Membership changes that local users ask for.
//!
//! Spec: client-server API, "Room membership".

pub use engine::room::membership::MembershipAction;
use engine::{
    auth::Powers,
    pdu::{Draft, Pdu},
    room::{
        content,
        membership::{MembershipRefusal, inviters},
    },
};
use ractor::RpcReplyPort;
use ruma::{OwnedEventId, OwnedUserId, UserId};
use serde_json::{Map, Value};
use storage::schema;

use super::{ActiveRoom, RoomError, change::Change};
use crate::session::RoomEntry;

/// Local users of whom one may let another user in and who are looked at for it, at most, if none is found who has power
/// or spoke lately.
const INVITERS_MAX: usize = 1000;

/// A membership change that a local user asks for.
#[derive(Clone, Debug)]
pub struct MembershipChange {
    /// Who asks.
    pub sender: OwnedUserId,
    /// Whose membership it is.
    pub target: OwnedUserId,
    /// What it is to become.
    pub action: MembershipAction,
    /// Further content: the target's profile, a reason, `is_direct`, `third_party_signed` …
    pub content: Map<String, Value>,
}

/// An event of a local user, before it is appended.
#[derive(Debug)]
pub enum Prepared {
    /// The event as it would be now.
    Event(Box<Pdu>),
    /// It was sent before, or would only repeat what is there.
    Known(OwnedEventId),
}

/// What to make of a membership that the target has already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeated {
    /// No event.
    Nothing,
    /// A further join or knock: a server that lost the room joins again, and one may knock with another reason.
    Again,
}

impl ActiveRoom {
    /// Appends the membership event, or returns `None` if things are so already.
    pub(super) async fn change_membership(
        &self,
        change: &mut Change,
        request: MembershipChange,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let sender = request.sender.clone();
        match self.membership_draft(change, request, Repeated::Nothing).await? {
            // Who invites or bans a user twice in the same words tells nobody anything new.
            Some(draft) if self.same_state(change, &sender, &draft).await?.is_some() => Ok(None),
            Some(draft) => self.append(change, &sender, draft, None).await.map(Some),
            None => Ok(None),
        }
    }

    /// The membership event as it would be now, signed by this server, without appending it.
    ///
    /// It is what another server completes to join, or signs too when one of its users is invited.
    pub(super) async fn prepare_membership(&self, request: MembershipChange) -> Result<Pdu, RoomError> {
        let mut change = Change::new(self);
        let sender = request.sender.clone();
        let draft = self.membership_draft(&change, request, Repeated::Again).await?;
        let draft = draft.ok_or_else(|| RoomError::NotAllowed("the user is not in the room".to_owned()))?;
        Ok(self.make(&mut change, &sender, &draft).await?.0)
    }

    /// The same, if it changes anything.
    pub(super) async fn prepare_change(&self, request: MembershipChange) -> Result<Option<Pdu>, RoomError> {
        let mut change = Change::new(self);
        let sender = request.sender.clone();
        match self.membership_draft(&change, request, Repeated::Nothing).await? {
            Some(draft) => Ok(Some(self.make(&mut change, &sender, &draft).await?.0)),
            None => Ok(None),
        }
    }

    async fn membership_draft(
        &self,
        change: &Change,
        request: MembershipChange,
        repeated: Repeated,
    ) -> Result<Option<Draft>, RoomError> {
        let MembershipChange { sender, target, action, mut content } = request;
        let held = self.current(change, "m.room.member", target.as_str()).await?;
        let present = held.as_ref().map(|event| content::membership(&event.pdu));
        let next = match action.leads_to(present.as_deref()) {
            // Strangers are not told who is banned.
            Err(MembershipRefusal::NotBanned) if !self.is_joined(change, &sender).await? => {
                return Err(RoomError::NotJoined);
            }
            next => next?,
        };
        let next = match (next, action, repeated) {
            (Some(next), ..) => next,
            (None, MembershipAction::Join { .. }, Repeated::Again) => "join",
            (None, MembershipAction::Knock, Repeated::Again) => "knock",
            (None, ..) => return Ok(None),
        };
        if action == MembershipAction::Invite {
            self.check_federates(change, &target).await?;
        }
        content.insert("membership".to_owned(), next.into());
        let join_rules = self.current(change, "m.room.join_rules", "").await?;
        let join_rules = join_rules.as_ref().map(|event| &*event.pdu);
        if action.needs_authoriser(present.as_deref(), join_rules, self.rules)? {
            let user = self.local_inviter(change).await?.ok_or(RoomError::UnableToGrantJoin)?;
            content.insert("join_authorised_via_users_server".to_owned(), user.to_string().into());
        }
        Ok(Some(Draft {
            kind: "m.room.member".into(),
            state_key: Some(target.to_string()),
            content: serde_json::value::to_raw_value(&content)
                .map_err(|error| RoomError::Invalid(error.to_string()))?,
            redacts: None,
            dated: None,
        }))
    }

    /// Refuses the invite of a user whom the rules would never let in, since the room is its creator's server's alone.
    async fn check_federates(&self, change: &Change, target: &UserId) -> Result<(), RoomError> {
        let Some(create) = self.current(change, "m.room.create", "").await? else { return Ok(()) };
        if content::federates(&create.pdu) || create.pdu.sender().server_name() == target.server_name() {
            return Ok(());
        }
        Err(RoomError::NotAllowed("the room is closed to users of other servers".to_owned()))
    }

    /// A joined user of this server who may invite, if there is one.
    async fn local_inviter(&self, change: &Change) -> Result<Option<OwnedUserId>, RoomError> {
        let Some(powers) = self.powers(change).await? else { return Ok(None) };
        let power_levels = self.current(change, "m.room.power_levels", "").await?;
        let create = self.current(change, "m.room.create", "").await?;
        let recent = change.head.recent.iter().map(|event| event.pdu.sender());
        let candidates = inviters(
            &self.shared.server_name,
            create.as_ref().map(|event| &*event.pdu),
            power_levels.as_ref().map(|event| &*event.pdu),
            recent,
        );
        if let Some(user) = self.first_inviter(change, &powers, candidates).await? {
            return Ok(Some(user));
        }
        if !powers.everyone_may_invite() {
            return Ok(None);
        }
        let quiet = self.some_local_users(change, INVITERS_MAX).await?;
        self.first_inviter(change, &powers, quiet).await
    }

    /// The first of some users who is joined and may invite.
    async fn first_inviter(
        &self,
        change: &Change,
        powers: &Powers,
        candidates: Vec<OwnedUserId>,
    ) -> Result<Option<OwnedUserId>, RoomError> {
        for user in candidates {
            if powers.may_invite(&user) && self.is_joined(change, &user).await? {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }

    async fn is_joined(&self, change: &Change, user: &UserId) -> Result<bool, RoomError> {
        let member = self.current(change, "m.room.member", user.as_str()).await?;
        Ok(member.is_some_and(|event| content::membership(&event.pdu) == "join"))
    }

    /// Hides the room from a user who has left it.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/rooms/{roomId}/forget`.
    pub(super) async fn forget(&self, user: OwnedUserId, reply: RpcReplyPort<Result<(), RoomError>>) {
        let mut record = match self.membership_record(&user).await {
            Ok(Some(record)) => record,
            Ok(None) => return drop(reply.send(Err(RoomError::NotJoined))),
            Err(error) => return drop(reply.send(Err(error))),
        };
        if !matches!(record.membership.as_str(), "leave" | "ban") {
            let error = RoomError::Invalid("leave the room before forgetting it".to_owned());
            return drop(reply.send(Err(error)));
        }
        record.forgotten = true;
        let storage = self.shared.store.storage();
        let ticket = storage.reserve(1);
        let mut batch = storage::Batch::default();
        batch.put(&schema::MEMBERSHIPS, &(user.clone(), self.room_id.clone()), &record);
        let entry = RoomEntry::new(record, ticket.last());
        let (shared, room_id) = (self.shared.clone(), self.room_id.clone());
        storage.submit(batch, Some(ticket), move |result| {
            if result.is_ok() {
                shared.hub.set_membership(&user, &room_id, &entry);
            }
            let _ = reply.send(result.map_err(RoomError::Commit));
        });
    }
}
