//! Comparing two states, at a cost of their differences.

use std::{cmp::Ordering, sync::Arc};

use super::{
    Missing, Node, NodeId, NodeSource, StateRoot, gather,
    node::{NodeEntry, Value},
};
use crate::id::ShortEventId;

/// A key that two states differ in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The event's type.
    pub kind: String,
    /// The event's state key.
    pub state_key: String,
    /// The event in the first state.
    pub before: Option<ShortEventId>,
    /// The event in the second state.
    pub after: Option<ShortEventId>,
}

/// The keys that two states differ in, ordered by type and state key.
pub fn diff(
    source: &(impl NodeSource + ?Sized),
    before: StateRoot,
    after: StateRoot,
) -> Result<Vec<Change>, Missing> {
    if before == after {
        return Ok(Vec::new());
    }
    walk(source, before, after).map_err(|missing| missing.and(gather::of_one_alone(source, before, after)))
}

/// Walks both trees side by side, as far as there are nodes.
fn walk(
    source: &(impl NodeSource + ?Sized),
    before: StateRoot,
    after: StateRoot,
) -> Result<Vec<Change>, Missing> {
    let mut changes = Vec::new();
    let (mut left, mut right) = (Walk::default(), Walk::default());
    open_roots(source, before, after, &mut left, &mut right)?;
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => return Ok(changes),
            (Some(a), Some(b)) => match (a.value, b.value) {
                (Value::Child { id: one, .. }, Value::Child { id: other, .. }) if one == other => {
                    left.skip();
                    right.skip();
                }
                (Value::Event(one), Value::Event(other)) => {
                    let order = a.key().cmp(&b.key());
                    if order != Ordering::Equal || one != other {
                        let before = (order != Ordering::Greater).then_some(one);
                        let after = (order != Ordering::Less).then_some(other);
                        changes.push(change(if order == Ordering::Greater { &b } else { &a }, before, after));
                    }
                    if order != Ordering::Greater {
                        left.skip();
                    }
                    if order != Ordering::Less {
                        right.skip();
                    }
                }
                (Value::Child { .. }, Value::Event(_)) => left.descend(source)?,
                (Value::Event(_), Value::Child { .. }) => right.descend(source)?,
                // Different nodes: open the higher one, so that equal nodes below come to face each other.
                (Value::Child { .. }, Value::Child { .. }) => match left.level().cmp(&right.level()) {
                    Ordering::Greater => left.descend(source)?,
                    Ordering::Less => right.descend(source)?,
                    Ordering::Equal => descend_both(source, &mut left, &mut right)?,
                },
            },
            (Some(only), None) => match only.value {
                Value::Child { .. } => left.descend(source)?,
                Value::Event(event) => {
                    changes.push(change(&only, Some(event), None));
                    left.skip();
                }
            },
            (None, Some(only)) => match only.value {
                Value::Child { .. } => right.descend(source)?,
                Value::Event(event) => {
                    changes.push(change(&only, None, Some(event)));
                    right.skip();
                }
            },
        }
    }
}

fn change(entry: &NodeEntry, before: Option<ShortEventId>, after: Option<ShortEventId>) -> Change {
    Change { kind: entry.kind.to_string(), state_key: entry.state_key.to_string(), before, after }
}

/// A place in a tree: the path of nodes to it, with the place in each.
#[derive(Default)]
struct Walk {
    path: Vec<(Arc<Node>, usize)>,
}

impl Walk {
    fn peek(&mut self) -> Option<NodeEntry> {
        while let Some((node, place)) = self.path.last() {
            if let Some(entry) = node.entries.get(*place) {
                return Some(entry.clone());
            }
            self.path.pop();
        }
        None
    }

    fn skip(&mut self) {
        if let Some((_, place)) = self.path.last_mut() {
            *place += 1;
        }
    }

    fn level(&self) -> u8 {
        self.path.last().map_or(0, |(node, _)| node.level)
    }

    fn child(&self) -> Option<NodeId> {
        let (node, place) = self.path.last()?;
        match node.entries.get(*place)?.value {
            Value::Child { id, .. } => Some(id),
            Value::Event(_) => None,
        }
    }

    fn descend(&mut self, source: &(impl NodeSource + ?Sized)) -> Result<(), Missing> {
        let Some(id) = self.child() else { return Ok(()) };
        let node = source.node(id).ok_or_else(|| Missing(vec![id]))?;
        self.skip();
        self.path.push((node, 0));
        Ok(())
    }
}

fn descend_both(
    source: &(impl NodeSource + ?Sized),
    left: &mut Walk,
    right: &mut Walk,
) -> Result<(), Missing> {
    let needed = [left.child(), right.child()].into_iter().flatten();
    let missing: Vec<_> = needed.filter(|id| source.node(*id).is_none()).collect();
    if !missing.is_empty() {
        return Err(Missing(missing));
    }
    left.descend(source)?;
    right.descend(source)
}

fn open_roots(
    source: &(impl NodeSource + ?Sized),
    before: StateRoot,
    after: StateRoot,
    left: &mut Walk,
    right: &mut Walk,
) -> Result<(), Missing> {
    let roots = [(before, left), (after, right)];
    let missing: Vec<_> =
        roots.iter().filter_map(|(root, _)| root.0).filter(|id| source.node(*id).is_none()).collect();
    if !missing.is_empty() {
        return Err(Missing(missing));
    }
    for (root, walk) in roots {
        if let Some(node) = root.0.and_then(|id| source.node(id)) {
            walk.path.push((node, 0));
        }
    }
    Ok(())
}
