//! Kills a writing process with SIGKILL at random moments, again and again on the same store, and checks what is there.
//!
//! `GANGLION_CRASH_ROUNDS=50 cargo test -p storage --test crash` is the long run; `GANGLION_CRASH_SEED` varies it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this file is a test")]

mod migration;
mod rows;

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use engine::id::Position;
use storage::{Direction, Durability, Key, KeyRange, Storage, Table, Value};

/// Rounds unless the environment says otherwise: what every run of the tests can afford.
const ROUNDS: u64 = 5;

#[tokio::test]
async fn sled_keeps_every_acknowledged_batch_whole() {
    rounds("sled", "always").await;
}

#[tokio::test]
async fn sled_keeps_every_acknowledged_batch_whole_across_checkpoints() {
    rounds("sled", "checkpoints").await;
}

#[tokio::test]
async fn fjall_keeps_every_acknowledged_batch_whole() {
    rounds("fjall", "always").await;
}

/// The last batches before a crash may be lost; what is there is whole, and none is missing in between.
#[tokio::test]
async fn sled_keeps_batches_whole_between_syncs() {
    rounds("sled", "interval").await;
}

#[tokio::test]
async fn fjall_keeps_batches_whole_between_syncs() {
    rounds("fjall", "interval").await;
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn rounds(backend: &str, durability: &str) {
    let folder = tempfile::tempdir().unwrap();
    let seed = setting("GANGLION_CRASH_SEED", 1);
    let mut stored = 0;
    for round in 0..setting("GANGLION_CRASH_ROUNDS", ROUNDS) {
        let random = rows::mix(seed.wrapping_mul(1_000_003) ^ round);
        println!("{backend}, {durability}: seed {seed}, round {round}, stored so far {stored}");
        let acknowledged = write_and_kill(backend, durability, folder.path(), random);
        if durability != "interval" {
            stored = stored.max(acknowledged);
        }
        stored = check(backend, folder.path(), stored).await;
    }
    assert!(stored > 0, "no round got as far as a commit");
}

/// Lets the process acknowledge a random number of batches, waits a random moment, kills it, and tells the last number.
fn write_and_kill(backend: &str, durability: &str, folder: &Path, random: u64) -> u64 {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_crash_writer"))
        .args([backend, durability])
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut last = 0;
    for _ in 0..random % 500 {
        last = lines.next().expect("the writer goes on until it is killed").unwrap().parse().unwrap();
    }
    for _ in 0..rows::mix(random) % 300_000 {
        std::hint::spin_loop();
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    for line in lines {
        last = line.unwrap().parse().unwrap(); // acknowledged before it died; a line is one write
    }
    last
}

/// Opens the store and checks that it is exactly what the batches up to some number leave, which is at least `durable`.
async fn check(backend: &str, folder: &Path, durable: u64) -> u64 {
    let store = rows::backend(backend, folder.to_owned()).unwrap().open().await.unwrap();
    let storage = Storage::open(store, Durability::Always).await.unwrap();
    let last = storage.get(&rows::LAST, &()).await.unwrap().unwrap_or(0);
    assert!(last >= durable, "batch {durable} was durable, the store ends at {last}");

    let kept: Vec<u64> = (last.saturating_sub(rows::KEPT - 1).max(1)..=last).collect();
    let positions = all(&storage, &rows::POSITIONS).await;
    assert_eq!(positions.iter().map(|row| row.0).collect::<Vec<_>>(), kept, "positions of other numbers");
    assert!(positions.is_sorted_by(|a, b| a.1 < b.1), "positions are used twice or out of order");

    let bodies: Vec<(u64, Bytes)> = all(&storage, &rows::BODIES).await;
    assert_eq!(bodies.iter().map(|row| row.0).collect::<Vec<_>>(), kept, "bodies of other numbers");
    assert!(bodies.iter().all(|(number, body)| *body == rows::body(*number)), "a body is wrong");

    let slots: Vec<(u64, u64)> = all(&storage, &rows::SLOTS).await;
    let mut expected: Vec<_> = (1..=last)
        .rev()
        .take(usize::try_from(rows::SLOT_COUNT).unwrap())
        .map(|number| (number % rows::SLOT_COUNT, number))
        .collect();
    expected.sort_unstable();
    assert_eq!(slots, expected, "slots of other batches");

    let highest = positions.last().map_or(Position(0), |row| row.1);
    assert!(storage.watermark() >= highest && storage.reserve(1).first() > highest, "positions go back");
    storage.close().await.unwrap();
    last
}

async fn all<K: Key, V: Value>(storage: &Storage, table: &Table<K, V>) -> Vec<(K, V)> {
    let limit = usize::try_from(rows::KEPT).unwrap() + 100;
    let rows = storage.range(table, KeyRange::all(), Direction::Ascending, limit).await.unwrap();
    assert!(rows.len() < limit);
    rows
}
