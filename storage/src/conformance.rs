//! What every back end has to do, as one suite that all of them run.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;

use crate::{
    Batch, Direction, Durability, KeyRange, Refused, Storage, Store, StoreError, Table,
    schema::{TEST_TABLES, TableId},
    store::{Due, Scan, Sync},
};

// Rows of the tables with odd numbers may be kept together.
static ROWS: [Table<(String, u64), Bytes>; 2] =
    [Table::new(TEST_TABLES, "ROWS"), Table::new(TEST_TABLES + 5, "ROWS")];
static SAME: [Table<u64, u64>; 2] =
    [Table::new(TEST_TABLES + 4, "SAME"), Table::new(TEST_TABLES + 7, "SAME")];
static OTHERS: Table<u64, u64> = Table::new(TEST_TABLES + 1, "OTHERS");
static LAST: Table<u64, u64> = Table::new(u8::MAX, "LAST");

/// Runs the suite on an empty store, which is closed at the end.
pub(crate) async fn check(store: Arc<dyn Store>) {
    batches_are_atomic_across_tables(store.as_ref()).await;
    later_operations_of_a_batch_win(store.as_ref()).await;
    conditions_are_judged_per_batch_and_see_earlier_ones(store.as_ref()).await;
    deletions_are_seen_by_later_conditions(store.as_ref()).await;
    reads_keep_the_order_of_their_keys(store.as_ref()).await;
    empty_keys_and_values_are_rows(store.as_ref()).await;
    odd_ranges_are_empty(store.as_ref()).await;
    large_batches_are_stored(store.as_ref()).await;
    checkpoints_and_compaction_change_nothing(store.as_ref()).await;
    let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
    for table in &ROWS {
        ranges_page_in_both_directions(&storage, table).await;
    }
    tables_do_not_run_into_each_other(&storage).await;
    for table in &SAME {
        concurrent_pages_see_whole_commits(&storage, table).await;
    }
    storage.close().await.unwrap();
}

fn batch(build: impl FnOnce(&mut Batch)) -> Batch {
    let mut batch = Batch::new();
    build(&mut batch);
    batch
}

fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

async fn value(store: &dyn Store, number: u64) -> Option<Bytes> {
    store.read(OTHERS.id(), vec![key(number)]).await.unwrap().remove(0)
}

async fn commit(store: &dyn Store, batches: Vec<Batch>) -> Vec<Result<(), Refused>> {
    store.commit(batches, Sync::Now).await.unwrap()
}

async fn batches_are_atomic_across_tables(store: &dyn Store) {
    let both = batch(|batch| {
        batch.put(&OTHERS, &1, &10).put(&LAST, &1, &11);
    });
    assert_eq!(commit(store, vec![both]).await, [Ok(())]);
    let half = batch(|batch| {
        batch.put(&OTHERS, &2, &20).put(&LAST, &2, &21).expect_absent(&LAST, &1);
    });
    assert_eq!(commit(store, vec![half]).await, [Err(Refused { table: LAST.id() })]);
    assert_eq!(value(store, 1).await, Some(key(10)));
    assert_eq!(value(store, 2).await, None);
    assert_eq!(store.read(LAST.id(), vec![key(1), key(2)]).await.unwrap(), [Some(key(11)), None]);
}

async fn later_operations_of_a_batch_win(store: &dyn Store) {
    let twice = batch(|batch| {
        batch.put(&OTHERS, &3, &1).delete(&OTHERS, &3).put(&OTHERS, &3, &2);
        batch.put(&OTHERS, &4, &1).delete(&OTHERS, &4).delete(&OTHERS, &5);
    });
    assert_eq!(commit(store, vec![twice]).await, [Ok(())]);
    assert_eq!(value(store, 3).await, Some(key(2)));
    assert_eq!(value(store, 4).await, None);
}

async fn conditions_are_judged_per_batch_and_see_earlier_ones(store: &dyn Store) {
    let claim = |owner: u64| {
        batch(|batch| {
            batch.put(&OTHERS, &6, &owner).expect_absent(&OTHERS, &6);
        })
    };
    let swap = |from: u64, to: u64| {
        batch(|batch| {
            batch.put(&OTHERS, &6, &to).expect(&OTHERS, &6, &from);
        })
    };
    let group = vec![claim(1), claim(2), swap(1, 3), swap(1, 4), Batch::new()];
    let refused = Err(Refused { table: OTHERS.id() });
    assert_eq!(commit(store, group).await, [Ok(()), refused, Ok(()), refused, Ok(())]);
    assert_eq!(value(store, 6).await, Some(key(3)));
    assert_eq!(commit(store, vec![swap(1, 5), swap(3, 6)]).await, [refused, Ok(())]);
    assert_eq!(value(store, 6).await, Some(key(6)));
}

async fn deletions_are_seen_by_later_conditions(store: &dyn Store) {
    let delete = batch(|batch| {
        batch.expect(&OTHERS, &6, &6).delete(&OTHERS, &6);
    });
    let again = batch(|batch| {
        batch.expect_absent(&OTHERS, &6).put(&OTHERS, &6, &7);
    });
    assert_eq!(commit(store, vec![delete, again]).await, [Ok(()), Ok(())]);
    assert_eq!(value(store, 6).await, Some(key(7)));
}

async fn reads_keep_the_order_of_their_keys(store: &dyn Store) {
    let values = store.read(OTHERS.id(), vec![key(6), key(99), key(1), key(6)]).await.unwrap();
    assert_eq!(values, [Some(key(7)), None, Some(key(10)), Some(key(7))]);
    assert_eq!(store.read(OTHERS.id(), Vec::new()).await.unwrap(), []);
}

async fn empty_keys_and_values_are_rows(store: &dyn Store) {
    static EMPTY: Table<[u8; 0], ()> = Table::new(TEST_TABLES + 2, "EMPTY");
    let put = batch(|batch| {
        batch.put(&EMPTY, &[], &());
    });
    commit(store, vec![put]).await;
    assert_eq!(store.read(EMPTY.id(), vec![Bytes::new()]).await.unwrap(), [Some(Bytes::new())]);
    let rows = store.scan(scan(EMPTY.id(), Bound::Unbounded, Bound::Unbounded, 9)).await.unwrap();
    assert_eq!(rows, [(Bytes::new(), Bytes::new())]);
}

fn scan(table: TableId, lower: Bound<Bytes>, upper: Bound<Bytes>, limit: usize) -> Scan {
    Scan { table, lower, upper, direction: Direction::Ascending, limit }
}

async fn odd_ranges_are_empty(store: &dyn Store) {
    use Bound::{Excluded, Included, Unbounded};
    let cases = [
        (Included(key(9)), Included(key(1)), 9),
        (Excluded(key(6)), Included(key(6)), 9),
        (Excluded(key(6)), Excluded(key(6)), 9),
        (Unbounded, Excluded(Bytes::new()), 9),
        (Unbounded, Unbounded, 0),
    ];
    for (lower, upper, limit) in cases {
        for direction in [Direction::Ascending, Direction::Descending] {
            let scan = Scan { direction, ..scan(OTHERS.id(), lower.clone(), upper.clone(), limit) };
            assert_eq!(store.scan(scan.clone()).await.unwrap(), [], "{scan:?}");
        }
    }
    let one = store.scan(scan(OTHERS.id(), Included(key(6)), Included(key(6)), 9)).await.unwrap();
    assert_eq!(one, [(key(6), key(7))]);
}

/// More than a segment or a memtable holds, in rows as large as events and larger.
async fn large_batches_are_stored(store: &dyn Store) {
    static LARGE: Table<u64, Bytes> = Table::new(TEST_TABLES + 3, "LARGE");
    let row =
        |number: u64| Bytes::from(vec![number.to_be_bytes()[7]; 3_000 * usize::try_from(number).unwrap()]);
    let put = batch(|batch| {
        for number in 0..90 {
            batch.put(&LARGE, &number, &row(number));
        }
        batch.put(&LARGE, &500, &row(700));
    });
    assert!(put.weight() > 12 << 20);
    assert_eq!(commit(store, vec![put]).await, [Ok(())]);
    let rows = store.scan(scan(LARGE.id(), Bound::Unbounded, Bound::Unbounded, 1_000)).await.unwrap();
    assert_eq!(rows.len(), 91);
    for (number, (stored, value)) in (0..90).zip(&rows) {
        assert_eq!((stored, value), (&key(number), &row(number)));
    }
    assert_eq!(rows[90].1, row(700));
}

async fn checkpoints_and_compaction_change_nothing(store: &dyn Store) {
    static NUMBERS: Table<u64, u64> = Table::new(TEST_TABLES + 4, "NUMBERS");
    for number in 0..20 {
        let put = batch(|batch| {
            batch.put(&NUMBERS, &number, &number);
        });
        let sync = if number % 4 == 0 { Sync::Now } else { Sync::Later };
        store.commit(vec![put], sync).await.unwrap();
        if number % 3 == 0 {
            store.checkpoint().await.unwrap();
            assert_eq!(store.checkpoint_due(), Due::NotYet);
        }
        if number % 7 == 0 {
            store.compact().await.unwrap();
        }
        let rows = store.scan(scan(NUMBERS.id(), Bound::Unbounded, Bound::Unbounded, 100)).await.unwrap();
        assert_eq!(
            rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>(),
            (0..=number).map(key).collect::<Vec<_>>()
        );
    }
}

async fn ranges_page_in_both_directions(storage: &Storage, table: &'static Table<(String, u64), Bytes>) {
    let put = batch(|batch| {
        for room in ["a", "a\0", "aa", "b"] {
            for number in 0..25 {
                batch.put(table, &(room, number), &Bytes::from_static(b"row"));
            }
        }
    });
    storage.commit(put).await.unwrap();
    for room in ["a", "a\0", "aa", "b"] {
        let room_range = || KeyRange::prefix(&(room,));
        let mut found = Vec::new();
        let mut rest = room_range();
        loop {
            let page = storage.range(table, rest, Direction::Ascending, 10).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            rest = room_range().after(last);
            found.extend(page.into_iter().map(|(key, _)| key));
        }
        let expected: Vec<_> = (0..25).map(|number| (room.to_owned(), number)).collect();
        assert_eq!(found, expected);
        let mut reversed = Vec::new();
        let mut rest = room_range();
        loop {
            let page = storage.range(table, rest, Direction::Descending, 7).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            rest = room_range().before(last);
            reversed.extend(page.into_iter().map(|(key, _)| key));
        }
        reversed.reverse();
        assert_eq!(reversed, expected);
    }
    let middle = KeyRange::all().from(&("a", 20)).up_to(&("a\0", 3)).after(&("a", 22)).before(&("aa", 0));
    let page = storage.range(table, middle, Direction::Ascending, 100).await.unwrap();
    let numbers: Vec<_> = page.into_iter().map(|((_, number), _)| number).collect();
    assert_eq!(numbers, [23, 24, 0, 1, 2, 3]);
}

async fn tables_do_not_run_into_each_other(storage: &Storage) {
    let rows = storage.range(&LAST, KeyRange::all(), Direction::Descending, 100).await.unwrap();
    assert_eq!(rows, [(1, 11)]);
    let rows = storage.range(&OTHERS, KeyRange::all(), Direction::Descending, 100).await.unwrap();
    assert_eq!(rows, [(6, 7), (3, 2), (1, 10)]);
    let values = storage.get_many(&OTHERS, [3, 2, 1]).await.unwrap();
    assert_eq!(values, [Some(2), None, Some(10)]);
}

/// Each commit writes one number into a hundred rows; a page or a multi-get with two numbers has seen half a commit.
async fn concurrent_pages_see_whole_commits(storage: &Storage, table: &'static Table<u64, u64>) {
    const ROUNDS: u64 = 40;
    let write = |round: u64| {
        batch(|batch| {
            for number in 0..100 {
                batch.put(table, &number, &round);
            }
        })
    };
    storage.commit(write(0)).await.unwrap();
    let writer = {
        let storage = storage.clone();
        async move {
            for round in 1..=ROUNDS {
                storage.commit(write(round)).await.unwrap();
            }
        }
    };
    let reader = async {
        let mut seen = 0;
        while seen < ROUNDS {
            let page = storage.range(table, KeyRange::all(), Direction::Ascending, 100).await.unwrap();
            assert!(page.len() == 100 && page.iter().all(|row| row.1 == page[0].1), "{page:?}");
            let values = storage.get_many(table, 0..100).await.unwrap();
            assert!(values.iter().all(|value| value.is_some() && *value == values[0]), "{values:?}");
            seen = page[0].1;
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader);
}

/// A closed store answers with an error.
pub(crate) async fn check_closed(store: &dyn Store) {
    assert!(matches!(store.read(OTHERS.id(), vec![key(1)]).await, Err(StoreError::Closed)));
    assert!(matches!(store.commit(vec![Batch::new()], Sync::Now).await, Err(StoreError::Closed)));
    assert!(matches!(store.sync().await, Err(StoreError::Closed)));
}
