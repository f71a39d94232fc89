//! Damaged files: a clear error or correct rows, never a panic that escapes, wrong rows, or rows that are gone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Durable, copy, engine_folder, filled, open, row, rows};
use crate::backend::Backend;

/// Some segments of sled's log, some blocks of fjall's.
const ROW_COUNT: u64 = 4_000;

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Zero,
    Truncate,
    Remove,
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Damages a file at `part` of 1000 of its length.
fn apply(damage: Damage, file: &Path, part: usize) {
    let mut bytes = fs::read(file).unwrap();
    // The end of a preallocated file is empty: aim at what is used.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let at = used * part / 1000;
    match damage {
        Damage::Flip => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        }
        Damage::Zero => {
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(0);
        }
        Damage::Truncate => bytes.truncate(at),
        Damage::Remove => return fs::remove_file(file).unwrap(),
    }
    fs::write(file, bytes).unwrap();
}

/// Opens a damaged copy of `original` and tells what came of it; wrong or missing rows fail the test.
async fn judge(
    durable: Durable,
    original: &Path,
    damage: Damage,
    file: usize,
    part: usize,
) -> Result<(), String> {
    let copied = tempfile::tempdir().unwrap();
    copy(original, copied.path());
    let files = files_below(&engine_folder(copied.path()));
    let file = &files[file % files.len()];
    apply(damage, file, part);
    let storage = open(durable, copied.path()).await.map_err(|error| error.to_string())?;
    let found = rows(&storage).await;
    let _ = storage.close().await; // a damaged store may fail to close
    let found = found.map_err(|error| error.to_string())?;
    let expected: Vec<_> = (0..ROW_COUNT).map(|number| (number, row(number))).collect();
    assert!(
        found == expected,
        "{} rows of {ROW_COUNT} after {damage:?} at {part}/1000 of {}",
        found.len(),
        file.strip_prefix(copied.path()).unwrap().display()
    );
    Ok(())
}

async fn check(durable: Durable) {
    let original = filled(durable, ROW_COUNT).await;
    let count = files_below(&engine_folder(original.path())).len();
    let mut errors = Vec::new();
    for damage in [Damage::Flip, Damage::Zero, Damage::Truncate, Damage::Remove] {
        for file in 0..count {
            for part in [0, 333, 950] {
                errors.extend(judge(durable, original.path(), damage, file, part).await.err());
            }
        }
    }
    assert!(!errors.is_empty(), "no damage was noticed");
}

#[tokio::test]
async fn sled_answers_damage_with_an_error_or_with_correct_rows() {
    check(Backend::Sled).await;
}

#[tokio::test]
async fn fjall_answers_damage_with_an_error_or_with_correct_rows() {
    check(Backend::Fjall).await;
}
