//! The schema version of a store: checked when it is opened, brought up to date when it is older.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    backend::OpenError,
    key,
    schema::{META, TABLES, TableId},
    store::{Batch, Direction, Scan, Store, Sync},
};

mod event_ids;

use event_ids::HashEventIds;

/// The schema this build reads and writes.
pub const SCHEMA_VERSION: u64 = 5;

/// Row of [`META`] with the schema version.
const SCHEMA_VERSION_ROW: &str = "schema_version";

/// Row of [`META`] with the position above which positions go on.
pub(crate) const POSITION_CEILING: &str = "position_ceiling";

/// Brings a store from one version to the next. It may be interrupted and run again.
#[async_trait]
pub(crate) trait Step: Send + std::marker::Sync {
    /// The version the step leads to.
    fn to(&self) -> u64;

    /// Rewrites what has to be rewritten, in as many commits as it needs; the version is stored afterwards.
    async fn run(&self, store: &dyn Store) -> Result<(), OpenError>;
}

/// All steps, oldest first; the first schema needs none.
const STEPS: &[&dyn Step] = &[&Announce(2), &Rearrange(3), &Announce(4), &HashEventIds(5)];

/// Changes nothing, but keeps builds out that do not know what the next step does, or what this build writes.
struct Announce(u64);

#[async_trait]
impl Step for Announce {
    fn to(&self) -> u64 {
        self.0
    }

    async fn run(&self, _: &dyn Store) -> Result<(), OpenError> {
        Ok(())
    }
}

/// Brings rows into the form in which their back end keeps them now.
struct Rearrange(u64);

#[async_trait]
impl Step for Rearrange {
    fn to(&self) -> u64 {
        self.0
    }

    async fn run(&self, store: &dyn Store) -> Result<(), OpenError> {
        Ok(store.rearrange().await?)
    }
}

/// Checks the store's version, migrates an older one, and tells the position above which positions go on.
pub(crate) async fn prepare(store: &dyn Store) -> Result<u64, OpenError> {
    bring_up_to_date(store, SCHEMA_VERSION, STEPS).await?;
    Ok(meta_number(store, POSITION_CEILING).await?.unwrap_or(0))
}

/// The version of a store; nothing is migrated.
pub(crate) async fn version(store: &dyn Store) -> Result<u64, OpenError> {
    match meta_number(store, SCHEMA_VERSION_ROW).await? {
        Some(found) if found > SCHEMA_VERSION => Err(OpenError::Newer { found, supported: SCHEMA_VERSION }),
        Some(found) => Ok(found),
        None => Err(OpenError::Damaged { detail: "it has no schema version".into() }),
    }
}

async fn bring_up_to_date(store: &dyn Store, supported: u64, steps: &[&dyn Step]) -> Result<(), OpenError> {
    let Some(mut found) = meta_number(store, SCHEMA_VERSION_ROW).await? else {
        return initialise(store, supported).await;
    };
    if found > supported {
        return Err(OpenError::Newer { found, supported });
    }
    for step in steps.iter().filter(|step| step.to() <= supported) {
        if step.to() > found {
            tracing::info!(from = found, to = step.to(), "migrating the store");
            step.run(store).await?;
            write_version(store, step.to()).await?;
            found = step.to();
        }
    }
    if found == supported { Ok(()) } else { Err(OpenError::TooOld { found, supported }) }
}

/// Marks an empty store; one with rows but no version is damaged.
async fn initialise(store: &dyn Store, version: u64) -> Result<(), OpenError> {
    for table in TABLES {
        if !is_empty(store, table.id).await? {
            return Err(OpenError::Damaged { detail: "it has rows but no schema version".into() });
        }
    }
    write_version(store, version).await
}

async fn is_empty(store: &dyn Store, table: TableId) -> Result<bool, OpenError> {
    let scan = Scan {
        table,
        lower: std::ops::Bound::Unbounded,
        upper: std::ops::Bound::Unbounded,
        direction: Direction::Ascending,
        limit: 1,
    };
    Ok(store.scan(scan).await?.is_empty())
}

async fn write_version(store: &dyn Store, version: u64) -> Result<(), OpenError> {
    let mut batch = Batch::new();
    batch.put(&META, SCHEMA_VERSION_ROW, &version.to_be_bytes().to_vec().into());
    store.commit(vec![batch], Sync::Now).await?;
    Ok(())
}

/// A number of [`META`].
async fn meta_number(store: &dyn Store, name: &str) -> Result<Option<u64>, OpenError> {
    let rows = store.read(META.id(), vec![key::encode::<String, str>(name)]).await?;
    let Some(value) = rows.into_iter().next().flatten() else { return Ok(None) };
    number(&value).map(Some).ok_or_else(|| OpenError::Damaged { detail: format!("its {name} is no number") })
}

fn number(value: &Bytes) -> Option<u64> {
    Some(u64::from_be_bytes(value.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests;
