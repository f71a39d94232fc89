//! Which transactions of clients were done before, so that a retry makes no second event.
//!
//! The rows are kept for a week. Nearly all transactions are new, and a look into the store costs more than most of what a message
//! takes else: so there are Bloom filters in memory of all transactions with a row. What they do not know was never done.
//!
//! The rows come in groups, a filter for each. The filter of a group that gets no more is stored, so that after a start only the rows
//! of the other groups have to be read.
//!
//! Spec: client-server API, "Transaction identifiers".

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use fastbloom::AtomicBloomFilter;
use parking_lot::Mutex;
use ruma::OwnedEventId;
use storage::{
    Batch, Direction, KeyRange, Storage, StoreError, Value,
    key::Key,
    schema::{self, Table, TxnKey},
};
use tokio::sync::OnceCell;

use super::RoomError;
use crate::{background::Background, env::Env};

/// Days for which transactions are known, that of today included.
const DAYS: u32 = 7;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Groups that a day may have.
const GROUPS_A_DAY: u32 = 100_000;

/// The last day whose groups have numbers, in the year 2087.
const LAST_DAY: u32 = u32::MAX / GROUPS_A_DAY - 1;

/// Transactions of a group. Its filter takes 117 KiB.
const GROUP_TXNS: usize = 100_000;

/// How often a full filter takes a new transaction for one that it knows.
const MISTAKEN: f64 = 0.01;

/// How often is looked for groups that are complete, or too old.
const LOOK_EVERY: Duration = Duration::from_secs(5 * 60);

/// Rows that are read or removed at a time.
const PAGE: usize = 500;

/// The transactions of all rooms; see the module's documentation.
pub(crate) struct Txns {
    env: Env,
    storage: Storage,
    /// By number. The last group of a day is the one that takes more.
    groups: ArcSwap<Vec<Arc<Group>>>,
    growing: Mutex<()>,
    /// Set once the groups know all rows.
    filled: OnceCell<()>,
    task: Background,
}

/// Transactions that were done one after the other; or a part of them, if some were done before the others were read.
struct Group {
    number: u32,
    txns: AtomicUsize,
    filter: AtomicBloomFilter,
    /// Whether it was complete at the last look: by the next one nobody is about to add to it any more.
    was_complete: AtomicBool,
    is_stored: AtomicBool,
}

impl Group {
    fn new(number: u32) -> Self {
        // Always the same seed: a transaction that is made to look known only costs a look into the store.
        let filter = AtomicBloomFilter::with_false_pos(MISTAKEN).seed(&0).expected_items(GROUP_TXNS);
        Self {
            number,
            txns: AtomicUsize::new(0),
            filter,
            was_complete: AtomicBool::new(false),
            is_stored: AtomicBool::new(false),
        }
    }

    /// A group from its stored filter; it takes no more.
    fn stored(number: u32, mut words: Bytes) -> Self {
        let mut group = Self::new(number);
        let bits = std::iter::from_fn(|| words.try_get_u64().ok()).collect();
        group.filter = AtomicBloomFilter::from_vec(bits).seed(&0).hashes(group.filter.num_hashes());
        group.txns = AtomicUsize::new(GROUP_TXNS);
        group.is_stored = AtomicBool::new(true);
        group
    }

    fn words(&self) -> Bytes {
        let mut words = BytesMut::new();
        self.filter.iter().for_each(|word| words.put_u64(word));
        words.freeze()
    }

    fn day(&self) -> u32 {
        self.number / GROUPS_A_DAY
    }

    fn is_full(&self) -> bool {
        self.txns.load(Ordering::Relaxed) >= GROUP_TXNS
    }

    /// Takes a transaction, unless there are too many already.
    fn take(&self, txn: &TxnKey) -> bool {
        if self.txns.fetch_add(1, Ordering::Relaxed) >= GROUP_TXNS {
            return false;
        }
        self.filter.insert(txn);
        true
    }
}

impl Txns {
    /// Nothing is known yet.
    pub(crate) fn new(env: Env, storage: Storage) -> Self {
        Self {
            env,
            storage,
            groups: ArcSwap::default(),
            growing: Mutex::default(),
            filled: OnceCell::new(),
            task: Background::new("the keeping of transaction IDs"),
        }
    }

    /// Starts the task that stores filters and removes what is too old.
    pub(crate) fn start(self: &Arc<Self>) {
        let own = self.clone();
        self.task.keep(move || own.clone().keep());
    }

    /// Ends it.
    pub(crate) async fn stop(&self) {
        self.task.stop().await;
    }

    /// The event of a transaction that is durable.
    pub(crate) async fn find(&self, txn: &TxnKey) -> Result<Option<OwnedEventId>, StoreError> {
        self.filled.get_or_try_init(|| self.fill()).await?;
        let numbers = self.numbers(txn);
        if numbers.is_empty() {
            return Ok(None);
        }
        let keys = numbers.into_iter().map(|number| (number, txn.clone()));
        let found = self.storage.get_many(&schema::TXN_IDS, keys).await?;
        Ok(found.into_iter().flatten().next())
    }

    /// Writes down what a transaction made, together with the event.
    pub(crate) fn put(&self, batch: &mut Batch, txn: TxnKey, event_id: &OwnedEventId) {
        let number = self.note(&txn);
        batch.put(&schema::TXN_IDS, &(number, txn), event_id);
    }

    /// The groups in which a transaction may have a row.
    fn numbers(&self, txn: &TxnKey) -> Vec<u32> {
        let groups = self.groups.load();
        let Some(first) = groups.first() else { return Vec::new() };
        // All have the same seed.
        let hash = first.filter.source_hash(txn);
        let known = groups.iter().filter(|group| group.filter.contains_hash(hash));
        let mut numbers: Vec<_> = known.map(|group| group.number).collect();
        numbers.dedup();
        numbers
    }

    /// Adds a transaction to the last group of today, or, if that takes no more, to a new one; the group's number.
    fn note(&self, txn: &TxnKey) -> u32 {
        let today = self.today();
        let last = || self.groups.load().iter().rfind(|group| group.day() == today).cloned();
        if let Some(group) = last().filter(|group| group.take(txn)) {
            return group.number;
        }
        let _growing = self.growing.lock();
        let full = last();
        if let Some(group) = full.as_ref().filter(|group| group.take(txn)) {
            return group.number;
        }
        let number = full.map_or(today * GROUPS_A_DAY, |full| full.number + 1);
        let group = Group::new(number);
        group.take(txn);
        self.add([group]);
        number
    }

    /// Adds groups; nobody else may do so meanwhile.
    fn add(&self, new: impl IntoIterator<Item = Group>) {
        let mut groups = self.groups.load().to_vec();
        groups.extend(new.into_iter().map(Arc::new));
        groups.sort_by_key(|group| group.number);
        self.groups.store(Arc::new(groups));
    }

    fn today(&self) -> u32 {
        u32::try_from(self.env.clock.now_ms() / DAY_MS).unwrap_or(u32::MAX).min(LAST_DAY)
    }

    /// The first group that is not too old.
    fn oldest(&self) -> u32 {
        self.today().saturating_sub(DAYS - 1).saturating_mul(GROUPS_A_DAY)
    }

    /// Lets the groups know all rows.
    async fn fill(&self) -> Result<(), StoreError> {
        let all = KeyRange::all();
        let stored = self.storage.range(&schema::TXN_FILTERS, all, Direction::Ascending, usize::MAX).await?;
        let mut found = Vec::new();
        let first = self.oldest();
        // Those of tomorrow, too: the clock may have been set back.
        for day in 0..=DAYS {
            for number in first + day * GROUPS_A_DAY.. {
                match stored.iter().find(|(known, _)| *known == number) {
                    Some((_, words)) => found.push(Group::stored(number, words.clone())),
                    None if self.read(number, &mut found).await? => {}
                    None => break,
                }
            }
        }
        let _growing = self.growing.lock();
        self.add(found);
        Ok(())
    }

    /// Reads the rows of a group, which may have more of them than others have; whether there are any.
    async fn read(&self, number: u32, found: &mut Vec<Group>) -> Result<bool, StoreError> {
        let mut range = KeyRange::prefix(&(number,));
        let mut group = Group::new(number);
        loop {
            let page =
                self.storage.range(&schema::TXN_IDS, range.clone(), Direction::Ascending, PAGE).await?;
            for ((_, txn), _) in &page {
                if !group.take(txn) {
                    found.push(std::mem::replace(&mut group, Group::new(number)));
                    group.take(txn);
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => range = range.after(last),
                _ => break,
            }
        }
        let has_rows = group.txns.load(Ordering::Relaxed) > 0;
        found.extend(has_rows.then_some(group));
        Ok(has_rows)
    }

    async fn keep(self: Arc<Self>) {
        let mut stopping = self.task.stopping();
        loop {
            let tidy = async {
                self.filled.get_or_try_init(|| self.fill()).await?;
                self.expire().await?;
                self.store_filters().await
            };
            let tidied: Result<(), RoomError> = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                tidied = tidy => tidied,
            };
            if let Err(error) = tidied {
                tracing::error!(%error, "cannot tidy up the transaction IDs; the next try is in five minutes");
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Stores the filters of groups that get no more.
    async fn store_filters(&self) -> Result<(), RoomError> {
        let today = self.today();
        let groups = self.groups.load_full();
        for group in &*groups {
            // What was done before the rows were read is in a group of its own.
            let is_whole = groups.iter().filter(|other| other.number == group.number).count() == 1;
            let is_complete = is_whole && (group.is_full() || group.day() < today);
            if is_complete
                && group.was_complete.swap(true, Ordering::Relaxed)
                && !group.is_stored.load(Ordering::Relaxed)
            {
                let mut batch = Batch::new();
                batch.put(&schema::TXN_FILTERS, &group.number, &group.words());
                self.storage.commit(batch).await.map_err(RoomError::Commit)?;
                group.is_stored.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Forgets transactions that are too old.
    async fn expire(&self) -> Result<(), RoomError> {
        let oldest = self.oldest();
        self.remove(&schema::OLD_TXN_IDS, PAGE, |_| true).await?;
        self.remove(&schema::TXN_IDS, PAGE, |(number, _)| *number < oldest).await?;
        self.remove(&schema::TXN_FILTERS, 1, |number| *number < oldest).await?;
        let _growing = self.growing.lock();
        let groups = self.groups.load();
        if groups.iter().any(|group| group.number < oldest) {
            let kept = groups.iter().filter(|group| group.number >= oldest).cloned().collect();
            self.groups.store(Arc::new(kept));
        }
        Ok(())
    }

    /// Removes the rows at the beginning of a table that are too old, so many at a time.
    async fn remove<K: Key, V: Value>(
        &self,
        table: &Table<K, V>,
        limit: usize,
        is_old: impl Fn(&K) -> bool,
    ) -> Result<(), RoomError> {
        loop {
            let page = self.storage.range(table, KeyRange::all(), Direction::Ascending, limit).await?;
            let mut batch = Batch::new();
            let mut removed = 0;
            for (key, _) in page.iter().take_while(|(key, _)| is_old(key)) {
                batch.delete(table, key);
                removed += 1;
            }
            if removed > 0 {
                self.storage.commit(batch).await.map_err(RoomError::Commit)?;
            }
            if removed < limit {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
