//! What a room is asked to do.

use std::time::Duration;

use engine::pdu::{Draft, Pdu};
use ractor::RpcReplyPort;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use storage::{CommitError, schema::SentBy};

use super::{
    Adopt, Adopted, Backfill, Complete, MembershipChange, Outside, Prepared, PurgeCursor, Purged, Receipt,
    Receive, Received, RoomError,
};
use crate::{aliases::AliasClaim, directory::Place};

/// A new room, ready to be stored.
pub struct Create {
    /// The version of the room.
    pub version: RoomVersionId,
    /// The create event.
    pub create: Pdu,
    /// Who creates it.
    pub creator: OwnedUserId,
    /// The creator's further events, in order.
    pub rest: Vec<Draft>,
    /// Whom to invite, with the content of each invite.
    pub invites: Vec<MembershipChange>,
    /// The alias to make with the room, which nobody else makes meanwhile.
    pub alias: Option<AliasClaim>,
    /// Whether to list the room in the public directory.
    pub is_public: bool,
    /// The room that it replaces, which has yet to be told.
    pub replaces: Option<OwnedRoomId>,
}

/// An event that a local user sends.
pub struct Send {
    /// Who sends it.
    pub sender: OwnedUserId,
    /// The event.
    pub draft: Draft,
    /// The client's transaction, if it has one.
    pub sent_by: Option<SentBy>,
}

/// What a room is asked to do.
pub enum RoomMessage {
    /// Make the room.
    Create(Box<Create>, RpcReplyPort<Result<(), RoomError>>),
    /// Append an event of a local user.
    Send(Box<Send>, RpcReplyPort<Result<OwnedEventId, RoomError>>),
    /// Change a membership on behalf of a local user.
    Membership(Box<MembershipChange>, RpcReplyPort<Result<Option<OwnedEventId>, RoomError>>),
    /// Build an event of a local user without appending it.
    PrepareSend(Box<Send>, RpcReplyPort<Result<Prepared, RoomError>>),
    /// Build a membership event without appending it, if it changes anything.
    PrepareChange(Box<MembershipChange>, RpcReplyPort<Result<Option<Pdu>, RoomError>>),
    /// Build a membership event without appending it.
    Prepare(Box<MembershipChange>, RpcReplyPort<Result<Pdu, RoomError>>),
    /// Take in an event from another server.
    Receive(Box<Receive>, RpcReplyPort<Result<Received, RoomError>>),
    /// Keep events that others refer to.
    Outliers(Vec<Pdu>, RpcReplyPort<Result<(), RoomError>>),
    /// Fill a hole in the timeline.
    Backfill(Box<Backfill>, RpcReplyPort<Result<usize, RoomError>>),
    /// Take over the room as a resident server gave it.
    Adopt(Box<Adopt>, RpcReplyPort<Result<Adopted, RoomError>>),
    /// Take in the members that the state lacked.
    Complete(Box<Complete>, RpcReplyPort<Result<(), RoomError>>),
    /// Note a local user's membership in a room that this server is not in.
    Outside(Box<Outside>, RpcReplyPort<Result<(), RoomError>>),
    /// Let go of messages that were sent before a time, from a place on.
    Purge(u64, Option<PurgeCursor>, RpcReplyPort<Result<Purged, RoomError>>),
    /// Hide the room from a user who has left it.
    Forget(OwnedUserId, RpcReplyPort<Result<(), RoomError>>),
    /// Set a public receipt of a local user.
    Receipt(Box<Receipt>, RpcReplyPort<Result<(), RoomError>>),
    /// Set a public receipt of another server's user as soon as its event is there.
    EarlyReceipt(Box<Receipt>, Place),
    /// Start, go on or stop typing.
    Typing(OwnedUserId, Option<Duration>, RpcReplyPort<Result<(), RoomError>>),
    /// A typing notice may have run out.
    TypingDue,
    /// It is time to tie forward extremities together.
    ExtremitiesDue,
    /// A commit failed: what is in memory is ahead of the store.
    CommitFailed(CommitError),
}
