//! A room: the single writer of its event graph, state, receipts and typing notices.
//!
//! Owns the rows of its room in `ROOMS`, `EVENTS`, `EVENT_IDS`, `TIMELINE`, `STATE_NODES`, `TXN_IDS`,
//! `MEMBERSHIPS` and `RECEIPTS`. States: *empty* (the ID is new; only `Create` is answered otherwise than
//! with "not found") and *live*. The directory starts it under the room supervisor and passivates it
//! when it is idle or memory is short. A restart costs one read of the head and the recent timeline;
//! what was not durable has not been seen by anybody. The backlog limit is `[actors]`'s.
//!
//! Writes are pipelined: an event is applied to the hot copy, its batch is handed to the storage writer
//! together with the reply, and the next message is taken. Once durable, the writer's completion
//! publishes the snapshot, marks the sessions concerned, and replies.

mod adopt;
mod begin;
mod change;
mod completion;
mod decide;
mod early_receipts;
mod ephemeral;
mod erasure;
mod error;
mod event;
mod extremities;
mod handle;
mod heroes;
mod history;
mod load;
mod members;
mod membership;
mod mend;
mod message;
mod near;
mod page;
mod partial;
mod pending;
mod permission;
mod policy;
mod purge;
mod read;
mod receive;
mod redaction;
mod rejudge;
mod related;
mod relations;
mod send;
mod snapshot;
mod stripped;
mod txns;
mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use dashmap::DashMap;
pub use engine::room::{
    StoredEvent,
    content::{allowed_rooms, join_rule, membership as membership_of, string as content_string},
    receive::Received,
    reset::ResetRecord,
};
use engine::{id::ShortRoomId, pdu::SigningKey, room::Merged, room_version::RoomVersion, state::Salt};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomVersionId};
use storage::schema::TxnKey;

pub(crate) use self::mend::lacking_of;
pub(crate) use self::permission::{INVITE_PERMISSION, blocks_invites};
pub(crate) use self::txns::Txns;
pub use self::{
    adopt::{Adopt, Adopted, Outside},
    erasure::Erasures,
    error::RoomError,
    event::{ReadError, RoomStore},
    extremities::is_dummy,
    handle::RoomHandle,
    history::Backfill,
    membership::{MembershipAction, MembershipChange, Prepared},
    mend::{GivenState, Lacking, Lacks},
    message::{Create, RoomMessage, Send},
    page::{Page, PageDirection, PageQuery},
    partial::Complete,
    policy::Advice,
    purge::{PurgeCursor, Purged},
    read::{Access, Viewer},
    receive::Receive,
    related::{RECURSION_DEPTH, RelatedCache, RelationQuery},
    snapshot::{Published, RECENT_MAX, Receipt, Receipts, RoomHead, RoomSnapshot, Typing},
};
use self::{
    change::Change, early_receipts::EarlyReceipts, ephemeral::Typists, extremities::TidyUp, pending::Pending,
};
use crate::{
    destination::Outbox,
    directory::{DirectoryActor, Meter},
    effects::ClosedRooms,
    env::Env,
    federation::FederationClient,
    hub::Hub,
    metrics::Metrics,
    users::ChangedRooms,
};

/// An event type and a state key.
pub type StateKey = (String, String);

/// What all rooms share.
pub struct RoomShared {
    /// This server's name.
    pub server_name: OwnedServerName,
    /// Signs this server's events.
    pub signing_key: Arc<SigningKey>,
    /// Clock and randomness.
    pub env: Env,
    /// Events and state, cached.
    pub store: RoomStore,
    /// Sends requests to other servers; none without federation.
    pub client: Option<Arc<dyn FederationClient>>,
    /// Whom to tell of changes.
    pub hub: Hub,
    /// What other servers are to have.
    pub outbox: Arc<Outbox>,
    /// The views of active rooms.
    pub published: DashMap<OwnedRoomId, Arc<Published>>,
    /// The rooms whose members the user directory has not taken in.
    pub changed_rooms: ChangedRooms,
    /// Users who asked for the erasure of what they sent.
    pub erasures: Erasures,
    /// What clients' transactions made.
    pub(crate) txns: Arc<Txns>,
    /// Is told of rooms that close to guests.
    pub(crate) closed_rooms: ClosedRooms,
    /// What is counted.
    pub metrics: Metrics,
}

/// The actor; see the module's documentation.
pub struct RoomActor;

/// What a room actor holds: nothing but its ID until the room exists.
pub enum RoomState {
    /// No such room, yet.
    Empty(Empty),
    /// The room.
    Live(Box<ActiveRoom>),
}

/// A room that does not exist.
pub struct Empty {
    room_id: OwnedRoomId,
    shared: Arc<RoomShared>,
    meter: Meter,
}

/// A room in memory.
pub struct ActiveRoom {
    shared: Arc<RoomShared>,
    meter: Meter,
    room_id: OwnedRoomId,
    room: ShortRoomId,
    version: RoomVersionId,
    rules: &'static RoomVersion,
    salt: Salt,
    head: RoomHead,
    /// State events in use: what authorises events, mostly.
    hot: imbl::OrdMap<StateKey, Arc<StoredEvent>>,
    /// States that were resolved lately, by the states that they were resolved from.
    merged: Merged,
    pending: Pending,
    /// Recent transactions, for retries that come while the first try is not durable yet.
    txns: BTreeMap<TxnKey, OwnedEventId>,
    txn_order: VecDeque<TxnKey>,
    receipts: Receipts,
    typists: Typists,
    tidy_up: TidyUp,
    early_receipts: EarlyReceipts,
    published: Arc<Published>,
}

/// How many recent transactions a room remembers; older ones are found in the store.
const TXNS_MAX: usize = 1024;

/// How many state events a room keeps at hand before it starts over.
const HOT_MAX: usize = 4096;

/// Resolutions that a room remembers before it starts over.
const MERGED_MAX: usize = 64;

impl Actor for RoomActor {
    type Msg = RoomMessage;
    type State = RoomState;
    type Arguments = (OwnedRoomId, Arc<RoomShared>, Meter);

    async fn pre_start(
        &self,
        myself: ActorRef<RoomMessage>,
        (room_id, shared, meter): Self::Arguments,
    ) -> Result<RoomState, ActorProcessingErr> {
        let empty = Empty { room_id, shared, meter };
        Ok(match empty.load().await? {
            Some(mut room) => {
                room.announce();
                room.mind_extremities(&myself);
                RoomState::Live(Box::new(room))
            }
            None => RoomState::Empty(empty),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<RoomMessage>,
        message: RoomMessage,
        state: &mut RoomState,
    ) -> Result<(), ActorProcessingErr> {
        match state {
            RoomState::Live(room) => {
                room.handle(&myself, message).await?;
                room.meter.set_bytes(room.weight());
            }
            RoomState::Empty(empty) => {
                if let Some(room) = empty.handle(&myself, message).await {
                    *state = RoomState::Live(Box::new(room));
                }
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<RoomMessage>,
        state: &mut RoomState,
    ) -> Result<(), ActorProcessingErr> {
        if let RoomState::Live(room) = state {
            let own = room.published.clone();
            room.shared.published.remove_if(&room.room_id, |_, known| Arc::ptr_eq(known, &own));
        }
        Ok(())
    }
}

impl DirectoryActor for RoomActor {
    type Key = OwnedRoomId;
    type Context = Arc<RoomShared>;
    const CLASS: &'static str = "room";

    fn new() -> Self {
        Self
    }

    fn arguments(key: &OwnedRoomId, context: &Arc<RoomShared>, meter: Meter) -> Self::Arguments {
        (key.clone(), context.clone(), meter)
    }
}

impl ActiveRoom {
    async fn handle(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        message: RoomMessage,
    ) -> Result<(), ActorProcessingErr> {
        self.pending.confirm(self.shared.store.storage().watermark());
        match message {
            RoomMessage::Create(_, reply) => {
                let _ = reply.send(Err(RoomError::Invalid("the room exists already".to_owned())));
            }
            RoomMessage::Send(send, reply) => self.send(myself, *send, reply).await,
            RoomMessage::Membership(membership, reply) => {
                let mut change = Change::new(self);
                let outcome = self.change_membership(&mut change, *membership).await;
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::PrepareSend(send, reply) => drop(reply.send(self.prepare_send(*send).await)),
            RoomMessage::PrepareChange(membership, reply) => {
                drop(reply.send(self.prepare_change(*membership).await));
            }
            RoomMessage::Prepare(membership, reply) => {
                drop(reply.send(self.prepare_membership(*membership).await));
            }
            RoomMessage::Receive(receive, reply) => {
                let mut change = Change::new(self);
                let event_id = receive.pdu.event_id().clone();
                let txn = receive.sent_by.as_ref().map(|sent_by| self.txn_of(&receive.pdu, sent_by));
                let outcome = self.receive(&mut change, *receive).await;
                if matches!(outcome, Ok(Received::Accepted)) {
                    self.remember_txn(txn, &event_id);
                }
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Outliers(pdus, reply) => {
                let mut change = Change::new(self);
                let outcome = self.keep_outliers(&mut change, pdus).await;
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Backfill(backfill, reply) => {
                let mut change = Change::new(self);
                let outcome = self.backfill(&mut change, *backfill).await;
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Complete(complete, reply) => {
                let mut change = Change::new(self);
                let outcome = self.complete(&mut change, *complete).await;
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Adopt(adopt, reply) => {
                let mut change = Change::new(self);
                let outcome = if self.is_resident(&change) {
                    Ok(Adopted::Resident)
                } else {
                    self.adopt(&mut change, *adopt).await.map(|()| Adopted::Done)
                };
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Outside(outside, reply) => {
                let mut change = Change::new(self);
                let outcome = if self.is_resident(&change) {
                    Err(RoomError::Invalid("this server is in the room".to_owned()))
                } else {
                    self.outside(&mut change, *outside).await
                };
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Purge(before_ms, from, reply) => {
                let mut change = Change::new(self);
                let outcome = self.purge(&mut change, before_ms, from).await;
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Forget(user, reply) => self.forget(user, reply).await,
            RoomMessage::Receipt(receipt, reply) => {
                self.set_receipt(myself, *receipt, move |result| drop(reply.send(result)));
            }
            RoomMessage::EarlyReceipt(receipt, _place) => {
                if let Err(error) = self.set_early_receipt(myself, *receipt).await {
                    tracing::debug!(room.id = %self.room_id, %error, "left out a receipt");
                }
            }
            RoomMessage::Typing(user, timeout, reply) => {
                self.set_typing(myself, &user, timeout);
                let _ = reply.send(Ok(()));
            }
            RoomMessage::TypingDue => self.typing_due(),
            RoomMessage::ExtremitiesDue => self.extremities_due(myself).await,
            // The hot copy holds what the store does not: start over from the store.
            RoomMessage::CommitFailed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Submits a change that went well, and answers once it is durable.
    fn conclude<T: std::marker::Send + 'static>(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        change: Change,
        outcome: Result<T, RoomError>,
        reply: RpcReplyPort<Result<T, RoomError>>,
    ) {
        match outcome {
            Ok(value) => self.submit(myself, change, storage::Batch::default(), move |result| {
                let _ = reply.send(result.map(|()| value));
            }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn snapshot(&self) -> RoomSnapshot {
        RoomSnapshot {
            room_id: self.room_id.clone(),
            room: self.room,
            version: self.version.clone(),
            rules: self.rules,
            salt: self.salt,
            head: self.head.clone(),
        }
    }

    fn weight(&self) -> u64 {
        // Hot state events are mostly those of the recent timeline; 1 KiB stands for the rest of each.
        self.head.weight() + 1024 * self.hot.len() as u64 + 4096
    }
}
