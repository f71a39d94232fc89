//! Version 5: events are looked up by the hashes of their IDs.

use std::ops::Bound;

use async_trait::async_trait;
use engine::id::ShortEventId;
use ruma::OwnedEventId;

use super::Step;
use crate::{
    backend::OpenError,
    key,
    record::Value,
    schema::{EVENT_IDS, OLD_EVENT_IDS},
    store::{Batch, Direction, Row, Scan, Store, StoreError, Sync},
};

/// Rows that are moved at once: the more there are, the fewer parts of the new table are written more than once.
const CHUNK: usize = 100_000;

/// Moves the rows of [`OLD_EVENT_IDS`] to [`EVENT_IDS`].
pub(super) struct HashEventIds(pub(super) u64);

#[async_trait]
impl Step for HashEventIds {
    fn to(&self) -> u64 {
        self.0
    }

    async fn run(&self, store: &dyn Store) -> Result<(), OpenError> {
        let mut moved = 0;
        loop {
            let rows = store.scan(first_rows()).await?;
            if rows.is_empty() {
                break;
            }
            moved += rows.len();
            store.commit(vec![moving(rows)?], Sync::Later).await?;
            tracing::info!(events = moved, "moving the IDs of events to shorter rows");
        }
        if moved > 0 {
            store.sync().await?;
            store.compact().await?; // back ends do not give back the place of so many rows
        }
        Ok(())
    }
}

fn first_rows() -> Scan {
    let table = OLD_EVENT_IDS.id();
    let (lower, upper) = (Bound::Unbounded, Bound::Unbounded);
    Scan { table, lower, upper, direction: Direction::Ascending, limit: CHUNK }
}

fn moving(rows: Vec<Row>) -> Result<Batch, StoreError> {
    let table = OLD_EVENT_IDS.id();
    let mut batch = Batch::new();
    for (key, value) in rows {
        let id: OwnedEventId = key::decode(&key).map_err(|source| StoreError::Key { table, source })?;
        let short = ShortEventId::decode(value)
            .map_err(|source| StoreError::Value { table, source: source.into() })?;
        batch.delete(&OLD_EVENT_IDS, &id).put(&EVENT_IDS, &id, &short);
    }
    Ok(batch)
}
