//! A small file in front of sled: a commit is written there and synced, which takes one thread one call. When the file is full,
//! what is in it goes into sled, and the file is begun anew. What sled lacks after a crash is done again from the file.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use bytes::{Buf, BufMut, Bytes};

use crate::{schema::TableId, store::Writes};

/// Length of the file: some hundreds of messages. Reads wait while so many rows go into sled.
const LENGTH: usize = 512 << 10;

/// A record's length without its head, and its checksum; 4 bytes each.
const HEAD: usize = 8;

/// Stands for the length of the value of a row that is deleted.
const DELETED: u32 = u32::MAX;

/// A commit in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Which commit of the store it is.
    pub(super) number: u64,
    pub(super) writes: Writes,
}

/// The open file.
pub(super) struct Journal {
    file: File,
    /// Where the next record goes; at the end of the file if none may.
    end: usize,
}

impl Journal {
    /// Opens the file, creating it if it is not there, and reads the commits since it was begun anew for the last time. Older ones
    /// may follow or be all there is. No commit can be noted before [`Self::clear`].
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Record>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = vec![0; LENGTH];
        let mut length = 0;
        while length < LENGTH {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        Ok((Self { file, end: LENGTH }, records(&bytes)))
    }

    /// Forgets what is in the file, which has to be durable elsewhere.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.write_all_at(&vec![0; LENGTH], 0)?;
        self.file.set_len(LENGTH as u64)?;
        self.file.sync_all()?;
        self.end = 0;
        Ok(())
    }

    /// Makes a commit durable; false if there is no room for it.
    pub(super) fn note(&mut self, number: u64, writes: &Writes) -> io::Result<bool> {
        let size = HEAD + size_of::<u64>() + writes.iter().map(size).sum::<usize>();
        let start = self.end;
        if size > LENGTH - start {
            return Ok(false);
        }
        self.end = LENGTH; // none after this one, if it fails
        self.file.write_all_at(&record(number, writes, size), start as u64)?;
        self.file.sync_data()?;
        self.end = start + size;
        Ok(true)
    }

    /// Everything that was noted is durable elsewhere: its place is used anew.
    pub(super) fn begin_anew(&mut self) {
        self.end = 0;
    }

    /// Notes no more commits: there are some that are not in the file.
    pub(super) fn stop(&mut self) {
        self.end = LENGTH;
    }
}

fn size(((_, key), value): (&(TableId, Bytes), &Option<Bytes>)) -> usize {
    1 + 4 + key.len() + 4 + value.as_ref().map_or(0, Bytes::len)
}

fn record(number: u64, writes: &Writes, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    bytes.put_u32(length(size - HEAD));
    bytes.put_u32(0);
    bytes.put_u64(number);
    for ((table, key), value) in writes {
        bytes.put_u8(table.0);
        bytes.put_u32(length(key.len()));
        bytes.put_slice(key);
        bytes.put_u32(value.as_ref().map_or(DELETED, |value| length(value.len())));
        bytes.put_slice(value.as_deref().unwrap_or_default());
    }
    let checksum = crc32fast::hash(&bytes[HEAD..]);
    bytes[4..HEAD].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A length within the file.
fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a record is no longer than the file")
}

/// The records from the first one on whose numbers follow each other.
fn records(mut bytes: &[u8]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    while let Some(record) = next(&mut bytes) {
        if records.last().is_some_and(|last| record.number != last.number + 1) {
            break;
        }
        records.push(record);
    }
    records
}

/// The record that the bytes begin with, unless it is torn or none.
fn next(bytes: &mut &[u8]) -> Option<Record> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    let checksum = bytes.try_get_u32().ok()?;
    let (mut body, rest) = bytes.split_at_checked(length)?;
    if length == 0 || crc32fast::hash(body) != checksum {
        return None;
    }
    *bytes = rest;
    let number = body.try_get_u64().ok()?;
    let mut writes = Writes::new();
    while !body.is_empty() {
        let table = TableId(body.try_get_u8().ok()?);
        let length = body.try_get_u32().ok()?;
        let key = take(&mut body, length)?;
        let value = match body.try_get_u32().ok()? {
            DELETED => None,
            length => Some(take(&mut body, length)?),
        };
        writes.insert((table, key), value);
    }
    Some(Record { number, writes })
}

fn take(bytes: &mut &[u8], length: u32) -> Option<Bytes> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Bytes::copy_from_slice(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(number: u8) -> Writes {
        let key = |name: &'static str| (TableId(number), Bytes::from_static(name.as_bytes()));
        let value = Bytes::from(vec![number; 100 + usize::from(number)]);
        Writes::from([(key("gone"), None), (key("here"), Some(value)), (key(""), Some(Bytes::new()))])
    }

    fn commit(number: u8) -> Record {
        Record { number: number.into(), writes: writes(number) }
    }

    fn note(journal: &mut Journal, numbers: std::ops::RangeInclusive<u8>) {
        for number in numbers {
            assert!(journal.note(number.into(), &writes(number)).unwrap());
        }
    }

    /// A journal of its own in a folder.
    fn opened(folder: &Path) -> (Journal, Vec<Record>) {
        Journal::open(&folder.join("journal")).unwrap()
    }

    #[test]
    fn commits_are_read_as_they_were_noted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, found) = opened(folder.path());
        assert_eq!(found, []);
        assert!(!journal.note(1, &writes(1)).unwrap(), "before it is cleared");
        journal.clear().unwrap();
        note(&mut journal, 1..=3);
        assert_eq!(opened(folder.path()).1, [commit(1), commit(2), commit(3)]);
    }

    #[test]
    fn a_record_that_is_torn_anywhere_ends_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = opened(folder.path());
        journal.clear().unwrap();
        note(&mut journal, 1..=2);
        let start = journal.end;
        note(&mut journal, 3..=4);
        let whole = std::fs::read(folder.path().join("journal")).unwrap();
        let third = start..start + (journal.end - start) / 2;
        for at in third {
            let mut torn = whole.clone();
            torn[at] ^= 0x10;
            std::fs::write(folder.path().join("journal"), &torn).unwrap();
            assert_eq!(opened(folder.path()).1, [commit(1), commit(2)], "byte {at}");
            std::fs::write(folder.path().join("journal"), &whole[..at]).unwrap();
            assert_eq!(opened(folder.path()).1, [commit(1), commit(2)], "cut at {at}");
        }
    }

    #[test]
    fn what_is_left_of_older_commits_does_not_follow_newer_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = opened(folder.path());
        journal.clear().unwrap();
        note(&mut journal, 1..=5);
        journal.begin_anew();
        assert_eq!(opened(folder.path()).1.len(), 5, "nothing new is there yet");
        // As long as the first one, so that the second, an older one, is found where the next would be.
        let mut newer = writes(1);
        newer.insert((TableId(1), Bytes::from_static(b"here")), Some(Bytes::from(vec![9; 101])));
        assert!(journal.note(6, &newer).unwrap());
        assert_eq!(opened(folder.path()).1, [Record { number: 6, writes: newer }]);
        journal.clear().unwrap();
        assert_eq!(opened(folder.path()).1, []);
    }

    #[test]
    fn a_full_journal_takes_no_more_until_it_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = opened(folder.path());
        journal.clear().unwrap();
        let mut count = 0_u64;
        while journal.note(count + 1, &writes(7)).unwrap() {
            count += 1;
        }
        assert_eq!(opened(folder.path()).1.len() as u64, count);
        let large = Writes::from([((TableId(1), Bytes::new()), Some(Bytes::from(vec![0; LENGTH])))]);
        journal.begin_anew();
        assert!(!journal.note(count + 1, &large).unwrap(), "larger than the file");
        assert!(journal.note(count + 1, &writes(1)).unwrap());
        journal.stop();
        assert!(!journal.note(count + 2, &writes(1)).unwrap());
        assert_eq!(std::fs::metadata(folder.path().join("journal")).unwrap().len(), LENGTH as u64);
    }
}
