use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tempfile::TempDir;

use super::{Backend, Files, OpenError};
use crate::{
    Batch, Direction, Durability, KeyRange, Storage, StoreError, Table, conformance,
    migrate::SCHEMA_VERSION,
    schema::{META, TEST_TABLES},
};

mod convert;
mod damage;

static ROWS: Table<u64, Bytes> = Table::new(TEST_TABLES, "ROWS");

/// Makes a back end's configuration from a folder.
type Durable = fn(Files) -> Backend;

const DURABLE: [Durable; 2] = [Backend::Sled, Backend::Fjall];

fn files(path: &Path) -> Files {
    Files { path: path.to_owned(), cache_bytes: 8 << 20 }
}

async fn open(durable: Durable, path: &Path) -> Result<Storage, OpenError> {
    Storage::open(durable(files(path)).open().await?, Durability::Always).await
}

fn row(number: u64) -> Bytes {
    Bytes::from(vec![number.to_be_bytes()[7]; 300])
}

/// Rows in several commits.
async fn fill(storage: &Storage, numbers: std::ops::Range<u64>) {
    for first in numbers.clone().step_by(10) {
        let mut batch = Batch::new();
        for number in first..(first + 10).min(numbers.end) {
            batch.put(&ROWS, &number, &row(number));
        }
        storage.commit(batch).await.unwrap();
    }
}

async fn rows(storage: &Storage) -> Result<Vec<(u64, Bytes)>, StoreError> {
    storage.range(&ROWS, KeyRange::all(), Direction::Ascending, 100_000).await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A closed store of `count` rows.
async fn filled(durable: Durable, count: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(durable, folder.path()).await.unwrap();
    fill(&storage, 0..count).await;
    storage.close().await.unwrap();
    folder
}

/// The folder of whichever engine made the store.
fn engine_folder(path: &Path) -> PathBuf {
    super::EMBEDDED.iter().map(|name| path.join(name)).find(|folder| folder.exists()).unwrap()
}

async fn conforms(durable: Durable) {
    let folder = tempfile::tempdir().unwrap();
    let store = durable(files(folder.path())).open().await.unwrap();
    conformance::check(store.clone()).await;
    conformance::check_closed(store.as_ref()).await;
}

#[tokio::test]
async fn sled_conforms() {
    conforms(Backend::Sled).await;
}

#[tokio::test]
async fn fjall_conforms() {
    conforms(Backend::Fjall).await;
}

#[tokio::test]
async fn memory_conforms() {
    conformance::check(Backend::Memory.open().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_holds_on_many_threads_too() {
    for durable in DURABLE {
        conforms(durable).await;
    }
}

#[tokio::test]
async fn rows_and_positions_outlive_a_restart() {
    for durable in DURABLE {
        let folder = filled(durable, 25).await;
        let storage = open(durable, folder.path()).await.unwrap();
        assert_eq!(rows(&storage).await.unwrap().len(), 25);
        let ticket = storage.reserve(3);
        let mut batch = Batch::new();
        batch.put(&ROWS, &25, &row(25));
        storage.submit(batch, Some(ticket), |result| result.unwrap());
        storage.close().await.unwrap();
        assert_eq!(storage.watermark().0, 3);
        let again = open(durable, folder.path()).await.unwrap();
        assert_eq!(again.watermark().0, 3);
        assert_eq!(again.reserve(1).first().0, 4);
        assert!(again.size().await.unwrap() > 0);
        again.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_in_use_is_refused_and_free_after_close() {
    for durable in DURABLE {
        let folder = tempfile::tempdir().unwrap();
        let storage = open(durable, folder.path()).await.unwrap();
        let refused = open(durable, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
        storage.close().await.unwrap();
        open(durable, folder.path()).await.unwrap().close().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_of_another_back_end_is_refused() {
    let folder = filled(Backend::Sled, 1).await;
    let refused = open(Backend::Fjall, folder.path()).await.err().unwrap();
    assert!(matches!(refused, OpenError::OtherBackend { found: "sled", wanted: "fjall", .. }), "{refused}");
}

#[tokio::test]
async fn a_newer_store_is_refused_and_left_alone() {
    for durable in DURABLE {
        let folder = filled(durable, 5).await;
        let newer = SCHEMA_VERSION + 1;
        let set_version = async |version: u64| {
            let store = durable(files(folder.path())).open().await.unwrap();
            let mut batch = Batch::new();
            batch.put(&META, "schema_version", &version.to_be_bytes().to_vec().into());
            store.commit(vec![batch], crate::store::Sync::Now).await.unwrap();
            store.close().await.unwrap();
        };
        set_version(newer).await;
        let refused = open(durable, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Newer { found, supported: SCHEMA_VERSION } if found == newer));
        let text = refused.to_string();
        assert!(
            text.contains(&format!("version {newer}")) && text.contains(&format!("up to {SCHEMA_VERSION}"))
        );
        set_version(SCHEMA_VERSION).await;
        let storage = open(durable, folder.path()).await.unwrap();
        assert_eq!(rows(&storage).await.unwrap().len(), 5);
        storage.close().await.unwrap();
    }
}

/// sled names its notes of what its log holds by how far they go.
#[tokio::test]
async fn after_a_store_was_closed_its_log_has_nothing_new() {
    let folder = filled(Backend::Sled, 20).await;
    let notes = || {
        let names =
            fs::read_dir(engine_folder(folder.path())).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("snap.")).collect::<Vec<_>>()
    };
    let closed = notes();
    assert_eq!(closed.len(), 1);
    let storage = open(Backend::Sled, folder.path()).await.unwrap();
    assert_eq!(notes(), closed);
    storage.close().await.unwrap();
}

/// What a repaired log looks like when it was not only torn: a sound store that lacks acknowledged commits.
#[tokio::test]
async fn a_store_that_lost_acknowledged_commits_is_refused() {
    for durable in DURABLE {
        let folder = filled(durable, 20).await;
        let older = tempfile::tempdir().unwrap();
        copy(&engine_folder(folder.path()), older.path());
        let storage = open(durable, folder.path()).await.unwrap();
        fill(&storage, 20..40).await;
        storage.close().await.unwrap();
        let engine = engine_folder(folder.path());
        fs::remove_dir_all(&engine).unwrap();
        copy(older.path(), &engine);
        let refused = open(durable, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
        fs::remove_dir_all(&engine).unwrap();
        let refused = open(durable, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    }
}

#[tokio::test]
async fn an_unreadable_witness_is_damage() {
    let folder = filled(Backend::Sled, 1).await;
    for witness in [&[1_u8; 16][..], &[0; 16], &[0; 7], &[0; 40]] {
        fs::write(folder.path().join("witness"), witness).unwrap();
        let refused = open(Backend::Sled, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    }
}

/// Writes the same 1 MiB of rows again and again, and tells how large the store has become.
async fn size_after_rewriting(durable: Durable, times: usize) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(durable, folder.path()).await.unwrap();
    for _ in 0..times {
        let mut batch = Batch::new();
        for number in 0..256 {
            batch.put(&ROWS, &number, &Bytes::from(vec![7; 4096]));
        }
        storage.commit(batch).await.unwrap();
    }
    let size = storage.size().await.unwrap();
    storage.close().await.unwrap();
    size
}

/// What a back end does not need any more has to go: sled's segments, fjall's journals.
#[tokio::test]
async fn rewritten_rows_do_not_grow_the_store_without_bound() {
    let sled = size_after_rewriting(Backend::Sled, 64).await;
    assert!(sled < 16 << 20, "{sled} bytes for 1 MiB of rows");
    let fjall = size_after_rewriting(Backend::Fjall, 256).await;
    assert!(fjall < 144 << 20, "{fjall} bytes for 1 MiB of rows, with 64 MiB of journals allowed");
}
