//! Users who want no invites.
//!
//! Spec: client-server API, "Invite permission".

use engine::pdu::Draft;
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use storage::schema;

use super::{RoomError, RoomShared};

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
    /// Refuses an invite of a local user who wants none; users of other servers are their servers' affair.
    pub(crate) async fn check_invitable(&self, user: &UserId) -> Result<(), RoomError> {
        if user.server_name() != self.server_name {
            return Ok(());
        }
        let key = (user, "", INVITE_PERMISSION);
        match self.store.storage().get(&schema::ACCOUNT_DATA, &key).await? {
            Some(record) if blocks_invites(&record.content) => Err(RoomError::InviteBlocked),
            _ => Ok(()),
        }
    }

    /// The same for an event that may be an invite.
    pub(super) async fn check_draft(&self, draft: &Draft) -> Result<(), RoomError> {
        #[derive(Deserialize)]
        struct Member {
            membership: Option<String>,
        }
        if draft.kind != TimelineEventType::RoomMember {
            return Ok(());
        }
        let member = serde_json::from_str::<Member>(draft.content.get());
        let is_invite = member.is_ok_and(|member| member.membership.as_deref() == Some("invite"));
        match draft.state_key.as_deref().map(UserId::parse) {
            Some(Ok(user)) if is_invite => self.check_invitable(&user).await,
            _ => Ok(()),
        }
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
