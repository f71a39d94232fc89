use bytes::Bytes;
use proptest::prelude::*;

use super::{Batch, CommitError, Direction, Scan, Store, Sync};
use crate::{MemoryStore, Record, Table, schema::TEST_TABLES};

static NUMBERS: Table<u8, u64> = Table::new(TEST_TABLES, "NUMBERS");

/// One operation on a small table.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u64),
    Delete(u8),
    Expect(u8, u64),
    ExpectAbsent(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..4, 0_u64..3).prop_map(|(key, value)| Step::Put(key, value)),
        1 => (0_u8..4).prop_map(Step::Delete),
        1 => (0_u8..4, 0_u64..3).prop_map(|(key, value)| Step::Expect(key, value)),
        1 => (0_u8..4).prop_map(Step::ExpectAbsent),
    ]
}

fn batch(steps: &[Step]) -> Batch {
    let mut batch = Batch::new();
    for step in steps {
        match step {
            Step::Put(key, value) => batch.put(&NUMBERS, key, value),
            Step::Delete(key) => batch.delete(&NUMBERS, key),
            Step::Expect(key, value) => batch.expect(&NUMBERS, key, value),
            Step::ExpectAbsent(key) => batch.expect_absent(&NUMBERS, key),
        };
    }
    batch
}

async fn rows(store: &MemoryStore) -> Vec<(Bytes, Bytes)> {
    let (lower, upper) = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    let scan = Scan { table: NUMBERS.id(), lower, upper, direction: Direction::Ascending, limit: 100 };
    store.scan(scan).await.unwrap()
}

proptest! {
    /// Grouping batches into one commit changes neither what is stored nor which of them are refused.
    #[test]
    fn a_group_is_its_batches_one_by_one(
        batches in prop::collection::vec(prop::collection::vec(step(), 0..4), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (grouped, single) = (MemoryStore::new(), MemoryStore::new());
            let group: Vec<_> = batches.iter().map(|steps| batch(steps)).collect();
            let verdicts = grouped.commit(group.clone(), Sync::Now).await.unwrap();
            let mut expected = Vec::new();
            for batch in group {
                expected.extend(single.commit(vec![batch], Sync::Now).await.unwrap());
            }
            assert_eq!(verdicts, expected);
            assert_eq!(rows(&grouped).await, rows(&single).await);
        });
    }
}

/// What the simulator does to a host that loses power.
#[tokio::test]
async fn unsynced_commits_are_lost_and_synced_ones_are_not() {
    let store = MemoryStore::new();
    store.commit(vec![batch(&[Step::Put(1, 1), Step::Put(2, 1)])], Sync::Now).await.unwrap();
    let synced = rows(&store).await;
    store.commit(vec![batch(&[Step::Put(1, 2), Step::Delete(2)])], Sync::Later).await.unwrap();
    store.commit(vec![batch(&[Step::Put(1, 0), Step::Put(3, 1)])], Sync::Later).await.unwrap();
    store.lose_unsynced_writes();
    assert_eq!(rows(&store).await, synced);
    store.commit(vec![batch(&[Step::Delete(1)])], Sync::Later).await.unwrap();
    store.sync().await.unwrap();
    store.lose_unsynced_writes();
    assert_eq!(rows(&store).await.len(), 1);
}

#[test]
fn an_appended_batch_brings_everything_along() {
    let mut whole = batch(&[Step::Put(1, 1)]);
    assert!(Batch::new().is_empty() && !batch(&[Step::ExpectAbsent(1)]).is_empty());
    let weight = whole.weight();
    assert_eq!(weight, 9);
    whole.append(batch(&[Step::Put(2, 1), Step::Delete(3)]));
    assert_eq!(whole.weight(), 2 * weight + 1);
    let mut flawed = Batch::new();
    flawed.put(&UNSTORABLE, &1, &Unstorable);
    whole.append(flawed);
    assert!(matches!(whole.check(), Err(CommitError::Encode { .. })));
}

/// A record that refuses to be written.
#[derive(serde::Deserialize)]
struct Unstorable;

impl serde::Serialize for Unstorable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

impl Record for Unstorable {
    const VERSION: u8 = 1;
}

static UNSTORABLE: Table<u8, Unstorable> = Table::new(TEST_TABLES + 1, "UNSTORABLE");
