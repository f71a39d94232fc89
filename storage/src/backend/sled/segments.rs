//! The segments of sled's log: how large they are.
//!
//! When it is opened, sled reads the head of each segment, which is a place of its own on the disk. Of its own accord it makes them
//! of half a MiB: 29,000 in a store of 15 GB, which takes more than a second while none of them is in memory.

use std::{fs, io, path::Path};

use sled::{Config, Db};

/// Bytes of a segment of a new database. sled frees segments as a whole, and only once there are some, so that larger ones
/// would make small stores large.
const BYTES: usize = 2 << 20;

/// Those of databases that were made by builds before this was set; a database keeps its own.
const BYTES_BEFORE: usize = 512 << 10;

/// sled takes a file of settings that is no longer than this for none.
const SETTINGS_MIN: u64 = 9;

/// Opens the database in `folder`, creating it if there is none.
pub(super) fn open(folder: &Path, cache_bytes: u64) -> sled::Result<Db> {
    let settings = folder.join("conf");
    if length(&settings)? < SETTINGS_MIN && length(&folder.join("db"))? > 0 {
        // sled would make new settings, and take what is in the log for damage if they are others.
        let detail = format!("{} is missing or empty", settings.display());
        return Err(sled::Error::Io(io::Error::new(io::ErrorKind::InvalidData, detail)));
    }
    let db = match with_segments(BYTES, folder, cache_bytes) {
        Err(sled::Error::Unsupported(_)) => with_segments(BYTES_BEFORE, folder, cache_bytes)?,
        opened => opened?,
    };
    // sled does not; without it the rest is no use.
    fs::File::open(settings)?.sync_data()?;
    Ok(db)
}

fn with_segments(bytes: usize, folder: &Path, cache_bytes: u64) -> sled::Result<Db> {
    // The writer says when to sync; sled's own timer would only wake an idle server twice a second.
    let config = Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(None);
    config.segment_size(bytes).open()
}

/// Bytes of a file; none if it is not there.
fn length(file: &Path) -> io::Result<u64> {
    match fs::metadata(file) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: u64 = 1 << 20;

    /// As builds made it before.
    #[test]
    fn a_database_with_smaller_segments_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3_u8 {
            let db = if number == 0 {
                with_segments(BYTES_BEFORE, folder.path(), CACHE)
            } else {
                open(folder.path(), CACHE)
            };
            let db = db.unwrap();
            db.insert([number], vec![number; 300_000]).unwrap();
            assert_eq!(db.len(), usize::from(number) + 1);
            db.flush().unwrap();
        }
    }

    #[test]
    fn settings_that_are_gone_are_damage() {
        for damage in [|file: &Path| fs::remove_file(file), |file: &Path| fs::write(file, b"")] {
            let folder = tempfile::tempdir().unwrap();
            let db = open(folder.path(), CACHE).unwrap();
            db.insert(b"row", b"value").unwrap();
            drop(db);
            damage(&folder.path().join("conf")).unwrap();
            let error = open(folder.path(), CACHE).unwrap_err();
            assert!(error.to_string().contains("conf"), "{error}");
        }
    }
}
