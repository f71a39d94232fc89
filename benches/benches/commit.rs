//! Durable commits on each back end: of one batch, and of as many as 64 senders hand in at once.

use std::path::Path;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::try_join_all;
use storage::{Backend, Batch, Durability, Files, Storage, schema::META};
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

async fn open(backend: Backend) -> Storage {
    let store = backend.open().await.expect("the store opens");
    Storage::open(store, Durability::Always).await.expect("the store is new")
}

fn commit(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().expect("a runtime"), tempfile::tempdir().expect("a folder"));
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(20);
    for (name, backend) in backends(folder.path()) {
        let storage = runtime.block_on(open(backend));
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

criterion_group!(benches, commit);
criterion_main!(benches);
