//! Models of the sequencer, run through all their interleavings by loom.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use loom::{
    sync::{
        Arc as LoomArc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

mod primitives {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

#[expect(dead_code, unreachable_pub, reason = "the models do not need all of it")]
#[path = "../src/sequencer.rs"]
mod sequencer;

// Not loom's own primitives: who waits for the watermark is no part of the models.
#[expect(dead_code, unreachable_pub, reason = "the models do not need all of it")]
#[path = "../src/signal.rs"]
mod signal;

use self::sequencer::{LEASE, Sequencer, Ticket};

/// Which positions were stored; relaxed, so that only the sequencer orders them before the watermark.
type Stored = LoomArc<[AtomicBool; 5]>;

fn start() -> (Arc<Sequencer>, Stored) {
    let sequencer = Arc::new(Sequencer::new(0));
    sequencer.raise_ceiling(LEASE);
    (sequencer, LoomArc::new(std::array::from_fn(|_| AtomicBool::new(false))))
}

/// Takes positions, stores what belongs to them, and completes them.
fn write(sequencer: &Arc<Sequencer>, stored: &Stored, count: u64) {
    let (ticket, _) = sequencer.reserve(count);
    for position in ticket.positions() {
        stored[usize::try_from(position.0).unwrap()].store(true, Relaxed);
    }
    drop(ticket);
}

/// A thread that looks twice. Started last: loom lets a load see older stores, but hardly lets an early load come late.
fn read(sequencer: &Arc<Sequencer>, stored: &Stored) -> thread::JoinHandle<()> {
    let (sequencer, stored) = (sequencer.clone(), stored.clone());
    thread::spawn(move || {
        let first = check(&sequencer, &stored);
        let second = check(&sequencer, &stored);
        assert!(first <= second, "the watermark went back");
    })
}

/// Everything up to the watermark is stored.
fn check(sequencer: &Sequencer, stored: &Stored) -> u64 {
    let watermark = sequencer.watermark().0;
    for position in 1..=watermark {
        assert!(
            stored[usize::try_from(position).unwrap()].load(Relaxed),
            "{position} of {watermark} is missing"
        );
    }
    watermark
}

#[test]
fn everything_up_to_the_watermark_is_stored() {
    loom::model(|| {
        let (sequencer, stored) = start();
        let writers = [2, 1].map(|count| {
            let (sequencer, stored) = (sequencer.clone(), stored.clone());
            thread::spawn(move || write(&sequencer, &stored, count))
        });
        let reader = read(&sequencer, &stored);
        for thread in writers.into_iter().chain([reader]) {
            thread.join().unwrap();
        }
        assert_eq!(check(&sequencer, &stored), 3);
        assert_eq!(sequencer.changed().see().0, 3);
    });
}

#[test]
fn a_batch_of_tickets_races_a_dropped_one() {
    loom::model(|| {
        let (sequencer, stored) = start();
        let tickets: Vec<_> = (0..2).map(|_| sequencer.reserve(1).0).collect();
        let other = {
            let (sequencer, stored) = (sequencer.clone(), stored.clone());
            thread::spawn(move || write(&sequencer, &stored, 1))
        };
        for position in tickets.iter().flat_map(Ticket::positions) {
            stored[usize::try_from(position.0).unwrap()].store(true, Relaxed);
        }
        sequencer.complete(tickets);
        assert!(check(&sequencer, &stored) >= 2);
        other.join().unwrap();
        assert_eq!(check(&sequencer, &stored), 3);
    });
}

/// A commit fails while others end: the watermark stays below the failed position for ever.
#[test]
fn a_failed_position_is_never_passed() {
    loom::model(|| {
        let (sequencer, stored) = start();
        let (failing, _) = sequencer.reserve(1);
        let other = {
            let (sequencer, stored) = (sequencer.clone(), stored.clone());
            thread::spawn(move || write(&sequencer, &stored, 1))
        };
        sequencer.freeze();
        drop(failing);
        other.join().unwrap();
        assert_eq!(sequencer.watermark().0, 0);
    });
}

/// Positions that end above the ceiling show as soon as the raised ceiling is durable, in whatever order.
#[test]
fn the_ceiling_and_a_ticket_race() {
    loom::model(|| {
        let sequencer = Arc::new(Sequencer::new(0));
        let stored = start().1;
        let ceiling = sequencer.ceiling_due().unwrap();
        let other = {
            let (sequencer, stored) = (sequencer.clone(), stored.clone());
            thread::spawn(move || write(&sequencer, &stored, 2))
        };
        let reader = read(&sequencer, &stored);
        sequencer.raise_ceiling(ceiling);
        other.join().unwrap();
        reader.join().unwrap();
        assert_eq!(check(&sequencer, &stored), 2);
    });
}
