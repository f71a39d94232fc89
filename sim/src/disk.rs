//! A host's disk: rows that survive its crashes, commits that take time, and room that may run out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use storage::{
    Batch, MemoryStore, Refused, Store, StoreError,
    schema::TableId,
    store::{Row, Scan, Sync},
};

use crate::host::Power;

/// A host's disk.
#[derive(Default)]
pub struct Disk {
    rows: MemoryStore,
    is_full: AtomicBool,
    commits: AtomicU64,
    /// The commit that is on its way to the platters.
    under_way: Mutex<Option<(Vec<Batch>, Sync)>>,
}

impl Disk {
    /// Commits fail while the disk is full.
    pub fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Whether it is full.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Commits so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// What a loss of power leaves: the commit that was under way is there as a whole or not at all, and what was never
    /// synced is gone.
    pub async fn lose_power(&self, commit_arrives: bool) {
        let under_way = self.under_way.lock().take();
        if let Some((batches, sync)) = under_way
            && commit_arrives
        {
            // Nobody hears of it: what it was refused, or failed with, is lost with the power.
            let _ = self.rows.commit(batches, sync).await;
        }
        self.rows.lose_unsynced_writes();
    }

    /// Writes rows before any server runs on the disk.
    pub async fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.rows.commit(vec![batch], Sync::Now).await.map(drop)
    }

    /// A disk with the same rows.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { rows: self.rows.fork(), ..Self::default() }
    }
}

/// A disk as one boot of its host uses it: once the power is off, nothing reaches it any more.
pub struct Mounted {
    /// The disk.
    pub disk: Arc<Disk>,
    /// The power of the boot.
    pub power: Arc<Power>,
    /// How long a commit takes.
    pub commit_takes: Duration,
}

impl Mounted {
    fn check(&self) -> Result<(), StoreError> {
        if self.power.is_off() { Err(StoreError::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Mounted {
    async fn read(&self, table: TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.check()?;
        self.disk.rows.read(table, keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.check()?;
        self.disk.rows.scan(scan).await
    }

    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        self.check()?;
        if self.disk.is_full.load(Ordering::Relaxed) {
            let source = Arc::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
            return Err(StoreError::Backend { backend: "simulated", source });
        }
        *self.disk.under_way.lock() = Some((batches, sync));
        tokio::time::sleep(self.commit_takes).await;
        self.check()?;
        let Some((batches, sync)) = self.disk.under_way.lock().take() else { return Err(StoreError::Closed) };
        self.disk.commits.fetch_add(1, Ordering::Relaxed);
        self.disk.rows.commit(batches, sync).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.check()?;
        self.disk.rows.sync().await
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.disk.rows.size().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.sync().await
    }
}
