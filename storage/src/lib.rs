//! The store: a schema of typed tables, back ends behind one trait, and a writer that commits in groups.
//!
//! A change enters as a [`Batch`] of typed rows, with preconditions if it needs them and a [`Ticket`] for its positions.
//! [`Storage::submit`] hands it to the writer, which merges whatever waits into one durable commit, runs the callbacks in
//! order and then completes the tickets, so that the watermark never passes what readers have not been told. Reads go
//! straight to the back end and never wait for the writer.
//!
//! Nothing here knows what the rows mean, and nothing outside names a back end except whoever opens it.

use std::sync::Arc;

use engine::id::Position;
use tokio::sync::{mpsc, oneshot};

pub mod backend;
#[cfg(test)]
mod conformance;
pub mod key;
mod metrics;
pub mod migrate;
pub mod record;
pub mod schema;
mod sequencer;
// Not a part of `sequencer`, whose file `tests/sequencer.rs` takes in, too.
#[cfg(test)]
#[path = "sequencer/tests.rs"]
mod sequencer_tests;
pub mod signal;
pub mod store;
pub mod text;
pub mod verify;
mod writer;

/// What the sequencer synchronises with; `tests/sequencer.rs` puts loom's in their place.
mod primitives {
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

pub use backend::{Backend, Files, MemoryStore, OpenError};
pub use key::{AsKey, Key, KeyPrefix, KeyRange};
pub use metrics::CommitMetrics;
pub use record::{Record, Value};
pub use schema::Table;
pub use sequencer::Ticket;
pub use signal::{Signal, Watcher};
pub use store::{Batch, CommitError, Direction, Due, Refused, Store, StoreError};
pub use writer::Durability;

use sequencer::Sequencer;
use store::Scan;
use writer::{Message, Submission, Writer};

/// A handle to an open store; clones share it.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn Store>,
    sequencer: Arc<Sequencer>,
    outbox: mpsc::UnboundedSender<Message>,
    metrics: CommitMetrics,
}

impl Storage {
    /// Checks the store's schema version, restores the positions and starts the writer on the current runtime.
    ///
    /// A store that is refused is closed.
    pub async fn open(store: Arc<dyn Store>, durability: Durability) -> Result<Self, OpenError> {
        let ceiling = match migrate::prepare(store.as_ref()).await {
            Ok(ceiling) => ceiling,
            Err(error) => {
                let _ = store.close().await; // the first error is the one to report
                return Err(error);
            }
        };
        let sequencer = Arc::new(Sequencer::new(ceiling));
        let (outbox, inbox) = mpsc::unbounded_channel();
        let metrics = CommitMetrics::default();
        let writer = Writer::new(store.clone(), sequencer.clone(), durability, inbox, metrics.clone());
        tokio::spawn(writer.run());
        Ok(Self { store, sequencer, outbox, metrics })
    }

    /// Writes all rows of a store that nobody else uses anew; how many bytes it took before, and takes now. Closes it.
    ///
    /// # Errors
    /// Those of opening the store, which stays as it was.
    pub async fn compact(store: Arc<dyn Store>) -> Result<(u64, u64), OpenError> {
        let compacted = async {
            // Not before the schema is known: a newer build may keep its rows in another way.
            migrate::prepare(store.as_ref()).await?;
            let before = store.size().await?;
            store.compact().await?;
            Ok((before, store.size().await?))
        };
        let compacted: Result<_, OpenError> = compacted.await;
        let closed = store.close().await;
        let sizes = compacted?;
        closed?;
        Ok(sizes)
    }

    /// One row.
    pub async fn get<K, V, Q>(&self, table: &Table<K, V>, key: &Q) -> Result<Option<V>, StoreError>
    where
        V: Value,
        Q: AsKey<K> + ?Sized,
    {
        let keys = vec![key::encode(key)];
        let values = self.store.read(table.id(), keys).await?;
        values.into_iter().next().flatten().map(|value| decode_value(table, value)).transpose()
    }

    /// Many rows of a table as of one moment, in the order of their keys' list.
    pub async fn get_many<K, V, Q>(
        &self,
        table: &Table<K, V>,
        keys: impl IntoIterator<Item = Q>,
    ) -> Result<Vec<Option<V>>, StoreError>
    where
        V: Value,
        Q: AsKey<K>,
    {
        let keys: Vec<_> = keys.into_iter().map(|key| key::encode(&key)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.store.read(table.id(), keys).await?;
        values.into_iter().map(|value| value.map(|value| decode_value(table, value)).transpose()).collect()
    }

    /// One page of a table as of one moment: at most `limit` rows of the range, from its lower or its upper end.
    ///
    /// The next page begins [`after`](KeyRange::after) or [`before`](KeyRange::before) the last key of this one.
    pub async fn range<K, V>(
        &self,
        table: &Table<K, V>,
        range: KeyRange<K>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(K, V)>, StoreError>
    where
        K: Key,
        V: Value,
    {
        let rows = self.each(table, range, direction, limit).await?;
        rows.into_iter().map(|(key, value)| Ok((key, value?))).collect()
    }

    /// The same for those who go on without the rows that cannot be read.
    pub async fn each<K, V>(
        &self,
        table: &Table<K, V>,
        range: KeyRange<K>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(K, Result<V, StoreError>)>, StoreError>
    where
        K: Key,
        V: Value,
    {
        let KeyRange { lower, upper, .. } = range;
        let rows = self.store.scan(Scan { table: table.id(), lower, upper, direction, limit }).await?;
        rows.into_iter()
            .map(|(key, value)| {
                let key =
                    key::decode(&key).map_err(|source| StoreError::Key { table: table.id(), source })?;
                Ok((key, decode_value(table, value)))
            })
            .collect()
    }

    /// Takes `count` consecutive positions, which the watermark does not pass until the ticket is dropped.
    pub fn reserve(&self, count: u64) -> Ticket {
        let (ticket, ceiling_near) = self.sequencer.reserve(count);
        if ceiling_near {
            let _ = self.outbox.send(Message::Renew); // a closed writer leaves the watermark where it is
        }
        ticket
    }

    /// Hands a batch to the writer without waiting.
    ///
    /// `done` runs on the writer's task after the batch is durable or has failed, in the order of submission and before
    /// the ticket completes; it must not block. If the store is closed already it runs here, at once.
    pub fn submit(
        &self,
        batch: Batch,
        ticket: Option<Ticket>,
        done: impl FnOnce(Result<(), CommitError>) + Send + 'static,
    ) {
        let message = Message::Commit(Submission { batch, ticket, done: Box::new(done) });
        if let Err(mpsc::error::SendError(Message::Commit(submission))) = self.outbox.send(message) {
            (submission.done)(Err(CommitError::Closed));
        }
    }

    /// Commits a batch and waits until it is durable.
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.submit(batch, None, move |result| {
            let _ = reply.send(result); // a caller that hung up does not care
        });
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// The position at and below which everything is durable, and its callbacks have run.
    pub fn watermark(&self) -> Position {
        self.sequencer.watermark()
    }

    /// The highest position handed out so far: no row that can be read by now came with a higher one.
    pub fn issued(&self) -> Position {
        self.sequencer.issued()
    }

    /// Waits until the watermark has reached a position; none if it does not get there any more, since a commit failed.
    pub async fn reached(&self, position: Position) -> Option<Position> {
        let mut watermark = self.watermark_changed();
        let is_over = |reached: &Position| *reached >= position || self.sequencer.is_frozen();
        Some(watermark.wait_for(is_over).await).filter(|reached| *reached >= position)
    }

    /// A watcher of the watermark.
    pub fn watermark_changed(&self) -> Watcher<Position> {
        self.sequencer.changed()
    }

    /// Waits until everything submitted before is on the disk, whatever the durability.
    pub async fn flush(&self) -> Result<(), CommitError> {
        self.ask(Message::Flush).await
    }

    /// Commits everything submitted before, then closes the store; what is submitted later fails.
    pub async fn close(&self) -> Result<(), CommitError> {
        self.ask(Message::Close).await
    }

    /// What the writer counts.
    pub fn metrics(&self) -> &CommitMetrics {
        &self.metrics
    }

    /// About how many bytes the store takes.
    pub async fn size(&self) -> Result<u64, StoreError> {
        self.store.size().await
    }

    async fn ask(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<(), CommitError>>) -> Message,
    ) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.outbox.send(question(reply)).map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }
}

fn decode_value<K, V: Value>(table: &Table<K, V>, value: bytes::Bytes) -> Result<V, StoreError> {
    V::decode(value).map_err(|source| StoreError::Value { table: table.id(), source: Arc::new(source) })
}
