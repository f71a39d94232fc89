use std::{collections::BTreeMap, ops::Bound};

use proptest::prelude::*;

use super::{
    form::ESCAPED,
    keys::{Prefix, escape},
    *,
};
use crate::store::Direction;

/// A table whose rows each have a key of their own in sled, and one whose rows are in blocks.
const TABLES: [TableId; 2] = [TableId(u8::MAX - 1), TableId(u8::MAX)];

fn put(sled: &Sled, table: TableId, keys: impl Iterator<Item = Vec<u8>>) {
    let row = |key: Vec<u8>| ((table, Bytes::from(key)), Some(Bytes::from(vec![7; 300])));
    sled.apply(1, keys.map(row).collect(), Sync::Now).unwrap();
}

/// All keys, backwards and in small pages.
fn backwards(sled: &Sled, table: TableId) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let upper = keys.last().map_or(Bound::Unbounded, |key| Bound::Excluded(Bytes::from(key.clone())));
        let (lower, direction) = (Bound::Unbounded, Direction::Descending);
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
    for table in TABLES {
        let folder = tempfile::tempdir().unwrap();
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        // The later half first, so that a node begins at the shortest key between the halves.
        put(&sled, table, positions().skip(500));
        put(&sled, table, positions().take(500));
        sled.sync().unwrap();
        assert_eq!(backwards(&sled, table), positions().rev().collect::<Vec<_>>());
    }
}

#[test]
fn databases_of_older_forms_are_brought_into_the_present_one() {
    for (table, is_escaped) in TABLES.into_iter().flat_map(|table| [(table, true), (table, false)]) {
        let folder = tempfile::tempdir().unwrap();
        let old = sled::open(folder.path()).unwrap();
        let mut keys: Vec<_> = positions().collect();
        // One key that looks as another does when escaped.
        keys.extend([vec![0xFF], vec![0xFF, 0]]);
        for key in &keys {
            let place = [&[table.0], key.as_slice()].concat();
            old.insert(if is_escaped { escape(&place) } else { place }, key.as_slice()).unwrap();
        }
        if is_escaped {
            old.insert(ESCAPED, &[]).unwrap();
        }
        drop(old);
        keys.sort();
        keys.reverse();
        for _ in 0..2 {
            let sled = Sled::open(folder.path(), 8 << 20).unwrap();
            sled.rearrange().unwrap();
            assert_eq!(backwards(&sled, table), keys);
            let wanted: Vec<_> = keys.iter().cloned().map(Bytes::from).collect();
            let values = sled.read(table, &wanted).unwrap();
            assert_eq!(values, wanted.into_iter().map(Some).collect::<Vec<_>>());
            let own = Prefix::of_rows(table).range(Bound::Unbounded, Bound::Unbounded);
            let left = sled.rows.read().tree().unwrap().db.range(own).count();
            assert_eq!(left, if table.is_packed() { 0 } else { keys.len() });
        }
    }
}

/// A row's key, and the length of its new value; none deletes.
type Change = (Vec<u8>, Option<usize>);

/// Commits, each followed by one that goes straight into sled or not, over keys that are near each other.
fn commits() -> impl Strategy<Value = Vec<(Vec<Change>, bool)>> {
    let byte = prop_oneof![Just(0xFF_u8), Just(0), 1_u8..5];
    let key = proptest::collection::vec(byte, 0..5);
    let length = prop_oneof![3 => (0_usize..20).prop_map(Some), 1 => (1_000_usize..4_000).prop_map(Some), 2 => Just(None)];
    let commit = proptest::collection::vec((key, length), 0..60);
    proptest::collection::vec((commit, any::<bool>()), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is written, the rows are those of one map, read one by one, in both directions, and after opening again.
    #[test]
    fn rows_are_as_one_map(commits in commits(), bounds in proptest::collection::vec((0_usize..300, 0_u8..3), 6)) {
        for (table, is_old) in TABLES.into_iter().flat_map(|table| [(table, false), (table, true)]) {
            let home = tempfile::tempdir().unwrap();
            let folder = home.path().join("sled");
            if is_old {
                let old = sled::open(&folder).unwrap();
                old.insert(ESCAPED, &[]).unwrap();
                old.insert([1], &[1]).unwrap();
            }
            let mut sled = Sled::open(&folder, 8 << 20).unwrap();
            let mut model = BTreeMap::new();
            for (number, (commit, settles)) in commits.iter().enumerate() {
                let mut writes = Writes::new();
                for (key, length) in commit {
                    let byte = u8::try_from(number).unwrap();
                    let value = length.map(|length| Bytes::from(vec![byte; length]));
                    writes.insert((table, Bytes::from(key.clone())), value);
                }
                for ((_, key), value) in &writes {
                    match value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(key),
                    };
                }
                let number = number as u64 + 1;
                let count = Bytes::copy_from_slice(&number.to_be_bytes());
                writes.insert((TableId(0), Bytes::from_static(b"commits")), Some(count));
                sled.apply(number, writes, Sync::Now).unwrap();
                if number == commits.len() as u64 / 2 {
                    // What is in the journal of an old form stays in that form until it is rearranged.
                    sled = Sled::open(crash(sled, &folder), 8 << 20).unwrap();
                    check(&sled, table, &model, &bounds)?;
                    sled.rearrange().unwrap();
                }
                if *settles {
                    sled.sync().unwrap();
                }
                check(&sled, table, &model, &bounds)?;
            }
            sled.compact().unwrap();
            check(&sled, table, &model, &bounds)?;
            drop(sled);
            sled = Sled::open(&folder, 8 << 20).unwrap();
            check(&sled, table, &model, &bounds)?;
        }
    }
}

/// Puts what a crash leaves in the place of a database's folder.
fn crash(sled: Sled, folder: &Path) -> &Path {
    let left = crashed(folder).keep();
    drop(sled);
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::rename(left, folder).unwrap();
    folder
}

/// Compares what is stored with a map; the bounds are keys by number, included, excluded or none.
fn check(
    sled: &Sled,
    table: TableId,
    model: &BTreeMap<Bytes, Bytes>,
    bounds: &[(usize, u8)],
) -> Result<(), TestCaseError> {
    let mut keys: Vec<Bytes> = model.keys().cloned().collect();
    keys.extend(model.keys().map(|key| [key.as_ref(), &[0]].concat().into()));
    let expected: Vec<_> = keys.iter().map(|key| model.get(key).cloned()).collect();
    prop_assert_eq!(sled.read(table, &keys).unwrap(), expected);
    let bound = |(number, kind): (usize, u8)| match (keys.get(number % keys.len().max(1)), kind) {
        (Some(key), 0) => Bound::Included(key.clone()),
        (Some(key), 1) => Bound::Excluded(key.clone()),
        _ => Bound::Unbounded,
    };
    for pair in bounds.windows(2) {
        for direction in [Direction::Ascending, Direction::Descending] {
            let scan = Scan { table, lower: bound(pair[0]), upper: bound(pair[1]), direction, limit: 40 };
            if scan.is_empty() {
                continue;
            }
            let rows = model
                .range((scan.lower.clone(), scan.upper.clone()))
                .map(|(key, value)| (key.clone(), value.clone()));
            let expected: Vec<Row> = match direction {
                Direction::Ascending => rows.take(40).collect(),
                Direction::Descending => rows.rev().take(40).collect(),
            };
            prop_assert_eq!(sled.scan(&scan).unwrap(), expected, "{:?}", scan);
        }
    }
    Ok(())
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
    for number in 1..=530 {
        commit(&sled, number, Sync::Now);
        if number < 480 {
            continue; // the journal is full once after this
        }
        let left = crashed(folder.path());
        std::fs::remove_file(left.path().join(Form::Blocks.journal())).unwrap();
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
    for (folder, count) in [(&older, 3), (&newer, 800)] {
        let sled = Sled::open(folder.path(), 8 << 20).unwrap();
        (1..=count).for_each(|number| commit(&sled, number, Sync::Now));
    }
    std::fs::copy(newer.path().join(Form::Blocks.journal()), older.path().join(Form::Blocks.journal()))
        .unwrap();
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
    while sled.checkpoint_due() == Due::NotYet {
        number += 1;
        commit(&sled, number, Sync::Later);
    }
    assert!(number > 10_000, "due after {number} commits");
    let before = snapshots(folder.path());
    sled.checkpoint().unwrap();
    assert_eq!(sled.checkpoint_due(), Due::NotYet);
    assert_ne!(snapshots(folder.path()), before);
    commit(&sled, number + 1, Sync::Now);
    let left = crashed(folder.path());
    let after = Sled::open(left.path(), 8 << 20).unwrap();
    assert_eq!(committed(&after).len() as u64, number + 1);
}

#[test]
fn a_compacted_database_takes_less_of_the_disk() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("sled");
    let sled = Sled::open(&folder, 8 << 20).unwrap();
    let mut noise = vec![0_u8; 8 << 10];
    let key = |number: u64| (TABLES[0], Bytes::copy_from_slice(&number.to_be_bytes()));
    for number in 1..=2_000_u64 {
        noise.rotate_left(1);
        noise[0] = noise[1].wrapping_mul(31).wrapping_add(number.to_le_bytes()[0]);
        sled.apply(number, Writes::from([(key(number), Some(noise.clone().into()))]), Sync::Later).unwrap();
    }
    sled.sync().unwrap();
    let removed = (1..=1_900).map(|number| (key(number), None)).collect();
    sled.apply(2_001, removed, Sync::Now).unwrap();
    sled.sync().unwrap();
    let (rows, before) = (backwards(&sled, TABLES[0]), sled.size().unwrap());
    sled.compact().unwrap();
    let after = sled.size().unwrap();
    assert_eq!(backwards(&sled, TABLES[0]), rows);
    assert_eq!(rows.len(), 100);
    assert!(after * 3 < before, "{before} bytes before, {after} after");
}

#[test]
fn a_checkpoint_that_is_put_off_for_long_is_due_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let sled = Sled::open(folder.path(), 8 << 20).unwrap();
    let large = |number: u64| {
        let writes = [((TableId(1), Bytes::from_static(b"row")), Some(Bytes::from(vec![7; 2 << 20])))];
        sled.apply(number, Writes::from(writes), Sync::Later).unwrap();
    };
    (1..8).for_each(large);
    assert_eq!(sled.checkpoint_due(), Due::WhenQuiet);
    (8..40).for_each(large);
    assert_eq!(sled.checkpoint_due(), Due::Now);
    sled.checkpoint().unwrap();
    assert_eq!(sled.checkpoint_due(), Due::NotYet);
}

/// A database whose rows are not in blocks yet.
fn old_database(folder: &Path) {
    let old = sled::open(folder).unwrap();
    for number in 0..100_u8 {
        old.insert([TABLES[1].0, 0, number], &[number]).unwrap();
    }
    old.insert(ESCAPED, &[]).unwrap();
}

#[test]
fn a_database_whose_copying_was_interrupted_is_copied_again() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("sled");
    let [new, old] = ["new", "old"].map(|name| folder.with_extension(name));
    let opened = || {
        let sled = Sled::open(&folder, 8 << 20).unwrap();
        sled.rearrange().unwrap();
        assert_eq!(backwards(&sled, TABLES[1]).len(), 100);
        assert!(!new.exists() && !old.exists());
    };
    old_database(&folder);
    old_database(&new); // in part
    opened();
    // As between the renaming of the two, and before the old one was removed.
    std::fs::rename(&folder, &new).unwrap();
    old_database(&old);
    opened();
    old_database(&old);
    opened();
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
        assert!(sled.disk.lock().is_synced().unwrap(), "after commit {number}");
    }
    assert!(blobs() > 0, "no node was large enough for this test");
}
