//! Rows that are durable, but not in sled yet.

use std::{cmp::Ordering, iter::Peekable, ops::Bound};

use bytes::Bytes;

use crate::{
    schema::TableId,
    store::{Direction, Row, Scan, StoreError, Writes},
};

/// The rows, which hide those of the same keys in sled.
#[derive(Default)]
pub(super) struct Recent {
    rows: Writes,
    bytes: usize,
}

impl Recent {
    /// The row's newest value if it is here; none within if it was deleted.
    pub(super) fn get(&self, table: TableId, key: &Bytes) -> Option<&Option<Bytes>> {
        if self.rows.is_empty() { None } else { self.rows.get(&(table, key.clone())) }
    }

    /// A page of the rows `below` with these over them; both in the scan's direction.
    pub(super) fn over<'a>(
        &'a self,
        scan: &Scan,
        below: impl Iterator<Item = Result<Row, StoreError>> + 'a,
    ) -> impl Iterator<Item = Result<Row, StoreError>> + 'a {
        let direction = scan.direction;
        let mut recent = self.rows.range::<(TableId, Bytes), _>(<(_, _)>::from(bounds(scan)));
        let recent = std::iter::from_fn(move || match direction {
            Direction::Ascending => recent.next(),
            Direction::Descending => recent.next_back(),
        });
        let recent = recent.map(|((_, key), value)| (key, value)).peekable();
        Over { recent, below: below.peekable(), direction }.take(scan.limit)
    }

    /// Adds a commit's rows.
    pub(super) fn add(&mut self, writes: Writes) {
        // A row that is written again counts again: it is a bound, and it falls to nothing soon.
        self.bytes += writes
            .iter()
            .map(|((_, key), value)| key.len() + value.as_ref().map_or(0, Bytes::len))
            .sum::<usize>();
        self.rows.extend(writes);
    }

    /// All rows.
    pub(super) fn rows(&self) -> &Writes {
        &self.rows
    }

    /// At least how many bytes the rows have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets all rows, which have to be in sled.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The scan's range among the rows of all tables.
fn bounds(scan: &Scan) -> [Bound<(TableId, Bytes)>; 2] {
    let within = |bound: &Bound<Bytes>| bound.clone().map(|key| (scan.table, key));
    let lower = match within(&scan.lower) {
        Bound::Unbounded => Bound::Included((scan.table, Bytes::new())),
        bound => bound,
    };
    let upper = match (within(&scan.upper), scan.table.0.checked_add(1)) {
        (Bound::Unbounded, Some(next)) => Bound::Excluded((TableId(next), Bytes::new())),
        (bound, _) => bound,
    };
    [lower, upper]
}

/// Two runs of rows in one order; the first wins.
struct Over<R: Iterator, B: Iterator> {
    recent: Peekable<R>,
    below: Peekable<B>,
    direction: Direction,
}

impl<'a, R, B> Iterator for Over<R, B>
where
    R: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>,
    B: Iterator<Item = Result<Row, StoreError>>,
{
    type Item = Result<Row, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.recent.peek(), self.below.peek()) {
                (None, _) | (_, Some(Err(_))) => return self.below.next(),
                (Some(_), None) => Ordering::Less,
                (Some((recent, _)), Some(Ok((below, _)))) => match self.direction {
                    Direction::Ascending => (*recent).cmp(below),
                    Direction::Descending => below.cmp(recent),
                },
            };
            if order == Ordering::Greater {
                return self.below.next();
            }
            if order == Ordering::Equal {
                self.below.next();
            }
            if let Some((key, Some(value))) = self.recent.next() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Bytes {
        Bytes::from(vec![number])
    }

    fn bound(number: u8, kind: u8) -> Bound<Bytes> {
        match kind {
            0 => Bound::Unbounded,
            1 => Bound::Included(key(number)),
            _ => Bound::Excluded(key(number)),
        }
    }

    proptest! {
        /// Any rows over any others are what one map would answer that took both.
        #[test]
        fn rows_over_rows_are_as_one_map(
            below in proptest::collection::btree_map(0_u8..20, any::<u8>(), 0..15),
            recent in proptest::collection::btree_map((1_u8..4, 0_u8..20), any::<Option<u8>>(), 0..30),
            (from, from_kind, to, to_kind) in (0_u8..20, 0_u8..3, 0_u8..20, 0_u8..3),
            limit in 1_usize..25,
            is_ascending: bool,
        ) {
            let (table, value) = (TableId(2), |number: u8| Bytes::from(vec![number]));
            let direction = if is_ascending { Direction::Ascending } else { Direction::Descending };
            let (lower, upper) = (bound(from, from_kind), bound(to, to_kind));
            let scan = Scan { table, lower, upper, direction, limit };
            prop_assume!(!scan.is_empty());
            let mut rows = Recent::default();
            for ((table, number), new) in &recent {
                rows.add(Writes::from([((TableId(*table), key(*number)), new.map(value))]));
            }
            let mut model: BTreeMap<Bytes, Bytes> =
                below.iter().map(|(number, old)| (key(*number), value(*old))).collect();
            let range = || (scan.lower.clone(), scan.upper.clone());
            let in_order = |model: &BTreeMap<Bytes, Bytes>| -> Vec<Row> {
                let rows = model.range(range()).map(|(key, value)| (key.clone(), value.clone()));
                if is_ascending { rows.collect() } else { rows.rev().collect() }
            };
            let stored = in_order(&model);
            for ((_, number), new) in recent.range((2, 0)..(3, 0)) {
                match new {
                    Some(new) => model.insert(key(*number), value(*new)),
                    None => model.remove(&key(*number)),
                };
            }
            let found: Vec<Row> = rows.over(&scan, stored.into_iter().map(Ok)).map(Result::unwrap).collect();
            let expected: Vec<Row> = in_order(&model).into_iter().take(limit).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
