//! Events of local users: known from an earlier try, or made, authorised and appended.

use std::sync::Arc;

use engine::{
    id::{Position, ShortRoomId, TimelineIndex},
    pdu::{Draft, Pdu},
    room::{
        admit::Placement,
        content,
        graph::PREV_EVENTS_MAX,
        local::{Author, repeats},
        receive::Evidence,
    },
};
use ractor::{ActorRef, RpcReplyPort};
use ruma::{EventId, OwnedEventId, UserId};
use storage::{
    Batch,
    schema::{self, EventRecord, SentBy, TxnKey},
};

use super::{
    ActiveRoom, Prepared, RoomError, RoomMessage, Send, StoredEvent, TXNS_MAX, change::Change,
    receive::Source,
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
        let txn = sent_by.as_ref().map(|sent_by| draft_txn(self.room, &sender, &draft, sent_by));
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
        let mut change = Change::new(self);
        let txn = sent_by.map(|sent_by| draft_txn(self.room, &sender, &draft, &sent_by));
        let known = txn.and_then(|txn| self.txns.get(&txn).cloned());
        let known = match known {
            Some(event_id) => Some(event_id),
            None => self.same_state(&change, &sender, &draft).await?,
        };
        if let Some(event_id) = known {
            return Ok(Prepared::Known(event_id));
        }
        self.check_relation(&change, &sender, &draft).await?;
        let (pdu, _) = self.make(&mut change, &sender, &draft).await?;
        self.redaction_target(&change, &pdu).await?;
        Ok(Prepared::Event(Box::new(pdu)))
    }

    /// The present event of the draft's key, if the draft would only repeat it.
    pub(super) async fn same_state(
        &self,
        change: &Change,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let Some(state_key) = &draft.state_key else { return Ok(None) };
        let Some(held) = self.current(change, &draft.kind.to_string(), state_key).await? else {
            return Ok(None);
        };
        if !repeats(&held.pdu, sender, draft) {
            return Ok(None);
        }
        // Who is out of the room by now may not even repeat it.
        let member = self.current(change, "m.room.member", sender.as_str()).await?;
        let is_inside = member.is_some_and(|member| content::membership(&member.pdu) == "join");
        Ok(is_inside.then(|| held.pdu.event_id().to_owned()))
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
        let (pdu, placement) = self.make(change, sender, &draft).await?;
        self.append_made(change, pdu, placement, sent_by).await
    }

    /// Builds and authorises an event without appending it.
    pub(super) async fn make(
        &self,
        change: &mut Change,
        sender: &UserId,
        draft: &Draft,
    ) -> Result<(Pdu, Placement), RoomError> {
        let author = self.author();
        Ok(self.decide(change, |room| room.make(sender, draft, &author)).await??)
    }

    /// Authorises and appends the create event of a new room.
    pub(super) async fn append_create(&self, change: &mut Change, create: Pdu) -> Result<(), RoomError> {
        Evidence::default().check_auth_events(&create, self.rules)?;
        self.append_made(change, create, Placement::default(), None).await.map(drop)
    }

    /// Appends an event that is built and allowed, if what it redacts may be redacted.
    async fn append_made(
        &self,
        change: &mut Change,
        pdu: Pdu,
        placement: Placement,
        sent_by: Option<SentBy>,
    ) -> Result<OwnedEventId, RoomError> {
        let target = self.redaction_target(change, &pdu).await?;
        let source = Source { origin: self.shared.server_name.clone(), sent_by };
        // Nobody knew its ID before, so that nothing relates to it yet.
        let event = self.admit(change, &Arc::new(pdu), placement, source, false).await?;
        if let Some(target) = target {
            self.redact(change, &target, &event).await?;
        }
        Ok(event.pdu.event_id().to_owned())
    }

    /// This server, as it makes events.
    pub(super) fn author(&self) -> Author<'_> {
        Author {
            server_name: &self.shared.server_name,
            key: &self.shared.signing_key,
            now: self.shared.env.clock.now(),
            seed: self.shared.env.entropy.token(18),
        }
    }

    /// The key of the transaction that made an event.
    pub(super) fn txn_of(&self, pdu: &Pdu, sent_by: &SentBy) -> TxnKey {
        txn_key((self.room, pdu.sender(), sent_by), pdu.kind(), pdu.redacts(self.rules))
    }

    /// Writes an event's rows.
    pub(super) fn store_event(&self, change: &mut Change, event: &StoredEvent) {
        let batch = &mut change.batch;
        batch.put(&schema::EVENT_IDS, event.pdu.event_id(), &event.short);
        batch.put(&schema::EVENTS, &event.short, &EventRecord::of(event));
        if let Some(index) = event.index {
            batch.put(&schema::TIMELINE, &(self.room, index), &event.short);
            // Whoever follows the events by their numbers has passed this one.
            if index > TimelineIndex::from(Position(event.short.0)) && self.shared.hub.services.is_on() {
                batch.put(&schema::LATE_EVENTS, &Position::from(index), &event.short);
            }
            let sent_ms = u64::from(event.pdu.origin_server_ts().get());
            batch.put(&schema::EVENTS_BY_TIME, &(self.room, sent_ms, event.short), &());
        }
        if let Some(sent_by) = &event.sent_by {
            let key = self.txn_of(&event.pdu, sent_by);
            self.shared.txns.put(batch, key, event.pdu.event_id());
        }
    }
}

/// The key of the transaction by which a client sends a draft.
pub(super) fn draft_txn(room: ShortRoomId, sender: &UserId, draft: &Draft, sent_by: &SentBy) -> TxnKey {
    txn_key((room, sender, sent_by), &draft.kind.to_string(), draft.redacts.as_deref())
}

/// The key of a client's transaction, whose ID is good for one path: that of a redaction names what it redacts.
///
/// Spec: client-server API, "Transaction identifiers".
fn txn_key(
    (room, sender, sent_by): (ShortRoomId, &UserId, &SentBy),
    kind: &str,
    redacts: Option<&EventId>,
) -> TxnKey {
    let txn_id = &sent_by.txn_id;
    let text = match redacts {
        Some(redacts) => format!("{kind} {redacts} {txn_id}"),
        None => format!("{kind} {txn_id}"),
    };
    (room, sender.to_owned(), sent_by.device_id.clone(), text)
}
