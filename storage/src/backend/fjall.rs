//! fjall 3: a log-structured tree. One keyspace, the table's number as first byte of the key.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::Path,
};

use bytes::Bytes;
use fjall::{KeyspaceCreateOptions, PersistMode, Readable};

use super::{OpenError, embedded::Engine, not_opened, prefixed};
use crate::{
    schema::TableId,
    store::{Direction, Row, Scan, StoreError, Sync, Writes},
};

/// Most bytes of journal, the least that fjall allows: what has to be read when the store is opened.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a memtable. Small, so that journals can be dropped soon.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;

/// An open fjall database.
pub(super) struct Fjall {
    rows: fjall::Keyspace,
    db: fjall::Database,
}

fn failed(error: fjall::Error) -> StoreError {
    StoreError::backend(Fjall::NAME, error)
}

fn open_failed(error: fjall::Error) -> OpenError {
    let io = match &error {
        fjall::Error::Io(error) => Some(error.kind()),
        fjall::Error::Locked => Some(ErrorKind::WouldBlock),
        error => error
            .source()
            .and_then(|inner| inner.source())
            .and_then(<dyn Error>::downcast_ref)
            .map(io::Error::kind),
    };
    not_opened(Fjall::NAME, error, io)
}

impl Engine for Fjall {
    const NAME: &'static str = "fjall";

    fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let db = fjall::Database::builder(folder)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .open()
            .map_err(open_failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let rows = db.keyspace("rows", options).map_err(open_failed)?;
        Ok(Self { rows, db })
    }

    fn read(&self, table: TableId, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let snapshot = self.db.snapshot();
        keys.iter()
            .map(|key| {
                let value = snapshot.get(&self.rows, prefixed::key(table, key)).map_err(failed)?;
                Ok(value.map(|value| Bytes::copy_from_slice(&value)))
            })
            .collect()
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let rows = self.db.snapshot().range::<Vec<u8>, _>(&self.rows, prefixed::bounds(scan));
        let row = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(failed)?;
            Ok((Bytes::copy_from_slice(&key[1..]), Bytes::copy_from_slice(&value)))
        };
        match scan.direction {
            Direction::Ascending => rows.take(scan.limit).map(row).collect(),
            Direction::Descending => rows.rev().take(scan.limit).map(row).collect(),
        }
    }

    fn apply(&self, _number: u64, writes: Writes, sync: Sync) -> Result<(), StoreError> {
        let mode = match sync {
            Sync::Now => PersistMode::SyncAll,
            Sync::Later => PersistMode::Buffer,
        };
        let mut batch = self.db.batch().durability(Some(mode));
        for ((table, key), value) in writes {
            let key = prefixed::key(table, &key);
            match value {
                Some(value) => batch.insert(&self.rows, key, value.as_ref()),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.commit().map_err(failed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncAll).map_err(failed)
    }

    fn size(&self) -> Result<u64, StoreError> {
        self.db.disk_space().map_err(failed)
    }
}
