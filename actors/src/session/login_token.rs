//! Tokens with which a user lets one further client log in.
//!
//! Spec: client-server API, `POST /_matrix/client/v1/login/get_token` and "Login", `m.login.token`.

use std::time::Duration;

use ruma::OwnedUserId;
use storage::{
    Batch, CommitError, Direction, KeyRange,
    schema::{self, TokenHash},
};

use super::{SessionChange, SessionError, SessionHandle, token::hash_token};
use crate::homeserver::Homeserver;

/// A token that is good for one log-in.
#[derive(Clone, Debug)]
pub struct LoginToken {
    /// The token.
    pub token: String,
    /// How long it works.
    pub expires_in: Duration,
}

/// When a login token stops working, and its hash.
pub type LoginTokenKey = (u64, TokenHash);

/// How long a login token works: what the specification recommends.
const LIFETIME: Duration = Duration::from_secs(120);

/// Expired tokens that are let go of with each new one: faster than they come.
const SWEEP: usize = 10;

/// The key of a token, which says itself when it expires.
fn key_of(token: &str) -> Option<LoginTokenKey> {
    let (expires_ms, _) = token.strip_prefix("glt_")?.split_once('_')?;
    Some((expires_ms.parse().ok()?, hash_token(token)))
}

impl SessionHandle {
    /// Makes a token with which one further client can log in as this user.
    pub async fn login_token(&self) -> Result<LoginToken, SessionError> {
        let now_ms = self.shared.env.clock.now_ms();
        let expires_ms = now_ms + LIFETIME.as_secs() * 1000;
        let token = format!("glt_{expires_ms}_{}", self.shared.env.entropy.token(44));
        let old = KeyRange::all().before(&(now_ms, [0; 32]));
        let expired =
            self.shared.storage.range(&schema::LOGIN_TOKENS, old, Direction::Ascending, SWEEP).await?;
        let expired = expired.into_iter().map(|(key, _)| key).collect();
        self.change(SessionChange::AddLoginToken { key: (expires_ms, hash_token(&token)), expired }).await?;
        Ok(LoginToken { token, expires_in: LIFETIME })
    }
}

impl Homeserver {
    /// The session that a login token lets a client into; the token is good no more.
    ///
    /// None if it does not work: of two who use it at once, one gets in.
    pub async fn redeem_login_token(&self, token: &str) -> Result<Option<SessionHandle>, SessionError> {
        let key = key_of(token).filter(|(expires_ms, _)| *expires_ms > self.env().clock.now_ms());
        let Some(key) = key else { return Ok(None) };
        let user: Option<OwnedUserId> = self.storage().get(&schema::LOGIN_TOKENS, &key).await?;
        let Some(user) = user else { return Ok(None) };
        let mut batch = Batch::new();
        batch.expect(&schema::LOGIN_TOKENS, &key, &user).delete(&schema::LOGIN_TOKENS, &key);
        match self.storage().commit(batch).await {
            Ok(()) => self.session(&user).await.map(Some),
            Err(CommitError::Refused(_)) => Ok(None),
            Err(error) => Err(SessionError::Commit(error)),
        }
    }
}
