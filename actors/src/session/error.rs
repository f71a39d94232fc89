//! Why a session did not do what it was asked.

use std::time::Duration;

use ruma::push::{InsertPushRuleError, RemovePushRuleError};
use storage::{CommitError, StoreError};

use crate::directory::{ActivateError, CallError};

/// Why a session did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The backlog is over its admission limit; nothing was done.
    #[error("the account is busy; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// No account of this server has this user ID.
    #[error("user not found")]
    NotFound,
    /// The user ID is taken, by an account that may be deactivated.
    #[error("user ID is already taken")]
    UserInUse,
    /// The user ID is not one that may be registered here.
    #[error("{0}")]
    InvalidUsername(&'static str),
    /// The account was deactivated.
    #[error("this account has been deactivated")]
    Deactivated,
    /// An administrator has locked the account.
    #[error("this account has been locked")]
    Locked,
    /// The asker lacks the right to do it; nothing was done.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The user has no such device.
    #[error("device not found")]
    DeviceNotFound,
    /// A device ID that is empty or too long.
    #[error("a device ID has 1 to 255 bytes")]
    InvalidDeviceId,
    /// The user has as many of something as one user may have.
    #[error("too many {0} for one account")]
    TooMany(&'static str),
    /// Something is larger than it may be.
    #[error("{0}")]
    TooLarge(String),
    /// The refresh token is unknown or was used.
    #[error("unknown refresh token")]
    UnknownRefreshToken,
    /// This kind of account data is the server's to change.
    #[error("{0} cannot be set through this endpoint")]
    ServerManaged(String),
    /// A profile field's name is longer than 255 bytes.
    #[error("a profile field's name has at most 255 bytes")]
    ProfileKeyTooLarge,
    /// A profile field's name is not one that the specification allows.
    #[error("not a valid profile field name")]
    InvalidProfileKey,
    /// The profile would exceed its limit.
    #[error("a profile takes at most 64 KiB")]
    ProfileTooLarge,
    /// There is no such key.
    #[error("key not found")]
    KeyNotFound,
    /// A cross-signing key needs a master key, and there is none.
    #[error("there is no master key")]
    NoMasterKey,
    /// The public key is the ID of one of the user's devices.
    #[error("the key has the ID of a device")]
    KeyInUse,
    /// A key or a signature is not what it has to be.
    #[error("{0}")]
    InvalidSignature(&'static str),
    /// There is no such version of the key backup.
    #[error("there is no such key backup")]
    BackupNotFound,
    /// The version is not the latest one, which is this.
    #[error("the current version of the key backup is {0}")]
    WrongBackup(u64),
    /// Other changes keep coming between.
    #[error("other changes came between; retry")]
    Overtaken,
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The push rule cannot be set as asked.
    #[error("{0}")]
    PushRule(#[from] InsertPushRuleError),
    /// There is no such push rule.
    #[error("push rule not found")]
    PushRuleNotFound,
    /// The user has unsubscribed from the thread since what a client would subscribe them for.
    #[error("the user has unsubscribed from the thread since")]
    UnsubscribedSince,
    /// One of the server's own push rules cannot be removed.
    #[error("a predefined push rule cannot be removed")]
    PredefinedPushRule,
    /// The store cannot be read; nothing was done.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored row cannot be used.
    #[error("the account's stored data is damaged: {0}")]
    Damaged(String),
    /// The change is not durable; nobody has seen it.
    #[error("could not store: {0}")]
    Commit(CommitError),
    /// The actor ended before it answered; the change may or may not have happened.
    #[error("the session restarted while it worked on this; retry")]
    Crashed,
    /// The actor did not answer in time; the change may yet happen.
    #[error("the session did not answer in time")]
    TimedOut,
    /// The actor could not be started.
    #[error("the session could not be loaded: {0}")]
    Activate(ActivateError),
}

impl SessionError {
    /// Whether it is about what the account's rows hold: to try again does not help.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::Activate(ActivateError::Damaged(_)) => true,
            Self::Store(error) => error.is_damage(),
            _ => false,
        }
    }
}

impl From<CallError> for SessionError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Busy { retry_after } => Self::Busy { retry_after },
            CallError::Crashed => Self::Crashed,
            CallError::TimedOut => Self::TimedOut,
            CallError::Activate(error) => Self::Activate(error),
        }
    }
}

impl From<RemovePushRuleError> for SessionError {
    fn from(error: RemovePushRuleError) -> Self {
        match error {
            RemovePushRuleError::ServerDefault => Self::PredefinedPushRule,
            _ => Self::PushRuleNotFound,
        }
    }
}
