//! What is outside a room and yet decides who may be invited to it or reject an invite.
//!
//! Spec: client-server API, "Invite permission" and "Server Notices".

use engine::{pdu::Draft, room::content};
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use storage::schema;

use super::{ActiveRoom, RoomError, RoomShared, change::Change};

/// The type of the account data that says who may invite a user.
pub(crate) const INVITE_PERMISSION: &str = "m.invite_permission_config";

#[derive(Deserialize)]
struct Content {
    default_action: Option<String>,
}

/// Whether account data of this type refuse all invites; what has another shape refuses none.
pub(crate) fn blocks_invites(content: &[u8]) -> bool {
    let content = serde_json::from_slice::<Content>(content);
    content.is_ok_and(|content| content.default_action.as_deref() == Some("block"))
}

impl RoomShared {
    /// Refuses an invite of a local user who wants none, and one that would reach nobody, since this server does not
    /// federate; else users of other servers are their servers' affair.
    pub(crate) async fn check_invitable(&self, user: &UserId) -> Result<(), RoomError> {
        if user.server_name() != self.server_name {
            return match self.client {
                Some(_) => Ok(()),
                None => Err(RoomError::NotAllowed(format!(
                    "{user} cannot be invited: this server does not federate"
                ))),
            };
        }
        let key = (user, "", INVITE_PERMISSION);
        match self.store.storage().get(&schema::ACCOUNT_DATA, &key).await? {
            Some(record) if blocks_invites(&record.content) => Err(RoomError::InviteBlocked),
            _ => Ok(()),
        }
    }
}

impl ActiveRoom {
    /// Refuses a membership event of a local user that things outside the room rule out: an invite of who wants none,
    /// and the rejection of an invite to the server's notices.
    ///
    /// Spec: client-server API, "Invite permission" and "Server Notices", client behaviour.
    pub(super) async fn check_membership(
        &self,
        change: &Change,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<(), RoomError> {
        #[derive(Deserialize)]
        struct Member {
            membership: Option<String>,
        }
        if draft.kind != TimelineEventType::RoomMember {
            return Ok(());
        }
        let member = serde_json::from_str::<Member>(draft.content.get()).ok();
        let user = draft.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
        let (Some(membership), Some(user)) = (member.and_then(|member| member.membership), user) else {
            return Ok(());
        };
        match membership.as_str() {
            "invite" => self.shared.check_invitable(&user).await,
            "leave" if user == sender => {
                let held = self.current(change, "m.room.member", user.as_str()).await?;
                let is_invited = held.is_some_and(|event| content::membership(&event.pdu) == "invite");
                if is_invited && self.is_notice_room_of(&user).await? {
                    return Err(RoomError::NoticeRoom);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn is_notice_room_of(&self, user: &UserId) -> Result<bool, RoomError> {
        let room = self.shared.store.storage().get(&schema::NOTICE_ROOMS, user).await?;
        Ok(room.as_ref() == Some(&self.room_id))
    }
}

#[cfg(test)]
mod tests {
    use super::blocks_invites;

    #[test]
    fn only_the_action_block_blocks() {
        for (content, expected) in [
            (r#"{"default_action":"block"}"#, true),
            (r#"{"default_action":"allow"}"#, false),
            ("{}", false),
            (r#"{"default_action":7}"#, false),
            ("", false),
        ] {
            assert_eq!(blocks_invites(content.as_bytes()), expected, "{content}");
        }
    }
}
