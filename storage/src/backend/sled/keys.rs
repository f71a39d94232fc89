//! Where rows lie in sled's one tree: the table's number before the key, and two bytes more before those of the tables whose rows
//! are kept in blocks.
//!
//! Keys are escaped: an `FF` is written as `FF 00`, which keeps their order. To go back over the edge of a node whose first key is
//! `..x`, sled looks for `..(x-1) FF FF FF FF` and takes for granted that no key of the node before is larger. Where one is, as
//! among the negative positions of fetched history, it goes around in a circle until it panics.

use std::ops::Bound;

use bytes::Bytes;

use crate::schema::TableId;

/// What the keys of blocks begin with. Rows of the back ends' own table begin otherwise.
const BLOCKS: [u8; 2] = [0, 1];

/// What all keys of a table begin with, escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(Vec<u8>);

impl Prefix {
    /// That of a table's rows, each under its own key.
    pub(super) fn of_rows(table: TableId) -> Self {
        Self(escape(&[table.0]))
    }

    /// That of a table's blocks.
    pub(super) fn of_blocks(table: TableId) -> Self {
        Self([BLOCKS.as_slice(), &escape(&[table.0])].concat())
    }

    /// The table of a block at this key in sled, and its prefix; none if there is no block.
    pub(super) fn of_block_at(place: &[u8]) -> Option<(TableId, Self)> {
        let table = TableId(*place.strip_prefix(BLOCKS.as_slice())?.first()?);
        Some((table, Self::of_blocks(table)))
    }

    /// The key in sled for one of the table.
    pub(super) fn with(&self, key: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() + key.len() + 8);
        bytes.extend_from_slice(&self.0);
        escape_onto(&mut bytes, key);
        bytes
    }

    /// The table's key of one in sled, which has to begin with this.
    pub(super) fn without(&self, key: &[u8]) -> Bytes {
        let escaped = &key[self.0.len()..];
        if !escaped.contains(&0xFF) {
            return Bytes::copy_from_slice(escaped);
        }
        let mut key = Vec::with_capacity(escaped.len());
        let mut bytes = escaped.iter();
        while let Some(byte) = bytes.next() {
            key.push(*byte);
            if *byte == 0xFF {
                bytes.next(); // the 00 after it
            }
        }
        key.into()
    }

    /// A range in sled for one of the table's keys.
    pub(super) fn range(
        &self,
        lower: Bound<&Bytes>,
        upper: Bound<&Bytes>,
    ) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let lower = match lower.map(|key| self.with(key)) {
            Bound::Unbounded => Bound::Included(self.0.clone()),
            bound => bound,
        };
        let upper = match upper.map(|key| self.with(key)) {
            Bound::Unbounded => Bound::Excluded(self.end()),
            bound => bound,
        };
        (lower, upper)
    }

    /// The first key after all that begin with this.
    fn end(&self) -> Vec<u8> {
        let mut end = self.0.clone();
        if let Some(last) = end.last_mut() {
            *last += 1; // no escaped key ends with FF
        }
        end
    }
}

/// Writes a key in the form in which sled can go through it backwards.
pub(super) fn escape(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + 8);
    escape_onto(&mut escaped, key);
    escaped
}

fn escape_onto(escaped: &mut Vec<u8>, key: &[u8]) {
    for byte in key {
        escaped.push(*byte);
        if *byte == 0xFF {
            escaped.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_keep_their_order_and_come_back(
            keys in proptest::collection::btree_set(proptest::collection::vec(prop_oneof![Just(0xFF), Just(0), Just(0xFE), any::<u8>()], 0..6), 0..9),
            table: u8,
        ) {
            for prefix in [Prefix::of_rows(TableId(table)), Prefix::of_blocks(TableId(table))] {
                let escaped: Vec<_> = keys.iter().map(|key| prefix.with(key)).collect();
                prop_assert!(escaped.is_sorted());
                prop_assert!(escaped.iter().all(|key| *key < prefix.end() && !key.ends_with(&[0xFF])));
                let back: Vec<_> = escaped.iter().map(|key| prefix.without(key).to_vec()).collect();
                prop_assert_eq!(back, keys.iter().cloned().collect::<Vec<_>>());
            }
        }
    }
}
