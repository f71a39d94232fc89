//! Events of local users: known from an earlier try, or made, authorised and appended.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::{Draft, Pdu},
    room::{
        graph::{PREV_EVENTS_MAX, is_followed, prev_events, rank},
        local::{Ground, repeats},
        receive::{Evidence, Standing},
    },
};
use ractor::{ActorRef, RpcReplyPort};
use ruma::{OwnedEventId, UserId};
use storage::{
    Batch,
    schema::{self, SentBy, TxnKey},
};

use super::{
    ActiveRoom, Prepared, RoomError, RoomMessage, Send, StateKey, StoredEvent, TXNS_MAX, change::Change,
};

impl ActiveRoom {
    /// Appends an event of a local user, unless it is known from an earlier try or repeats what is there.
    pub(super) async fn send(
        &mut self,
        myself: &ActorRef<RoomMessage>,
        send: Send,
        reply: RpcReplyPort<Result<OwnedEventId, RoomError>>,
    ) {
        let Send { sender, draft, sent_by } = send;
        let txn =
            sent_by.as_ref().map(|sent_by| txn_key(self.room, &sender, &draft.kind.to_string(), sent_by));
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
                self.submit(myself, change, Batch::default(), move |result| {
                    let _ = reply.send(result.map(|()| event_id));
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// The event that a local user sends, as it would be now.
    pub(super) async fn prepare_send(&self, send: Send) -> Result<Prepared, RoomError> {
        let Send { sender, draft, sent_by } = send;
        let change = Change::new(self);
        let txn = sent_by.map(|sent_by| txn_key(self.room, &sender, &draft.kind.to_string(), &sent_by));
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
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let Some(state_key) = &draft.state_key else { return Ok(None) };
        let Some(held) = self.current(change, &draft.kind.to_string(), state_key).await? else {
            return Ok(None);
        };
        Ok(repeats(&held.pdu, sender, draft).then(|| held.pdu.event_id().to_owned()))
    }

    /// Remembers a client's transaction, for retries that come while the first try is not durable yet.
    pub(super) fn remember_txn(&mut self, txn: Option<TxnKey>, event_id: &OwnedEventId) {
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

    /// Builds, authorises and appends one event of a local user.
    pub(super) async fn append(
        &self,
        change: &mut Change,
        sender: &UserId,
        draft: Draft,
        sent_by: Option<SentBy>,
    ) -> Result<OwnedEventId, RoomError> {
        self.check_membership(change, sender, &draft).await?;
        // An event that comes after all others is judged alike everywhere; who may not make that so goes on without.
        self.tie_down_to(change, sender, PREV_EVENTS_MAX).await?;
        let auth_events = self.auth_events(change, sender, &draft).await?;
        let pdu = self.ground(change, &auth_events).await?.make(sender, draft)?;
        self.admit(change, pdu, rank(auth_events.values().map(|event| event.rank)), sent_by).await
    }

    /// Builds and authorises an event without appending it.
    pub(super) async fn prepare(
        &self,
        change: &Change,
        sender: &UserId,
        draft: Draft,
    ) -> Result<Pdu, RoomError> {
        let auth_events = self.auth_events(change, sender, &draft).await?;
        Ok(self.ground(change, &auth_events).await?.make(sender, draft)?)
    }

    /// Authorises and appends the create event of a new room.
    pub(super) async fn append_create(&self, change: &mut Change, create: Pdu) -> Result<(), RoomError> {
        Evidence::default().check_auth_events(&create, self.rules)?;
        self.admit(change, create, 0, None).await.map(drop)
    }

    /// Appends an event that is built and allowed, if what it redacts may be redacted.
    async fn admit(
        &self,
        change: &mut Change,
        pdu: Pdu,
        rank: u64,
        sent_by: Option<SentBy>,
    ) -> Result<OwnedEventId, RoomError> {
        let target = self.redaction_target(change, &pdu).await?;
        let event = self.insert(change, Arc::new(pdu), rank, sent_by).await?;
        if let Some(target) = target {
            self.redact(change, &target, &event).await?;
        }
        Ok(event.pdu.event_id().to_owned())
    }

    /// What a local user's event is made from.
    async fn ground(
        &self,
        change: &Change,
        auth_events: &BTreeMap<StateKey, Arc<StoredEvent>>,
    ) -> Result<Ground<'_>, RoomError> {
        let auth_events = auth_events.iter().map(|(key, event)| (key.clone(), event.pdu.clone()));
        let create = self.current(change, "m.room.create", "").await?;
        Ok(Ground {
            prev_events: prev_events(change.head.tips.iter().map(|tip| &tip.pdu)),
            auth_events: auth_events.collect(),
            create: create.map(|event| event.pdu.clone()),
            ..self.bare_ground()
        })
    }

    /// The same without the room's events.
    pub(super) fn bare_ground(&self) -> Ground<'_> {
        Ground {
            room_id: &self.room_id,
            rules: self.rules,
            prev_events: Vec::new(),
            auth_events: BTreeMap::new(),
            create: None,
            now: self.shared.env.clock.now(),
            seed: self.shared.env.entropy.token(18),
            server_name: &self.shared.server_name,
            key: &self.shared.signing_key,
        }
    }

    /// Adds an accepted event: to the timeline, to the graph, to the state.
    async fn insert(
        &self,
        change: &mut Change,
        pdu: Arc<Pdu>,
        rank: u64,
        sent_by: Option<SentBy>,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let ticket = self.shared.store.storage().reserve(1);
        let short = ShortEventId(ticket.last().0);
        let index = TimelineIndex::from(ticket.last());
        let before = change.head.root;
        let replaces = self.set_state(change, &pdu, short).await?;
        let event = Arc::new(StoredEvent {
            short,
            room: self.room,
            pdu,
            index: Some(index),
            standing: Standing::Accepted,
            before,
            after: change.head.root,
            replaces: replaces.as_ref().map(|event| event.short),
            redacted_by: None,
            sent_by,
            rank,
            has_relations: false,
        });
        self.count_members(change, &event, replaces.as_deref()).await?;
        if let Some(state_key) = event.pdu.state_key() {
            change.hot.insert((event.pdu.kind().to_owned(), state_key.to_owned()), event.clone());
        }
        change.head.tips.retain(|tip| !is_followed(&tip.pdu, &event.pdu));
        change.head.tips.push(event.clone());
        change.head.latest = index;
        change.head.push_recent(event.clone());
        self.store_event(change, &event);
        change.tickets.push(ticket);
        change.events.push(event.clone());
        self.relate(change, &event).await?;
        Ok(event)
    }

    /// Writes an event's rows.
    pub(super) fn store_event(&self, change: &mut Change, event: &StoredEvent) {
        let batch = &mut change.batch;
        batch.put(&schema::EVENT_IDS, event.pdu.event_id(), &event.short);
        batch.put(&schema::EVENTS, &event.short, &event.to_record());
        if let Some(index) = event.index {
            batch.put(&schema::TIMELINE, &(self.room, index), &event.short);
            let sent_ms = u64::from(event.pdu.origin_server_ts().get());
            batch.put(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short), &());
        }
        if let Some(sent_by) = &event.sent_by {
            let key = txn_key(self.room, event.pdu.sender(), event.pdu.kind(), sent_by);
            batch.put(&schema::TXN_IDS, &key, event.pdu.event_id());
        }
    }

    /// Points the event's key of the state at it; returns the event that held the key before.
    async fn set_state(
        &self,
        change: &mut Change,
        pdu: &Pdu,
        short: ShortEventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let Some(state_key) = pdu.state_key() else { return Ok(None) };
        let replaces = self.current(change, pdu.kind(), state_key).await?;
        let changes = BTreeMap::from([((pdu.kind().to_owned(), state_key.to_owned()), Some(short))]);
        let root = change.head.root;
        change.head.root = self.apply(change, root, &changes).await?;
        Ok(replaces)
    }
}

/// The key of a client's transaction, whose ID is good for one room and endpoint.
///
/// Spec: client-server API, "Transaction identifiers".
pub(super) fn txn_key(room: ShortRoomId, sender: &UserId, kind: &str, sent_by: &SentBy) -> TxnKey {
    (room, sender.to_owned(), sent_by.device_id.clone(), format!("{kind} {}", sent_by.txn_id))
}
