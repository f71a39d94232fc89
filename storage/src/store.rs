//! The contract of a back end: raw rows, atomic batches, preconditions.

use std::{any::Any, collections::BTreeMap, ops::Bound, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    key::{self, AsKey, KeyError},
    record::{DecodeError, EncodeError, Value},
    schema::{Table, TableId},
};

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// Rows to write by table and key; none deletes.
pub(crate) type Writes = BTreeMap<(TableId, Bytes), Option<Bytes>>;

/// Which end of a range comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the smallest key up.
    Ascending,
    /// From the largest key down.
    Descending,
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Durable when the commit returns.
    Now,
    /// Durable after the next commit with [`Sync::Now`] or [`Store::sync`].
    Later,
}

/// When something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is no need.
    NotYet,
    /// When little is going on.
    WhenQuiet,
    /// Whatever is going on.
    Now,
}

/// One page of a table.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Table to read.
    pub table: TableId,
    /// Where the range begins.
    pub lower: Bound<Bytes>,
    /// Where the range ends.
    pub upper: Bound<Bytes>,
    /// Which end comes first.
    pub direction: Direction,
    /// Most rows to answer with.
    pub limit: usize,
}

impl Scan {
    /// Whether no key can be in the range, as in "from 5 to 3".
    pub(crate) fn is_empty(&self) -> bool {
        let (
            Bound::Included(lower) | Bound::Excluded(lower),
            Bound::Included(upper) | Bound::Excluded(upper),
        ) = (&self.lower, &self.upper)
        else {
            return self.limit == 0;
        };
        let excluded = matches!(self.lower, Bound::Excluded(_)) || matches!(self.upper, Bound::Excluded(_));
        self.limit == 0 || lower > upper || (lower == upper && excluded)
    }
}

/// An ordered store of raw rows in numbered tables.
///
/// A multi-get or a page sees one state: all of a commit or nothing of it. It may see a commit that is not yet durable.
#[async_trait]
pub trait Store: Send + std::marker::Sync + 'static {
    /// The values of these keys, in their order.
    async fn read(&self, table: TableId, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// One page of rows.
    async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError>;

    /// Writes all batches whose preconditions hold, as one atomic change, and tells for each whether it was refused.
    ///
    /// Preconditions of a batch see the batches before it. After an error nothing is known of what was stored.
    async fn commit(&self, batches: Vec<Batch>, sync: Sync) -> Result<Vec<Result<(), Refused>>, StoreError>;

    /// Makes all earlier commits durable.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Whether so much was written since the last checkpoint that opening the store would take a while.
    fn checkpoint_due(&self) -> Due {
        Due::NotYet
    }

    /// Does what makes the next opening quick. Reads and commits wait meanwhile, so this is for when little is going on.
    ///
    /// After an error the store has to be opened again; all that was durable still is.
    async fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Brings rows that an older build has stored into the form in which this one looks for them; it may be interrupted and run
    /// again.
    async fn rearrange(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Writes all rows anew, so that they take as little of the disk as they can, which needs as much free again meanwhile. Reads and
    /// commits wait; it may be interrupted.
    async fn compact(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// About how many bytes the store takes.
    async fn size(&self) -> Result<u64, StoreError>;

    /// Makes everything durable and releases files and locks; later calls answer [`StoreError::Closed`].
    async fn close(&self) -> Result<(), StoreError>;
}

/// A precondition did not hold; nothing of the batch was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of table {table} is not what the batch expects; nothing of the batch was stored")]
pub struct Refused {
    /// Table of the first row that differs.
    pub table: TableId,
}

/// A read, or a whole commit, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The back end or the disk answered with an error.
    #[error("{backend} store failed: {source}")]
    Backend {
        /// Name of the back end.
        backend: &'static str,
        /// What it answered.
        source: Arc<dyn std::error::Error + Send + std::marker::Sync>,
    },
    /// The back end panicked, which means damaged files or a defect of it.
    #[error("{backend} store panicked, its files may be damaged: {message}")]
    Panicked {
        /// Name of the back end.
        backend: &'static str,
        /// The panic's message.
        message: Arc<str>,
    },
    /// A key of this table does not decode.
    #[error("a key of table {table} is damaged: {source}")]
    Key {
        /// Table of the row.
        table: TableId,
        /// Why.
        source: KeyError,
    },
    /// A value of this table does not decode.
    #[error("a value of table {table} is damaged: {source}")]
    Value {
        /// Table of the row.
        table: TableId,
        /// Why.
        source: Arc<DecodeError>,
    },
    /// The store was closed, or the runtime is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether it is about one row, which stays as it is, and not about the store.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Key { .. } | Self::Value { .. })
    }

    pub(crate) fn backend(
        backend: &'static str,
        source: impl std::error::Error + Send + std::marker::Sync + 'static,
    ) -> Self {
        Self::Backend { backend, source: Arc::new(source) }
    }

    pub(crate) fn panicked(backend: &'static str, panic: &(dyn Any + Send)) -> Self {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Self::Panicked { backend, message: message.into() }
    }
}

/// Why a batch was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A precondition did not hold; nothing of the batch was stored, others are not affected.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A value could not be encoded; nothing of the batch was stored, others are not affected.
    #[error("a value for table {table} cannot be stored: {source}")]
    Encode {
        /// Table of the row.
        table: TableId,
        /// Why.
        source: Arc<EncodeError>,
    },
    /// The commit failed. Whether the batch is stored shows when the store is opened again.
    #[error("commit failed, open the store again to learn what is stored: {0}")]
    Failed(StoreError),
    /// An earlier commit failed; nothing of the batch was stored.
    #[error("nothing is stored since an earlier commit failed, open the store again: {0}")]
    Halted(StoreError),
    /// The store was closed before; nothing of the batch was stored.
    #[error("the store is closed, nothing of the batch was stored")]
    Closed,
}

/// Rows to put and delete at once, under conditions.
///
/// Later operations on the same row win. Conditions look at the rows before the batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    writes: Vec<Write>,
    expectations: Vec<Write>,
    flaw: Option<(TableId, Arc<EncodeError>)>,
}

/// A row to write or to expect; no value is deletion or absence.
#[derive(Clone, Debug)]
struct Write {
    table: TableId,
    key: Bytes,
    value: Option<Bytes>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a row over whatever is there.
    ///
    /// A value that does not encode makes the whole batch fail when it is submitted.
    pub fn put<K, V: Value, Q: AsKey<K> + ?Sized>(
        &mut self,
        table: &Table<K, V>,
        key: &Q,
        value: &V,
    ) -> &mut Self {
        let row = self.row(table, key, value);
        self.writes.extend(row);
        self
    }

    /// Removes a row; one that is not there is fine.
    pub fn delete<K, V, Q: AsKey<K> + ?Sized>(&mut self, table: &Table<K, V>, key: &Q) -> &mut Self {
        self.writes.push(Write { table: table.id, key: key::encode(key), value: None });
        self
    }

    /// Refuses the batch unless the row has this value.
    pub fn expect<K, V: Value, Q: AsKey<K> + ?Sized>(
        &mut self,
        table: &Table<K, V>,
        key: &Q,
        value: &V,
    ) -> &mut Self {
        let row = self.row(table, key, value);
        self.expectations.extend(row);
        self
    }

    /// Refuses the batch if the row exists.
    pub fn expect_absent<K, V, Q: AsKey<K> + ?Sized>(&mut self, table: &Table<K, V>, key: &Q) -> &mut Self {
        self.expectations.push(Write { table: table.id, key: key::encode(key), value: None });
        self
    }

    /// Appends another batch's operations and conditions.
    pub fn append(&mut self, mut other: Batch) -> &mut Self {
        self.writes.append(&mut other.writes);
        self.expectations.append(&mut other.expectations);
        self.flaw = self.flaw.take().or(other.flaw);
        self
    }

    /// Whether the batch does and demands nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.expectations.is_empty() && self.flaw.is_none()
    }

    /// Bytes of keys and values to write.
    pub fn weight(&self) -> usize {
        self.writes.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, Bytes::len)).sum()
    }

    /// A row with its value; none, and a flaw, if the value does not encode.
    fn row<K, V: Value, Q: AsKey<K> + ?Sized>(
        &mut self,
        table: &Table<K, V>,
        key: &Q,
        value: &V,
    ) -> Option<Write> {
        let flaw = |error| self.flaw = Some((table.id, Arc::new(error)));
        let value = value.encode().map_err(flaw).ok()?;
        Some(Write { table: table.id, key: key::encode(key), value: Some(value) })
    }

    /// Fails if a value did not encode.
    pub(crate) fn check(&self) -> Result<(), CommitError> {
        match &self.flaw {
            None => Ok(()),
            Some((table, source)) => Err(CommitError::Encode { table: *table, source: source.clone() }),
        }
    }
}

/// Judges each batch's preconditions and merges the accepted ones; `read` answers what is stored.
pub(crate) fn settle(
    batches: Vec<Batch>,
    mut read: impl FnMut(TableId, &Bytes) -> Result<Option<Bytes>, StoreError>,
) -> Result<(Writes, Vec<Result<(), Refused>>), StoreError> {
    let mut writes = Writes::new();
    let mut verdicts = Vec::with_capacity(batches.len());
    for batch in batches {
        let verdict = judge(&batch, &writes, &mut read)?;
        if verdict.is_ok() {
            for Write { table, key, value } in batch.writes {
                writes.insert((table, key), value);
            }
        }
        verdicts.push(verdict);
    }
    Ok((writes, verdicts))
}

fn judge(
    batch: &Batch,
    earlier: &Writes,
    mut read: impl FnMut(TableId, &Bytes) -> Result<Option<Bytes>, StoreError>,
) -> Result<Result<(), Refused>, StoreError> {
    for Write { table, key, value } in &batch.expectations {
        let holds = match earlier.get(&(*table, key.clone())) {
            Some(pending) => pending == value,
            None => read(*table, key)? == *value,
        };
        if !holds {
            return Ok(Err(Refused { table: *table }));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests;
