//! Writes a database anew: one from before there were blocks, with blocks; another with full ones, and without what sled has left
//! over from rows that were written again.
//!
//! Packing the rows where they are would not do: sled keeps a place in its table of pages for each page that there ever was.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Disk, failed,
    keys::Prefix,
    tree::{Change, Tree},
};
use crate::{
    backend::disk::sync_folder,
    schema::TableId,
    store::{StoreError, Writes},
};

/// Rows that are copied at once.
const CHUNK: usize = 4096;

/// Chunks after which the log tells how far it is; a few seconds.
const REPORT: usize = 64;

/// Copies all rows into an empty database, in the present form, and makes them durable.
pub(super) fn copy(old: &Tree, new: &Tree, new_folder: &Path) -> Result<(), StoreError> {
    let mut copied = 0;
    let mut entries = old.db.iter();
    for number in 1.. {
        let (mut change, mut packed, mut count) = (Change::default(), Writes::new(), 0);
        while count < CHUNK
            && let Some(entry) = entries.next()
        {
            let (place, value) = entry.map_err(failed)?;
            let table = TableId(place.first().copied().unwrap_or_default());
            if let Some((table, rows)) = old.in_block(&place, &value)? {
                count += rows.len();
                packed.extend(rows.into_iter().map(|(key, value)| ((table, key), Some(value))));
                continue;
            }
            count += 1;
            if new.form.packs(table) {
                let key = Prefix::of_rows(table).without(&place);
                packed.insert((table, key), Some(Bytes::copy_from_slice(&value)));
            } else {
                change.put(place.to_vec(), value.to_vec());
            }
        }
        if count == 0 {
            break;
        }
        change.add(new, &packed)?;
        new.db.apply_batch(change.batch).map_err(failed)?;
        copied += count;
        if number % REPORT == 0 {
            tracing::info!(rows = copied, "writing the store anew");
        }
    }
    new.db.flush().map_err(failed)?;
    Disk::open(new_folder).and_then(|disk| disk.sync()).map_err(io_failed)?;
    tracing::info!(rows = copied, "the store is written anew");
    Ok(())
}

/// Where the new database is made.
pub(super) fn new_folder(folder: &Path) -> PathBuf {
    folder.with_extension("new")
}

/// Where the old one waits to be removed.
fn old_folder(folder: &Path) -> PathBuf {
    folder.with_extension("old")
}

/// Puts the new database in the place of the old one. Neither may be open.
pub(super) fn swap(folder: &Path) -> io::Result<()> {
    sync_folder(&new_folder(folder))?;
    fs::rename(folder, old_folder(folder))?;
    tidy_up(folder)
}

/// Ends what an interruption has left: the new database is whole if the old one is out of its place, and no use otherwise.
pub(super) fn tidy_up(folder: &Path) -> io::Result<()> {
    let (new, old) = (new_folder(folder), old_folder(folder));
    if !folder.exists() && old.exists() {
        fs::rename(&new, folder)?;
    }
    let left: Vec<_> = [new, old].into_iter().filter(|left| left.exists()).collect();
    if let Some(parent) = folder.parent().filter(|parent| parent.exists()) {
        sync_folder(parent)?;
    }
    left.iter().try_for_each(fs::remove_dir_all)
}

pub(super) fn io_failed(error: io::Error) -> StoreError {
    failed(error.into())
}
