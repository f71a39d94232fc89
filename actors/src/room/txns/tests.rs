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
}

fn txn(number: u32) -> TxnKey {
    let kind = format!("m.room.message {number}");
    (ShortRoomId(1), owned_user_id!("@alice:a"), owned_device_id!("PHONE"), kind)
}

#[tokio::test]
async fn a_transaction_is_known_for_a_week() {
    let server = Server::new().await;
    server.send(1).await;
    for _ in 0..DAYS - 1 {
        server.sleep(1);
        server.txns.expire().await.unwrap();
        assert!(server.knows(1).await);
    }
    assert!(!server.knows(2).await);
    server.sleep(1);
    server.txns.expire().await.unwrap();
    server.txns.fill().await.unwrap();
    assert!(!server.knows(1).await);
    assert_eq!(server.rows(&schema::TXN_IDS).await, 0);
    assert!(server.txns.filters.load().is_empty());
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
    assert!(server.knows(0).await, "looked up in the store");
    server.txns.fill().await.unwrap();
    for number in numbers {
        assert!(server.knows(number).await, "{number}");
    }
    assert!(server.txns.days_of(&txn(10_000)).is_empty(), "no look into the store");
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
    server.txns.fill().await.unwrap();
    assert!(server.knows(1).await);
}

#[tokio::test]
async fn a_full_filter_is_followed_by_another() {
    let server = Server::new().await;
    let numbers = 0..u32::try_from(FILTER_TXNS).unwrap() + 1;
    for number in numbers.clone() {
        server.txns.note(TODAY, &txn(number));
    }
    server.txns.note(TODAY - 1, &txn(0));
    server.txns.fill().await.unwrap();
    let days = |txns: &Txns| txns.filters.load().iter().map(|filter| filter.day).collect::<Vec<_>>();
    assert_eq!(days(&server.txns), [TODAY - 1, TODAY, TODAY]);
    assert!(numbers.clone().all(|number| server.txns.days_of(&txn(number)).contains(&TODAY)));
    let mistaken = numbers.map(|number| txn(number + 1_000_000));
    let mistaken = mistaken.filter(|txn| !server.txns.days_of(txn).is_empty()).count();
    assert!(mistaken < FILTER_TXNS / 50, "{mistaken}");
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
