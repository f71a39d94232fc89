//! Blocks: rows of one table that follow each other, in one row of sled.
//!
//! sled keeps a table of its pages in memory, which it reads when it is opened, and never has more than 16 rows in a page. Where
//! each message adds rows, that makes a page for every two messages; with blocks it is one for some ten.
//!
//! A block's key is that of the first row that it was made with. Its rows come at or after that, and before the next block's. What
//! is in it is compressed: a form (1 byte), the length before (4 bytes), then for each row how many bytes of the row's key are
//! those of the key before it (2 bytes; before the first row's comes the block's), how many follow (4), how many the value has (4),
//! and both.

use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes};

use crate::store::Row;

/// Most rows of a block: so many are written again with each change of one.
const ROWS_MAX: usize = 32;

/// Most bytes of rows in a block with more than one. sled keeps up to 16,000 pages that were touched, of 8 to 16 blocks each,
/// whatever its cache may take; twice the bytes would be twice the memory.
const BYTES_MAX: usize = 3 << 10;

/// Form of rows as they are.
const PLAIN: u8 = 0;

/// Form of rows compressed with LZ4.
const COMPRESSED: u8 = 1;

/// Bytes from which on compressing is worth while.
const COMPRESSED_MIN: usize = 512;

/// LZ4 makes no more than this of a byte.
const RATIO_MAX: usize = 256;

/// A block is no such thing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a block of rows is damaged")]
pub(super) struct Damaged;

/// The block of these rows.
pub(super) fn encode(first: &[u8], rows: &[Row]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(rows.iter().map(|row| 10 + size(row)).sum());
    let mut before = first;
    for (key, value) in rows {
        let shared = key.iter().zip(before).take_while(|(a, b)| a == b).count();
        let shared = u16::try_from(shared).unwrap_or(u16::MAX);
        let own = &key[shared.into()..];
        plain.put_u16(shared);
        plain.put_u32(length(own));
        plain.put_u32(length(value));
        plain.put_slice(own);
        plain.put_slice(value);
        before = key;
    }
    if plain.len() >= COMPRESSED_MIN {
        let compressed = lz4_flex::block::compress(&plain);
        if compressed.len() < plain.len() {
            return framed(COMPRESSED, &plain, &compressed);
        }
    }
    framed(PLAIN, &plain, &plain)
}

fn framed(form: u8, plain: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 + content.len());
    bytes.put_u8(form);
    bytes.put_u32(length(plain));
    bytes.put_slice(content);
    bytes
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a commit is smaller than 4 GiB")
}

/// The rows of a block.
#[derive(Debug)]
pub(super) struct Block {
    first: Bytes,
    plain: Bytes,
}

impl Block {
    /// Reads a block with this key.
    pub(super) fn open(first: Bytes, mut block: &[u8]) -> Result<Self, Damaged> {
        let form = block.try_get_u8().map_err(|_| Damaged)?;
        let length =
            block.try_get_u32().ok().and_then(|length| usize::try_from(length).ok()).ok_or(Damaged)?;
        let plain = match form {
            PLAIN => Bytes::copy_from_slice(block),
            COMPRESSED if length / RATIO_MAX <= block.len() => {
                lz4_flex::block::decompress(block, length).map_err(|_| Damaged)?.into()
            }
            _ => return Err(Damaged),
        };
        if plain.len() == length { Ok(Self { first, plain }) } else { Err(Damaged) }
    }

    /// The value of the row with this key.
    pub(super) fn get(&self, wanted: &[u8]) -> Result<Option<Bytes>, Damaged> {
        let mut found = None;
        self.walk(|key, value| {
            if key < wanted {
                return ControlFlow::Continue(());
            }
            // A copy: the whole block would live as long as the value.
            found = (key == wanted).then(|| Bytes::copy_from_slice(value));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// All rows, in order.
    pub(super) fn rows(&self) -> Result<Vec<Row>, Damaged> {
        let (mut keys, mut values) = (Vec::with_capacity(self.plain.len()), Vec::with_capacity(ROWS_MAX));
        self.walk(|key, value| {
            keys.extend_from_slice(key);
            values.push((key.len(), self.plain.slice_ref(value)));
            ControlFlow::Continue(())
        })?;
        // One piece of memory for all keys.
        let mut keys = Bytes::from(keys);
        Ok(values.into_iter().map(|(length, value)| (keys.split_to(length), value)).collect())
    }

    fn walk(&self, mut see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<(), Damaged> {
        let mut key = self.first.to_vec();
        let mut left: &[u8] = &self.plain;
        while !left.is_empty() {
            let shared = left.try_get_u16().map_err(|_| Damaged)?;
            let own = left.try_get_u32().map_err(|_| Damaged)?;
            let length = left.try_get_u32().map_err(|_| Damaged)?;
            if usize::from(shared) > key.len() {
                return Err(Damaged);
            }
            key.truncate(shared.into());
            key.extend_from_slice(take(&mut left, own)?);
            if see(&key, take(&mut left, length)?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: u32) -> Result<&'a [u8], Damaged> {
    let length = usize::try_from(length).map_err(|_| Damaged)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Damaged)?;
    *bytes = rest;
    Ok(taken)
}

fn size((key, value): &Row) -> usize {
    key.len() + value.len()
}

/// Divides rows into blocks. Rows that were appended leave full blocks behind them; others two halves, so that there is room again.
pub(super) fn cut(rows: &[Row], appended: bool) -> impl Iterator<Item = &[Row]> {
    let bytes: usize = rows.iter().map(size).sum();
    let pieces = rows.len().div_ceil(ROWS_MAX).max(bytes.div_ceil(BYTES_MAX)).max(1);
    let (rows_max, bytes_max) =
        if appended { (ROWS_MAX, BYTES_MAX) } else { (rows.len().div_ceil(pieces), bytes.div_ceil(pieces)) };
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(rows_max).take_while(|row| {
            bytes += size(row);
            bytes <= bytes_max
        });
        let count = fits.count().max(1).min(rest.len());
        let (block, after) = rest.split_at(count);
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let key = proptest::collection::vec(0_u8..3, 0..8);
        let value = (any::<u8>(), prop_oneof![0_usize..40, 500_usize..3_000]);
        proptest::collection::btree_map(key, value, 0..60).prop_map(|rows| {
            rows.into_iter().map(|(key, (byte, length))| (key.into(), vec![byte; length].into())).collect()
        })
    }

    proptest! {
        #[test]
        fn blocks_hold_their_rows(rows in rows(), first in proptest::collection::vec(0_u8..3, 0..8)) {
            let block = Block::open(Bytes::from(first.clone()), &encode(&first, &rows)).unwrap();
            prop_assert_eq!(&block.rows().unwrap(), &rows);
            for (key, value) in &rows {
                prop_assert_eq!(block.get(key).unwrap(), Some(value.clone()));
                prop_assert_eq!(block.get(&[key.as_ref(), &[9]].concat()).unwrap(), None);
            }
        }

        #[test]
        fn cutting_keeps_all_rows_in_order_and_blocks_small(rows in rows(), appended: bool) {
            let blocks: Vec<_> = cut(&rows, appended).collect();
            prop_assert_eq!(&blocks.concat(), &rows);
            for block in blocks {
                prop_assert!(block.len() <= ROWS_MAX);
                prop_assert!(block.len() == 1 || block.iter().map(size).sum::<usize>() <= BYTES_MAX);
            }
        }

        #[test]
        fn damage_is_an_error(rows in rows(), at: prop::sample::Index, byte: u8) {
            let mut bytes = encode(b"", &rows);
            let at = at.index(bytes.len());
            for cut in [0, 4, at] {
                let _ = Block::open(Bytes::new(), &bytes[..cut]).and_then(|block| block.rows());
            }
            bytes[at] ^= byte;
            // Which rows they are then is not said, only that it ends.
            let _ = Block::open(Bytes::new(), &bytes).and_then(|block| block.rows());
        }
    }

    #[test]
    fn a_length_that_no_block_has_is_refused_before_it_is_allocated() {
        let block = [[COMPRESSED].as_slice(), &u32::MAX.to_be_bytes(), &[0; 16]].concat();
        assert_eq!(Block::open(Bytes::new(), &block).err(), Some(Damaged));
    }

    #[test]
    fn appended_rows_leave_full_blocks() {
        let rows: Vec<Row> = (0..40_u8).map(|number| (vec![number].into(), Bytes::new())).collect();
        let lengths = |appended| cut(&rows, appended).map(<[Row]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(true), [32, 8]);
        assert_eq!(lengths(false), [20, 20]);
        assert_eq!(cut(&[], true).count(), 0);
    }
}
