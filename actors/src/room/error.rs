//! Why a room did not do what it was asked.

use std::time::Duration;

use engine::{
    auth::AuthFailure,
    pdu::PduError,
    room::{create::NewRoomError, local::Refusal, membership::MembershipRefusal},
};
use storage::{CommitError, StoreError};

use super::ReadError;
use crate::{
    directory::{ActivateError, CallError},
    federation::FederationError,
};

/// Why a room did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The backlog is over its admission limit; nothing was done.
    #[error("room is busy; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// There is no such room here.
    #[error("room not found")]
    NotFound,
    /// There is no such event in the room, or the asker may not know of it.
    #[error("event not found")]
    EventNotFound,
    /// The user is not in the room.
    #[error("you are not in this room")]
    NotJoined,
    /// The authorization rules refuse the event; nothing was stored.
    #[error("event refused: {0}")]
    Forbidden(#[from] AuthFailure),
    /// The user lacks the power for it, though no authorization rule speaks of it.
    #[error("{0}")]
    NotAllowed(String),
    /// There is no ban to lift; nothing was stored.
    #[error("the user is not banned")]
    NotBanned,
    /// The invited user wants no invites; nothing was stored.
    #[error("the user does not accept invites")]
    InviteBlocked,
    /// An invite to the room in which the server speaks to the user cannot be rejected.
    #[error("you cannot reject an invite to the room for the server's notices")]
    NoticeRoom,
    /// The sender is suspended; nothing was stored.
    #[error("you cannot do this while you are suspended")]
    Suspended,
    /// The request contradicts itself or the room.
    #[error("{0}")]
    Invalid(String),
    /// The event relates to another one in a way that the specification rules out.
    #[error("{0}")]
    BadRelation(&'static str),
    /// The user has annotated the event so already.
    #[error("you have sent this annotation already")]
    DuplicateAnnotation,
    /// The event is too large or malformed; nothing was stored.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// The room cannot be created as asked.
    #[error(transparent)]
    NewRoom(#[from] NewRoomError),
    /// The alias is taken.
    #[error("room alias is already in use")]
    AliasInUse,
    /// Whether a user may join a restricted room cannot be said here.
    #[error("this server is in none of the rooms whose members may join")]
    UnableToAuthoriseJoin,
    /// The user may join a restricted room, but nobody of this server can let them in.
    #[error("no member of this server can authorise the join")]
    UnableToGrantJoin,
    /// The room has a version that one of the servers does not support.
    #[error("the room has version {0}, which is not supported")]
    IncompatibleVersion(ruma::RoomVersionId),
    /// The server of the invited user does not support the room's version; nobody was invited.
    #[error("the user's server does not support room version {0}")]
    UnsupportedThere(ruma::RoomVersionId),
    /// The room does not let guests join.
    #[error("guests may not join this room")]
    NoGuests,
    /// The room's policy server did not recommend the event; nothing was stored.
    #[error("the room's policy server does not recommend the event: {0}")]
    Policy(FederationError),
    /// The room was joined a moment ago, and its members are still to come.
    #[error("the room's members are not known yet; retry later")]
    Incomplete,
    /// Another server, which is needed for it, refused or did not answer.
    #[error("another server did not do its part: {0}")]
    Remote(#[from] FederationError),
    /// The store cannot be read; nothing was done.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The change is not durable; nobody has seen it.
    #[error("could not store: {0}")]
    Commit(CommitError),
    /// The actor ended before it answered; the change may or may not have happened.
    #[error("the room restarted while it worked on this; retry")]
    Crashed,
    /// The actor did not answer in time; the change may yet happen.
    #[error("the room did not answer in time")]
    TimedOut,
    /// The actor could not be started.
    #[error("the room could not be loaded: {0}")]
    Activate(ActivateError),
}

impl From<StoreError> for RoomError {
    fn from(error: StoreError) -> Self {
        Self::Read(error.into())
    }
}

impl From<CallError> for RoomError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Busy { retry_after } => Self::Busy { retry_after },
            CallError::Crashed => Self::Crashed,
            CallError::TimedOut => Self::TimedOut,
            CallError::Activate(error) => Self::Activate(error),
        }
    }
}

impl From<Refusal> for RoomError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(error) => Self::Pdu(error),
            Refusal::Forbidden(failure) => Self::Forbidden(failure),
        }
    }
}

impl From<MembershipRefusal> for RoomError {
    fn from(refusal: MembershipRefusal) -> Self {
        match refusal {
            MembershipRefusal::NotJoined => Self::NotJoined,
            MembershipRefusal::NotAllowed(text) => Self::NotAllowed(text.to_owned()),
            MembershipRefusal::NotBanned => Self::NotBanned,
            MembershipRefusal::UnableToAuthorise => Self::UnableToAuthoriseJoin,
        }
    }
}
