use std::sync::Arc;

use engine::id::Position;
use proptest::prelude::*;

use crate::sequencer::{LEASE, Sequencer, Ticket};

fn sequencer() -> Arc<Sequencer> {
    let sequencer = Arc::new(Sequencer::new(0));
    sequencer.raise_ceiling(LEASE);
    sequencer
}

fn reserve(sequencer: &Arc<Sequencer>, count: u64) -> Ticket {
    sequencer.reserve(count).0
}

#[test]
fn the_watermark_waits_for_the_oldest_ticket() {
    let sequencer = sequencer();
    let [first, second, third] = [3, 1, 2].map(|count| reserve(&sequencer, count));
    assert_eq!((first.first(), first.last()), (Position(1), Position(3)));
    assert_eq!(third.positions().collect::<Vec<_>>(), [Position(5), Position(6)]);
    drop(second);
    assert_eq!(sequencer.watermark(), Position(0));
    drop(first);
    assert_eq!(sequencer.watermark(), Position(4));
    drop(third);
    assert_eq!(sequencer.watermark(), Position(6));
}

#[test]
fn an_empty_ticket_holds_nothing() {
    let sequencer = sequencer();
    let (empty, full) = (reserve(&sequencer, 0), reserve(&sequencer, 1));
    assert_eq!(empty.positions().count(), 0);
    assert_eq!(full.first(), Position(1));
    drop(full);
    assert_eq!(sequencer.watermark(), Position(1));
    drop(empty);
    assert_eq!(sequencer.watermark(), Position(1));
}

#[test]
fn many_tickets_complete_with_one_change() {
    let sequencer = sequencer();
    let mut changed = sequencer.changed();
    let tickets: Vec<_> = (0..10).map(|_| reserve(&sequencer, 2)).collect();
    assert!(!changed.has_changed());
    sequencer.complete(tickets);
    assert_eq!(changed.see(), Position(20));
}

#[test]
fn the_watermark_does_not_pass_the_ceiling() {
    let sequencer = Arc::new(Sequencer::new(100));
    let (ticket, near) = sequencer.reserve(5);
    assert!(near, "a fresh sequencer has no lease");
    assert_eq!(ticket.first(), Position(101));
    drop(ticket);
    assert_eq!(sequencer.watermark(), Position(100));
    let ceiling = sequencer.ceiling_due().unwrap();
    assert_eq!(ceiling, 105 + LEASE);
    sequencer.raise_ceiling(ceiling);
    assert_eq!(sequencer.watermark(), Position(105));
    assert_eq!(sequencer.ceiling_due(), None);
}

#[test]
fn the_lease_is_renewed_at_half_and_asked_for_once() {
    let sequencer = sequencer();
    assert!(!sequencer.reserve(LEASE / 2).1);
    assert!(sequencer.reserve(1).1);
    assert!(!sequencer.reserve(1).1);
    assert_eq!(sequencer.ceiling_due(), Some(LEASE / 2 + 2 + LEASE));
}

#[test]
fn nothing_moves_a_frozen_watermark() {
    let sequencer = sequencer();
    drop(reserve(&sequencer, 2));
    let ticket = reserve(&sequencer, 1);
    let mut changed = sequencer.changed();
    sequencer.freeze();
    assert!(changed.has_changed() && sequencer.is_frozen(), "who waits for it learns that it stays");
    assert_eq!(changed.see(), Position(2));
    drop(ticket);
    sequencer.complete(vec![reserve(&sequencer, 1)]);
    assert_eq!(sequencer.watermark(), Position(2));
    assert_eq!(sequencer.ceiling_due(), None);
}

#[test]
fn a_sealed_sequencer_shows_no_position_above_the_last() {
    let sequencer = sequencer();
    let ticket = reserve(&sequencer, 4);
    assert_eq!(sequencer.seal(), 4);
    drop(reserve(&sequencer, 1));
    drop(ticket);
    assert_eq!(sequencer.watermark(), Position(4));
}

proptest! {
    /// Whatever the order in which tickets end, the watermark is just below the first open one.
    #[test]
    fn the_watermark_is_below_the_first_open_ticket(
        counts in prop::collection::vec(1_u64..4, 1..12),
        order in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let sequencer = sequencer();
        let mut open: Vec<_> = counts.iter().map(|count| reserve(&sequencer, *count)).collect();
        for pick in order.iter().take(counts.len()) {
            open.remove(pick.index(open.len()));
            let expected = open.iter().map(|ticket| ticket.first().0 - 1).min().unwrap_or(counts.iter().sum());
            prop_assert_eq!(sequencer.watermark().0, expected);
        }
    }
}
