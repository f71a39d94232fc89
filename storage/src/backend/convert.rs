//! Brings a store into the form of another back end.
//!
//! The new files are made beside the old ones. Once they are whole and durable, one renaming says so; whatever opens the store
//! after that finishes the change of places, and what an interruption has left before is removed.

use std::{fs, io, path::Path};

use bytes::Bytes;

use super::{
    Backend, EMBEDDED, Files, OpenError,
    disk::sync_folder,
    embedded::{COMMITS_ROW, Engine, Handle, OWN_TABLE, blocking},
    fjall::Fjall,
    home,
    sled::Sled,
};
use crate::{
    schema::TableId,
    store::{Direction, Due, Scan, StoreError, Sync, Writes},
};

/// Where the new files are made.
const UNDER_WAY: &str = "converting";

/// Its name once they are whole.
const DONE: &str = "converted";

/// What the old files are called in there.
const OLD: &str = "old";

/// Rows that are copied at once; of events, 32 MiB at most.
const PAGE: usize = 500;

/// Pages after which the log tells how far it is; some seconds.
const REPORT: usize = 500;

impl Backend {
    /// Brings the store in the folder, if another back end has made it, into this one's form; tells which that was.
    ///
    /// Nobody else may have the store open. The disk needs room for both at a time; an interruption loses nothing.
    ///
    /// # Errors
    /// Those of opening the store, which stays as it was.
    pub async fn convert(self) -> Result<Option<&'static str>, OpenError> {
        blocking(move || match &self {
            Self::Sled(files) => convert_to::<Sled>(files),
            Self::Fjall(files) => convert_to::<Fjall>(files),
            Self::Memory => Ok(None),
        })
        .await?
    }
}

fn convert_to<To: Engine>(files: &Files) -> Result<Option<&'static str>, OpenError> {
    drop(home::lock(&files.path)?);
    let is_there = |name: &&str| files.path.join(name).exists();
    let Some(found) = EMBEDDED.into_iter().filter(|name| *name != To::NAME).find(is_there) else {
        return Ok(None);
    };
    if found == Sled::NAME { convert::<Sled, To>(files) } else { convert::<Fjall, To>(files) }?;
    Ok(Some(found))
}

fn convert<From: Engine, To: Engine>(files: &Files) -> Result<(), OpenError> {
    let failed = |source| OpenError::Folder { path: files.path.clone(), source };
    let store = Handle::<From>::open(&files.path, files.cache_bytes)?;
    let folder = files.path.join(UNDER_WAY);
    fs::create_dir(&folder).map_err(failed)?;
    let new = To::open(&folder.join(To::NAME), files.cache_bytes)?;
    copy(&store, &new)?;
    drop(new);
    sync_folder(&folder).map_err(failed)?;
    fs::rename(&folder, files.path.join(DONE)).map_err(failed)?;
    sync_folder(&files.path).map_err(failed)?;
    // The lock is held until all is in its place.
    let Handle { engine, home: _home, .. } = store;
    drop(engine);
    finish(&files.path).map_err(failed)
}

/// Copies all rows into an empty engine, and makes them durable.
fn copy<From: Engine>(store: &Handle<From>, new: &impl Engine) -> Result<(), StoreError> {
    let mut copied = 0;
    let mut pages = 0;
    for table in (OWN_TABLE.0 + 1..=u8::MAX).map(TableId) {
        let mut lower = std::ops::Bound::Unbounded;
        loop {
            let upper = std::ops::Bound::Unbounded;
            let scan = Scan { table, lower, upper, direction: Direction::Ascending, limit: PAGE };
            let rows = store.engine.scan(&scan)?;
            let Some((last, _)) = rows.last() else { break };
            lower = std::ops::Bound::Excluded(last.clone());
            copied += rows.len();
            let writes = rows.into_iter().map(|(key, value)| ((table, key), Some(value)));
            new.apply(0, writes.collect(), Sync::Later)?;
            pages += 1;
            if pages % REPORT == 0 {
                tracing::info!(rows = copied, "converting the store");
            }
        }
    }
    let count = Bytes::copy_from_slice(&store.commits.lock().to_be_bytes());
    new.apply(0, Writes::from([((OWN_TABLE, COMMITS_ROW), Some(count))]), Sync::Later)?;
    new.sync()?;
    if new.checkpoint_due() != Due::NotYet {
        new.checkpoint()?;
    }
    tracing::info!(rows = copied, "the store is converted");
    Ok(())
}

/// Ends what a conversion that was interrupted has left in a store's folder.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    remove(&path.join(UNDER_WAY))?;
    let done = path.join(DONE);
    if let Some(new) = EMBEDDED.iter().find(|name| done.join(name).exists()) {
        for old in EMBEDDED.iter().filter(|name| *name != new && path.join(name).exists()) {
            fs::rename(path.join(old), done.join(OLD))?;
        }
        fs::rename(done.join(new), path.join(new))?;
        sync_folder(path)?;
    }
    remove(&done)
}

fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}
