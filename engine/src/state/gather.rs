//! What an operation is going to need of a cold tree, level by level.
//!
//! An operation stops at the first node that is not at hand and starts over once it has been fetched. So whoever is
//! stopped looks ahead and asks for all that lacks of a level together: a tree's height of trips, not one per node.

use std::{collections::BTreeSet, sync::Arc};

use super::{Missing, Node, NodeId, NodeSource, StateRoot, node::Value};

/// Nodes that are asked for at a time, at most; the rest comes with the next trip.
const MISSING_MAX: usize = 4096;

/// The nodes on the ways to some keys that are not at hand, of each way the highest; the keys are in order.
pub(super) fn on_the_ways(
    source: &(impl NodeSource + ?Sized),
    root: StateRoot,
    keys: &[(&str, &str)],
) -> Vec<NodeId> {
    let mut missing = Vec::new();
    let mut ways: Vec<_> = root.0.map(|id| (id, keys)).into_iter().collect();
    while let Some((id, keys)) = ways.pop() {
        let Some(node) = source.node(id) else {
            missing.push(id);
            if missing.len() >= MISSING_MAX {
                break;
            }
            continue;
        };
        let mut rest = keys;
        for (place, entry) in node.entries.iter().enumerate() {
            let Value::Child { id: child, .. } = entry.value else { break };
            // What is beyond the last key goes to the last node.
            let is_last = place + 1 == node.entries.len();
            let count = if is_last { rest.len() } else { rest.partition_point(|key| *key <= entry.key()) };
            let (here, after) = rest.split_at(count);
            if !here.is_empty() {
                ways.push((child, here));
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }
    missing
}

/// The nodes that one of two trees has and the other has not, and that are not at hand; those of one level.
pub(super) fn of_one_alone(
    source: &(impl NodeSource + ?Sized),
    before: StateRoot,
    after: StateRoot,
) -> Vec<NodeId> {
    let mut sides = [before, after].map(|root| root.0.into_iter().collect::<BTreeSet<NodeId>>());
    loop {
        let shared: Vec<_> = sides[0].intersection(&sides[1]).copied().collect();
        for side in &mut sides {
            side.retain(|id| !shared.contains(id));
        }
        let all = sides[0].union(&sides[1]);
        let missing: Vec<_> =
            all.filter(|id| source.node(**id).is_none()).take(MISSING_MAX).copied().collect();
        if !missing.is_empty() {
            return missing;
        }
        let nodes = sides.each_ref().map(|side| nodes_of(source, side));
        let height = nodes.iter().flatten().map(|node| node.level).max().unwrap_or(0);
        if height == 0 {
            return missing;
        }
        for (side, nodes) in sides.iter_mut().zip(nodes) {
            // A lower tree waits until the higher one has come down to its level.
            let opened = nodes.into_iter().filter(|node| node.level == height);
            let opened: Vec<_> = opened.map(|node| (node.id(), node)).collect();
            for (id, node) in opened {
                side.remove(&id);
                side.extend(node.children());
            }
        }
    }
}

fn nodes_of(source: &(impl NodeSource + ?Sized), ids: &BTreeSet<NodeId>) -> Vec<Arc<Node>> {
    ids.iter().filter_map(|id| source.node(*id)).collect()
}

impl Missing {
    /// Asks for more nodes along with those that stopped the operation.
    pub(super) fn and(mut self, more: Vec<NodeId>) -> Self {
        let known = self.0.clone();
        self.0.extend(more.into_iter().filter(|id| !known.contains(id)));
        self
    }
}
