//! Membership changes that local users ask for.
//!
//! Spec: client-server API, "Room membership".

use engine::pdu::{Draft, Pdu};
use ractor::RpcReplyPort;
use ruma::{OwnedEventId, OwnedUserId, UserId};
use serde_json::{Map, Value};
use storage::schema::{self, MembershipRecord};

use super::{ActiveRoom, RoomError, change::Change, content};
use crate::session::RoomEntry;

/// What is to become of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipAction {
    /// The sender joins.
    Join {
        /// Whether the user meets a condition of the restricted join rule; none if that cannot be said here.
        meets_allow_rule: Option<bool>,
    },
    /// The sender knocks.
    Knock,
    /// The sender leaves, rejects an invite or takes back a knock.
    Leave,
    /// The sender invites the target.
    Invite,
    /// The sender removes the target.
    Kick,
    /// The sender bans the target.
    Ban,
    /// The sender lifts the target's ban.
    Unban,
}

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
    /// A further join: a server that lost the room joins again.
    Join,
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
            Some(draft) => self.append(change, &sender, draft, None).await.map(Some),
            None => Ok(None),
        }
    }

    /// The membership event as it would be now, signed by this server, without appending it.
    ///
    /// It is what another server completes to join, or signs too when one of its users is invited.
    pub(super) async fn prepare_membership(&self, request: MembershipChange) -> Result<Pdu, RoomError> {
        let change = Change::new(self);
        let sender = request.sender.clone();
        let draft = self.membership_draft(&change, request, Repeated::Join).await?;
        let draft =
            draft.ok_or_else(|| RoomError::Invalid("the user has this membership already".to_owned()))?;
        self.prepare(&change, &sender, draft).await
    }

    /// The same, if it changes anything.
    pub(super) async fn prepare_change(&self, request: MembershipChange) -> Result<Option<Pdu>, RoomError> {
        let change = Change::new(self);
        let sender = request.sender.clone();
        match self.membership_draft(&change, request, Repeated::Nothing).await? {
            Some(draft) => self.prepare(&change, &sender, draft).await.map(Some),
            None => Ok(None),
        }
    }

    async fn membership_draft(
        &self,
        change: &Change,
        request: MembershipChange,
        repeated: Repeated,
    ) -> Result<Option<Draft>, RoomError> {
        let MembershipChange { target, action, mut content, .. } = request;
        let held = self.current(change, "m.room.member", target.as_str()).await?;
        let present = held.as_ref().map(|event| content::membership(&event.pdu));
        let next = match next_membership(present.as_deref(), action)? {
            Some(next) => next,
            None if repeated == Repeated::Join && matches!(action, MembershipAction::Join { .. }) => "join",
            None => return Ok(None),
        };
        content.insert("membership".to_owned(), next.into());
        if let MembershipAction::Join { meets_allow_rule } = action {
            self.authorise_restricted(change, present.as_deref(), meets_allow_rule, &mut content).await?;
        }
        Ok(Some(Draft {
            kind: "m.room.member".into(),
            state_key: Some(target.to_string()),
            content: serde_json::value::to_raw_value(&content)
                .map_err(|error| RoomError::Invalid(error.to_string()))?,
            redacts: None,
        }))
    }

    /// Names the member who lets the user into a restricted room.
    ///
    /// Spec: room version 8, "Authorization rules"; client-server API, "Restricted rooms".
    async fn authorise_restricted(
        &self,
        change: &Change,
        present: Option<&str>,
        meets_allow_rule: Option<bool>,
        content: &mut Map<String, Value>,
    ) -> Result<(), RoomError> {
        let join_rules = self.current(change, "m.room.join_rules", "").await?;
        let rule = content::join_rule(join_rules.as_ref().map(|event| &*event.pdu));
        let is_restricted = match rule.as_str() {
            "restricted" => self.rules.authorization.restricted_join_rule,
            "knock_restricted" => self.rules.authorization.knock_restricted_join_rule,
            _ => false,
        };
        if !is_restricted || matches!(present, Some("invite" | "join")) {
            return Ok(());
        }
        if !meets_allow_rule.ok_or(RoomError::UnableToAuthoriseJoin)? {
            return Err(RoomError::NotAllowed("you are in none of the rooms that may join".to_owned()));
        }
        let user = self.local_inviter(change).await?.ok_or(RoomError::UnableToGrantJoin)?;
        content.insert("join_authorised_via_users_server".to_owned(), user.to_string().into());
        Ok(())
    }

    /// A joined user of this server who may invite, if there is one.
    async fn local_inviter(&self, change: &Change) -> Result<Option<OwnedUserId>, RoomError> {
        let Some(powers) = self.powers(change).await? else { return Ok(None) };
        let power_levels = self.current(change, "m.room.power_levels", "").await?;
        let create = self.current(change, "m.room.create", "").await?;
        let mut candidates: Vec<OwnedUserId> =
            create.iter().map(|event| event.pdu.sender().to_owned()).collect();
        candidates.extend(power_levels.iter().flat_map(|event| content::power_users(&event.pdu)));
        // Where everyone may invite, any local member will do; the recent senders are at hand.
        candidates.extend(change.head.recent.iter().map(|event| event.pdu.sender().to_owned()));
        for user in candidates {
            if user.server_name() != self.shared.server_name || !self.is_joined(change, &user).await? {
                continue;
            }
            if powers.may_invite(&user) {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }

    async fn is_joined(&self, change: &Change, user: &UserId) -> Result<bool, RoomError> {
        let member = self.current(change, "m.room.member", user.as_str()).await?;
        Ok(member.is_some_and(|event| content::membership(&event.pdu) == "join"))
    }

    /// The stored relation of a local user to this room.
    pub(super) async fn membership_record(
        &self,
        user: &UserId,
    ) -> Result<Option<MembershipRecord>, RoomError> {
        let key = (user.to_owned(), self.room_id.clone());
        Ok(self.shared.store.storage().get(&schema::MEMBERSHIPS, &key).await?)
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

/// The membership that an action leads to; `None` if the target has it already.
fn next_membership(
    present: Option<&str>,
    action: MembershipAction,
) -> Result<Option<&'static str>, RoomError> {
    let refuse = |text: &str| Err(RoomError::NotAllowed(text.to_owned()));
    match (action, present) {
        (MembershipAction::Join { .. }, Some("join"))
        | (MembershipAction::Knock, Some("knock"))
        | (MembershipAction::Leave, Some("leave")) => Ok(None),
        (MembershipAction::Join { .. }, _) => Ok(Some("join")),
        (MembershipAction::Knock, _) => Ok(Some("knock")),
        (MembershipAction::Leave, None) => Err(RoomError::NotJoined),
        (MembershipAction::Invite, _) => Ok(Some("invite")),
        (MembershipAction::Leave, _) | (MembershipAction::Kick, Some("join" | "invite" | "knock")) => {
            Ok(Some("leave"))
        }
        (MembershipAction::Kick, _) => refuse("the user is not in the room"),
        (MembershipAction::Ban, _) => Ok(Some("ban")),
        (MembershipAction::Unban, Some("ban")) => Ok(Some("leave")),
        (MembershipAction::Unban, _) => refuse("the user is not banned"),
    }
}
