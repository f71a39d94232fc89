//! Redactions: of local users, and those that arrive before or after what they strip.
//!
//! Spec: client-server API, "Redactions"; room version 3, "Handling redactions".

use std::sync::Arc;

use engine::{
    auth,
    pdu::{self, Pdu},
};
use storage::schema;

use super::{ActiveRoom, RoomError, StoredEvent, change::Change};

impl ActiveRoom {
    /// The event that a local user's redaction is to strip, if it is known and the sender may.
    ///
    /// Spec: client-server API, "Redactions"; room version 3, "Handling redactions".
    pub(super) async fn redaction_target(
        &self,
        change: &Change,
        redaction: &Pdu,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        if redaction.kind() != "m.room.redaction" {
            return Ok(None);
        }
        let Some(target_id) = redaction.redacts() else {
            return Err(RoomError::Invalid("the redaction names no event".to_owned()));
        };
        let Some(target) = self.known_event(change, target_id).await? else {
            return Err(RoomError::EventNotFound);
        };
        let Some(powers) = self.powers(change).await? else { return Err(RoomError::NotFound) };
        if !auth::redaction_applies(redaction, &target.pdu, &powers) {
            return Err(RoomError::NotAllowed("you may not redact this event".to_owned()));
        }
        Ok(Some(target))
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
        let stripped = Arc::new(StoredEvent {
            pdu: Arc::new(pdu::redact(&target.pdu, self.rules)?),
            redacted_by: Some(redaction.short),
            sent_by: target.sent_by.clone(),
            ..**target
        });
        change.replace(&stripped);
        Ok(())
    }

    /// Applies a redaction to its target, or to an event the redaction that came before it.
    pub(super) async fn apply_redactions(
        &self,
        change: &mut Change,
        event: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        if event.pdu.kind() == "m.room.redaction" {
            let Some(target_id) = event.pdu.redacts() else { return Ok(()) };
            if let Some(target) = self.known_event(change, target_id).await? {
                return self.redact_if_allowed(change, &target, event).await;
            }
            let key = (self.room, target_id.to_owned());
            change.batch.put(&schema::EARLY_REDACTIONS, &key, &event.short);
            return Ok(());
        }
        let key = (self.room, event.pdu.event_id().clone());
        let early = self.shared.store.storage().get(&schema::EARLY_REDACTIONS, &key).await?;
        if let Some(short) = early {
            let redaction = self.event(change, short).await?;
            change.batch.delete(&schema::EARLY_REDACTIONS, &key);
            self.redact_if_allowed(change, event, &redaction).await?;
        }
        Ok(())
    }

    async fn redact_if_allowed(
        &self,
        change: &mut Change,
        target: &Arc<StoredEvent>,
        redaction: &Arc<StoredEvent>,
    ) -> Result<(), RoomError> {
        let Some(powers) = self.powers(change).await? else { return Ok(()) };
        if auth::redaction_applies(&redaction.pdu, &target.pdu, &powers) {
            self.redact(change, target, redaction).await?;
        }
        Ok(())
    }
}
