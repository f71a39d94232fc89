//! Room state as a persistent ordered tree from (event type, state key) to event.
//!
//! A *prolly tree*: the entries of each level are cut into nodes after every entry whose key's salted hash
//! says so, one in [`FANOUT`] on average. Where the cuts are follows from the keys alone, so equal states
//! have equal roots however they came about, a change writes one node per level, and a comparison skips
//! whatever two states share. Nodes are addressed by the hash of their encoding and stored once.
//!
//! Nothing here does I/O: an operation that lacks nodes says which, and is called again with them.

mod apply;
mod diff;
mod gather;
mod node;
mod range;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::{
    apply::{Applied, apply},
    diff::{Change, diff},
    node::{DecodeError, Node},
    range::{Entry, entries, range},
};
use crate::id::ShortEventId;

/// Entries per node, on average.
const FANOUT: u64 = 16;

/// The address of a node: the start of the SHA-256 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 16]);

/// A state, by the address of its tree's root; the default is the empty state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateRoot(Option<NodeId>);

impl StateRoot {
    /// Whether nothing is set in the state.
    pub fn is_empty(self) -> bool {
        self.0.is_none()
    }
}

/// Decides where a room's trees are cut. Secret, so that nobody can craft keys for degenerate trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salt(pub u64);

/// Where nodes come from.
pub trait NodeSource {
    /// The node of this address, if it is at hand.
    fn node(&self, id: NodeId) -> Option<Arc<Node>>;
}

impl<S: NodeSource + ?Sized> NodeSource for &S {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        (**self).node(id)
    }
}

/// An operation needs these nodes; fetch them and call it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub Vec<NodeId>);

fn fetch(source: &(impl NodeSource + ?Sized), id: NodeId) -> Result<Arc<Node>, Missing> {
    source.node(id).ok_or_else(|| Missing(vec![id]))
}

/// The event that holds one key of a state.
pub fn get(
    source: &(impl NodeSource + ?Sized),
    root: StateRoot,
    kind: &str,
    state_key: &str,
) -> Result<Option<ShortEventId>, Missing> {
    let Some(mut id) = root.0 else { return Ok(None) };
    loop {
        let node = fetch(source, id)?;
        let Some(entry) = node.first_from((kind, state_key)) else { return Ok(None) };
        match entry.value {
            node::Value::Child { id: child, .. } => id = child,
            node::Value::Event(event) => return Ok((entry.key() == (kind, state_key)).then_some(event)),
        }
    }
}

/// How many keys a state has.
pub fn count(source: &(impl NodeSource + ?Sized), root: StateRoot) -> Result<u64, Missing> {
    root.0.map_or(Ok(0), |id| Ok(fetch(source, id)?.count()))
}

#[cfg(test)]
mod tests;
