//! Redactions: of local users, and those that arrive before or after what they strip.
//!
//! Spec: client-server API, "Redactions"; room version 3, "Handling redactions".

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use engine::{
    id::ShortEventId,
    pdu::{self, Pdu},
    room::event::Standing,
};
use ruma::{EventId, OwnedEventId, UserId};
use storage::{Direction, KeyRange, schema};

use super::{ActiveRoom, RoomError, StoredEvent, change::Change};

/// State that ends a room when it is redacted: of older versions' create events not even the version stays, and without
/// the list of those allowed, an access control list denies every server.
const VITAL: [&str; 2] = ["m.room.create", "m.room.server_acl"];

impl ActiveRoom {
    /// The event that a local user's redaction is to strip, if it is known and the sender may.
    ///
    /// Servers accept redactions from the target's server, whoever of its users sends them: each server sees to it that
    /// its users redact but their own events, unless they have the power to redact those of others, or are its administrators.
    /// Spec: client-server API, "Redactions"; room version 3, "Handling redactions".
    pub(super) async fn redaction_target(
        &self,
        change: &Change,
        redaction: &Pdu,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        if redaction.kind() != "m.room.redaction" {
            return Ok(None);
        }
        let Some(target_id) = redaction.redacts(self.rules) else {
            return Err(RoomError::Invalid("the redaction names no event".to_owned()));
        };
        let Some(target) = self.known_event(change, target_id).await? else {
            return Err(RoomError::EventNotFound);
        };
        let Some(powers) = self.powers(change).await? else { return Err(RoomError::NotFound) };
        let may_redact = redaction.sender() == target.pdu.sender() || powers.may_redact(redaction.sender());
        if !may_redact && !self.administers(redaction.sender(), target.pdu.sender()).await? {
            return Err(RoomError::NotAllowed("you may not redact this event".to_owned()));
        }
        if VITAL.contains(&target.pdu.kind()) && target.pdu.state_key().is_some() {
            return Err(RoomError::NotAllowed("the room could not go on without this event".to_owned()));
        }
        Ok(Some(target))
    }

    /// Whether a local user is an administrator of another one's server, who may redact what its users send.
    async fn administers(&self, user_id: &UserId, other: &UserId) -> Result<bool, RoomError> {
        if other.server_name() != self.shared.server_name {
            return Ok(false);
        }
        let account = self.shared.store.storage().get(&schema::ACCOUNTS, user_id).await?;
        Ok(account.is_some_and(|account| account.is_admin))
    }

    /// Strips an event in place: its ID, hashes and signatures hold for the stripped form too.
    pub(super) async fn redact(
        &self,
        change: &mut Change,
        target: &Arc<StoredEvent>,
        redaction: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        if target.redacted_by.is_some() {
            return Ok(());
        }
        self.unrelate(change, target).await?;
        if change.head.lacks_members {
            let key = (self.room, target.short);
            change.batch.put(&schema::PARTIAL_REDACTED, &key, target.pdu.raw());
        }
        let stripped = Arc::new(StoredEvent {
            pdu: Arc::new(pdu::redact(&target.pdu, self.rules)?),
            redacted_by: Some(redaction.short),
            sent_by: target.sent_by.clone(),
            ..**target
        });
        change.replace(&stripped);
        Ok(())
    }

    /// Applies a redaction to its target, or to an event the redaction that came before it, which clients see then.
    pub(super) async fn apply_redactions(
        &self,
        change: &mut Change,
        event: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        if event.pdu.kind() == "m.room.redaction" {
            let Some(target_id) = event.pdu.redacts(self.rules) else { return Ok(()) };
            return match self.known_event(change, target_id).await? {
                Some(target) if self.applies(change, event, &target).await? => {
                    self.redact(change, &target, event).await
                }
                Some(_) => Ok(()),
                None => self.note_early(change, target_id, event).await,
            };
        }
        for redaction in self.take_early(change, event.pdu.event_id()).await? {
            if self.applies(change, &redaction, event).await? {
                self.redact(change, &self.event(change, event.short).await?, &redaction).await?;
                if redaction.index.is_none() {
                    self.show(change, &redaction).await?;
                }
            }
        }
        Ok(())
    }

    /// Strips events that are kept without being shown of what redactions take that came before them. These go on waiting:
    /// clients see them once they see what they redact.
    pub(super) async fn redact_unseen(
        &self,
        change: &mut Change,
        ids: &[OwnedEventId],
    ) -> Result<(), RoomError> {
        if !self.has_early(change).await? {
            return Ok(());
        }
        for id in ids {
            let Some(event) = self.known_event(change, id).await?.filter(|event| event.index.is_none())
            else {
                continue;
            };
            let early = self.early(change, id).await?;
            for redaction in self.events(change, early).await? {
                let is_accepted = redaction.standing == Standing::Accepted;
                if is_accepted && self.applies(change, &redaction, &event).await? {
                    self.redact(change, &event, &redaction).await?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Remembers a redaction until its target is there: which of several its sender may redact is seen only then.
    async fn note_early(
        &self,
        change: &mut Change,
        target_id: &EventId,
        redaction: &StoredEvent,
    ) -> Result<(), RoomError> {
        let key = (self.room, target_id.to_owned());
        let storage = self.shared.store.storage();
        let held = storage.get(&schema::EARLY_REDACTIONS, &key).await?;
        // The row of another one may not be durable yet.
        let is_other = |event: &&Arc<StoredEvent>| event.short != redaction.short;
        let is_first = held.is_none_or(|held| held == redaction.short)
            && !self.early_in_flight(change, target_id).iter().any(|event| is_other(&event));
        if is_first {
            change.batch.put(&schema::EARLY_REDACTIONS, &key, &redaction.short);
        } else {
            let key = (self.room, target_id.to_owned(), redaction.short);
            change.batch.put(&schema::FURTHER_REDACTIONS, &key, &());
        }
        Ok(())
    }

    /// Whether any redaction came before its target, which is seldom so.
    async fn has_early(&self, change: &Change) -> Result<bool, RoomError> {
        let is_redaction = |event: &Arc<StoredEvent>| event.pdu.kind() == "m.room.redaction";
        if self.versions_in_flight(change).any(is_redaction) {
            return Ok(true);
        }
        let rows = KeyRange::prefix(&(self.room,));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::EARLY_REDACTIONS, rows, Direction::Ascending, 1).await?;
        Ok(!rows.is_empty())
    }

    /// The redactions that came before their target, in the order in which they came.
    async fn early(
        &self,
        change: &Change,
        target_id: &OwnedEventId,
    ) -> Result<BTreeSet<ShortEventId>, RoomError> {
        let storage = self.shared.store.storage();
        let key = (self.room, target_id.clone());
        let mut shorts: BTreeSet<_> =
            self.early_in_flight(change, target_id).iter().map(|event| event.short).collect();
        let first = storage.get(&schema::EARLY_REDACTIONS, &key).await?;
        if first.is_none() && shorts.is_empty() {
            return Ok(shorts);
        }
        shorts.extend(first);
        let further = KeyRange::prefix(&key);
        let further =
            storage.range(&schema::FURTHER_REDACTIONS, further, Direction::Ascending, usize::MAX).await?;
        shorts.extend(further.into_iter().map(|((_, _, short), ())| short));
        Ok(shorts)
    }

    /// Those of them that were accepted; they wait no longer.
    async fn take_early(
        &self,
        change: &mut Change,
        target_id: &OwnedEventId,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let shorts = self.early(change, target_id).await?;
        if !shorts.is_empty() {
            change.batch.delete(&schema::EARLY_REDACTIONS, &(self.room, target_id.clone()));
        }
        for short in &shorts {
            change.batch.delete(&schema::FURTHER_REDACTIONS, &(self.room, target_id.clone(), *short));
        }
        let mut redactions = self.events(change, shorts).await?;
        redactions.retain(|redaction| redaction.standing == Standing::Accepted);
        Ok(redactions)
    }

    /// Redactions of an event that wait for it, and that the store may not have yet.
    fn early_in_flight(&self, change: &Change, target_id: &EventId) -> Vec<Arc<StoredEvent>> {
        let redacts_it = |event: &Arc<StoredEvent>| {
            event.pdu.kind() == "m.room.redaction" && event.pdu.redacts(self.rules) == Some(target_id)
        };
        // Asked for each event, with nearly always the same answer.
        if !self.versions_in_flight(change).any(redacts_it) {
            return Vec::new();
        }
        let mut events = self.in_flight(change);
        events.retain(|event| event.index.is_none() && redacts_it(event));
        events
    }

    /// What was redacted while the state lacked members, with what it was before.
    pub(super) async fn redacted_meanwhile(&self) -> Result<Vec<(ShortEventId, Bytes)>, RoomError> {
        let rows = KeyRange::prefix(&(self.room,));
        let storage = self.shared.store.storage();
        let rows = storage.range(&schema::PARTIAL_REDACTED, rows, Direction::Ascending, usize::MAX).await?;
        Ok(rows.into_iter().map(|((_, target), raw)| (target, raw)).collect())
    }

    /// Gives events back what a redaction took that does not stand any more, unless another one of `since` does.
    pub(super) async fn undo_redactions(
        &self,
        change: &mut Change,
        since: &[Arc<StoredEvent>],
    ) -> Result<(), RoomError> {
        for (target, raw) in self.redacted_meanwhile().await? {
            let target = self.event(change, target).await?;
            let Some(redacted_by) = target.redacted_by else { continue };
            if self.event(change, redacted_by).await?.standing == Standing::Accepted {
                continue;
            }
            let pdu = Pdu::from_stored(target.pdu.event_id().clone(), raw)?;
            let restored = Arc::new(StoredEvent {
                pdu: Arc::new(pdu),
                redacted_by: None,
                ..StoredEvent::clone(&target)
            });
            change.replace(&restored);
            self.relate(change, &restored).await?;
            let redacts_it = |event: &&Arc<StoredEvent>| {
                event.pdu.kind() == "m.room.redaction"
                    && event.pdu.redacts(self.rules) == Some(target.pdu.event_id())
            };
            for other in since.iter().filter(redacts_it) {
                let other = self.event(change, other.short).await?;
                if other.standing == Standing::Accepted && self.applies(change, &other, &restored).await? {
                    self.redact(change, &restored, &other).await?;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn applies(
        &self,
        change: &mut Change,
        redaction: &StoredEvent,
        target: &StoredEvent,
    ) -> Result<bool, RoomError> {
        let redaction = (&*redaction.pdu, redaction.before);
        self.decide(change, |room| room.redacts(redaction, &target.pdu)).await
    }
}
