use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::id::ShortEventId;
use ruma::OwnedEventId;

use super::{OpenError, SCHEMA_VERSION, SCHEMA_VERSION_ROW, Step, bring_up_to_date, meta_number};
use crate::{
    Batch, Direction, Durability, KeyRange, MemoryStore, Storage, Store,
    schema::{EVENT_IDS, META, OLD_EVENT_IDS},
    store::{StoreError, Sync},
};

/// Writes its number into a row that holds the one before.
struct Count(u64);

#[async_trait]
impl Step for Count {
    fn to(&self) -> u64 {
        self.0
    }

    async fn run(&self, store: &dyn Store) -> Result<(), OpenError> {
        assert_eq!(meta_number(store, "count").await?.unwrap_or(1), self.0 - 1, "steps run in order, once");
        put(store, "count", &self.0.to_be_bytes()).await
    }
}

async fn put(store: &dyn Store, name: &str, value: &[u8]) -> Result<(), OpenError> {
    let mut batch = Batch::new();
    batch.put(&META, name, &Bytes::copy_from_slice(value));
    store.commit(vec![batch], Sync::Now).await?;
    Ok(())
}

const STEPS: &[&dyn Step] = &[&Count(2), &Count(3)];

#[tokio::test]
async fn an_empty_store_begins_at_the_newest_version_without_steps() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, 3, STEPS).await.unwrap();
    assert_eq!(meta_number(&store, SCHEMA_VERSION_ROW).await.unwrap(), Some(3));
    assert_eq!(meta_number(&store, "count").await.unwrap(), None);
}

#[tokio::test]
async fn an_older_store_goes_through_every_step_once() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, 1, &[]).await.unwrap();
    for _ in 0..2 {
        bring_up_to_date(&store, 3, STEPS).await.unwrap();
        assert_eq!(meta_number(&store, SCHEMA_VERSION_ROW).await.unwrap(), Some(3));
        assert_eq!(meta_number(&store, "count").await.unwrap(), Some(3));
    }
}

#[tokio::test]
async fn a_store_without_a_path_to_the_present_is_refused() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, 1, &[]).await.unwrap();
    let refused = bring_up_to_date(&store, 2, &[]).await.unwrap_err();
    assert!(matches!(refused, OpenError::TooOld { found: 1, supported: 2 }), "{refused}");
}

#[tokio::test]
async fn a_newer_store_is_refused() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, SCHEMA_VERSION + 1, &[]).await.unwrap();
    let refused = super::prepare(&store).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { .. }), "{refused}");
}

#[tokio::test]
async fn rows_without_a_version_and_a_broken_version_are_damage() {
    let store = MemoryStore::new();
    put(&store, "count", &[0; 8]).await.unwrap();
    assert!(matches!(super::prepare(&store).await, Err(OpenError::Damaged { .. })));
    put(&store, SCHEMA_VERSION_ROW, b"seven").await.unwrap();
    assert!(matches!(super::prepare(&store).await, Err(OpenError::Damaged { .. })));
}

/// The version is stored after the step: a step that fails runs again.
#[tokio::test]
async fn a_failed_migration_can_be_repeated() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, 1, &[]).await.unwrap();
    store.fail_next_commits(1);
    let failed = bring_up_to_date(&store, 3, STEPS).await.unwrap_err();
    assert!(matches!(failed, OpenError::Store(StoreError::Backend { .. })), "{failed}");
    bring_up_to_date(&store, 3, STEPS).await.unwrap();
    assert_eq!(meta_number(&store, "count").await.unwrap(), Some(3));
}

/// Also when it was interrupted: some rows are moved already then.
#[tokio::test]
async fn events_are_found_by_the_hashes_of_their_ids_after_the_migration() {
    let store = MemoryStore::new();
    bring_up_to_date(&store, 4, &[]).await.unwrap();
    let id = |number: u64| OwnedEventId::try_from(format!("$event{number}:example.org")).unwrap();
    let mut batch = Batch::new();
    for number in 0..10 {
        batch.put(&OLD_EVENT_IDS, &id(number), &ShortEventId(number));
    }
    batch.put(&EVENT_IDS, &id(10), &ShortEventId(10));
    store.commit(vec![batch], Sync::Now).await.unwrap();
    super::prepare(&store).await.unwrap();
    let storage = Storage::open(Arc::new(store), Durability::Always).await.unwrap();
    let found = storage.get_many(&EVENT_IDS, (0..11).map(id)).await.unwrap();
    assert_eq!(found, (0..11).map(|number| Some(ShortEventId(number))).collect::<Vec<_>>());
    let left = storage.range(&OLD_EVENT_IDS, KeyRange::all(), Direction::Ascending, 1).await.unwrap();
    assert_eq!(left, []);
}
