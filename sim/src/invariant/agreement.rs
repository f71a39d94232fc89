//! All servers in a room have the same state of it, know the same events, and refuse the same ones.
//!
//! What one server accepted another may have soft-failed: that depends on what it knew when the event came, and is not
//! a difference in the graph.

use std::{collections::BTreeSet, sync::Arc};

use actors::room::{StoredEvent, is_dummy};
use ruma::OwnedEventId;
use storage::schema::Standing;

use super::{History, history::Side};

pub(super) fn same_state(histories: &[History]) -> Option<String> {
    for History { room, sides } in histories {
        let Some((first, others)) = sides.split_first() else { continue };
        for other in others {
            let keys: BTreeSet<_> = first.state.keys().chain(other.state.keys()).collect();
            for key in keys {
                let (here, there) = (first.state.get(key), other.state.get(key));
                if here != there {
                    let (a, b) = (&first.host, &other.host);
                    let tips = if first.tips == other.tips { "the same" } else { "different" };
                    return Some(format!(
                        "{room}: {key:?} is {here:?} on {a}, {there:?} on {b}, with {tips} forward extremities"
                    ));
                }
            }
        }
    }
    None
}

pub(super) fn same_events(histories: &[History]) -> Option<String> {
    for History { room, sides } in histories {
        for side in sides {
            if let Some((id, _)) = side.graph.iter().find(|(_, event)| event.is_none()) {
                return Some(format!("{room}: {} lacks {id}, which others refer to", side.host));
            }
        }
        let Some((first, others)) = sides.split_first() else { continue };
        for other in others {
            let (known, unknown) = (first.beyond(other), other.beyond(first));
            if let Some(id) = known.or(unknown) {
                let (has, lacks) = if known.is_some() { (first, other) } else { (other, first) };
                return Some(format!("{room}: {} has {id}, {} does not", has.host, lacks.host));
            }
            let refused = |side: &Side| {
                side.with_standing(Standing::Rejected).map(|(id, _)| id.clone()).collect::<BTreeSet<_>>()
            };
            if let Some(id) = refused(first).symmetric_difference(&refused(other)).next() {
                let (a, b) = (&first.host, &other.host);
                return Some(format!("{room}: of {a} and {b}, only one rejected {id}"));
            }
        }
    }
    None
}

impl Side {
    /// An event that another side does not know; what only ties the graph together is had by those who ask for it.
    fn beyond(&self, other: &Self) -> Option<&OwnedEventId> {
        let is_told =
            |event: &Option<Arc<StoredEvent>>| event.as_ref().is_none_or(|event| !is_dummy(&event.pdu));
        let known = self.graph.iter().filter(|(_, event)| is_told(event)).map(|(id, _)| id);
        known.into_iter().find(|id| !other.graph.contains_key(*id))
    }
}
