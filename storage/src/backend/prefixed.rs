//! Rows of all tables in one keyspace: the table's number, then the key.

use std::ops::Bound;

use bytes::Bytes;

use crate::{schema::TableId, store::Scan};

/// The bytes of a row's key.
pub(super) fn key(table: TableId, key: &Bytes) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(table.0);
    bytes.extend_from_slice(key);
    bytes
}

/// The range of a scan, kept inside its table.
pub(super) fn bounds(scan: &Scan) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let prefix = |bound: &Bound<Bytes>| bound.as_ref().map(|bytes| key(scan.table, bytes));
    let lower = match prefix(&scan.lower) {
        Bound::Unbounded => Bound::Included(vec![scan.table.0]),
        bound => bound,
    };
    let upper = match (prefix(&scan.upper), scan.table.0.checked_add(1)) {
        (Bound::Unbounded, Some(next)) => Bound::Excluded(vec![next]),
        (bound, _) => bound,
    };
    (lower, upper)
}
