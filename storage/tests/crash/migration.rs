//! Kills a process while it brings a store of an older build up to date, and checks what is there.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use engine::id::ShortEventId;
use ruma::OwnedEventId;
use storage::{
    Batch, Durability, Storage, Store, Value,
    key::{self, EventIdHash},
    schema::{EVENT_IDS, META, OLD_EVENT_IDS},
    store::Sync,
};
use tokio::time::Instant;

use super::rows;

/// More rows than are moved in one commit.
const EVENTS: u64 = 120_000;

/// Rows that are written at a time.
const CHUNK: u64 = 60_000;

/// One of so many rows is looked at.
const SAMPLE: u64 = 10;

/// How often the process is killed unless the environment says otherwise.
const ROUNDS: u64 = 3;

#[tokio::test]
async fn sled_moves_every_event_id_once_when_the_migration_is_killed() {
    is_killed_and_goes_on("sled").await;
}

#[tokio::test]
async fn fjall_moves_every_event_id_once_when_the_migration_is_killed() {
    is_killed_and_goes_on("fjall").await;
}

/// Once undisturbed, to see how long it takes; then killed at a random moment of each part of that time, and left to end.
async fn is_killed_and_goes_on(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (undisturbed, killed) = (folder.path().join("undisturbed"), folder.path().join("killed"));
    write_version_4(backend, &undisturbed).await;
    write_version_4(backend, &killed).await;
    let begun = Instant::now();
    let mut writer = start(backend, &undisturbed);
    BufReader::new(writer.stdout.take().unwrap())
        .lines()
        .next()
        .expect("it writes once it is through")
        .unwrap();
    let whole = begun.elapsed();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(moved(backend, &undisturbed).await, EVENTS / SAMPLE);

    let seed = super::setting("GANGLION_CRASH_SEED", 1);
    let mut last = 0;
    let rounds = super::setting("GANGLION_CRASH_ROUNDS", ROUNDS);
    for round in 0..rounds {
        let mut writer = start(backend, &killed);
        let random = rows::mix(seed.wrapping_mul(1_000_003) ^ round);
        let percent = (round * 100 + random % 100) / rounds; // a later part of the migration each time
        tokio::time::sleep(whole * u32::try_from(percent).unwrap() / 100).await;
        writer.kill().unwrap();
        writer.wait().unwrap();
        let now = moved(backend, &killed).await;
        println!("{backend}: seed {seed}, round {round}, {now} of {} rows are moved", EVENTS / SAMPLE);
        assert!(now >= last, "rows went back");
        last = now;
    }
    Storage::open(open(backend, &killed).await, Durability::Always).await.unwrap().close().await.unwrap();
    assert_eq!(moved(backend, &killed).await, EVENTS / SAMPLE);
}

fn id(number: u64) -> OwnedEventId {
    OwnedEventId::try_from(format!("${:016x}:example.org", rows::mix(number))).unwrap()
}

async fn open(backend: &str, folder: &Path) -> Arc<dyn Store> {
    rows::backend(backend, folder.to_owned()).unwrap().open().await.unwrap()
}

/// What a build with schema version 4 leaves: IDs of events as they are, and that version.
async fn write_version_4(backend: &str, folder: &Path) {
    Storage::open(open(backend, folder).await, Durability::Always).await.unwrap().close().await.unwrap();
    let store = open(backend, folder).await;
    for first in (0..EVENTS).step_by(usize::try_from(CHUNK).unwrap()) {
        let mut batch = Batch::new();
        for number in first..first + CHUNK {
            batch.put(&OLD_EVENT_IDS, &id(number), &ShortEventId(number));
        }
        store.commit(vec![batch], Sync::Later).await.unwrap();
    }
    let mut batch = Batch::new();
    batch.put(&META, "schema_version", &Bytes::copy_from_slice(&4_u64.to_be_bytes()));
    store.commit(vec![batch], Sync::Now).await.unwrap();
    store.close().await.unwrap();
}

/// A process that opens the store, which migrates it, and writes into it afterwards.
fn start(backend: &str, folder: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_crash_writer"))
        .args([backend, "always"])
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How many of the sample are in the new table. Each is in one of the two, with its number.
async fn moved(backend: &str, folder: &Path) -> u64 {
    let store = open(backend, folder).await;
    let numbers = || (0..EVENTS).step_by(usize::try_from(SAMPLE).unwrap());
    let old = numbers().map(|number| key::encode::<OwnedEventId, _>(&id(number))).collect();
    let new = numbers().map(|number| key::encode::<EventIdHash, _>(&id(number))).collect();
    let old = store.read(OLD_EVENT_IDS.id(), old).await.unwrap();
    let new = store.read(EVENT_IDS.id(), new).await.unwrap();
    store.close().await.unwrap();
    let mut moved = 0;
    for (number, (old, new)) in numbers().zip(old.into_iter().zip(new)) {
        moved += u64::from(new.is_some());
        let found: Vec<_> = [old, new].into_iter().flatten().collect();
        assert_eq!(found, [ShortEventId(number).encode().unwrap()], "event {number} is there once");
    }
    moved
}
