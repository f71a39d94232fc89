//! Rows in an ordered map: for tests and the simulator. Runs inline, without threads, so runs repeat exactly.

use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    schema::TableId,
    store::{Batch, Direction, Refused, Row, Scan, Store, StoreError, Sync, Writes, settle},
};

/// A store that ends with the process.
///
/// Closing it loses nothing: whoever holds it may open it again, which is how the simulator restarts a host.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Copies share their structure: the simulator starts thousands of hosts from one.
    rows: imbl::OrdMap<RowKey, Bytes>,
    /// What the rows changed since the last sync were before.
    unsynced: Writes,
    /// Commits that will fail.
    failures: u32,
}

/// A table and a key, in the order of tables and keys: most comparisons are made by the head alone, without looking at
/// the key's bytes elsewhere in memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    /// The table, and the key's first 15 bytes; zeros where it is shorter.
    head: [u8; 16],
    key: Bytes,
}

impl RowKey {
    fn new(table: TableId, key: Bytes) -> Self {
        let mut head = [0; 16];
        head[0] = table.0;
        let length = key.len().min(15);
        head[1..=length].copy_from_slice(&key[..length]);
        Self { head, key }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another store with the same rows, which share memory until they change.
    #[must_use]
    pub fn fork(&self) -> Self {
        let rows = self.state.lock().rows.clone();
        Self { state: Mutex::new(State { rows, ..State::default() }) }
    }

    /// Makes the next commits fail with an I/O error, storing nothing.
    pub fn fail_next_commits(&self, count: u32) {
        self.state.lock().failures = count;
    }

    /// Forgets every commit since the last sync, as a loss of power does.
    pub fn lose_unsynced_writes(&self) {
        let mut state = self.state.lock();
        for (key, value) in std::mem::take(&mut state.unsynced) {
            state.set(key, value);
        }
    }
}

impl State {
    /// Writes a row and answers what it was.
    fn set(&mut self, key: (TableId, Bytes), value: Option<Bytes>) -> Option<Bytes> {
        match value {
            Some(value) => self.rows.insert(RowKey::new(key.0, key.1), value),
            None => self.rows.remove(&RowKey::new(key.0, key.1)),
        }
    }

    fn read(&self, table: TableId, key: &Bytes) -> Option<Bytes> {
        self.rows.get(&RowKey::new(table, key.clone())).cloned()
    }

    fn scan(&self, scan: &Scan) -> Vec<Row> {
        if scan.is_empty() {
            return Vec::new();
        }
        let lower = match &scan.lower {
            Bound::Unbounded => Bound::Included(RowKey::new(scan.table, Bytes::new())),
            bound => bound.clone().map(|key| RowKey::new(scan.table, key)),
        };
        let upper = match &scan.upper {
            Bound::Unbounded => match scan.table.0.checked_add(1) {
                Some(next) => Bound::Excluded(RowKey::new(TableId(next), Bytes::new())),
                None => Bound::Unbounded,
            },
            bound => bound.clone().map(|key| RowKey::new(scan.table, key)),
        };
        let rows = self.rows.range((lower, upper)).map(|(row, value)| (row.key.clone(), value.clone()));
        match scan.direction {
            Direction::Ascending => rows.take(scan.limit).collect(),
            Direction::Descending => rows.rev().take(scan.limit).collect(),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn read(&self, table: TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        let state = self.state.lock();
        Ok(keys.iter().map(|key| state.read(table, key)).collect())
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        Ok(self.state.lock().scan(&scan))
    }

    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        let mut state = self.state.lock();
        if let Some(left) = state.failures.checked_sub(1) {
            state.failures = left;
            return Err(StoreError::backend("memory", std::io::Error::other("injected failure")));
        }
        let (writes, verdicts) = settle(batches, |table, key| Ok(state.read(table, key)))?;
        for (key, value) in writes {
            let before = state.set(key.clone(), value);
            state.unsynced.entry(key).or_insert(before);
        }
        if sync == Sync::Now {
            state.unsynced.clear();
        }
        Ok(verdicts)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.state.lock().unsynced.clear();
        Ok(())
    }

    async fn size(&self) -> Result<u64, StoreError> {
        let state = self.state.lock();
        let bytes: usize = state.rows.iter().map(|(row, value)| 1 + row.key.len() + value.len()).sum();
        Ok(bytes.try_into().unwrap_or(u64::MAX))
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.sync().await
    }
}
