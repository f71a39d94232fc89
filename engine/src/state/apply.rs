//! Changing a state: a new root, and the nodes that it does not share with the old one.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Missing, Node, NodeId, NodeSource, Salt, StateRoot, fetch, gather,
    node::{NodeEntry, Value},
};
use crate::id::ShortEventId;

/// A changed state.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The new state.
    pub root: StateRoot,
    /// The nodes to store with it.
    pub new_nodes: Vec<(NodeId, Arc<Node>)>,
}

type Key = (Arc<str>, Arc<str>);

/// What becomes of keys of one level: a new value, or removal.
type Changes = BTreeMap<Key, Option<Value>>;

/// Sets keys of a state, or (with `None`) removes them.
pub fn apply(
    source: &(impl NodeSource + ?Sized),
    root: StateRoot,
    salt: Salt,
    changes: &BTreeMap<(String, String), Option<ShortEventId>>,
) -> Result<Applied, Missing> {
    let apply = || {
        let mut tree = Tree { source, root: root.0, salt, new_nodes: BTreeMap::new() };
        let root = tree.apply(root, changes)?;
        Ok(tree.finish(root))
    };
    apply().map_err(|missing: Missing| {
        let keys: Vec<_> = changes.keys().map(|(kind, key)| (kind.as_str(), key.as_str())).collect();
        missing.and(gather::on_the_ways(source, root, &keys))
    })
}

/// Which of the nodes that a run is cut into are told to the level above.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Those that differ from before: the level above has the others.
    Changed,
    /// All: there is no level above yet.
    All,
}

struct Tree<'a, S: ?Sized> {
    source: &'a S,
    root: Option<NodeId>,
    salt: Salt,
    new_nodes: BTreeMap<NodeId, Arc<Node>>,
}

/// A node of a level, and whether it is the level's last.
struct Found {
    id: NodeId,
    node: Arc<Node>,
    is_last: bool,
}

impl<S: NodeSource + ?Sized> Tree<'_, S> {
    /// Applies changes level by level; returns the new root.
    fn apply(
        &mut self,
        root: StateRoot,
        changes: &BTreeMap<(String, String), Option<ShortEventId>>,
    ) -> Result<Option<NodeId>, Missing> {
        let leaf = |event: &Option<ShortEventId>| event.map(Value::Event);
        let key = |(kind, key): &(String, String)| (kind.as_str().into(), key.as_str().into());
        let mut changes: Changes = changes.iter().map(|(name, event)| (key(name), leaf(event))).collect();
        let top = root.0.map(|id| fetch(self.source, id)).transpose()?;
        let height = top.map_or(0, |node| node.level);
        for level in 0..=height {
            let kept = if level == height { Kept::All } else { Kept::Changed };
            changes = self.apply_level(level, changes, kept)?;
            if changes.is_empty() {
                self.new_nodes.clear();
                return Ok(root.0);
            }
        }
        // The top level's only node is replaced: what came of it is the new top level.
        let entries = changes
            .into_iter()
            .filter_map(|((kind, state_key), value)| Some(NodeEntry { kind, state_key, value: value? }));
        self.build_upwards(height, entries.collect())
    }

    /// Applies changes to the nodes of one level; returns the changes that follow for the level above.
    fn apply_level(&mut self, level: u8, changes: Changes, kept: Kept) -> Result<Changes, Missing> {
        let mut above = Changes::new();
        let mut pending = changes.into_iter().peekable();
        while let Some((first, _)) = pending.peek() {
            let mut replaced = Vec::new();
            let mut entries = BTreeMap::<Key, Value>::new();
            let mut found = self.find(level, (&first.0, &first.1))?;
            loop {
                let is_last = found.as_ref().is_none_or(|found| found.is_last);
                let end = found.as_ref().and_then(|found| found.node.entries.last().cloned());
                if let Some(Found { id, node, .. }) = &found {
                    replaced.push((key_of(&node.entries[node.entries.len() - 1]), *id));
                    entries.extend(node.entries.iter().map(|entry| (key_of(entry), entry.value)));
                }
                let is_due =
                    |key: &Key| is_last || end.as_ref().is_some_and(|end| (&*key.0, &*key.1) <= end.key());
                while let Some((key, value)) = pending.next_if(|(key, _)| is_due(key)) {
                    match value {
                        Some(value) => drop(entries.insert(key, value)),
                        None => drop(entries.remove(&key)),
                    }
                }
                if is_last || self.ends_with_boundary(level, &entries) {
                    break;
                }
                found = end.map(|end| self.find_after(level, end.key())).transpose()?.flatten();
            }
            self.replace(level, replaced, &entries, kept, &mut above);
        }
        Ok(above)
    }

    /// An empty run needs no boundary: it leaves nothing behind that could be cut.
    fn ends_with_boundary(&self, level: u8, entries: &BTreeMap<Key, Value>) -> bool {
        entries.last_key_value().is_none_or(|(key, value)| entry(key, *value).is_boundary(self.salt, level))
    }

    fn replace(
        &mut self,
        level: u8,
        replaced: Vec<(Key, NodeId)>,
        entries: &BTreeMap<Key, Value>,
        kept: Kept,
        above: &mut Changes,
    ) {
        let run: Vec<_> = entries.iter().map(|(key, value)| entry(key, *value)).collect();
        let mut made = BTreeMap::new();
        for node in cut(run, self.salt, level) {
            let id = node.id();
            let value = Value::Child { id, count: node.count() };
            made.insert(key_of(&node.entries[node.entries.len() - 1]), value);
            if replaced.iter().all(|(_, old)| *old != id) {
                self.new_nodes.insert(id, Arc::new(node));
            }
        }
        for (key, old) in replaced {
            match made.get(&key) {
                Some(Value::Child { id, .. }) if *id == old && kept == Kept::Changed => {
                    made.remove(&key);
                }
                Some(_) => {}
                None => drop(above.insert(key, None)),
            }
        }
        above.extend(made.into_iter().map(|(key, value)| (key, Some(value))));
    }

    /// The node of a level that holds a key or would hold it; none in an empty tree.
    fn find(&self, level: u8, key: (&str, &str)) -> Result<Option<Found>, Missing> {
        self.descend(level, |end| end < key)
    }

    /// The node of a level that follows the one whose last key is `key`.
    fn find_after(&self, level: u8, key: (&str, &str)) -> Result<Option<Found>, Missing> {
        self.descend(level, |end| end <= key)
    }

    /// The first node of a level whose last key does not lie `before` what is sought, or the level's last.
    fn descend(&self, level: u8, before: impl Fn((&str, &str)) -> bool) -> Result<Option<Found>, Missing> {
        let Some(mut id) = self.root else { return Ok(None) };
        let mut is_last = true;
        loop {
            let node = fetch(self.source, id)?;
            if node.level == level {
                return Ok(Some(Found { id, node, is_last }));
            }
            let last = node.entries.len() - 1;
            let place = node.entries.partition_point(|entry| before(entry.key())).min(last);
            is_last &= place == last;
            match node.entries[place].value {
                Value::Child { id: child, .. } => id = child,
                Value::Event(_) => return Ok(None),
            }
        }
    }

    /// Builds the levels above a level's nodes until one node is left, which is the root.
    fn build_upwards(&mut self, below: u8, mut entries: Vec<NodeEntry>) -> Result<Option<NodeId>, Missing> {
        let mut level = below;
        while entries.len() > 1 {
            level += 1;
            let nodes = cut(std::mem::take(&mut entries), self.salt, level);
            for node in nodes {
                let id = node.id();
                let last = &node.entries[node.entries.len() - 1];
                let value = Value::Child { id, count: node.count() };
                entries.push(NodeEntry { value, ..last.clone() });
                self.new_nodes.insert(id, Arc::new(node));
            }
        }
        let Some(Value::Child { id, .. }) = entries.first().map(|entry| entry.value) else { return Ok(None) };
        self.lowest_single(id).map(Some)
    }

    /// Descends while a node has only one child: the root is the first level that has one node.
    fn lowest_single(&mut self, mut id: NodeId) -> Result<NodeId, Missing> {
        loop {
            let node = match self.new_nodes.get(&id) {
                Some(node) => node.clone(),
                None => fetch(self.source, id)?,
            };
            match node.entries.as_slice() {
                [NodeEntry { value: Value::Child { id: child, .. }, .. }] => {
                    self.new_nodes.remove(&id);
                    id = *child;
                }
                _ => return Ok(id),
            }
        }
    }

    fn finish(self, root: Option<NodeId>) -> Applied {
        Applied { root: StateRoot(root), new_nodes: self.new_nodes.into_iter().collect() }
    }
}

/// Cuts a run of entries into nodes after each boundary.
fn cut(entries: Vec<NodeEntry>, salt: Salt, level: u8) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut current = Vec::new();
    for entry in entries {
        let ends = entry.is_boundary(salt, level);
        current.push(entry);
        if ends {
            nodes.push(Node { level, entries: std::mem::take(&mut current) });
        }
    }
    if !current.is_empty() {
        nodes.push(Node { level, entries: current });
    }
    nodes
}

fn key_of(entry: &NodeEntry) -> Key {
    (entry.kind.clone(), entry.state_key.clone())
}

fn entry(key: &Key, value: Value) -> NodeEntry {
    NodeEntry { kind: key.0.clone(), state_key: key.1.clone(), value }
}
