//! sled 0.34: the default. One tree, the table's number as first byte of the key, so that one batch covers all tables.

use std::{
    fs::{File, TryLockError},
    ops::Bound,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{OpenError, disk::Disk, embedded::Engine, not_opened, prefixed};
use crate::{
    schema::TableId,
    store::{Direction, Row, Scan, StoreError, Sync, Writes},
};

/// An open sled database.
pub(super) struct Sled {
    db: sled::Db,
    disk: Disk,
    /// Shared by reads, exclusive for the moment in which a batch is applied: sled's iterators do not hold still.
    cut: RwLock<()>,
}

fn failed(error: sled::Error) -> StoreError {
    StoreError::backend(Sled::NAME, error)
}

/// How often, and how long, a lock is waited for that sled's own threads still hold from a handle just closed.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Waits until sled's data file is free. Other processes are kept out by the lock of the store's folder already; but sled's
/// background threads may hold the file a moment longer than the handle. If they do not let go, sled says so itself.
fn wait_for_lock(folder: &Path) {
    let Ok(file) = File::open(folder.join("db")) else { return };
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            _ => return,
        }
    }
}

impl Engine for Sled {
    const NAME: &'static str = "sled";

    fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        wait_for_lock(folder);
        // The writer says when to sync; sled's own timer would only wake an idle server twice a second.
        let config = sled::Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(None);
        let db = config.open().map_err(|error| {
            let io = match &error {
                sled::Error::Io(error) => Some(error.kind()),
                _ => None,
            };
            not_opened(Self::NAME, error, io)
        })?;
        let disk =
            Disk::open(folder).map_err(|error| not_opened(Self::NAME, sled::Error::Io(error), None))?;
        Ok(Self { db, disk, cut: RwLock::new(()) })
    }

    fn read(&self, table: TableId, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let _cut = self.cut.read();
        keys.iter()
            .map(|key| {
                let value = self.db.get(prefixed::key(table, key)).map_err(failed)?;
                Ok(value.map(|value| Bytes::copy_from_slice(&value)))
            })
            .collect()
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let _cut = self.cut.read();
        let range: (Bound<Vec<u8>>, Bound<Vec<u8>>) = prefixed::bounds(scan);
        let row = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row.map_err(failed)?;
            Ok((Bytes::copy_from_slice(&key[1..]), Bytes::copy_from_slice(&value)))
        };
        let rows = self.db.range(range);
        match scan.direction {
            Direction::Ascending => rows.take(scan.limit).map(row).collect(),
            Direction::Descending => rows.rev().take(scan.limit).map(row).collect(),
        }
    }

    fn apply(&self, writes: Writes, sync: Sync) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for ((table, key), value) in writes {
            let key = prefixed::key(table, &key);
            match value {
                Some(value) => batch.insert(key, value.as_ref()),
                None => batch.remove(key),
            }
        }
        let cut = self.cut.write();
        self.db.apply_batch(batch).map_err(failed)?;
        drop(cut);
        match sync {
            Sync::Now => self.sync(),
            Sync::Later => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(failed)?;
        self.disk.sync().map_err(|error| failed(error.into()))
    }

    fn size(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows so large that sled puts nodes into files of their own; commits so quick that the folder's time stands still.
    #[test]
    fn large_nodes_are_synced_with_the_commit_that_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        let blobs = || std::fs::read_dir(folder.path().join("blobs")).unwrap().count();
        for number in 0..60_u8 {
            let value = Bytes::from(vec![number; if number % 3 == 0 { 200_000 } else { 100 }]);
            let writes = Writes::from([((TableId(1), Bytes::copy_from_slice(&[number])), Some(value))]);
            sled.apply(writes, Sync::Now).unwrap();
            assert!(sled.disk.is_synced().unwrap(), "after commit {number}");
        }
        assert!(blobs() > 0, "no node was large enough for this test");
    }
}
