//! States that lack events, since those could not be checked when another server gave the state.
//!
//! The keys of a server that is away cannot be had, and a state without the events that it signed is another state. Once
//! they are known they are put in, and what came after that is judged by the states that follow then.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::OwnedEventId;

use super::{
    event::{Standing, StoredEvent},
    machine::{Need, Room},
    receive::Verdict,
};
use crate::{auth::AuthFailure, id::ShortEventId, pdu::Pdu, resolve::StateKey, state::StateRoot};

/// How an event stands after the states before it were mended.
#[derive(Clone, Debug)]
pub enum Mended {
    /// As before: nothing before it changed.
    Untouched,
    /// A rule refuses it now, as it should have.
    Refused(StoredEvent, AuthFailure),
    /// With other states, and perhaps as part of the room although it was refused.
    Stands(StoredEvent),
}

impl Room<'_> {
    /// A state with events that it lacks: where it has another event in the place of one, both are resolved.
    pub fn with_lacking(&mut self, root: StateRoot, ids: &[OwnedEventId]) -> Result<StateRoot, Need> {
        let (events, _) = self.known_of(ids)?;
        let (mut absent, mut other) = (BTreeMap::<StateKey, Option<ShortEventId>>::new(), BTreeMap::new());
        for event in events.iter().filter(|event| event.standing != Standing::Rejected) {
            let Some(key) = event.state_key() else { continue };
            match self.get(root, &key.0, &key.1)? {
                None => drop(absent.insert(key, Some(event.short))),
                Some(held) if held != event.short => drop(other.insert(key, Some(event.short))),
                Some(_) => {}
            }
        }
        let root = if absent.is_empty() { root } else { self.apply(root, &absent)? };
        if other.is_empty() {
            return Ok(root);
        }
        let with_others = self.apply(root, &other)?;
        self.merge(BTreeSet::from([root, with_others]))
    }

    /// Judges an event by the states that follow from mended ones, once those before it were judged so.
    ///
    /// `mended` are the events that were; `given` is the mended state before the event, where another server gave it.
    pub fn judge_mended(
        &mut self,
        event: &StoredEvent,
        mended: &BTreeSet<OwnedEventId>,
        given: Option<StateRoot>,
    ) -> Result<Mended, Need> {
        let anew = match given {
            Some(given) => Some(given),
            None => self.before_anew(event, mended)?,
        };
        let Some(before) = anew.filter(|before| *before != event.before) else {
            return Ok(Mended::Untouched);
        };
        let (auth_events, unknown) = self.known_of(event.pdu.auth_events())?;
        if !unknown.is_empty() {
            return Ok(Mended::Untouched);
        }
        // By the room's present state it is judged only if it was refused, and with what it comes after.
        let root = self.head.root;
        self.head.root = self.merge(BTreeSet::from([root, before]))?;
        let evidence = self.evidence(&event.pdu, &auth_events, before);
        self.head.root = root;
        let verdict = evidence?.judge(&event.pdu, self.head.rules);
        let was_rejected = event.standing == Standing::Rejected;
        let standing = match verdict {
            Verdict::Rejected(reason) if !was_rejected => {
                let pdu = Arc::new(Pdu::clone(&event.pdu).rejected());
                let refused = StoredEvent { standing: Standing::Rejected, pdu, before, ..event.clone() };
                return Ok(Mended::Refused(refused, reason));
            }
            Verdict::Rejected(_) => Standing::Rejected,
            Verdict::SoftFailed(_) if was_rejected => Standing::SoftFailed,
            Verdict::Accepted if was_rejected => Standing::Accepted,
            Verdict::SoftFailed(_) | Verdict::Accepted => event.standing,
        };
        let pdu = if standing == Standing::Rejected {
            Arc::new(Pdu::clone(&event.pdu).rejected())
        } else {
            event.pdu.clone()
        };
        let mut stands = StoredEvent { pdu, standing, before, ..event.clone() };
        stands.replaces = self.held_before(&stands)?;
        Ok(Mended::Stands(stands))
    }
}
