//! Listing a state, page by page.

use std::{ops::Bound, sync::Arc};

use super::{Missing, Node, NodeId, NodeSource, StateRoot, fetch, node::Value};
use crate::id::ShortEventId;

/// One key of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The event's type.
    pub kind: String,
    /// The event's state key.
    pub state_key: String,
    /// The event.
    pub event: ShortEventId,
}

/// At most `limit` entries from a key on, all or of one type, ordered by type and state key.
pub fn range(
    source: &(impl NodeSource + ?Sized),
    root: StateRoot,
    from: Bound<(&str, &str)>,
    kind: Option<&str>,
    limit: usize,
) -> Result<Vec<Entry>, Missing> {
    let from = match (from, kind) {
        (Bound::Included(key) | Bound::Excluded(key), Some(kind)) if key.0 < kind => {
            Bound::Included((kind, ""))
        }
        (Bound::Unbounded, Some(kind)) => Bound::Included((kind, "")),
        (from, _) => from,
    };
    let mut found = Vec::new();
    let mut stack = Vec::new();
    if let Some(id) = root.0 {
        push(&mut stack, fetch(source, id)?, from);
    }
    while let Some((node, place)) = stack.last_mut() {
        let Some(entry) = node.entries.get(*place) else {
            stack.pop();
            continue;
        };
        *place += 1;
        match entry.value {
            Value::Child { id, .. } => {
                let child = source.node(id).ok_or_else(|| missing_from(source, node, *place - 1, limit))?;
                push(&mut stack, child, from);
            }
            Value::Event(event) => {
                if found.len() == limit || kind.is_some_and(|kind| kind != &*entry.kind) {
                    break;
                }
                let (kind, state_key) = (entry.kind.to_string(), entry.state_key.to_string());
                found.push(Entry { kind, state_key, event });
            }
        }
    }
    Ok(found)
}

/// All entries of a state, ordered by type and state key; a level of the tree is asked for at a time.
pub fn entries(source: &(impl NodeSource + ?Sized), root: StateRoot) -> Result<Vec<Entry>, Missing> {
    let mut level: Vec<NodeId> = root.0.into_iter().collect();
    let mut found = Vec::new();
    while !level.is_empty() {
        let nodes: Vec<_> = level.iter().map(|id| source.node(*id).ok_or(*id)).collect();
        let missing: Vec<NodeId> = nodes.iter().filter_map(|node| node.as_ref().err().copied()).collect();
        if !missing.is_empty() {
            return Err(Missing(missing));
        }
        level.clear();
        for entry in nodes.iter().flatten().flat_map(|node| &node.entries) {
            match entry.value {
                Value::Child { id, .. } => level.push(id),
                Value::Event(event) => {
                    let (kind, state_key) = (entry.kind.to_string(), entry.state_key.to_string());
                    found.push(Entry { kind, state_key, event });
                }
            }
        }
    }
    Ok(found)
}

fn push(stack: &mut Vec<(Arc<Node>, usize)>, node: Arc<Node>, from: Bound<(&str, &str)>) {
    let place = match from {
        Bound::Unbounded => 0,
        Bound::Included(from) => node.entries.partition_point(|entry| entry.key() < from),
        Bound::Excluded(from) => node.entries.partition_point(|entry| entry.key() <= from),
    };
    stack.push((node, place));
}

/// The nodes that a listing is about to need: the children from `place` on that are not at hand.
fn missing_from(source: &(impl NodeSource + ?Sized), node: &Node, place: usize, limit: usize) -> Missing {
    let ahead = limit / 8 + 1;
    let ids: Vec<NodeId> = node.children().skip(place).take(ahead).collect();
    Missing(ids.into_iter().filter(|id| source.node(*id).is_none()).collect())
}
