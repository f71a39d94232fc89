//! Accounts as the server as a whole sees them: making them, finding them, and who a request comes from.

use std::time::Duration;

use engine::pdu;
use ruma::{OwnedUserId, UserId, events::TimelineEventType};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use storage::{
    Batch, CommitError, Direction, KeyRange, StoreError,
    schema::{self, AccountRecord, TokenKind},
};

use super::{
    AuthenticationFailure, LoggedIn, OpenIdKey, Profile, Requester, SessionChange, SessionError,
    SessionHandle, SessionMessage, change::is_in_rooms, token::hash_token,
};
use crate::{env::Entropy, homeserver::Homeserver, presence::UserPresence};

/// An account to be made.
#[derive(Clone, Debug)]
pub struct NewAccount {
    /// The user's ID.
    pub user_id: OwnedUserId,
    /// Argon2id in PHC form; none if the account is to have no password.
    pub password_hash: Option<String>,
    /// A guest account.
    pub is_guest: bool,
    /// May use the admin API.
    pub is_admin: bool,
}

/// A token with which a third party can learn the user's ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIdToken {
    /// The token.
    pub token: String,
    /// How long it works.
    pub expires_in: Duration,
    expires_ms: u64,
}

/// How long an OpenID token works.
const OPENID_LIFETIME: Duration = Duration::from_secs(60 * 60);

impl OpenIdToken {
    pub(super) fn new(entropy: &dyn Entropy, now_ms: u64) -> Self {
        let expires_ms = now_ms + OPENID_LIFETIME.as_secs() * 1000;
        let token = format!("got_{expires_ms}_{}", entropy.token(44));
        Self { token, expires_in: OPENID_LIFETIME, expires_ms }
    }

    pub(super) fn key(&self) -> OpenIdKey {
        (self.expires_ms, hash_token(&self.token))
    }
}

/// The key of an OpenID token, which says itself when it expires.
fn open_id_key(token: &str) -> Option<OpenIdKey> {
    let (expires_ms, _) = token.strip_prefix("got_")?.split_once('_')?;
    Some((expires_ms.parse().ok()?, hash_token(token)))
}

impl Homeserver {
    /// Refuses user IDs that may not be registered here.
    ///
    /// Spec: appendices, "User Identifiers".
    pub fn check_username(&self, user_id: &UserId) -> Result<(), SessionError> {
        if user_id.server_name() != self.server_name() {
            return Err(SessionError::InvalidUsername("the user ID belongs to another server"));
        }
        let is_allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
        if user_id.localpart().is_empty() || !user_id.localpart().bytes().all(is_allowed) {
            return Err(SessionError::InvalidUsername("a user name has only a-z, 0-9 and . _ = - / +"));
        }
        if user_id.as_str().len() > 255 {
            return Err(SessionError::InvalidUsername("a user ID has at most 255 bytes"));
        }
        Ok(())
    }

    /// Whether a user ID may be registered and is not taken.
    pub async fn check_free(&self, user_id: &UserId) -> Result<(), SessionError> {
        self.check_username(user_id)?;
        // The server's own user, who may not have spoken yet.
        if self.notice_sender().is_some_and(|sender| sender == user_id) {
            return Err(SessionError::UserInUse);
        }
        match self.storage().get(&schema::ACCOUNTS, user_id).await? {
            Some(_) => Err(SessionError::UserInUse),
            None => Ok(()),
        }
    }

    /// Makes an account; of two who want the same user ID one is refused.
    pub async fn register(&self, new: NewAccount) -> Result<SessionHandle, SessionError> {
        let user_id = new.user_id.clone();
        self.make_account(new).await?;
        self.session(&user_id).await
    }

    /// The same, without the session that nobody needs yet.
    pub(crate) async fn make_account(&self, new: NewAccount) -> Result<(), SessionError> {
        self.check_username(&new.user_id)?;
        let NewAccount { user_id, password_hash, is_guest, is_admin } = new;
        let created = self.env().clock.now();
        let account = AccountRecord {
            password_hash,
            created,
            is_guest,
            is_admin,
            is_deactivated: false,
            is_erased: false,
            is_locked: false,
            is_suspended: false,
        };
        let mut batch = Batch::new();
        batch.expect_absent(&schema::ACCOUNTS, &user_id).put(&schema::ACCOUNTS, &user_id, &account);
        self.storage().commit(batch).await.map_err(|error| match error {
            CommitError::Refused(_) => SessionError::UserInUse,
            error => SessionError::Commit(error),
        })
    }

    /// Accounts in the order of their IDs, at most `limit` after a user.
    pub async fn accounts(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<(OwnedUserId, AccountRecord)>, SessionError> {
        let range = match after {
            Some(user_id) => KeyRange::all().after(user_id),
            None => KeyRange::all(),
        };
        Ok(self.storage().range(&schema::ACCOUNTS, range, Direction::Ascending, limit).await?)
    }

    /// Who a request with this access token comes from; notes the use of the device now and then.
    ///
    /// Spec: client-server API, "Using access tokens", "Soft logout".
    pub async fn authenticate(
        &self,
        token: &str,
        ip: Option<&str>,
    ) -> Result<Requester, AuthenticationFailure> {
        let shared = self.session_shared();
        let known = shared.tokens.look_up(token, &shared.storage, &*shared.env.clock).await?;
        let requester = known.requester.clone();
        if known.is_due(shared.env.clock.now_ms()) {
            match self.session(&requester.user_id).await {
                Ok(session) => session.note_use(&requester, ip),
                Err(error) => tracing::warn!(%error, "the use of a device was not noted"),
            }
        }
        Ok(requester)
    }

    /// Exchanges a refresh token for new tokens.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/refresh`.
    pub async fn refresh(&self, refresh_token: &str) -> Result<LoggedIn, SessionError> {
        let record = self.storage().get(&schema::TOKENS, &hash_token(refresh_token)).await?;
        match record {
            Some(record) if record.kind == TokenKind::Refresh => {
                self.session(&record.user_id).await?.refresh(refresh_token).await
            }
            _ => Err(SessionError::UnknownRefreshToken),
        }
    }

    /// Whose OpenID token it is, if it works.
    ///
    /// Spec: server-server API, `GET /_matrix/federation/v1/openid/userinfo`.
    pub async fn open_id_user(&self, token: &str) -> Result<Option<OwnedUserId>, StoreError> {
        let key = open_id_key(token).filter(|(expires_ms, _)| *expires_ms > self.env().clock.now_ms());
        match key {
            Some(key) => self.storage().get(&schema::OPENID_TOKENS, &key).await,
            None => Ok(None),
        }
    }

    /// The profile of a local user, whose session may be active or not; deactivated accounts have none.
    pub async fn profile(&self, user_id: &UserId) -> Result<Profile, SessionError> {
        let shared = self.session_shared();
        let published = shared.published.get(user_id).map(|published| published.clone());
        let (profile, is_deactivated) = if let Some(published) = published {
            let data = published.data.load();
            (data.profile().clone(), data.account().is_deactivated)
        } else {
            let account = match self.storage().get(&schema::ACCOUNTS, user_id).await? {
                // An application service may make the user just now.
                None if self.summon_user(user_id).await => {
                    self.storage().get(&schema::ACCOUNTS, user_id).await?
                }
                account => account,
            };
            let account = account.ok_or(SessionError::NotFound)?;
            (shared.load_profile(&user_id.to_owned()).await?, account.is_deactivated)
        };
        let is_gone = is_deactivated && profile.fields().next().is_none();
        if is_gone { Err(SessionError::NotFound) } else { Ok(profile) }
    }

    /// Puts a local user's name and avatar into a membership event of theirs that says nothing of them.
    ///
    /// Spec: client-server API, "Events on Change of Profile Information".
    pub async fn fill_in_profile(&self, draft: &mut pdu::Draft) -> Result<(), SessionError> {
        let target = draft.state_key.as_deref().and_then(|key| <&UserId>::try_from(key).ok());
        let Some(target) = target.filter(|_| draft.kind == TimelineEventType::RoomMember) else {
            return Ok(());
        };
        let content = serde_json::from_str::<Map<String, Value>>(draft.content.get()).unwrap_or_default();
        let membership = content.get("membership").and_then(Value::as_str);
        if !membership.is_some_and(|membership| ["join", "invite", "knock"].contains(&membership)) {
            return Ok(());
        }
        let mut filled = self.member_content(target).await?;
        filled.extend(content);
        draft.content = to_raw_value(&filled).map_err(|error| SessionError::Invalid(error.to_string()))?;
        Ok(())
    }

    /// Sets or removes a profile field; who shares a room with the user is told, the rooms in the background.
    pub async fn set_profile_field(
        &self,
        user_id: &UserId,
        name: &str,
        value: Option<Box<RawValue>>,
    ) -> Result<(), SessionError> {
        let session = self.session(user_id).await?;
        session.change(SessionChange::SetProfileField(name.to_owned(), value.map(Into::into))).await?;
        if is_in_rooms(name) {
            self.session_shared().tell_profile(user_id);
            self.tell_rooms_of_profile(&session);
        }
        Ok(())
    }

    /// A local user's presence as others see it.
    pub fn presence(&self, user_id: &UserId) -> UserPresence {
        self.session_shared().presence.of(user_id, self.env().clock.now_ms())
    }

    /// The event that clients get of a user's presence.
    ///
    /// It has name and avatar of the local users in memory, as all are who are not offline: nothing is read for it.
    pub(crate) fn presence_event(&self, presence: &UserPresence) -> Box<RawValue> {
        let published = self.session_shared().published.get(&presence.user_id);
        let data = published.map(|published| published.data.load_full());
        presence.to_event(data.as_ref().map(|data| data.profile()))
    }

    /// Notes that a local user did something, if anybody could see it.
    pub fn note_activity(&self, user_id: &UserId) {
        let shared = self.session_shared();
        if shared.hub().session(user_id).is_some() {
            let outcome = shared.presence.active(user_id, self.env().clock.now_ms());
            shared.tell_presence(user_id, outcome);
        }
    }

    /// Whether a session's user is joined to a room that another user is joined to as well.
    pub async fn shares_room(
        &self,
        session: &SessionHandle,
        other: &UserId,
    ) -> Result<bool, crate::room::RoomError> {
        Ok(!self.mutual_rooms(session.user_id(), other).await?.is_empty())
    }
}

impl SessionHandle {
    /// Notes the use of a device without waiting for it to be stored.
    fn note_use(&self, requester: &Requester, ip: Option<&str>) {
        let Some(device_id) = requester.device_id.clone() else { return };
        self.cast(SessionMessage::Seen { device_id, ip: ip.map(ToOwned::to_owned) });
    }
}
