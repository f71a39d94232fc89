//! The folder of a store: a lock against a second process, the engine's own folder, and the witness.
//!
//! The witness is a small file with the number of commits that were acknowledged as durable. The engines repair the end of a
//! log that a crash tore; they cannot tell that from a log that lost acknowledged commits. The witness can: it is written
//! after each durable commit and never ahead of it, so a store with fewer commits than the witness says has lost some. It is
//! not synced itself: after a loss of power it may lag, which makes it weaker, never wrong.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::{EMBEDDED, OpenError, convert, disk::sync_folder};
use crate::store::StoreError;

/// Length of the witness: the count and its complement, 8 bytes each.
const WITNESS_LENGTH: usize = 16;

/// The locked folder of an open store.
pub(super) struct Home {
    path: PathBuf,
    witness: Mutex<File>,
    witnessed: u64,
    /// Held open: the lock ends with it.
    _lock: File,
}

impl Home {
    /// Locks the folder, creating it if it is not there.
    pub(super) fn open(path: &Path, name: &'static str) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Folder { path: path.to_owned(), source };
        let lock = lock(path)?;
        for found in EMBEDDED {
            if found != name && path.join(found).exists() {
                return Err(OpenError::OtherBackend { path: path.to_owned(), found, wanted: name });
            }
        }
        let mut witness = open_file(&path.join("witness")).map_err(failed)?;
        let witnessed = read_witness(&mut witness)
            .map_err(failed)?
            .ok_or_else(|| OpenError::Damaged { detail: "its witness file is unreadable".into() })?;
        Ok(Self { path: path.to_owned(), witness: Mutex::new(witness), witnessed, _lock: lock })
    }

    /// The engine's own folder.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the names of the store's folder and files durable; the engines sync only what is inside.
    pub(super) fn sync_names(&self, name: &str) -> io::Result<()> {
        sync_folder(&self.folder(name))?;
        sync_folder(&self.path)?;
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => sync_folder(Path::new(".")),
        }
    }

    /// Commits acknowledged when the store was opened.
    pub(super) fn witnessed(&self) -> u64 {
        self.witnessed
    }

    /// Notes that this many commits are durable.
    pub(super) fn witness(&self, name: &'static str, commits: u64) -> Result<(), StoreError> {
        write_witness(&self.witness.lock(), commits).map_err(|error| StoreError::backend(name, error))
    }
}

/// Locks a store's folder, creating it if it is not there, and ends what a conversion that was interrupted has left.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Folder { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    let lock = open_file(&path.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    convert::finish(path).map_err(failed)?;
    Ok(lock)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The count in the file, 0 in a new one, none if it is no witness.
fn read_witness(file: &mut File) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    file.take(WITNESS_LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        write_witness(file, 0)?;
        file.sync_all()?;
        return Ok(Some(0));
    }
    let Some((count, complement)) = bytes.split_first_chunk() else { return Ok(None) };
    let count = u64::from_be_bytes(*count);
    Ok((complement == (!count).to_be_bytes()).then_some(count))
}

fn write_witness(file: &File, commits: u64) -> io::Result<()> {
    let mut bytes = [0; WITNESS_LENGTH];
    bytes[..8].copy_from_slice(&commits.to_be_bytes());
    bytes[8..].copy_from_slice(&(!commits).to_be_bytes());
    file.write_all_at(&bytes, 0)
}
