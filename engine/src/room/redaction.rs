//! Redactions from other servers, which may come before what they redact, or be more than their senders may do.
//!
//! Spec: room version 3, "Handling redactions".

use super::machine::{Need, Room};
use crate::{
    auth::{self, Powers},
    pdu::Pdu,
    state::StateRoot,
};

impl Room<'_> {
    /// Whether an event is a redaction that clients are not to see: what it redacts is not known here yet, or it does not
    /// apply to that. Before room version 3 the authorization rules see to that. `before` is the state before it.
    pub fn is_withheld(&self, pdu: &Pdu, before: StateRoot) -> Result<bool, Need> {
        if !self.may_be_withheld(pdu) {
            return Ok(false);
        }
        let Some(target) = pdu.redacts(self.head.rules) else { return Ok(true) };
        let Some(target) = self.known(&target.to_owned())? else { return Ok(true) };
        Ok(!self.redacts((pdu, before), &target.pdu)?)
    }

    /// Whether an event is a redaction that clients will never see: it does not apply to what it redacts, which is known.
    ///
    /// Of older events what is redacted comes only after the redaction, when the next page of them is fetched.
    pub fn is_void(&self, pdu: &Pdu, before: StateRoot) -> Result<bool, Need> {
        let target = pdu.redacts(self.head.rules).filter(|_| self.may_be_withheld(pdu));
        let Some(target) = target else { return Ok(false) };
        let Some(target) = self.known(&target.to_owned())? else { return Ok(false) };
        Ok(!self.redacts((pdu, before), &target.pdu)?)
    }

    /// Whether a redaction that is in the room strips its target, by what its sender might do in the state before it: who
    /// loses power later has redacted all the same, and who gains it has not.
    ///
    /// Where that state is not known it is the present one that counts.
    pub fn redacts(&self, (redaction, before): (&Pdu, StateRoot), target: &Pdu) -> Result<bool, Need> {
        let is_known = self.get(before, "m.room.create", "")?.is_some();
        let powers = self.powers(if is_known { before } else { self.head.root })?;
        Ok(powers.is_some_and(|powers| auth::redaction_applies(redaction, target, &powers)))
    }

    fn may_be_withheld(&self, pdu: &Pdu) -> bool {
        let is_redaction = pdu.kind() == "m.room.redaction" && pdu.state_key().is_none();
        is_redaction && !self.head.rules.authorization.special_case_room_redaction
    }

    /// What users may do, by a state; none without a create event.
    fn powers(&self, root: StateRoot) -> Result<Option<Powers>, Need> {
        let held = |kind: &str| self.get(root, kind, "")?.map(|short| self.event(short)).transpose();
        let Some(create) = held("m.room.create")? else { return Ok(None) };
        let power_levels = held("m.room.power_levels")?.map(|event| event.pdu.clone());
        Ok(Some(Powers::new(create.pdu.clone(), power_levels, self.head.rules)))
    }
}
