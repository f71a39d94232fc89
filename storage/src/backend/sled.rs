//! sled 0.34: the default. One tree, the table's number as first byte of the key, so that one batch covers all tables.
//!
//! A small commit is durable once it is in the journal, and its rows are kept in memory beside sled. With the commit for which the
//! journal has no room, they all go into sled at once, and it syncs its log. For each batch, sled wakes a pool of threads twice,
//! which costs more than all else that a message takes; and a row that many commits write is written once.
//!
//! When it is opened, sled reads all of its log from where it was opened the time before, and notes down what it found. So after a
//! good deal of writing it is opened again ([`Store::checkpoint`](crate::store::Store::checkpoint)), when nobody minds: else the
//! start after that would take a second for each GiB.
//!
//! Keys are escaped: an `FF` is written as `FF 00`, which keeps their order. To go back over the edge of a node whose first key is
//! `..x`, sled looks for `..(x-1) FF FF FF FF` and takes for granted that no key of the node before is larger. Where one is, as
//! among the negative positions of fetched history, it goes around in a circle until it panics.

use std::{
    fs::{File, TryLockError},
    ops::Bound,
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
    not_opened, prefixed,
    recent::Recent,
};
use crate::{
    schema::TableId,
    store::{Direction, Row, Scan, StoreError, Sync, Writes},
};

/// An open sled database.
pub(super) struct Sled {
    folder: PathBuf,
    cache_bytes: u64,
    disk: Disk,
    journal: Mutex<Journal>,
    /// Shared by reads, exclusive for the moment in which a batch is applied: sled's iterators do not hold still.
    rows: RwLock<Rows>,
    /// Bytes of rows that sled was given since it was opened.
    given: AtomicUsize,
}

/// Where the rows are.
struct Rows {
    /// None if it could not be opened again.
    db: Option<sled::Db>,
    recent: Recent,
}

impl Rows {
    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().ok_or(StoreError::Closed)
    }
}

/// Bytes of rows after which they go into sled while nothing asks for a sync.
const RECENT_BYTES_MAX: usize = 256 << 10;

/// Bytes of rows after which a checkpoint is due. They make about five times as much log, which sled reads in some 60 ms.
const CHECKPOINT_BYTES: usize = 12 << 20;

/// The mark of a database with escaped keys; in the table of the back ends' own rows.
const ESCAPED: &[u8] = b"\0escaped";

/// Writes a key in the form in which sled can go through it backwards.
fn escape(key: Vec<u8>) -> Vec<u8> {
    if !key.contains(&0xFF) {
        return key;
    }
    let mut escaped = Vec::with_capacity(key.len() + 8);
    for byte in key {
        escaped.push(byte);
        if byte == 0xFF {
            escaped.push(0);
        }
    }
    escaped
}

/// A row's key without its table.
fn unescape(escaped: &[u8]) -> Bytes {
    let table = if escaped[0] == 0xFF { 2 } else { 1 };
    let escaped = &escaped[table..];
    if !escaped.contains(&0xFF) {
        return Bytes::copy_from_slice(escaped);
    }
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0xFF {
            bytes.next(); // the 00 after it
        }
    }
    key.into()
}

/// Escapes the keys of a database that was written before they were, all at once.
fn escape_all(db: &sled::Db) -> sled::Result<()> {
    if db.contains_key(ESCAPED)? {
        return Ok(());
    }
    let mut batch = sled::Batch::default();
    let mut rows = Vec::new();
    for row in db.iter() {
        let (key, value) = row?;
        if key.contains(&0xFF) {
            batch.remove(key.clone());
            rows.push((key, value));
        }
    }
    for (key, value) in rows {
        batch.insert(escape(key.to_vec()), value);
    }
    batch.insert(ESCAPED, &[]);
    db.apply_batch(batch)?;
    db.flush()?;
    Ok(())
}

/// Opens the database in `folder`, creating it if there is none.
fn open_db(folder: &Path, cache_bytes: u64) -> sled::Result<sled::Db> {
    wait_for_lock(folder);
    // The writer says when to sync; sled's own timer would only wake an idle server twice a second.
    sled::Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(None).open()
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
        let db = open_db(folder, cache_bytes).map_err(|error| {
            let io = match &error {
                sled::Error::Io(error) => Some(error.kind()),
                _ => None,
            };
            not_opened(Self::NAME, error, io)
        })?;
        escape_all(&db).map_err(|error| not_opened(Self::NAME, error, None))?;
        let no_file = |error| not_opened(Self::NAME, sled::Error::Io(error), None);
        let disk = Disk::open(folder).map_err(no_file)?;
        let (journal, records) = Journal::open(&folder.join("journal")).map_err(no_file)?;
        let sled = Self {
            folder: folder.to_owned(),
            cache_bytes,
            disk,
            journal: Mutex::new(journal),
            rows: RwLock::new(Rows { db: Some(db), recent: Recent::default() }),
            given: AtomicUsize::new(0),
        };
        sled.redo(records)?;
        sled.sync()?;
        sled.journal.lock().clear().map_err(no_file)?;
        Ok(sled)
    }

    fn read(&self, table: TableId, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let rows = self.rows.read();
        let db = rows.db()?;
        keys.iter()
            .map(|key| {
                if let Some(value) = rows.recent.get(table, key) {
                    return Ok(value.clone());
                }
                let value = db.get(escape(prefixed::key(table, key))).map_err(failed)?;
                Ok(value.map(|value| Bytes::copy_from_slice(&value)))
            })
            .collect()
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let Rows { db, recent } = &*self.rows.read();
        let db = db.as_ref().ok_or(StoreError::Closed)?;
        let (lower, upper) = prefixed::bounds(scan);
        let range: (Bound<Vec<u8>>, Bound<Vec<u8>>) = (lower.map(escape), upper.map(escape));
        let row = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row.map_err(failed)?;
            Ok((unescape(&key), Bytes::copy_from_slice(&value)))
        };
        let rows = db.range(range);
        match scan.direction {
            Direction::Ascending => recent.over(scan, rows.map(row)).collect(),
            Direction::Descending => recent.over(scan, rows.rev().map(row)).collect(),
        }
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
        self.rows.read().db()?.size_on_disk().map_err(failed)
    }

    fn checkpoint_due(&self) -> bool {
        self.given.load(Ordering::Relaxed) > CHECKPOINT_BYTES
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let mut journal = self.journal.lock();
        self.settle(&mut journal)?;
        let mut rows = self.rows.write();
        drop(rows.db.take()); // releases its lock
        rows.db = Some(open_db(&self.folder, self.cache_bytes).map_err(failed)?);
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

    /// Hands the recent rows to sled.
    fn write(&self) -> Result<(), StoreError> {
        let mut rows = self.rows.write();
        let mut batch = sled::Batch::default();
        for ((table, key), value) in rows.recent.rows() {
            let key = escape(prefixed::key(*table, key));
            match value {
                Some(value) => batch.insert(key, value.as_ref()),
                None => batch.remove(key),
            }
        }
        rows.db()?.apply_batch(batch).map_err(failed)?;
        self.given.fetch_add(rows.recent.bytes(), Ordering::Relaxed);
        rows.recent.clear();
        Ok(())
    }

    /// Makes everything durable without the journal.
    fn settle(&self, journal: &mut Journal) -> Result<(), StoreError> {
        self.write()?;
        self.rows.read().db()?.flush().map_err(failed)?;
        self.disk.sync().map_err(|error| failed(error.into()))?;
        journal.begin_anew();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(sled: &Sled, keys: impl Iterator<Item = Vec<u8>>) {
        let row = |key: Vec<u8>| ((TableId(u8::MAX), Bytes::from(key)), Some(Bytes::from(vec![7; 300])));
        sled.apply(1, keys.map(row).collect(), Sync::Now).unwrap();
    }

    /// All keys, backwards and in small pages.
    fn backwards(sled: &Sled) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let upper = keys.last().map_or(Bound::Unbounded, |key| Bound::Excluded(Bytes::from(key.clone())));
            let (table, lower, direction) = (TableId(u8::MAX), Bound::Unbounded, Direction::Descending);
            let page = sled.scan(&Scan { table, lower, upper, direction, limit: 7 }).unwrap();
            if page.is_empty() {
                return keys;
            }
            keys.extend(page.into_iter().map(|(key, _)| key.to_vec()));
        }
    }

    /// Positions on both sides of zero, as in a room with fetched history.
    fn positions() -> impl DoubleEndedIterator<Item = Vec<u8>> {
        (-500_i64..500).map(|position| (position ^ i64::MIN).to_be_bytes().to_vec())
    }

    #[test]
    fn keys_with_many_ff_are_gone_through_backwards() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        // The later half first, so that a node begins at the shortest key between the halves.
        put(&sled, positions().skip(500));
        put(&sled, positions().take(500));
        assert_eq!(backwards(&sled), positions().rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_database_with_bare_keys_is_brought_into_form_once() {
        let folder = tempfile::tempdir().unwrap();
        let bare = sled::open(folder.path()).unwrap();
        let mut keys: Vec<_> = positions().collect();
        // One key that looks as another does when escaped.
        keys.extend([vec![0xFF], vec![0xFF, 0]]);
        for key in &keys {
            bare.insert([&[0xFF], key.as_slice()].concat(), key.as_slice()).unwrap();
        }
        drop(bare);
        keys.sort();
        keys.reverse();
        for _ in 0..2 {
            let sled = Sled::open(folder.path(), 8 << 20).unwrap();
            assert_eq!(backwards(&sled), keys);
            let wanted: Vec<_> = keys.iter().cloned().map(Bytes::from).collect();
            let values = sled.read(TableId(u8::MAX), &wanted).unwrap();
            assert_eq!(values, wanted.into_iter().map(Some).collect::<Vec<_>>());
        }
    }

    /// A commit as the store makes them: each row in a table of the back end is of a commit of its own.
    fn commit(sled: &Sled, number: u64, sync: Sync) {
        let row = |table, key: &[u8], value: Vec<u8>| {
            ((TableId(table), Bytes::copy_from_slice(key)), Some(Bytes::from(value)))
        };
        let count = number.to_be_bytes();
        let writes = Writes::from([
            row(0, b"commits", count.to_vec()),
            row(1, &count, vec![7; 1000]),
            row(2, b"last", count.to_vec()),
        ]);
        sled.apply(number, writes, sync).unwrap();
    }

    /// The numbers of the commits whose rows are there.
    fn committed(sled: &Sled) -> Vec<u64> {
        let (lower, upper, direction) = (Bound::Unbounded, Bound::Unbounded, Direction::Ascending);
        let rows = sled.scan(&Scan { table: TableId(1), lower, upper, direction, limit: 100_000 }).unwrap();
        let numbers: Vec<_> =
            rows.iter().map(|(key, _)| u64::from_be_bytes(key.as_ref().try_into().unwrap())).collect();
        let last = sled.read(TableId(2), &[Bytes::from_static(b"last")]).unwrap().remove(0);
        assert_eq!(last.map(|last| last.to_vec()), numbers.last().map(|last| last.to_be_bytes().to_vec()));
        numbers
    }

    /// What a crash leaves: the files without what sled has only in memory.
    fn crashed(folder: &Path) -> tempfile::TempDir {
        let left = tempfile::tempdir().unwrap();
        std::fs::create_dir(left.path().join("blobs")).unwrap();
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), left.path().join(entry.file_name())).unwrap();
            }
        }
        left
    }

    #[test]
    fn every_commit_is_there_after_a_crash_between_two_syncs_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        let mut redone = 0;
        for number in 1..=150 {
            commit(&sled, number, Sync::Now);
            if number < 100 {
                continue; // the journal is full once after this
            }
            let left = crashed(folder.path());
            std::fs::remove_file(left.path().join("journal")).unwrap();
            let without = Sled::open(left.path(), 8 << 20).unwrap();
            redone += u64::from(committed(&without).len() < usize::try_from(number).unwrap());
            let left = crashed(folder.path());
            for _ in 0..2 {
                let after = Sled::open(left.path(), 8 << 20).unwrap();
                assert_eq!(committed(&after), (1..=number).collect::<Vec<_>>());
            }
        }
        assert_eq!(redone, 50, "but for one, the last of 51 commits were in the journal only");
    }

    #[test]
    fn a_synced_commit_makes_those_before_it_durable_too() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        for number in 1..=40 {
            let sync = if number % 4 == 0 { Sync::Now } else { Sync::Later };
            commit(&sled, number, sync);
            if sync == Sync::Now {
                let after = Sled::open(crashed(folder.path()).path(), 8 << 20).unwrap();
                assert_eq!(committed(&after), (1..=number).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_journal_that_does_not_follow_the_log_is_damage() {
        let (older, newer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, count) in [(&older, 3), (&newer, 200)] {
            let sled = Sled::open(folder.path(), 8 << 20).unwrap();
            (1..=count).for_each(|number| commit(&sled, number, Sync::Now));
        }
        std::fs::copy(newer.path().join("journal"), older.path().join("journal")).unwrap();
        let refused = Sled::open(older.path(), 8 << 20).err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    }

    /// The names of sled's notes of what its log holds; they tell how far those go.
    fn snapshots(folder: &Path) -> Vec<std::ffi::OsString> {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("snap.")).collect()
    }

    #[test]
    fn a_checkpoint_is_due_after_much_writing_and_spares_the_next_opening_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        let mut number = 0;
        while !sled.checkpoint_due() {
            number += 1;
            commit(&sled, number, Sync::Later);
        }
        assert!(number > 10_000, "due after {number} commits");
        let before = snapshots(folder.path());
        sled.checkpoint().unwrap();
        assert!(!sled.checkpoint_due());
        assert_ne!(snapshots(folder.path()), before);
        commit(&sled, number + 1, Sync::Now);
        let left = crashed(folder.path());
        let after = Sled::open(left.path(), 8 << 20).unwrap();
        assert_eq!(committed(&after).len() as u64, number + 1);
    }

    /// Rows so large that sled puts nodes into files of their own; commits so quick that the folder's time stands still.
    #[test]
    fn large_nodes_are_synced_with_the_log_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        let blobs = || std::fs::read_dir(folder.path().join("blobs")).unwrap().count();
        for number in 0..60_u8 {
            let value = Bytes::from(vec![number; if number % 3 == 0 { 200_000 } else { 100 }]);
            let writes = Writes::from([((TableId(1), Bytes::copy_from_slice(&[number])), Some(value))]);
            sled.apply(number.into(), writes, Sync::Now).unwrap();
            sled.sync().unwrap();
            assert!(sled.disk.is_synced().unwrap(), "after commit {number}");
        }
        assert!(blobs() > 0, "no node was large enough for this test");
    }
}
