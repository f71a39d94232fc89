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
mod change;
mod content;
mod early_receipts;
mod ephemeral;
mod erasure;
mod error;
mod event;
mod extremities;
mod graph;
mod handle;
mod history;
mod load;
mod membership;
mod merge;
mod page;
mod partial;
mod permission;
mod policy;
mod purge;
mod read;
mod receive;
mod rejudge;
mod related;
mod relations;
mod reset;
mod snapshot;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use dashmap::DashMap;
use engine::{
    id::ShortRoomId,
    pdu::{Draft, Pdu, SigningKey},
    room_version::RoomVersion,
    state::{Salt, StateRoot},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use storage::{
    CommitError,
    schema::{self, AliasRecord, DeviceListOutboxRecord, OutboxRecord, SentBy, TxnKey},
};

pub(crate) use self::permission::{INVITE_PERMISSION, blocks_invites};
pub use self::{
    adopt::{Adopt, Adopted, Outside},
    content::{allowed_rooms, join_rule, membership as membership_of, string as content_string},
    erasure::Erasures,
    error::RoomError,
    event::{ReadError, RoomStore, StoredEvent},
    extremities::is_dummy,
    handle::{RoomHandle, STRIPPED},
    history::Backfill,
    membership::{MembershipAction, MembershipChange, Prepared},
    page::{Page, PageDirection, PageQuery},
    partial::Complete,
    policy::Advice,
    purge::{PurgeCursor, Purged},
    read::{Access, Viewer},
    receive::{Receive, Received},
    related::{RECURSION_DEPTH, RelatedCache, RelationQuery},
    reset::ResetRecord,
    snapshot::{Published, RECENT_MAX, Receipt, Receipts, RoomHead, RoomSnapshot, Typing},
};
use self::{
    change::{Change, Pending},
    early_receipts::EarlyReceipts,
    ephemeral::Typists,
    extremities::TidyUp,
    merge::MERGED_MAX,
    relations::RelationChange,
};
use crate::{
    destination::{Outbox, Outgoing},
    directory::{DirectoryActor, Meter, Place},
    effects::{ClosedRooms, Effect, closes_to_guests},
    env::Env,
    federation::FederationClient,
    hub::{Changed, Hub},
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
    /// Is told of rooms that close to guests.
    pub(crate) closed_rooms: ClosedRooms,
    /// What is counted.
    pub metrics: Metrics,
}

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
    /// The alias to make with the room.
    pub alias: Option<ruma::OwnedRoomAliasId>,
    /// Whether to list the room in the public directory.
    pub is_public: bool,
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
    Typing(OwnedUserId, Option<std::time::Duration>, RpcReplyPort<Result<(), RoomError>>),
    /// A typing notice may have run out.
    TypingDue,
    /// It is time to tie forward extremities together.
    ExtremitiesDue,
    /// A commit failed: what is in memory is ahead of the store.
    CommitFailed(CommitError),
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
    merged: imbl::OrdMap<Vec<StateRoot>, StateRoot>,
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

impl Empty {
    async fn handle(&self, myself: &ActorRef<RoomMessage>, message: RoomMessage) -> Option<ActiveRoom> {
        match message {
            RoomMessage::Create(create, reply) => {
                return Self::begin(myself, self.create(*create).await, reply, ());
            }
            RoomMessage::Adopt(adopt, reply) => {
                return Self::begin(myself, self.adopt(*adopt).await, reply, Adopted::Done);
            }
            RoomMessage::Outside(outside, reply) => {
                return Self::begin(myself, self.outside(*outside).await, reply, ());
            }
            RoomMessage::Prepare(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::PrepareSend(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::PrepareChange(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Receive(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Backfill(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Purge(_, _, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Send(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Membership(_, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::Outliers(_, reply)
            | RoomMessage::Complete(_, reply)
            | RoomMessage::Forget(_, reply)
            | RoomMessage::Receipt(_, reply)
            | RoomMessage::Typing(_, _, reply) => drop(reply.send(Err(RoomError::NotFound))),
            RoomMessage::EarlyReceipt(..)
            | RoomMessage::TypingDue
            | RoomMessage::ExtremitiesDue
            | RoomMessage::CommitFailed(_) => {}
        }
        None
    }

    fn begin<T: std::marker::Send + 'static>(
        myself: &ActorRef<RoomMessage>,
        begun: Result<(ActiveRoom, Change, storage::Batch), RoomError>,
        reply: RpcReplyPort<Result<T, RoomError>>,
        answer: T,
    ) -> Option<ActiveRoom> {
        match begun {
            Ok((mut room, change, extra)) => {
                room.announce();
                room.submit(myself, change, extra, move |result| {
                    let _ = reply.send(result.map(|()| answer));
                });
                Some(room)
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                None
            }
        }
    }

    async fn create(&self, create: Create) -> Result<(ActiveRoom, Change, storage::Batch), RoomError> {
        let storage = self.shared.store.storage();
        if let Some(alias) = &create.alias
            && storage.get(&schema::ALIASES, alias).await?.is_some()
        {
            return Err(RoomError::AliasInUse);
        }
        let room = self.fresh(&create.version)?;
        let mut change = Change::new(&room);
        let mut extra = storage::Batch::default();
        extra.expect_absent(&schema::ROOM_IDS, &self.room_id);
        extra.put(&schema::ROOM_IDS, &self.room_id, &room.room);
        if let Some(alias) = create.alias {
            extra.expect_absent(&schema::ALIASES, &alias);
            let record = AliasRecord { room_id: self.room_id.clone(), creator: create.creator.clone() };
            extra.put(&schema::ALIASES, &alias, &record);
            extra.put(&schema::ROOM_ALIASES, &(self.room_id.clone(), alias), &());
        }
        if create.is_public {
            extra.put(&schema::PUBLIC_ROOMS, &self.room_id, &());
        }
        room.admit(&mut change, create.create, &BTreeMap::new(), None).await?;
        for draft in create.rest {
            room.append(&mut change, &create.creator, draft, None).await?;
        }
        for invite in create.invites {
            room.change_membership(&mut change, invite).await?;
        }
        Ok((room, change, extra))
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
                let txn = receive.sent_by.as_ref().map(|sent_by| {
                    change::txn_key(self.room, receive.pdu.sender(), receive.pdu.kind(), sent_by)
                });
                let outcome = self.receive(&mut change, *receive).await;
                if matches!(outcome, Ok(Received::Accepted)) {
                    self.remember_txn(txn, &event_id);
                }
                self.conclude(myself, change, outcome, reply);
            }
            RoomMessage::Outliers(pdus, reply) => {
                let mut change = Change::new(self);
                let outcome = self.store_outliers(&mut change, pdus).await;
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

    async fn send(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        send: Send,
        reply: RpcReplyPort<Result<OwnedEventId, RoomError>>,
    ) {
        let Send { sender, draft, sent_by } = send;
        let txn = sent_by
            .as_ref()
            .map(|sent_by| change::txn_key(self.room, &sender, &draft.kind.to_string(), sent_by));
        let mut change = Change::new(self);
        let known = txn.as_ref().and_then(|txn| self.txns.get(txn).cloned());
        let outcome = match known {
            Some(event_id) => Ok(event_id),
            None => match self.same_state(&change, &sender, &draft).await {
                Ok(Some(event_id)) => Ok(event_id),
                Ok(None) => match self.check_relation(&change, &sender, &draft).await {
                    Ok(()) => self.append(&mut change, &sender, draft, sent_by).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(event_id) => {
                self.remember_txn(txn, &event_id);
                self.submit(myself, change, storage::Batch::default(), move |result| {
                    let _ = reply.send(result.map(|()| event_id));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// The event that a local user sends, as it would be now.
    async fn prepare_send(&self, send: Send) -> Result<Prepared, RoomError> {
        let Send { sender, draft, sent_by } = send;
        let change = Change::new(self);
        let txn =
            sent_by.map(|sent_by| change::txn_key(self.room, &sender, &draft.kind.to_string(), &sent_by));
        let known = txn.and_then(|txn| self.txns.get(&txn).cloned());
        let known = match known {
            Some(event_id) => Some(event_id),
            None => self.same_state(&change, &sender, &draft).await?,
        };
        if let Some(event_id) = known {
            return Ok(Prepared::Known(event_id));
        }
        self.check_relation(&change, &sender, &draft).await?;
        let pdu = self.prepare(&change, &sender, draft).await?;
        self.redaction_target(&change, &pdu).await?;
        Ok(Prepared::Event(Box::new(pdu)))
    }

    /// The present event of the draft's key, if the draft would only repeat it.
    async fn same_state(
        &self,
        change: &Change,
        sender: &ruma::UserId,
        draft: &Draft,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let Some(state_key) = &draft.state_key else { return Ok(None) };
        let Some(held) = self.current(change, &draft.kind.to_string(), state_key).await? else {
            return Ok(None);
        };
        let parse = |json: &str| serde_json::from_str::<serde_json::Value>(json).ok();
        let same =
            held.pdu.sender() == sender && parse(held.pdu.content().get()) == parse(draft.content.get());
        Ok(same.then(|| held.pdu.event_id().to_owned()))
    }

    fn remember_txn(&mut self, txn: Option<TxnKey>, event_id: &OwnedEventId) {
        let Some(txn) = txn else { return };
        if self.txns.insert(txn.clone(), event_id.clone()).is_none() {
            self.txn_order.push_back(txn);
        }
        if self.txn_order.len() > TXNS_MAX
            && let Some(oldest) = self.txn_order.pop_front()
        {
            self.txns.remove(&oldest);
        }
    }

    /// Takes the change into the hot copy and hands it to the storage writer.
    ///
    /// `done` runs once it is durable and visible, or once it has failed.
    fn submit(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        mut change: Change,
        extra: storage::Batch,
        done: impl FnOnce(Result<(), RoomError>) + std::marker::Send + 'static,
    ) {
        let mut batch = std::mem::take(&mut change.batch);
        batch.append(extra);
        let outgoing = self.outgoing(&change, &mut batch);
        let joined = self.note_joins(&change, &mut batch);
        let closes_to_guests = change.events.iter().any(closes_to_guests);
        if closes_to_guests {
            batch.put(&schema::EFFECTS, &Effect::Guests.key(self.room_id.as_str()), &change.position());
        }
        self.head = change.head.clone();
        if !change.tickets.is_empty() {
            batch.put(&schema::ROOMS, &self.room, &self.record(change.position()));
        }
        self.hot = if change.hot.len() > HOT_MAX { imbl::OrdMap::new() } else { change.hot.clone() };
        self.merged =
            if change.merged.len() > MERGED_MAX { imbl::OrdMap::new() } else { change.merged.clone() };
        for (id, node) in &change.nodes {
            self.shared.store.remember_node(*id, node.clone());
        }
        let events = change.events.clone();
        let completion = Completion {
            shared: self.shared.clone(),
            published: self.published.clone(),
            snapshot: Arc::new(self.snapshot()),
            position: change.position(),
            hidden: change.hidden.values().cloned().collect(),
            events: change.events.iter().chain(&change.replaced).cloned().collect(),
            relations: std::mem::take(&mut change.relations),
            entries: change.entries(),
            newcomers: std::mem::take(&mut change.newcomers),
            joined,
            outgoing,
            closes_to_guests,
        };
        self.pending.add(&mut change);
        let tickets = std::mem::take(&mut change.tickets);
        self.mind_extremities(myself);
        let actor = myself.clone();
        self.shared.store.storage().submit(batch, None, move |result| match result {
            Ok(()) => {
                completion.publish();
                drop(tickets);
                done(Ok(()));
            }
            Err(error) => {
                let _ = actor.cast(RoomMessage::CommitFailed(error.clone()));
                done(Err(RoomError::Commit(error)));
            }
        });
        self.set_waiting_receipts(myself, &events);
    }

    /// The change's events that other servers are to have, with those servers; notes them in the batch.
    fn outgoing(&self, change: &Change, batch: &mut storage::Batch) -> Vec<(Outgoing, Vec<OwnedServerName>)> {
        if !self.shared.outbox.is_open() {
            return Vec::new();
        }
        let mut servers = self.shared.outbox.others(change.head.servers.keys());
        let removed = self.head.servers.keys().filter(|server| !change.head.has_server(server));
        let also = self.shared.outbox.others(removed);
        servers.extend(also.iter().cloned());
        let is_ours = |event: &&Arc<StoredEvent>| {
            let is_own = event.pdu.sender().server_name() == self.shared.server_name;
            // What ties the graph together is had by those who ask what an event comes after.
            change.relays || (is_own && !is_dummy(&event.pdu))
        };
        let mut outgoing = Vec::new();
        for event in change.events.iter().filter(is_ours) {
            let (mut servers, mut also) = (servers.clone(), also.clone());
            // Whose invite or knock ends here learns of it only from us: their server is not in the room.
            if let Some(server) = outsider(&event.pdu).filter(|server| !servers.contains(server)) {
                servers.push(server.clone());
                also.push(server);
            }
            if servers.is_empty() {
                continue;
            }
            let position = event.index.unwrap_or_default().into();
            let record = OutboxRecord { room_id: self.room_id.clone(), event: event.short, also };
            batch.put(&schema::OUTBOX, &position, &record);
            let event = event.clone();
            outgoing.push((Outgoing { position, room_id: self.room_id.clone(), event }, servers));
        }
        outgoing
    }

    /// Notes local users who have just joined: the room's other servers are to know their devices.
    fn note_joins(&self, change: &Change, batch: &mut storage::Batch) -> Vec<OwnedUserId> {
        let mut joined = Vec::new();
        if !self.shared.outbox.is_open() {
            return joined;
        }
        for (user, record) in &change.memberships {
            if record.membership == "join" && record.since > self.head.latest {
                let note = DeviceListOutboxRecord {
                    joined: Some(self.room_id.clone()),
                    ..DeviceListOutboxRecord::default()
                };
                batch.put(&schema::DEVICE_LIST_OUTBOX, &(change.position(), user.clone()), &note);
                joined.push(user.clone());
            }
        }
        joined
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

/// The server of a user whose membership a local user ended.
fn outsider(pdu: &Pdu) -> Option<OwnedServerName> {
    let is_end = pdu.kind() == "m.room.member" && matches!(membership_of(pdu).as_str(), "leave" | "ban");
    let user = pdu.state_key().and_then(|key| ruma::UserId::parse(key).ok()).filter(|_| is_end)?;
    (user.server_name() != pdu.sender().server_name()).then(|| user.server_name().to_owned())
}

/// What becomes visible when a commit is durable, in this order.
struct Completion {
    shared: Arc<RoomShared>,
    published: Arc<Published>,
    snapshot: Arc<RoomSnapshot>,
    position: engine::id::Position,
    hidden: Vec<Arc<StoredEvent>>,
    events: Vec<Arc<StoredEvent>>,
    relations: Vec<RelationChange>,
    entries: Vec<(OwnedUserId, crate::session::RoomEntry)>,
    /// Servers that had no members here before.
    newcomers: Vec<OwnedServerName>,
    /// Local users who have just joined.
    joined: Vec<OwnedUserId>,
    outgoing: Vec<(Outgoing, Vec<OwnedServerName>)>,
    closes_to_guests: bool,
}

impl Completion {
    fn publish(self) {
        for event in self.hidden.iter().chain(&self.events) {
            self.shared.store.remember(event);
        }
        let room_id = self.snapshot.room_id.clone();
        let room = self.snapshot.room;
        self.published.related.change(self.relations);
        let root = self.snapshot.head.root;
        let state = self.published.snapshot.swap(self.snapshot).head.root != root;
        if state {
            self.shared.changed_rooms.mark(room);
        }
        if !self.entries.is_empty() {
            self.shared.outbox.note_list(self.position);
        }
        for (user, entry) in self.entries {
            self.shared.hub.set_membership(&user, &room_id, &entry);
        }
        for user in &self.joined {
            self.shared.outbox.note_presence(user);
        }
        if !self.newcomers.is_empty() {
            self.shared.outbox.note_newcomers(&room_id, self.newcomers);
        }
        let event = !self.events.is_empty();
        if event || state {
            self.shared.hub.room_changed(room, Changed { event, state }, self.position);
        }
        if event {
            self.shared.hub.push.room_has_event(room);
        }
        for (outgoing, servers) in self.outgoing {
            self.shared.outbox.announce(outgoing, servers);
        }
        if self.closes_to_guests {
            let _ = self.shared.closed_rooms.send(room_id); // a server that stops takes it up again
        }
    }
}
