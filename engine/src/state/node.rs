//! A node of the state tree and its encoding.

use std::{hash::Hasher, sync::Arc};

use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;

use super::{FANOUT, NodeId, Salt};
use crate::id::ShortEventId;

/// The encoding's version, its first byte.
const VERSION: u8 = 1;

/// What an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// In a leaf: the event.
    Event(ShortEventId),
    /// Above: a node whose last key is the entry's, and the number of keys below it.
    Child {
        /// The node.
        id: NodeId,
        /// Keys below it.
        count: u64,
    },
}

/// A key and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeEntry {
    pub(super) kind: Arc<str>,
    pub(super) state_key: Arc<str>,
    pub(super) value: Value,
}

impl NodeEntry {
    pub(super) fn key(&self) -> (&str, &str) {
        (&self.kind, &self.state_key)
    }

    /// Whether a node of this level ends with this entry.
    pub(super) fn is_boundary(&self, salt: Salt, level: u8) -> bool {
        let mut hasher = SipHasher13::new_with_keys(salt.0, level.into());
        hasher.write(self.kind.as_bytes());
        hasher.write(&[0xff]);
        hasher.write(self.state_key.as_bytes());
        hasher.finish().is_multiple_of(FANOUT)
    }
}

/// A node: a run of entries in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 0 for leaves.
    pub(super) level: u8,
    pub(super) entries: Vec<NodeEntry>,
}

/// Bytes are not a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a state node: {0}")]
pub struct DecodeError(&'static str);

impl Node {
    /// Number of state keys at and below this node.
    pub(super) fn count(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| match entry.value {
                Value::Event(_) => 1,
                Value::Child { count, .. } => count,
            })
            .sum()
    }

    /// The first entry at or after a key.
    pub(super) fn first_from(&self, key: (&str, &str)) -> Option<&NodeEntry> {
        self.entries.get(self.entries.partition_point(|entry| entry.key() < key))
    }

    /// The nodes right below this one.
    pub(super) fn children(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.entries.iter().filter_map(|entry| match entry.value {
            Value::Child { id, .. } => Some(id),
            Value::Event(_) => None,
        })
    }

    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.level];
        let mut last_kind: Option<&str> = None;
        for entry in &self.entries {
            // Neighbours mostly have the same type: 0 says so, else the length plus one.
            if last_kind == Some(&entry.kind) {
                out.push(0);
            } else {
                write_number(&mut out, entry.kind.len() as u64 + 1);
                out.extend_from_slice(entry.kind.as_bytes());
                last_kind = Some(&entry.kind);
            }
            write_number(&mut out, entry.state_key.len() as u64);
            out.extend_from_slice(entry.state_key.as_bytes());
            match entry.value {
                Value::Event(event) => write_number(&mut out, event.0),
                Value::Child { id, count } => {
                    out.extend_from_slice(&id.0);
                    write_number(&mut out, count);
                }
            }
        }
        out
    }

    /// Reads stored bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&[version, level], mut input) =
            bytes.split_first_chunk::<2>().ok_or(DecodeError("too short"))?;
        if version != VERSION {
            return Err(DecodeError("unknown version"));
        }
        let mut entries: Vec<NodeEntry> = Vec::new();
        while !input.is_empty() {
            let kind = match read_number(&mut input)? {
                0 => entries.last().ok_or(DecodeError("no type to repeat"))?.kind.clone(),
                length => read_text(&mut input, length - 1)?,
            };
            let length = read_number(&mut input)?;
            let state_key = read_text(&mut input, length)?;
            let value = if level == 0 {
                Value::Event(ShortEventId(read_number(&mut input)?))
            } else {
                let (id, rest) = input.split_first_chunk::<16>().ok_or(DecodeError("too short"))?;
                input = rest;
                Value::Child { id: NodeId(*id), count: read_number(&mut input)? }
            };
            entries.push(NodeEntry { kind, state_key, value });
        }
        if entries.is_empty() {
            return Err(DecodeError("no entries"));
        }
        Ok(Self { level, entries })
    }

    /// The node's address.
    pub fn id(&self) -> NodeId {
        let digest = Sha256::digest(self.encode());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        NodeId(id)
    }

    /// About how much memory the node takes, in bytes.
    pub fn weight(&self) -> usize {
        let texts: usize = self.entries.iter().map(|entry| entry.state_key.len() + 16).sum();
        texts + self.entries.len() * size_of::<NodeEntry>() + 64
    }
}

/// Seven bits a byte, lowest first; the eighth bit says that more follow.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn read_number(input: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first().ok_or(DecodeError("too short"))?;
        *input = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError("number too long"))
}

fn read_text(input: &mut &[u8], length: u64) -> Result<Arc<str>, DecodeError> {
    let length = usize::try_from(length).map_err(|_| DecodeError("text too long"))?;
    let (text, rest) = input.split_at_checked(length).ok_or(DecodeError("too short"))?;
    *input = rest;
    std::str::from_utf8(text).map(Arc::from).map_err(|_| DecodeError("text is not UTF-8"))
}
