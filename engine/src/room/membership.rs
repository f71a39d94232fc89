//! Membership changes that local users ask for, and what is remembered of memberships.
//!
//! Spec: client-server API, "Room membership".

use ruma::{OwnedUserId, ServerName, UserId};

use super::content;
use crate::{id::TimelineIndex, pdu::Pdu, room_version::RoomVersion};

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

/// Why a membership cannot change so; the authorization rules, which come later, refuse more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRefusal {
    /// The user who leaves was never in the room.
    #[error("you are not in this room")]
    NotJoined,
    /// The action does not apply to the target's membership.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The target, whose ban is to be lifted, is not banned.
    #[error("the user is not banned")]
    NotBanned,
    /// Whether the user may join a restricted room cannot be said here.
    #[error("this server is in none of the rooms whose members may join")]
    UnableToAuthorise,
}

impl MembershipAction {
    /// The membership that the action leads to; `None` if the target has it already.
    pub fn leads_to(self, present: Option<&str>) -> Result<Option<&'static str>, MembershipRefusal> {
        let refuse = |text| Err(MembershipRefusal::NotAllowed(text));
        match (self, present) {
            (Self::Join { .. }, Some("join"))
            | (Self::Knock, Some("knock"))
            | (Self::Leave, Some("leave")) => Ok(None),
            (Self::Join { .. }, _) => Ok(Some("join")),
            (Self::Knock, _) => Ok(Some("knock")),
            (Self::Leave, None) => Err(MembershipRefusal::NotJoined),
            (Self::Invite, _) => Ok(Some("invite")),
            (Self::Leave, _)
            | (Self::Kick, Some("join" | "invite" | "knock"))
            | (Self::Unban, Some("ban")) => Ok(Some("leave")),
            (Self::Kick, _) => refuse("the user is not in the room"),
            (Self::Ban, _) => Ok(Some("ban")),
            (Self::Unban, _) => Err(MembershipRefusal::NotBanned),
        }
    }

    /// Whether the event has to name a member who lets the user in: a join by the rooms that a restricted join rule
    /// names, of a user who is neither invited nor joined.
    ///
    /// Spec: room version 8, "Authorization rules"; client-server API, "Restricted rooms".
    pub fn needs_authoriser(
        self,
        present: Option<&str>,
        join_rules: Option<&Pdu>,
        version: &RoomVersion,
    ) -> Result<bool, MembershipRefusal> {
        let Self::Join { meets_allow_rule } = self else { return Ok(false) };
        let is_restricted = match content::join_rule(join_rules).as_str() {
            "restricted" => version.authorization.restricted_join_rule,
            "knock_restricted" => version.authorization.knock_restricted_join_rule,
            _ => false,
        };
        if !is_restricted || matches!(present, Some("invite" | "join")) {
            return Ok(false);
        }
        match meets_allow_rule {
            None => Err(MembershipRefusal::UnableToAuthorise),
            Some(false) => Err(MembershipRefusal::NotAllowed("you are in none of the rooms that may join")),
            Some(true) => Ok(true),
        }
    }
}

/// The users of a server who may have the power to invite, the likely ones first: the creators, those with a level of
/// their own, and, where everyone may invite, the recent senders.
pub fn inviters<'a>(
    server: &ServerName,
    create: Option<&Pdu>,
    power_levels: Option<&Pdu>,
    recent: impl Iterator<Item = &'a UserId>,
) -> Vec<OwnedUserId> {
    let mut inviters: Vec<OwnedUserId> = create.iter().map(|event| event.sender().to_owned()).collect();
    inviters.extend(create.iter().flat_map(|event| content::additional_creators(event)));
    inviters.extend(power_levels.iter().flat_map(|event| content::power_users(event)));
    inviters.extend(recent.map(ToOwned::to_owned));
    inviters.retain(|user| user.server_name() == server);
    inviters
}

/// The server of a user whose membership another server's user ended: it learns of it only from that one, since it is
/// not in the room any more, or never was.
pub fn dismissed(pdu: &Pdu) -> Option<&ServerName> {
    let is_end =
        pdu.kind() == "m.room.member" && matches!(content::membership(pdu).as_str(), "leave" | "ban");
    let user = pdu.state_key().and_then(|key| <&UserId>::try_from(key).ok()).filter(|_| is_end)?;
    (user.server_name() != pdu.sender().server_name()).then(|| user.server_name())
}

/// A user's membership as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    /// `join`, `invite`, `knock`, `leave` or `ban`.
    pub membership: String,
    /// Where it began in the timeline (profile changes do not move it).
    pub since: TimelineIndex,
    /// The last time the user stopped being joined, if ever.
    pub left: Option<TimelineIndex>,
}

impl Stay {
    /// The membership that follows one that is remembered, if any, where the state had `before`.
    pub fn after(known: Option<Self>, before: &str, membership: String, at: TimelineIndex) -> Self {
        let leaves = before == "join" && membership != "join";
        let since = known.as_ref().filter(|known| known.membership == membership).map(|known| known.since);
        let left = if leaves { Some(at) } else { known.and_then(|known| known.left) };
        Self { membership, since: since.unwrap_or(at), left }
    }
}
