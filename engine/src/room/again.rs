//! Judging events again, once a state that lacked members has all of them.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU"; MSC3706.

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
use crate::{
    auth::AuthFailure,
    id::{Position, TimelineIndex},
    pdu::Pdu,
    state::StateRoot,
};

/// How an event stands after it was judged again.
#[derive(Clone, Debug)]
pub enum Again {
    /// As before: what authorises it is not known here.
    Unknown,
    /// It is not part of the room, since a rule refuses it.
    Refused(StoredEvent, AuthFailure),
    /// It is part of the room. Where it is news, it has these forward extremities beside it and moves the state.
    Stands(StoredEvent, Option<Vec<Arc<StoredEvent>>>),
}

impl Room<'_> {
    /// Judges an event by the states that follow from a whole one, once those before it were judged so.
    ///
    /// `since` are all events that are judged again, `full` is the state before the first of them.
    pub fn judge_again(
        &mut self,
        event: &StoredEvent,
        since: &BTreeSet<OwnedEventId>,
        full: Option<StateRoot>,
    ) -> Result<Again, Need> {
        let is_first = full.is_some();
        let anew = match full {
            Some(full) => Some(full),
            None => self.before_anew(event, since)?,
        };
        let before = anew.unwrap_or(event.before);
        let (auth_events, unknown) = self.known_of(event.pdu.auth_events())?;
        if !unknown.is_empty() {
            return Ok(Again::Unknown);
        }
        let root = self.head.root;
        if anew.is_none() {
            // Where something is missing before an event, the room may have moved on there without us.
            self.head.root = self.merge(BTreeSet::from([root, before]))?;
        }
        let evidence = self.evidence(&event.pdu, &auth_events, before)?;
        self.head.root = root;
        let verdict = evidence.judge(&event.pdu, self.head.rules);
        let stand = |standing| StoredEvent { standing, before, ..event.clone() };
        match verdict {
            Verdict::Rejected(reason) => {
                let pdu = Arc::new(Pdu::clone(&event.pdu).rejected());
                Ok(Again::Refused(StoredEvent { pdu, ..stand(Standing::Rejected) }, reason))
            }
            // What lay in a hole of the timeline was not judged by the state of the moment.
            Verdict::SoftFailed(reason) if !is_old(event) && !is_first => {
                Ok(Again::Refused(stand(Standing::SoftFailed), reason))
            }
            Verdict::SoftFailed(_) | Verdict::Accepted => self.stand_again(stand(Standing::Accepted)),
        }
    }

    /// The state before an event by what its prev events are now; none where it is as it was, since they are not known.
    pub(super) fn before_anew(
        &mut self,
        event: &StoredEvent,
        since: &BTreeSet<OwnedEventId>,
    ) -> Result<Option<StateRoot>, Need> {
        let (prevs, unknown) = self.known_of(event.pdu.prev_events())?;
        let is_whole = unknown.is_empty() && prevs.iter().all(|prev| prev.has_state());
        // Another server gave the whole state where we did not know what came before.
        if !is_whole || !prevs.iter().any(|prev| since.contains(prev.pdu.event_id())) {
            return Ok(None);
        }
        Ok(Some(self.state_after_all(&prevs)?))
    }

    fn stand_again(&mut self, mut event: StoredEvent) -> Result<Again, Need> {
        if event.pdu.state_key().is_some() {
            event.replaces = self.held_before(&event)?;
        }
        if is_old(&event) {
            event.after = self.state_after(&event)?;
            return Ok(Again::Stands(event, None));
        }
        let (root, tips) = self.follow(&event)?;
        event.after = root;
        Ok(Again::Stands(event, Some(tips)))
    }
}

/// Whether an event was put into a hole of the timeline, so that it got its number later than its place.
fn is_old(event: &StoredEvent) -> bool {
    event.index.is_some_and(|index| index < TimelineIndex::from(Position(event.short.0)))
}

/// Events, each after those of them that it follows; otherwise in the order in which they are.
pub fn by_graph(events: &[Arc<StoredEvent>]) -> Vec<Arc<StoredEvent>> {
    let places: BTreeMap<OwnedEventId, usize> =
        events.iter().enumerate().map(|(place, event)| (event.pdu.event_id().clone(), place)).collect();
    let mut blocked = vec![0_usize; events.len()];
    let mut blocks = vec![Vec::new(); events.len()];
    for (place, event) in events.iter().enumerate() {
        let prevs: BTreeSet<_> = event.pdu.prev_events().iter().filter_map(|id| places.get(id)).collect();
        blocked[place] = prevs.len();
        for prev in prevs {
            blocks[*prev].push(place);
        }
    }
    let mut ready: BTreeSet<usize> = (0..events.len()).filter(|place| blocked[*place] == 0).collect();
    let mut sorted = Vec::with_capacity(events.len());
    while let Some(place) = ready.pop_first() {
        sorted.push(events[place].clone());
        for next in &blocks[place] {
            blocked[*next] -= 1;
            if blocked[*next] == 0 {
                ready.insert(*next);
            }
        }
    }
    sorted
}
