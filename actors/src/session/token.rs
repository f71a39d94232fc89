//! Who a token belongs to.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::sync::Cache;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId};
use sha2::{Digest, Sha256};
use storage::{
    Storage, StoreError,
    schema::{self, TokenHash, TokenKind, TokenRecord},
};

use super::Restriction;
use crate::{appservice::Service, env::Clock};

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device; an application service may act without one.
    pub device_id: Option<OwnedDeviceId>,
    /// The account is a guest's.
    pub is_guest: bool,
    /// What an administrator has taken from the account.
    pub restriction: Option<Restriction>,
    /// The application service that acts as the user.
    pub service: Option<Arc<Service>>,
}

impl Requester {
    /// The device, for what is kept by device: those who have none share an ID that no device has.
    pub fn device_key(&self) -> OwnedDeviceId {
        self.device_id.clone().unwrap_or_else(|| "".into())
    }
}

/// Why a request has no requester.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationFailure {
    /// No device has this access token (any more).
    #[error("unknown access token")]
    UnknownToken,
    /// The access token has expired; a refresh token gets a new one.
    #[error("access token has expired")]
    Expired,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the store knows of a token.
pub fn hash_token(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// A device's use is noted at most this often, in milliseconds.
const SEEN_EVERY_MS: u64 = 3 * 60 * 1000;

/// Access tokens that are kept at hand, whatever the number of users.
const CACHED_MAX: usize = 16_384;

/// An access token that works, unless it has expired.
pub(super) struct KnownToken {
    pub(super) requester: Requester,
    expires: Option<MilliSecondsSinceUnixEpoch>,
    noted_ms: AtomicU64,
}

impl KnownToken {
    /// Whether this use is to be noted; true for one caller per interval.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        let noted_ms = self.noted_ms.load(Ordering::Relaxed);
        now_ms.saturating_sub(noted_ms) >= SEEN_EVERY_MS
            && self.noted_ms.compare_exchange(noted_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Access tokens in use, in front of the store.
pub(super) struct TokenCache(Cache<TokenHash, Arc<KnownToken>>);

impl TokenCache {
    pub(super) fn new() -> Self {
        Self(Cache::new(CACHED_MAX))
    }

    /// Forgets a token that the store does not have any more.
    ///
    /// This also keeps out what a look-up that is under way has read before.
    pub(super) fn revoke(&self, hash: &TokenHash) {
        self.0.remove(hash);
    }

    /// Whose access token it is.
    pub(super) async fn look_up(
        &self,
        token: &str,
        storage: &Storage,
        clock: &dyn Clock,
    ) -> Result<Arc<KnownToken>, AuthenticationFailure> {
        let hash = hash_token(token);
        let known = match self.0.get_value_or_guard_async(&hash).await {
            Ok(known) => known,
            Err(guard) => {
                let record = storage.get(&schema::TOKENS, &hash).await?;
                let record = record.ok_or(AuthenticationFailure::UnknownToken)?;
                let account = storage.get(&schema::ACCOUNTS, &record.user_id).await?;
                let restriction = account.as_ref().and_then(Restriction::of);
                let known = Arc::new(known(record, restriction)?);
                // Refused if the token was revoked in between; this request may have come before that.
                let _ = guard.insert(known.clone());
                known
            }
        };
        if known.expires.is_some_and(|expires| expires <= clock.now()) {
            return Err(AuthenticationFailure::Expired);
        }
        Ok(known)
    }
}

fn known(record: TokenRecord, restriction: Option<Restriction>) -> Result<KnownToken, AuthenticationFailure> {
    let TokenRecord { user_id, device_id, kind, expires, is_guest } = record;
    match kind {
        TokenKind::Access => Ok(KnownToken {
            requester: Requester {
                user_id,
                device_id: Some(device_id),
                is_guest,
                restriction,
                service: None,
            },
            expires,
            noted_ms: AtomicU64::new(0),
        }),
        TokenKind::Refresh => Err(AuthenticationFailure::UnknownToken),
    }
}
