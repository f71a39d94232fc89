use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use engine::id::Position;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{BUSY_COMMITS, GROUP_BATCHES_MAX, QUIET, QUIET_COMMITS};
use crate::{
    Batch, CommitError, Direction, Durability, KeyRange, MemoryStore, Refused, Storage, Store, StoreError,
    Table,
    schema::{TEST_TABLES, TableId},
    store::{Due, Row, Scan, Sync},
};

static LETTERS: Table<u64, Bytes> = Table::new(TEST_TABLES, "LETTERS");

fn letter(number: u64, text: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(&LETTERS, &number, &Bytes::from_static(text.as_bytes()));
    batch
}

async fn open(store: &Arc<MemoryStore>) -> Storage {
    Storage::open(store.clone(), Durability::Always).await.unwrap()
}

async fn numbers(storage: &Storage) -> Vec<u64> {
    let rows = storage.range(&LETTERS, KeyRange::all(), Direction::Ascending, 100).await.unwrap();
    rows.into_iter().map(|(number, _)| number).collect()
}

/// Collects results in the order in which they are told.
type Results = Arc<Mutex<Vec<Result<(), CommitError>>>>;

fn submit(storage: &Storage, batch: Batch, results: &Results) {
    let results = results.clone();
    let ticket = storage.reserve(1);
    storage.submit(batch, Some(ticket), move |result| results.lock().push(result));
}

/// A store that counts commits and makes them wait for permits.
struct Gated {
    inner: MemoryStore,
    permits: Semaphore,
    commits: Mutex<Vec<(usize, Sync)>>,
    /// What it says of checkpoints.
    due: Due,
    /// Checkpoints so far.
    checkpoints: AtomicUsize,
    checkpoint_fails: bool,
}

impl Gated {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(),
            permits: Semaphore::new(permits),
            commits: Mutex::default(),
            due: Due::NotYet,
            checkpoints: AtomicUsize::new(0),
            checkpoint_fails: false,
        })
    }

    /// One without a gate, in which a checkpoint is always due.
    fn checkpointed(due: Due, checkpoint_fails: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            commits: Mutex::default(),
            due,
            checkpoints: AtomicUsize::new(0),
            checkpoint_fails,
        })
    }

    fn checkpoints(&self) -> usize {
        self.checkpoints.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Gated {
    async fn read(&self, table: TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.inner.read(table, keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(scan).await
    }

    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError> {
        self.permits.acquire().await.unwrap().forget();
        self.commits.lock().push((batches.len(), sync));
        self.inner.commit(batches, sync).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync().await
    }

    fn checkpoint_due(&self) -> Due {
        self.due
    }

    async fn checkpoint(&self) -> Result<(), StoreError> {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        if self.checkpoint_fails { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.inner.size().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn callbacks_run_in_order_and_before_the_watermark_moves() {
    let storage = open(&Arc::default()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 1..=5 {
        let (seen, reader) = (seen.clone(), storage.clone());
        let ticket = storage.reserve(1);
        assert_eq!(ticket.first().0, number);
        storage.submit(letter(number, "a"), Some(ticket), move |result| {
            seen.lock().push((number, reader.watermark().0, result.is_ok()));
        });
    }
    storage.flush().await.unwrap();
    let expected: Vec<_> = (1..=5).map(|number| (number, 0, true)).collect();
    assert_eq!(*seen.lock(), expected);
    assert_eq!(storage.watermark().0, 5);
    assert_eq!(numbers(&storage).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn what_waits_becomes_one_commit() {
    let store = Gated::new(1); // for the schema version
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    for number in 0..50 {
        storage.submit(letter(number, "a"), None, |result| result.unwrap());
    }
    tokio::task::yield_now().await; // the writer takes what is there and waits in the commit
    for number in 50..100 {
        storage.submit(letter(number, "a"), None, |result| result.unwrap());
    }
    store.permits.add_permits(2);
    storage.flush().await.unwrap();
    // 50 and the position ceiling; then 50 more.
    assert_eq!(store.commits.lock()[1..], [(51, Sync::Now), (50, Sync::Now)]);
}

#[tokio::test]
async fn an_empty_batch_comes_after_those_before_it_and_costs_no_commit() {
    let store = Gated::new(10);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let results = Results::default();
    submit(&storage, letter(1, "a"), &results);
    storage.commit(Batch::new()).await.unwrap();
    assert_eq!(results.lock().len(), 1, "what came before is settled");
    let before = store.commits.lock().len();
    for _ in 0..3 {
        storage.commit(Batch::new()).await.unwrap();
    }
    assert_eq!(store.commits.lock().len(), before);
    let mut expectation = Batch::new();
    expectation.expect_absent(&LETTERS, &1);
    assert!(matches!(storage.commit(expectation).await, Err(CommitError::Refused(_))), "it is looked at");
}

#[tokio::test]
async fn a_group_is_bounded() {
    let store = Gated::new(10);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let count = u64::try_from(GROUP_BATCHES_MAX).unwrap() + 1;
    for number in 0..count {
        storage.submit(letter(number, "a"), None, |result| result.unwrap());
    }
    storage.flush().await.unwrap();
    let large = Bytes::from(vec![0; super::GROUP_BYTES_MAX]);
    for number in 0..2 {
        let mut batch = Batch::new();
        batch.put(&LETTERS, &number, &large);
        storage.submit(batch, None, |result| result.unwrap());
    }
    storage.flush().await.unwrap();
    let sizes: Vec<_> = store.commits.lock()[1..].iter().map(|commit| commit.0).collect();
    // A full group and the position ceiling, the rest of the flood; each large batch alone, then the flush.
    assert_eq!(sizes, [GROUP_BATCHES_MAX + 1, 1, 1, 1, 0]);
}

#[tokio::test]
async fn a_refused_batch_harms_no_other_of_its_group() {
    let storage = open(&Arc::default()).await;
    let results = Results::default();
    for text in ["first", "second"] {
        let mut batch = letter(1, text);
        batch.expect_absent(&LETTERS, &1_u64);
        submit(&storage, batch, &results);
    }
    storage.commit(letter(2, "other")).await.unwrap();
    assert!(matches!(results.lock()[..], [Ok(()), Err(CommitError::Refused(_))]));
    assert_eq!(storage.get(&LETTERS, &1_u64).await.unwrap(), Some(Bytes::from_static(b"first")));
    assert_eq!(storage.watermark(), Position(2), "a refused batch's position is passed");
}

#[tokio::test]
async fn after_a_failed_commit_everything_fails_and_the_watermark_stays() {
    let store = Arc::new(MemoryStore::new());
    let storage = open(&store).await;
    let results = Results::default();
    submit(&storage, letter(1, "a"), &results);
    storage.flush().await.unwrap();
    store.fail_next_commits(1);
    submit(&storage, letter(2, "b"), &results);
    submit(&storage, letter(3, "c"), &results);
    assert!(storage.flush().await.is_err());
    submit(&storage, letter(4, "d"), &results);
    let closed = storage.close().await;
    assert!(matches!(closed, Err(CommitError::Halted(_))), "{closed:?}");
    assert!(matches!(
        results.lock()[..],
        [Ok(()), Err(CommitError::Failed(_)), Err(CommitError::Failed(_)), Err(CommitError::Halted(_))]
    ));
    assert_eq!(storage.watermark(), Position(1));
    let again = open(&store).await;
    assert_eq!(numbers(&again).await, [1]);
    assert!(again.reserve(1).first() > Position(4), "positions of failed commits are not used again");
}

#[tokio::test]
async fn close_commits_what_waits_and_refuses_what_comes_later() {
    let store = Arc::new(MemoryStore::new());
    let storage = open(&store).await;
    let results = Results::default();
    submit(&storage, letter(1, "a"), &results);
    storage.close().await.unwrap();
    submit(&storage, letter(2, "b"), &results);
    assert!(matches!(results.lock()[..], [Ok(()), Err(CommitError::Closed)]));
    assert!(matches!(storage.commit(letter(3, "c")).await, Err(CommitError::Closed)));
    assert!(matches!(storage.flush().await, Err(CommitError::Closed)));
    assert!(matches!(storage.close().await, Err(CommitError::Closed)));
    let again = open(&store).await;
    assert_eq!(numbers(&again).await, [1]);
    assert_eq!(again.watermark(), Position(1), "a clean end leaves no gap");
}

/// Positions without a batch move the watermark, and a crash does not bring them back.
#[tokio::test]
async fn a_position_once_shown_is_never_used_again() {
    let store = Arc::new(MemoryStore::new());
    let storage = open(&store).await;
    let mut changed = storage.watermark_changed();
    drop(storage.reserve(7));
    let shown = changed.wait_for(|watermark| watermark.0 > 0).await;
    assert_eq!(shown, Position(7));
    drop(storage.reserve(1));
    assert_eq!(storage.watermark(), Position(8));
    store.lose_unsynced_writes();
    let again = open(&store).await;
    assert!(again.watermark() >= Position(8) && again.reserve(1).first() > Position(8));
}

#[tokio::test]
async fn a_panicking_callback_does_not_stop_the_writer() {
    let storage = open(&Arc::default()).await;
    storage.submit(letter(1, "a"), Some(storage.reserve(1)), |_| panic!("on purpose"));
    storage.commit(letter(2, "b")).await.unwrap();
    assert_eq!(storage.watermark(), Position(1));
    assert_eq!(numbers(&storage).await, [1, 2]);
}

const INTERVAL: Duration = Duration::from_millis(500);

#[tokio::test(start_paused = true)]
async fn interval_durability_syncs_within_the_interval() {
    let store = Arc::new(MemoryStore::new());
    let storage = Storage::open(store.clone(), Durability::Interval(INTERVAL)).await.unwrap();
    storage.commit(letter(1, "a")).await.unwrap(); // synced, since it raises the ceiling
    storage.commit(letter(2, "b")).await.unwrap();
    store.lose_unsynced_writes();
    assert_eq!(numbers(&storage).await, [1]);
    storage.commit(letter(3, "c")).await.unwrap();
    tokio::time::sleep(INTERVAL + Duration::from_millis(1)).await;
    storage.commit(letter(4, "d")).await.unwrap();
    store.lose_unsynced_writes();
    assert_eq!(numbers(&storage).await, [1, 3]);
    storage.commit(letter(5, "e")).await.unwrap();
    storage.flush().await.unwrap();
    store.lose_unsynced_writes();
    assert_eq!(numbers(&storage).await, [1, 3, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_steady_stream_does_not_put_off_the_sync() {
    let store = Arc::new(MemoryStore::new());
    let storage = Storage::open(store.clone(), Durability::Interval(INTERVAL)).await.unwrap();
    for number in 0..20 {
        storage.commit(letter(number, "a")).await.unwrap();
        tokio::time::advance(INTERVAL / 4).await;
    }
    store.lose_unsynced_writes();
    assert!(numbers(&storage).await.len() >= 15);
}

#[tokio::test(start_paused = true)]
async fn a_due_checkpoint_waits_for_a_quiet_moment() {
    let store = Gated::checkpointed(Due::WhenQuiet, false);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    commits_for(&storage, 2 * BUSY_COMMITS, 12).await;
    assert_eq!(store.checkpoints(), 0, "not while there is much to do");
    tokio::time::sleep(2 * QUIET).await;
    assert_eq!(store.checkpoints(), 1);
    tokio::time::sleep(10 * QUIET).await;
    assert_eq!(store.checkpoints(), 1, "nothing was written since");
    commits_for(&storage, QUIET_COMMITS / 2, 2).await;
    assert_eq!(store.checkpoints(), 2, "a little to do is quiet enough");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_never_quiet_gets_its_checkpoint_late() {
    let store = Gated::checkpointed(Due::WhenQuiet, false);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    commits_for(&storage, 5 * QUIET_COMMITS / 2, 2).await;
    assert_eq!(store.checkpoints(), 0, "not at the first two looks");
    commits_for(&storage, 5 * QUIET_COMMITS / 2, 2).await;
    assert_eq!(store.checkpoints(), 1);
}

/// So many commits between two looks, for as long as some looks take.
async fn commits_for(storage: &Storage, each: usize, looks: usize) {
    for number in 0..each * looks {
        storage.commit(letter(u64::try_from(number).unwrap(), "a")).await.unwrap();
        tokio::time::sleep(QUIET / u32::try_from(each).unwrap()).await;
    }
}

#[tokio::test]
async fn a_checkpoint_that_cannot_wait_follows_the_commit() {
    let store = Gated::checkpointed(Due::Now, false);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    let before = store.checkpoints();
    for number in 1..=3 {
        storage.commit(letter(number, "a")).await.unwrap();
    }
    storage.flush().await.unwrap();
    assert!(store.checkpoints() >= before + 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_stored_after_a_checkpoint_that_failed() {
    let store = Gated::checkpointed(Due::WhenQuiet, true);
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    storage.commit(letter(1, "a")).await.unwrap();
    tokio::time::sleep(2 * QUIET).await;
    assert_eq!(store.checkpoints(), 1);
    assert!(matches!(storage.commit(letter(2, "b")).await, Err(CommitError::Halted(_))));
}

#[tokio::test]
async fn dropping_every_handle_syncs_what_was_submitted() {
    let store = Arc::new(MemoryStore::new());
    let storage = Storage::open(store.clone(), Durability::Interval(INTERVAL)).await.unwrap();
    storage.commit(letter(1, "a")).await.unwrap();
    let results = Results::default();
    submit(&storage, letter(2, "b"), &results);
    drop(storage);
    while Arc::strong_count(&store) > 1 {
        tokio::task::yield_now().await; // until the writer has ended
    }
    store.lose_unsynced_writes();
    assert!(matches!(results.lock()[..], [Ok(())]));
    assert_eq!(numbers(&open(&store).await).await, [1, 2]);
}
