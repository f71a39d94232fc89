//! What sled leaves out of its flush: on Linux it writes its log with `sync_file_range`, which promises nothing after a loss of
//! power, and it does not sync the files in which it puts large nodes. After sled's flush, this syncs both.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use parking_lot::Mutex;

/// The files of an open sled database.
pub(super) struct Disk {
    log: File,
    blobs: PathBuf,
    seen: Mutex<Seen>,
}

/// Which large nodes are on the disk.
#[derive(Default)]
struct Seen {
    synced: BTreeSet<OsString>,
    /// When the folder last changed, if a later change is sure to show another time.
    settled: Option<SystemTime>,
}

impl Disk {
    /// The files in a folder in which sled is open.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let (log, blobs) = (File::open(folder.join("db"))?, folder.join("blobs"));
        Ok(Self { log, blobs, seen: Mutex::default() })
    }

    /// Makes everything that sled has written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.sync_blobs()?;
        self.log.sync_data()
    }

    /// Syncs the large nodes that are new. Looks into the folder only if it has changed.
    fn sync_blobs(&self) -> io::Result<()> {
        let mut seen = self.seen.lock();
        let changed = fs::metadata(&self.blobs)?.modified()?;
        if seen.settled == Some(changed) {
            return Ok(());
        }
        // The file system's clock has steps: a node written in the same step as the last change would not show. The log's time
        // is at most now, so a folder older than the log cannot change again without getting another time.
        let written = self.log.metadata()?.modified()?;
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            if !seen.synced.contains(&name) {
                match File::open(self.blobs.join(&name)) {
                    Ok(file) => file.sync_data()?,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue, // sled has removed it meanwhile
                    Err(error) => return Err(error),
                }
            }
            present.insert(name);
        }
        sync_folder(&self.blobs)?;
        *seen = Seen { synced: present, settled: (changed < written).then_some(changed) };
        Ok(())
    }

    /// Whether each large node that is there has been synced.
    #[cfg(test)]
    pub(super) fn is_synced(&self) -> io::Result<bool> {
        let seen = self.seen.lock();
        let mut names = fs::read_dir(&self.blobs)?.map(|entry| entry.map(|entry| entry.file_name()));
        names.try_fold(true, |all, name| Ok(all && seen.synced.contains(&name?)))
    }
}

/// Makes the names in a folder durable, where folders can be opened.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{fs::FileTimes, time::Duration};

    use super::*;

    fn set_time(path: &Path, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    /// A node, the look into the folder and another node within one step of the file system's clock.
    #[test]
    fn a_node_written_in_the_same_step_of_the_clock_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let (log, blobs) = (folder.path().join("db"), folder.path().join("blobs"));
        fs::write(&log, b"log").unwrap();
        fs::create_dir(&blobs).unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        for name in ["1", "2", "3"] {
            fs::write(blobs.join(name), b"node").unwrap();
            set_time(&log, 100);
            set_time(&blobs, 100);
            disk.sync().unwrap();
            assert!(disk.is_synced().unwrap(), "node {name}");
        }
        set_time(&log, 101);
        disk.sync().unwrap();
        assert!(disk.seen.lock().settled.is_some(), "an unchanged folder is not looked into again");
        fs::write(blobs.join("4"), b"node").unwrap();
        fs::remove_file(blobs.join("1")).unwrap();
        disk.sync().unwrap();
        assert!(disk.is_synced().unwrap());
        assert_eq!(disk.seen.lock().synced, ["2", "3", "4"].map(OsString::from).into());
    }
}
