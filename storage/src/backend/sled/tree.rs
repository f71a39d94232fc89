//! The rows in sled's tree, some of them in [blocks](super::block).

use std::{
    iter::Peekable,
    ops::{Bound, RangeBounds},
};

use bytes::Bytes;
use sled::{Db, IVec};

use super::{
    Sled,
    block::{self, Block, Damaged},
    failed,
    form::Form,
    keys::Prefix,
};
use crate::{
    backend::embedded::Engine,
    schema::TableId,
    store::{Direction, Row, Scan, StoreError, Writes},
};

type Entry = (IVec, IVec);

fn damaged(error: Damaged) -> StoreError {
    StoreError::backend(Sled::NAME, error)
}

/// The rows of a database.
pub(super) struct Tree {
    pub(super) db: Db,
    pub(super) form: Form,
}

impl Tree {
    /// The values of keys, in their order.
    pub(super) fn read<'a>(
        &'a self,
        table: TableId,
        keys: impl Iterator<Item = &'a Bytes> + 'a,
    ) -> Box<dyn Iterator<Item = Result<Option<Bytes>, StoreError>> + 'a> {
        if !self.form.packs(table) {
            let prefix = Prefix::of_rows(table);
            return Box::new(keys.map(move |key| {
                let value = self.db.get(prefix.with(key)).map_err(failed)?;
                Ok(value.map(|value| Bytes::copy_from_slice(&value)))
            }));
        }
        let prefix = Prefix::of_blocks(table);
        // Keys that follow each other are often in the same block.
        let mut last: Option<(IVec, Block)> = None;
        Box::new(keys.map(move |key| {
            let Some((place, bytes)) = self.holding(&prefix, key)? else { return Ok(None) };
            let block = match last.take() {
                Some((same, block)) if same == place => block,
                _ => Block::open(prefix.without(&place), &bytes).map_err(damaged)?,
            };
            let value = block.get(key).map_err(damaged);
            last = Some((place, block));
            value
        }))
    }

    /// The rows of a block, and their table; none if this entry of sled's tree is none.
    pub(super) fn in_block(
        &self,
        place: &[u8],
        bytes: &[u8],
    ) -> Result<Option<(TableId, Vec<Row>)>, StoreError> {
        let Some((table, prefix)) = Prefix::of_block_at(place) else { return Ok(None) };
        if !self.form.packs(table) {
            return Ok(None);
        }
        let rows = Block::open(prefix.without(place), bytes).and_then(|block| block.rows());
        Ok(Some((table, rows.map_err(damaged)?)))
    }

    /// The block in which a key is if it is in any.
    fn holding(&self, prefix: &Prefix, key: &Bytes) -> Result<Option<Entry>, StoreError> {
        let range = prefix.range(Bound::Unbounded, Bound::Included(key));
        self.db.range(range).next_back().transpose().map_err(failed)
    }

    /// The rows of a range, in the scan's direction.
    pub(super) fn scan<'a>(
        &'a self,
        scan: &'a Scan,
    ) -> Result<Box<dyn Iterator<Item = Result<Row, StoreError>> + 'a>, StoreError> {
        let bounds = (scan.lower.as_ref(), scan.upper.as_ref());
        if !self.form.packs(scan.table) {
            let prefix = Prefix::of_rows(scan.table);
            let rows = self.db.range(prefix.range(bounds.0, bounds.1));
            return Ok(directed(rows, scan.direction, move |(key, value)| {
                Ok((prefix.without(&key), Bytes::copy_from_slice(&value)))
            }));
        }
        let prefix = Prefix::of_blocks(scan.table);
        let mut range = prefix.range(bounds.0, bounds.1);
        if let Bound::Included(lower) | Bound::Excluded(lower) = bounds.0
            && let Some((place, _)) = self.holding(&prefix, lower)?
        {
            range.0 = Bound::Included(place.to_vec());
        }
        let blocks = directed(self.db.range(range), scan.direction, move |(place, bytes)| {
            let block = Block::open(prefix.without(&place), &bytes).map_err(damaged)?;
            let mut rows = block.rows().map_err(damaged)?;
            rows.retain(|(key, _)| RangeBounds::<Bytes>::contains(&bounds, key));
            if scan.direction == Direction::Descending {
                rows.reverse();
            }
            Ok(rows)
        });
        Ok(Box::new(blocks.flat_map(|rows| match rows {
            Ok(rows) => Rows::Whole(rows.into_iter()),
            Err(error) => Rows::Failed(Some(error)),
        })))
    }
}

fn directed<'a, T>(
    entries: sled::Iter,
    direction: Direction,
    mut read: impl FnMut(Entry) -> Result<T, StoreError> + 'a,
) -> Box<dyn Iterator<Item = Result<T, StoreError>> + 'a> {
    let read = move |entry: sled::Result<Entry>| read(entry.map_err(failed)?);
    match direction {
        Direction::Ascending => Box::new(entries.map(read)),
        Direction::Descending => Box::new(entries.rev().map(read)),
    }
}

/// What comes of a block.
enum Rows {
    Whole(std::vec::IntoIter<Row>),
    Failed(Option<StoreError>),
}

impl Iterator for Rows {
    type Item = Result<Row, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Whole(rows) => rows.next().map(Ok),
            Self::Failed(error) => error.take().map(Err),
        }
    }
}

/// What brings these rows into sled.
#[derive(Default)]
pub(super) struct Change {
    pub(super) batch: sled::Batch,
    /// Bytes of keys and values in it.
    pub(super) bytes: usize,
}

impl Change {
    /// Adds what puts these rows into blocks, or under their own keys. Blocks that it changes already may not be among them.
    pub(super) fn add(&mut self, tree: &Tree, rows: &Writes) -> Result<(), StoreError> {
        let mut rows = rows.iter().peekable();
        while let Some(((table, _), _)) = rows.peek() {
            if tree.form.packs(*table) {
                self.put_block(tree, *table, &mut rows)?;
            } else if let Some(((table, key), value)) = rows.next() {
                let place = Prefix::of_rows(*table).with(key);
                match value {
                    Some(value) => self.put(place, value.to_vec()),
                    None => self.remove(place),
                }
            }
        }
        Ok(())
    }

    /// Puts the first of the rows, which is of this table, and all others of the same block.
    fn put_block<'a>(
        &mut self,
        tree: &Tree,
        table: TableId,
        rows: &mut Peekable<impl Iterator<Item = (&'a (TableId, Bytes), &'a Option<Bytes>)>>,
    ) -> Result<(), StoreError> {
        let prefix = Prefix::of_blocks(table);
        let Some(((_, key), _)) = rows.peek() else { return Ok(()) };
        let old = match tree.holding(&prefix, key)? {
            None => None,
            Some((place, bytes)) => {
                let first = prefix.without(&place);
                let rows = Block::open(first.clone(), &bytes).and_then(|block| block.rows());
                Some((first, rows.map_err(damaged)?))
            }
        };
        let start = old.as_ref().map_or_else(|| (*key).clone(), |(first, _)| first.clone());
        let next = tree.db.range(prefix.range(Bound::Excluded(&start), Bound::Unbounded)).next();
        let end = next.transpose().map_err(failed)?.map(|(place, _)| prefix.without(&place));
        let is_within = |at: TableId, key: &Bytes| at == table && end.as_ref().is_none_or(|end| key < end);
        let new = std::iter::from_fn(|| rows.next_if(|((at, key), _)| is_within(*at, key)));
        let had_block = old.is_some();
        let (merged, appended) =
            merge(old.map(|(_, rows)| rows).unwrap_or_default(), new.map(|((_, key), value)| (key, value)));
        if merged.is_empty() {
            if had_block {
                self.remove(prefix.with(&start));
            }
            return Ok(());
        }
        for (number, rows) in block::cut(&merged, appended).enumerate() {
            let first = if number == 0 { &start } else { &rows[0].0 };
            self.put(prefix.with(first), block::encode(first, rows));
        }
        Ok(())
    }

    pub(super) fn put(&mut self, place: Vec<u8>, value: Vec<u8>) {
        self.bytes += place.len() + value.len();
        self.batch.insert(place, value);
    }

    fn remove(&mut self, place: Vec<u8>) {
        self.bytes += place.len();
        self.batch.remove(place);
    }
}

/// Rows with newer ones over them, all in order, and whether nothing but rows after the last was added.
fn merge<'a>(old: Vec<Row>, new: impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>) -> (Vec<Row>, bool) {
    let mut appended = true;
    let mut old = old.into_iter().peekable();
    let mut rows = Vec::new();
    for (key, value) in new {
        rows.extend(std::iter::from_fn(|| old.next_if(|row| row.0 < *key)));
        appended &= old.next_if(|row| row.0 == *key).is_some() || old.peek().is_none();
        rows.extend(value.clone().map(|value| (key.clone(), value)));
    }
    rows.extend(old);
    (rows, appended)
}
