//! Redactions from other servers, which may come before what they redact, or be more than their senders may do.
//!
//! Spec: room version 3, "Handling redactions".

use super::machine::{Need, Room};
use crate::{
    auth::{self, Powers},
    pdu::Pdu,
};

impl Room<'_> {
    /// Whether an event is a redaction that clients are not to see: what it redacts is not known here yet, or its sender
    /// may not redact that. Before room version 3 the authorization rules see to that.
    pub fn is_withheld(&self, pdu: &Pdu) -> Result<bool, Need> {
        let is_redaction = pdu.kind() == "m.room.redaction" && pdu.state_key().is_none();
        if !is_redaction || self.head.rules.authorization.special_case_room_redaction {
            return Ok(false);
        }
        let Some(target) = pdu.redacts(self.head.rules) else { return Ok(true) };
        let Some(target) = self.known(&target.to_owned())? else { return Ok(true) };
        let Some(powers) = self.powers()? else { return Ok(true) };
        Ok(!auth::redaction_applies(pdu, &target.pdu, &powers))
    }

    /// What users may do, by the current state; none in a room without a create event.
    fn powers(&self) -> Result<Option<Powers>, Need> {
        let Some(create) = self.current("m.room.create", "")? else { return Ok(None) };
        let power_levels = self.current("m.room.power_levels", "")?.map(|event| event.pdu.clone());
        Ok(Some(Powers::new(create.pdu.clone(), power_levels, self.head.rules)))
    }
}
