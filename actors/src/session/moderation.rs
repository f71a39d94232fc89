//! Locked and suspended accounts.
//!
//! Spec: client-server API, "Account moderation" and "Server Administration".

use ruma::{UserId, events::TimelineEventType};
use serde::{Deserialize, Serialize};
use storage::schema::{self, AccountRecord};

use super::{SessionChange, SessionError, change::Draft};
use crate::{
    homeserver::Homeserver,
    room::{RoomError, RoomHandle},
};

/// What an administrator takes from an account for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restriction {
    /// The account cannot be used at all.
    Lock,
    /// The account can read, but hardly do anything that others notice.
    Suspension,
}

impl Restriction {
    /// Whether an account is under it.
    pub fn is_on(self, account: &AccountRecord) -> bool {
        match self {
            Self::Lock => account.is_locked,
            Self::Suspension => account.is_suspended,
        }
    }

    /// The restriction that decides what an account may do, if any does.
    pub(crate) fn of(account: &AccountRecord) -> Option<Self> {
        [Self::Lock, Self::Suspension].into_iter().find(|restriction| restriction.is_on(account))
    }
}

impl Draft {
    /// Puts the account under a restriction, or lifts it.
    pub(super) fn restrict(&mut self, restriction: Restriction, is_on: bool) -> Result<(), SessionError> {
        if self.data.account.is_deactivated {
            return Err(SessionError::Deactivated);
        }
        self.set_account(|account| match restriction {
            Restriction::Lock => account.is_locked = is_on,
            Restriction::Suspension => account.is_suspended = is_on,
        });
        // The tokens stay, but what is remembered of them is out of date.
        let tokens: Vec<_> = self.data.devices.values().filter_map(|device| device.access_token).collect();
        self.revoked.extend(tokens);
        Ok(())
    }
}

impl Homeserver {
    /// Whether a user is an administrator of this server.
    pub async fn is_admin(&self, user_id: &UserId) -> Result<bool, SessionError> {
        Ok(self.session(user_id).await?.data().account().is_admin)
    }

    /// Whether an account is under a restriction, for an administrator.
    pub async fn is_restricted(
        &self,
        admin: &UserId,
        target: &UserId,
        restriction: Restriction,
    ) -> Result<bool, SessionError> {
        let account = self.account_to_moderate(admin, target).await?;
        Ok(restriction.is_on(&account))
    }

    /// Puts an account under a restriction, or lifts it, for an administrator.
    pub async fn restrict(
        &self,
        admin: &UserId,
        target: &UserId,
        restriction: Restriction,
        is_on: bool,
    ) -> Result<(), SessionError> {
        self.account_to_moderate(admin, target).await?;
        if admin == target {
            return Err(SessionError::NotAllowed("administrators cannot do this to themselves"));
        }
        self.session(target).await?.change(SessionChange::Restrict(restriction, is_on)).await
    }

    /// The account that an administrator asks about; who asks is checked first, so that nobody learns who exists.
    async fn account_to_moderate(
        &self,
        admin: &UserId,
        target: &UserId,
    ) -> Result<AccountRecord, SessionError> {
        if !self.is_admin(admin).await? {
            return Err(SessionError::NotAllowed("only administrators of this server may do this"));
        }
        if target.server_name() != self.server_name() {
            return Err(SessionError::Invalid("the user belongs to another server".to_owned()));
        }
        let account = self.storage().get(&schema::ACCOUNTS, target).await?;
        let account = account.filter(|account| !account.is_deactivated).ok_or(SessionError::NotFound)?;
        if account.is_admin && admin != target {
            return Err(SessionError::NotAllowed("the user is an administrator too"));
        }
        Ok(account)
    }
}

/// The membership that a user is to get by an event of their own.
pub(crate) fn own_membership(user: &UserId, draft: &engine::pdu::Draft) -> Option<String> {
    #[derive(Deserialize)]
    struct Member {
        membership: Option<String>,
    }
    let is_own =
        draft.kind == TimelineEventType::RoomMember && draft.state_key.as_deref() == Some(user.as_str());
    let content = serde_json::from_str::<Member>(draft.content.get()).ok().filter(|_| is_own);
    content?.membership
}

impl RoomHandle {
    /// Refuses what a suspended user may not send to a room.
    ///
    /// Left are redactions of the user's own events and the user's own leave.
    pub async fn check_suspended(&self, user: &UserId, draft: &engine::pdu::Draft) -> Result<(), RoomError> {
        let may = match draft.kind {
            TimelineEventType::RoomRedaction => match &draft.redacts {
                Some(target) => self.any_event(target).await?.is_some_and(|event| event.pdu.sender() == user),
                None => false,
            },
            TimelineEventType::RoomMember => {
                own_membership(user, draft).is_some_and(|membership| membership == "leave")
            }
            _ => false,
        };
        if may { Ok(()) } else { Err(RoomError::Suspended) }
    }
}
