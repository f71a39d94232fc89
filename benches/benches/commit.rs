//! Durable commits on each back end: of one batch, and of as many as 64 senders hand in at once; and what the rows cost that say
//! which events are known, which fall anywhere in their table, with the table's size.

use std::{path::Path, time::Duration};

use benches::process::usage;
use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::id::ShortEventId;
use futures_util::future::try_join_all;
use ruma::{EventId, OwnedEventId};
use sha2::{Digest, Sha256};
use storage::{
    Backend, Batch, Durability, Files, Storage,
    schema::{EVENT_IDS, META},
};
use tokio::runtime::Runtime;

/// Bytes of a row: about what a message takes.
const ROW_BYTES: usize = 1024;

/// Bytes that a back end may use for its cache.
const CACHE_BYTES: u64 = 64 << 20;

/// Batches with a row each under keys that were not used before.
struct Batches {
    used: u64,
    row: Bytes,
}

impl Batches {
    fn next(&mut self, count: u64) -> Vec<Batch> {
        let first = self.used;
        self.used += count;
        (first..self.used)
            .map(|number| {
                let mut batch = Batch::new();
                batch.put(&META, format!("row {number:012}").as_str(), &self.row);
                batch
            })
            .collect()
    }
}

fn backends(folder: &Path) -> [(&'static str, Backend); 3] {
    let files = |name| Files { path: folder.join(name), cache_bytes: CACHE_BYTES };
    [
        ("memory", Backend::Memory),
        ("sled", Backend::Sled(files("sled"))),
        ("fjall", Backend::Fjall(files("fjall"))),
    ]
}

async fn open(backend: Backend, durability: Durability) -> Storage {
    let store = backend.open().await.expect("the store opens");
    Storage::open(store, durability).await.expect("the store is new")
}

fn commit(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), tempfile::tempdir().expect("a folder"));
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(20);
    for (name, backend) in backends(folder.path()) {
        let storage = runtime.block_on(open(backend, Durability::Always));
        let mut batches = Batches { used: 0, row: Bytes::from(vec![7; ROW_BYTES]) };
        for count in [1, 64] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.to_async(&runtime).iter_batched(
                    || batches.next(count),
                    |batches| try_join_all(batches.into_iter().map(|batch| storage.commit(batch))),
                    BatchSize::SmallInput,
                );
            });
        }
        runtime.block_on(storage.close()).expect("the store closes");
    }
    group.finish();
}

/// Events of one commit.
const EVENTS: u64 = 64;

/// Commits of one measurement, after which a good deal has gone from memory into the back end.
const COMMITS: u64 = 64;

fn event_id(number: u64) -> OwnedEventId {
    let hash =
        ruma::serde::Base64::<ruma::serde::base64::UrlSafe, _>::new(Sha256::digest(number.to_be_bytes()));
    EventId::parse(format!("${}", hash.encode())).expect("it is one")
}

/// The next events of a store.
struct Events {
    stored: u64,
}

impl Events {
    fn next(&mut self, count: u64) -> Batch {
        let first = self.stored;
        self.stored += count;
        let mut batch = Batch::new();
        for number in first..self.stored {
            batch.put(&EVENT_IDS, &event_id(number), &ShortEventId(number));
        }
        batch
    }
}

/// That of all threads of this process, since the back end works on some of its own.
fn processor_time() -> Duration {
    Duration::from_millis(usage(std::process::id()).expect("this process is there").cpu_ms)
}

/// The processor time for rows of events with new IDs.
fn event_ids(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), tempfile::tempdir().expect("a folder"));
    let mut group = criterion.benchmark_group("event_ids");
    group.sample_size(10).throughput(Throughput::Elements(EVENTS * COMMITS));
    for count in [100_000, 1_000_000] {
        let files = Files { path: folder.path().join(count.to_string()), cache_bytes: CACHE_BYTES };
        let durability = Durability::Interval(Duration::from_secs(3600));
        let storage = runtime.block_on(open(Backend::Sled(files), durability));
        let mut events = Events { stored: 0 };
        while events.stored < count {
            runtime.block_on(storage.commit(events.next(10_000.min(count)))).expect("it is stored");
        }
        group.bench_function(BenchmarkId::new("sled", count), |bencher| {
            bencher.iter_custom(|times| {
                let before = processor_time();
                for _ in 0..times * COMMITS {
                    runtime.block_on(storage.commit(events.next(EVENTS))).expect("it is stored");
                }
                processor_time().saturating_sub(before)
            });
        });
        runtime.block_on(storage.close()).expect("the store closes");
    }
    group.finish();
}

criterion_group!(benches, commit, event_ids);
criterion_main!(benches);
