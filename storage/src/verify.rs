//! Reading all of a store, to find rows that cannot be read. Nothing is changed.

use std::ops::Bound;

use bytes::Bytes;

use crate::{
    backend::OpenError,
    key::{self, Key},
    migrate,
    record::Value,
    schema::{TABLES, TableId, TableInfo},
    store::{Direction, Scan, Store, StoreError},
};

/// Rows that are read at a time.
const PAGE: usize = 1000;

/// Unreadable rows after which the rest is not looked at any more.
const UNREADABLE_MAX: usize = 1000;

/// What a whole store looks like.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// The version of its schema.
    pub schema_version: u64,
    /// Rows that were read.
    pub rows: u64,
    /// What cannot be read, with the reason.
    pub unreadable: Vec<String>,
}

/// Reads every row of every table; a store of another schema version is not read.
pub async fn verify(store: &dyn Store) -> Result<Verified, OpenError> {
    let schema_version = migrate::version(store).await?;
    let mut verified = Verified { schema_version, ..Verified::default() };
    if schema_version != migrate::SCHEMA_VERSION {
        return Ok(verified);
    }
    for table in TABLES {
        verify_table(store, table, &mut verified).await?;
    }
    Ok(verified)
}

async fn verify_table(
    store: &dyn Store,
    table: &TableInfo,
    verified: &mut Verified,
) -> Result<(), StoreError> {
    let mut lower = Bound::Unbounded;
    while verified.unreadable.len() < UNREADABLE_MAX {
        let scan = Scan {
            table: table.id,
            lower,
            upper: Bound::Unbounded,
            direction: Direction::Ascending,
            limit: PAGE,
        };
        let rows = store.scan(scan).await?;
        let Some((last, _)) = rows.last().filter(|_| !rows.is_empty()) else { return Ok(()) };
        lower = Bound::Excluded(last.clone());
        verified.rows += rows.len() as u64;
        let is_last = rows.len() < PAGE;
        for (key, value) in rows {
            if let Err(error) = (table.read_row)(table.id, &key, value) {
                verified.unreadable.push(error.to_string());
            }
        }
        if is_last {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one row of a table of these types.
pub(crate) fn read_row<K: Key, V: Value>(table: TableId, key: &[u8], value: Bytes) -> Result<(), StoreError> {
    key::decode::<K>(key).map_err(|source| StoreError::Key { table, source })?;
    V::decode(value).map_err(|source| StoreError::Value { table, source: source.into() })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MemoryStore,
        schema::{META, ROOM_IDS, Table},
        store::{Batch, Sync},
    };

    async fn store_with(table: TableId, value: &'static [u8]) -> MemoryStore {
        let store = MemoryStore::new();
        migrate::prepare(&store).await.unwrap();
        let mut batch = Batch::new();
        let table: Table<String, Bytes> = Table::new(table.0, "raw");
        batch.put(&table, "!room:example.org", &Bytes::from_static(value));
        store.commit(vec![batch], Sync::Now).await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_is_found() {
        let good = store_with(ROOM_IDS.id(), &[0, 0, 0, 0, 0, 0, 0, 7]).await;
        let verified = verify(&good).await.unwrap();
        assert_eq!((verified.schema_version, verified.unreadable.len()), (migrate::SCHEMA_VERSION, 0));
        assert!(verified.rows >= 2, "{verified:?}");
        let bad = store_with(ROOM_IDS.id(), &[7]).await;
        let verified = verify(&bad).await.unwrap();
        assert_eq!(verified.unreadable.len(), 1);
        assert!(verified.unreadable[0].contains("ROOM_IDS"), "{verified:?}");
    }

    #[tokio::test]
    async fn a_newer_store_is_not_read() {
        let store = store_with(META.id(), b"anything").await;
        let mut batch = Batch::new();
        let newer = (migrate::SCHEMA_VERSION + 1).to_be_bytes().to_vec();
        batch.put(&META, "schema_version", &newer.into());
        store.commit(vec![batch], Sync::Now).await.unwrap();
        assert!(matches!(verify(&store).await, Err(OpenError::Newer { .. })));
    }
}
