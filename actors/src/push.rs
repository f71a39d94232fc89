//! Pushing: telling push gateways of what notifies users.
//!
//! Rooms tell [`PushWatch`] of their events, which knows the users with pushers in each room: the others cost
//! nothing. The [`dispatcher`](self::dispatcher) then starts a run for each pusher that there may be news for. A run
//! ([`delivery`](self::delivery)) reads the events after the pusher's durable cursor, judges them by the user's rules,
//! and tells the gateway of one after the other; the cursor moves on once the gateway has taken an event, so that a
//! crash repeats one notification at most. A gateway that does not take them is tried again later and later, also
//! across restarts.
//!
//! Spec: client-server API, "Push Notifications"; push gateway API.

mod badge;
mod delivery;
mod dispatcher;
mod history;
mod metrics;
mod notification;
mod watch;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::StatusCode;
use ruma::{OwnedUserId, UserId};
use storage::{Direction, KeyRange, schema};

pub(crate) use self::dispatcher::Pushing;
pub use self::{
    history::{Notification, NotificationQuery},
    watch::PushWatch,
};
use crate::{
    homeserver::Homeserver,
    session::{NewPusher, PusherKey, SessionChange, SessionError},
};

/// Why a push gateway was not told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushError {
    /// It is not one that this server calls.
    #[error("{0}")]
    Unacceptable(&'static str),
    /// It answered with an error.
    #[error("the push gateway answered {0}")]
    Status(StatusCode),
    /// It could not be reached.
    #[error("the push gateway cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the push gateway did not answer in time")]
    Timeout,
    /// Its answer is larger than it may be.
    #[error("the push gateway's answer is too large")]
    TooLarge,
    /// Its address is not public, and `push.allow_private_addresses` is off.
    #[error("the push gateway's address is not public")]
    PrivateAddress,
}

impl PushError {
    /// All kinds of failure.
    const CAUSES: [&str; 7] =
        ["connect", "private_address", "status_4xx", "status_5xx", "timeout", "too_large", "unacceptable"];

    /// The kind of failure, for metrics.
    fn cause(&self) -> &'static str {
        match self {
            Self::Unacceptable(_) => "unacceptable",
            Self::Status(status) if status.is_server_error() => "status_5xx",
            Self::Status(_) => "status_4xx",
            Self::Unreachable(_) => "connect",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::PrivateAddress => "private_address",
        }
    }
}

/// Calls push gateways. The gateway crate implements it with HTTP.
pub trait PushGateway: Send + Sync + 'static {
    /// Refuses URLs that it would not call.
    fn check(&self, url: &str) -> Result<(), PushError>;

    /// Sends one notification, JSON, and returns the body of the answer.
    ///
    /// Spec: push gateway API, `POST /_matrix/push/v1/notify`.
    fn notify<'a>(&'a self, url: &'a str, body: Bytes) -> BoxFuture<'a, Result<Bytes, PushError>>;
}

/// Reaches no push gateway; for servers that are made without a network.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPushGateways;

impl PushGateway for NoPushGateways {
    fn check(&self, _url: &str) -> Result<(), PushError> {
        Err(PushError::Unacceptable("this server reaches no push gateways"))
    }

    fn notify<'a>(&'a self, url: &'a str, _body: Bytes) -> BoxFuture<'a, Result<Bytes, PushError>> {
        Box::pin(async move { self.check(url).map(|()| Bytes::new()) })
    }
}

/// Whether others may keep a pusher with the same pushkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherUsers {
    /// They lose theirs.
    Lose,
    /// They keep theirs.
    Keep,
}

impl Homeserver {
    /// Creates or replaces a pusher of a user.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/pushers/set`.
    pub async fn set_pusher(
        &self,
        user_id: &UserId,
        new: NewPusher,
        others: OtherUsers,
    ) -> Result<(), SessionError> {
        let url = notification::url(&new.data)
            .ok_or_else(|| SessionError::Invalid("data has no url".to_owned()))?;
        self.pushing().gateway().check(&url).map_err(|error| SessionError::Invalid(error.to_string()))?;
        let session = self.session(user_id).await?;
        let key = new.key.clone();
        session.change(SessionChange::SetPusher(Box::new(new))).await?;
        if others == OtherUsers::Lose {
            self.take_pushkey_from_others(user_id, &key).await?;
        }
        Ok(())
    }

    async fn take_pushkey_from_others(&self, user_id: &UserId, key: &PusherKey) -> Result<(), SessionError> {
        let all = KeyRange::prefix(&(&key.app_id, &key.pushkey));
        let rows = self.storage().range(&schema::PUSHKEYS, all, Direction::Ascending, usize::MAX).await?;
        for ((_, _, other), ()) in rows.into_iter().filter(|((_, _, other), ())| other != user_id) {
            self.remove_pusher(&other, key.clone()).await?;
        }
        Ok(())
    }

    /// Removes a pusher of a user, if there is one.
    pub async fn remove_pusher(&self, user_id: &UserId, key: PusherKey) -> Result<(), SessionError> {
        self.session(user_id).await?.change(SessionChange::RemovePusher(key, None)).await
    }
}

/// A pusher and whose it is.
type Owned = (OwnedUserId, PusherKey);
