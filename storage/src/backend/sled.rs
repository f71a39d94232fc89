//! sled 0.34: the default. One tree for all tables, so that one batch covers them.
//!
//! A small commit is durable once it is in the journal, and its rows are kept in memory beside sled. With the commit for which the
//! journal has no room, they all go into sled at once, and it syncs its log. For each batch, sled wakes a pool of threads twice,
//! which costs more than all else that a message takes; and a row that many commits write is written once.
//!
//! When it is opened, sled reads all of its log from where it was opened the time before, and notes down what it found. So after a
//! good deal of writing it is opened again ([`Store::checkpoint`](crate::store::Store::checkpoint)), when nobody minds: else the
//! start after that would take a second for each GiB.
//!
//! Rows of the tables that grow with every message are kept in [blocks](block): what sled needs for its pages, at the start and in
//! memory, would be six times as much else.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{
    OpenError,
    disk::Disk,
    embedded::{Engine, commit_count},
    journal::{Journal, Record},
    not_opened,
    recent::Recent,
};
use crate::{
    schema::TableId,
    store::{Due, Row, Scan, StoreError, Sync, Writes},
};

mod block;
mod form;
mod keys;
mod pack;
mod segments;
mod tree;

use form::{Form, escape_all};
use tree::{Change, Tree};

/// An open sled database.
pub(super) struct Sled {
    folder: PathBuf,
    cache_bytes: u64,
    disk: Mutex<Disk>,
    journal: Mutex<Journal>,
    /// Shared by reads, exclusive for the moment in which a batch is applied: sled's iterators do not hold still.
    rows: RwLock<Rows>,
    /// Bytes of rows that sled was given since it was opened.
    given: AtomicUsize,
}

/// Where the rows are.
struct Rows {
    /// None if it could not be opened again.
    tree: Option<Tree>,
    recent: Recent,
}

impl Rows {
    fn tree(&self) -> Result<&Tree, StoreError> {
        self.tree.as_ref().ok_or(StoreError::Closed)
    }
}

/// Bytes of rows after which they go into sled while nothing asks for a sync.
const RECENT_BYTES_MAX: usize = 256 << 10;

/// Bytes of rows and blocks after which a checkpoint is due at a quiet moment. They make about twice as much log.
const CHECKPOINT_BYTES: usize = 12 << 20;

/// Bytes after which it is due at once, so that the start after a crash does not take long.
const CHECKPOINT_BYTES_MAX: usize = 64 << 20;

/// Opens the database in `folder`, creating it if there is none.
fn open_tree(folder: &Path, cache_bytes: u64) -> sled::Result<Tree> {
    wait_for_lock(folder);
    let db = segments::open(folder, cache_bytes)?;
    escape_all(&db)?;
    let form = Form::of(&db)?;
    Ok(Tree { db, form })
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
        let no_file = |error| not_opened(Self::NAME, sled::Error::Io(error), None);
        pack::tidy_up(folder).map_err(no_file)?;
        let tree = open_tree(folder, cache_bytes).map_err(|error| {
            let io = match &error {
                sled::Error::Io(error) => Some(error.kind()),
                _ => None,
            };
            not_opened(Self::NAME, error, io)
        })?;
        let disk = Disk::open(folder).map_err(no_file)?;
        let (journal, records) = Journal::open(&folder.join(tree.form.journal())).map_err(no_file)?;
        let sled = Self {
            folder: folder.to_owned(),
            cache_bytes,
            disk: Mutex::new(disk),
            journal: Mutex::new(journal),
            rows: RwLock::new(Rows { tree: Some(tree), recent: Recent::default() }),
            given: AtomicUsize::new(0),
        };
        sled.redo(records)?;
        sled.sync()?;
        sled.journal.lock().clear().map_err(no_file)?;
        Ok(sled)
    }

    fn read(&self, table: TableId, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let rows = self.rows.read();
        let recent = |key| rows.recent.get(table, key);
        let mut stored = rows.tree()?.read(table, keys.iter().filter(|key| recent(key).is_none()));
        let value = |key| match recent(key) {
            Some(value) => Ok(value.clone()),
            None => stored.next().unwrap_or(Ok(None)),
        };
        keys.iter().map(value).collect()
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows.read();
        rows.recent.over(scan, rows.tree()?.scan(scan)?).collect()
    }

    fn apply(&self, number: u64, writes: Writes, sync: Sync) -> Result<(), StoreError> {
        let mut journal = self.journal.lock();
        let noted =
            sync == Sync::Now && journal.note(number, &writes).map_err(|error| failed(error.into()))?;
        self.rows.write().recent.add(writes);
        if noted {
            return Ok(());
        }
        journal.stop();
        match sync {
            Sync::Now => self.settle(&mut journal),
            Sync::Later if self.rows.read().recent.bytes() > RECENT_BYTES_MAX => self.write(),
            Sync::Later => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.settle(&mut self.journal.lock())
    }

    fn size(&self) -> Result<u64, StoreError> {
        self.rows.read().tree()?.db.size_on_disk().map_err(failed)
    }

    fn rearrange(&self) -> Result<(), StoreError> {
        if self.rows.read().tree()?.form == Form::Blocks { Ok(()) } else { self.compact() }
    }

    fn compact(&self) -> Result<(), StoreError> {
        let mut journal = self.journal.lock();
        self.settle(&mut journal)?;
        let mut rows = self.rows.write();
        let new_folder = pack::new_folder(&self.folder);
        let new = open_tree(&new_folder, self.cache_bytes).map_err(failed)?;
        pack::copy(rows.tree()?, &new, &new_folder)?;
        drop((new, rows.tree.take())); // releases their locks
        pack::swap(&self.folder).map_err(pack::io_failed)?;
        let tree = open_tree(&self.folder, self.cache_bytes).map_err(failed)?;
        *self.disk.lock() = Disk::open(&self.folder).map_err(pack::io_failed)?;
        *journal = Journal::open(&self.folder.join(tree.form.journal())).map_err(pack::io_failed)?.0;
        rows.tree = Some(tree);
        self.given.store(0, Ordering::Relaxed);
        journal.clear().map_err(pack::io_failed)
    }

    fn checkpoint_due(&self) -> Due {
        match self.given.load(Ordering::Relaxed) {
            bytes if bytes > CHECKPOINT_BYTES_MAX => Due::Now,
            bytes if bytes > CHECKPOINT_BYTES => Due::WhenQuiet,
            _ => Due::NotYet,
        }
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let mut journal = self.journal.lock();
        self.settle(&mut journal)?;
        let mut rows = self.rows.write();
        drop(rows.tree.take()); // releases its lock
        rows.tree = Some(open_tree(&self.folder, self.cache_bytes).map_err(failed)?);
        self.given.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl Sled {
    /// Does those commits of the journal again that sled has lost.
    fn redo(&self, records: Vec<Record>) -> Result<(), OpenError> {
        let mut count = commit_count(self)?;
        for Record { number, writes } in records {
            if number > count + 1 {
                let detail = format!("{} has {count} commits, its journal begins with {number}", Self::NAME);
                return Err(OpenError::Damaged { detail });
            }
            if number == count + 1 {
                self.rows.write().recent.add(writes);
                count = number;
            }
        }
        Ok(())
    }

    /// Hands the recent rows to sled. Nobody else may do so meanwhile, which whoever holds the journal can be sure of.
    fn write(&self) -> Result<(), StoreError> {
        let mut change = Change::default();
        {
            let rows = self.rows.read();
            if rows.recent.rows().is_empty() {
                return Ok(()); // an empty batch would make the log longer, too
            }
            change.add(rows.tree()?, rows.recent.rows())?;
        }
        let mut rows = self.rows.write();
        rows.tree()?.db.apply_batch(change.batch).map_err(failed)?;
        self.given.fetch_add(change.bytes, Ordering::Relaxed);
        rows.recent.clear();
        Ok(())
    }

    /// Makes everything durable without the journal.
    fn settle(&self, journal: &mut Journal) -> Result<(), StoreError> {
        self.write()?;
        self.rows.read().tree()?.db.flush().map_err(failed)?;
        self.disk.lock().sync().map_err(|error| failed(error.into()))?;
        journal.begin_anew();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
