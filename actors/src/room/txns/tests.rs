use engine::id::ShortRoomId;
use ruma::{owned_device_id, owned_event_id, owned_user_id};
use storage::{Durability, MemoryStore};

use super::*;
use crate::env::{ManualClock, SeededEntropy};

const TODAY: u32 = 20_000;

struct Server {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    txns: Txns,
}

impl Server {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(u64::from(TODAY) * DAY_MS + 5));
        Self::over(Arc::new(MemoryStore::new()), clock).await
    }

    async fn over(store: Arc<MemoryStore>, clock: Arc<ManualClock>) -> Self {
        let storage = Storage::open(store.clone(), Durability::Always).await.unwrap();
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(1)) };
        Self { txns: Txns::new(env, storage), store, clock }
    }

    async fn restarted(self) -> Self {
        self.txns.storage.close().await.unwrap();
        Self::over(Arc::new(self.store.fork()), self.clock).await
    }

    async fn send(&self, number: u32) {
        let mut batch = Batch::new();
        self.txns.put(&mut batch, txn(number), &owned_event_id!("$event"));
        self.txns.storage.commit(batch).await.unwrap();
    }

    async fn knows(&self, number: u32) -> bool {
        self.txns.find(&txn(number)).await.unwrap().is_some()
    }

    async fn rows<K: Key>(&self, table: &Table<K, OwnedEventId>) -> usize {
        self.txns.storage.range(table, KeyRange::all(), Direction::Ascending, 10_000).await.unwrap().len()
    }

    fn sleep(&self, days: u64) {
        self.clock.advance(days * DAY_MS);
    }

    /// Looks twice for groups whose filters can be stored.
    async fn store_filters(&self) -> usize {
        for _ in 0..2 {
            self.txns.store_filters().await.unwrap();
        }
        let all = KeyRange::all();
        let stored = self.txns.storage.range(&schema::TXN_FILTERS, all, Direction::Ascending, 100).await;
        stored.unwrap().len()
    }
}

fn txn(number: u32) -> TxnKey {
    let kind = format!("m.room.message {number}");
    (ShortRoomId(1), owned_user_id!("@alice:a"), owned_device_id!("PHONE"), kind)
}

#[tokio::test]
async fn a_transaction_is_known_for_a_week() {
    let server = Server::new().await;
    assert!(!server.knows(1).await);
    server.send(1).await;
    for day in 1..DAYS {
        server.sleep(1);
        server.txns.expire().await.unwrap();
        assert!(server.knows(1).await);
        assert_eq!(server.store_filters().await, 1, "on day {day}");
    }
    assert!(!server.knows(2).await);
    server.sleep(1);
    server.txns.expire().await.unwrap();
    assert!(!server.knows(1).await);
    assert_eq!((server.rows(&schema::TXN_IDS).await, server.store_filters().await), (0, 0));
    assert!(server.txns.groups.load().is_empty());
}

#[tokio::test]
async fn a_restart_forgets_none() {
    let server = Server::new().await;
    let numbers = 0..u32::try_from(PAGE).unwrap() + 1; // more than a page
    for number in numbers.clone() {
        server.send(number).await;
    }
    server.sleep(2);
    let server = server.restarted().await;
    for number in numbers.clone() {
        assert!(server.knows(number).await, "{number} from the rows");
    }
    assert_eq!(server.store_filters().await, 1);
    let server = server.restarted().await;
    for number in numbers {
        assert!(server.knows(number).await, "{number} from the filter");
    }
    assert!(server.txns.numbers(&txn(10_000)).is_empty(), "no look into the store");
}

#[tokio::test]
async fn a_clock_that_is_set_back_forgets_none() {
    let server = Server::new().await;
    server.sleep(1);
    server.send(1).await;
    let mut server = server.restarted().await;
    let set_back = Arc::new(ManualClock::new(u64::from(TODAY) * DAY_MS));
    server.txns.env.clock = set_back;
    assert!(server.knows(1).await);
    server.txns.expire().await.unwrap();
    assert!(server.knows(1).await);
}

#[tokio::test]
async fn a_full_group_is_followed_by_another() {
    let server = Server::new().await;
    assert!(!server.knows(0).await);
    let numbers = 0..u32::try_from(GROUP_TXNS).unwrap() + 1;
    for number in numbers.clone() {
        server.txns.note(&txn(number));
    }
    let first = TODAY * GROUPS_A_DAY;
    let known =
        |server: &Server| server.txns.groups.load().iter().map(|group| group.number).collect::<Vec<_>>();
    assert_eq!(known(&server), [first, first + 1]);
    assert_eq!(server.store_filters().await, 1);
    let finds = |server: &Server, number: u32| !server.txns.numbers(&txn(number)).is_empty();
    assert!(numbers.clone().all(|number| finds(&server, number)));
    let server = server.restarted().await;
    assert!(!server.knows(1_000_000).await);
    assert_eq!(known(&server), [first], "from its stored filter");
    assert!(numbers.clone().filter(|number| finds(&server, *number)).count() >= GROUP_TXNS);
    let mistaken = numbers.filter(|number| finds(&server, number + 1_000_000)).count();
    assert!(mistaken < GROUP_TXNS / 50, "{mistaken}");
    assert_eq!(server.txns.note(&txn(0)), first + 1, "it takes no more");
}

/// As events from before the start that are received while the rows are read.
#[tokio::test]
async fn what_is_done_before_the_rows_are_read_is_known_with_them() {
    let server = Server::new().await;
    server.send(1).await;
    let server = server.restarted().await;
    server.send(2).await;
    assert!(server.knows(1).await && server.knows(2).await && !server.knows(3).await);
    server.sleep(1);
    assert_eq!(server.store_filters().await, 0, "neither is the filter of all of the group");
    let server = server.restarted().await;
    assert!(server.knows(1).await && server.knows(2).await && !server.knows(3).await);
    assert_eq!(server.store_filters().await, 1);
    let server = server.restarted().await;
    assert!(server.knows(1).await && server.knows(2).await && !server.knows(3).await);
}

#[tokio::test]
async fn rows_of_older_builds_are_removed() {
    let server = Server::new().await;
    let mut batch = Batch::new();
    for number in 0..u32::try_from(PAGE).unwrap() * 2 {
        batch.put(&schema::OLD_TXN_IDS, &txn(number), &owned_event_id!("$event"));
    }
    server.txns.storage.commit(batch).await.unwrap();
    server.txns.expire().await.unwrap();
    assert_eq!(server.rows(&schema::OLD_TXN_IDS).await, 0);
}

#[tokio::test]
async fn a_clock_that_is_far_ahead_does_no_harm() {
    let server = Server::new().await;
    server.sleep(100_000);
    assert!(!server.knows(0).await);
    for number in 0..3 {
        server.send(number).await;
    }
    assert!(server.knows(0).await);
    assert_eq!(server.txns.groups.load().len(), 1);
}
