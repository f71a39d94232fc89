//! Which transactions of clients were done before, so that a retry makes no second event.
//!
//! The rows are kept for a week. Nearly all transactions are new, and a look into the store costs more than most of what a message
//! takes else: so there are Bloom filters in memory of all transactions with a row. What they do not know was never done. After a
//! start they are filled in the background; until then every transaction is looked up.
//!
//! Spec: client-server API, "Transaction identifiers".

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use fastbloom::AtomicBloomFilter;
use parking_lot::Mutex;
use ruma::OwnedEventId;
use storage::{
    Batch, Direction, KeyRange, Storage, StoreError,
    key::Key,
    schema::{self, Table, TxnKey},
};

use super::RoomError;
use crate::{background::Background, env::Env};

/// Days for which transactions are known, that of today included.
const DAYS: u32 = 7;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Transactions of one filter, which takes 117 KiB then.
const FILTER_TXNS: usize = 100_000;

/// How often a full filter takes a new transaction for one that it knows.
const MISTAKEN: f64 = 0.01;

/// How often rows that are too old are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60 * 60);

/// Rows that are read or removed at a time.
const PAGE: usize = 500;

/// The transactions of all rooms; see the module's documentation.
pub(crate) struct Txns {
    env: Env,
    storage: Storage,
    /// Those of a day follow each other; only the last of them takes more.
    filters: ArcSwap<Vec<Arc<Filter>>>,
    growing: Mutex<()>,
    /// Whether the filters know all rows.
    is_filled: AtomicBool,
    task: Background,
}

/// Transactions of a day.
struct Filter {
    day: u32,
    txns: AtomicUsize,
    bits: AtomicBloomFilter,
}

impl Filter {
    fn new(day: u32) -> Self {
        // Always the same seed: a transaction that is made to look known only costs a look into the store.
        let bits = AtomicBloomFilter::with_false_pos(MISTAKEN).seed(&0).expected_items(FILTER_TXNS);
        Self { day, txns: AtomicUsize::new(0), bits }
    }

    /// Takes a transaction, unless there are too many already.
    fn take(&self, txn: &TxnKey) -> bool {
        if self.txns.fetch_add(1, Ordering::Relaxed) >= FILTER_TXNS {
            return false;
        }
        self.bits.insert(txn);
        true
    }
}

impl Txns {
    /// Nothing is known yet.
    pub(crate) fn new(env: Env, storage: Storage) -> Self {
        Self {
            env,
            storage,
            filters: ArcSwap::default(),
            growing: Mutex::default(),
            is_filled: AtomicBool::new(false),
            task: Background::new("the keeping of transaction IDs"),
        }
    }

    /// Starts the task that fills the filters and removes rows that are too old.
    pub(crate) fn start(self: &Arc<Self>) {
        self.task.start(self.clone().keep());
    }

    /// Ends it.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }

    /// The event of a transaction that is durable.
    pub(crate) async fn find(&self, txn: &TxnKey) -> Result<Option<OwnedEventId>, StoreError> {
        let days = self.days_of(txn);
        if days.is_empty() {
            return Ok(None);
        }
        let keys = days.into_iter().map(|day| (day, txn.clone()));
        let found = self.storage.get_many(&schema::TXN_IDS, keys).await?;
        Ok(found.into_iter().flatten().next())
    }

    /// Writes down what a transaction made, together with the event.
    pub(crate) fn put(&self, batch: &mut Batch, txn: TxnKey, event_id: &OwnedEventId) {
        let day = self.today();
        self.note(day, &txn);
        batch.put(&schema::TXN_IDS, &(day, txn), event_id);
    }

    /// The days under which a transaction may have a row.
    fn days_of(&self, txn: &TxnKey) -> Vec<u32> {
        if !self.is_filled.load(Ordering::Acquire) {
            let today = self.today();
            // Tomorrow, too: the clock may have been set back.
            return (today.saturating_sub(DAYS - 1)..=today.saturating_add(1)).collect();
        }
        let filters = self.filters.load();
        let Some(first) = filters.first() else { return Vec::new() };
        // All have the same seed.
        let hash = first.bits.source_hash(txn);
        let mut days: Vec<_> = filters
            .iter()
            .filter(|filter| filter.bits.contains_hash(hash))
            .map(|filter| filter.day)
            .collect();
        days.dedup();
        days
    }

    /// Lets the filters know a transaction.
    fn note(&self, day: u32, txn: &TxnKey) {
        if self.last_of(day).is_some_and(|last| last.take(txn)) {
            return;
        }
        let _growing = self.growing.lock();
        if self.last_of(day).is_some_and(|last| last.take(txn)) {
            return;
        }
        let filter = Arc::new(Filter::new(day));
        filter.take(txn);
        let mut filters = self.filters.load().to_vec();
        let place = filters.partition_point(|other| other.day <= day);
        filters.insert(place, filter);
        self.filters.store(Arc::new(filters));
    }

    fn last_of(&self, day: u32) -> Option<Arc<Filter>> {
        self.filters.load().iter().rfind(|filter| filter.day == day).cloned()
    }

    fn today(&self) -> u32 {
        u32::try_from(self.env.clock.now_ms() / DAY_MS).unwrap_or(u32::MAX)
    }

    async fn keep(self: Arc<Self>) {
        let mut stopping = self.task.stopping();
        loop {
            let tidy = async {
                self.expire().await?;
                self.fill().await
            };
            let tidied: Result<(), RoomError> = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                tidied = tidy => tidied,
            };
            if let Err(error) = tidied {
                tracing::error!(%error, "cannot remove old transaction IDs; the next try is in an hour");
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(EXPIRE_EVERY) => {}
            }
        }
    }

    /// Lets the filters know all rows, once.
    async fn fill(&self) -> Result<(), RoomError> {
        if self.is_filled.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut range = KeyRange::all();
        loop {
            let page =
                self.storage.range(&schema::TXN_IDS, range.clone(), Direction::Ascending, PAGE).await?;
            for ((day, txn), _) in &page {
                self.note(*day, txn);
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => range = range.after(last),
                _ => break,
            }
        }
        self.is_filled.store(true, Ordering::Release);
        Ok(())
    }

    /// Forgets transactions that are too old.
    async fn expire(&self) -> Result<(), RoomError> {
        let oldest = self.today().saturating_sub(DAYS - 1);
        self.remove(&schema::OLD_TXN_IDS, |_| true).await?;
        self.remove(&schema::TXN_IDS, |(day, _)| *day < oldest).await?;
        let _growing = self.growing.lock();
        let filters = self.filters.load();
        if filters.iter().any(|filter| filter.day < oldest) {
            let kept = filters.iter().filter(|filter| filter.day >= oldest).cloned().collect();
            self.filters.store(Arc::new(kept));
        }
        Ok(())
    }

    /// Removes the rows at the beginning of a table that are too old.
    async fn remove<K: Key>(
        &self,
        table: &Table<K, OwnedEventId>,
        is_old: impl Fn(&K) -> bool,
    ) -> Result<(), RoomError> {
        loop {
            let page = self.storage.range(table, KeyRange::all(), Direction::Ascending, PAGE).await?;
            let mut batch = Batch::new();
            let mut removed = 0;
            for (key, _) in page.iter().take_while(|(key, _)| is_old(key)) {
                batch.delete(table, key);
                removed += 1;
            }
            if removed > 0 {
                self.storage.commit(batch).await.map_err(RoomError::Commit)?;
            }
            if removed < PAGE {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
