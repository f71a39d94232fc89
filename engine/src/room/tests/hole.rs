use super::*;
use crate::{id::TimelineIndex, room::hole::Hole};

fn hole(floor: i64, end: i64, missing: &[&str]) -> Hole {
    let missing = missing.iter().map(|name| id(name)).collect();
    Hole { end: TimelineIndex(end), floor: TimelineIndex(floor), missing }
}

#[test]
fn events_take_places_from_the_end_back() {
    let hole = hole(10, 20, &["a"]);
    assert_eq!(hole.room(), 9);
    assert_eq!((hole.place(0), hole.place(8)), (TimelineIndex(19), TimelineIndex(11)));
}

#[test]
fn a_hole_shrinks_until_it_is_full_or_nothing_is_missing() {
    let open = hole(10, 20, &["a"]);
    assert_eq!(open.clone().filled(3), Some(hole(10, 17, &["a"])));
    assert_eq!(open.clone().filled(9), None, "no place is left");
    assert_eq!(hole(10, 20, &[]).filled(3), None, "nothing is missing");
    assert_eq!(open.clone().filled(0), Some(open));
    assert_eq!(hole(10, 11, &["a"]).room(), 0);
}

#[test]
fn a_hole_before_all_places_has_room_enough() {
    let hole = hole(i64::MIN / 2, 5, &["a"]);
    assert_eq!(hole.room(), usize::try_from(i64::MAX / 2).unwrap() + 5);
    assert_eq!(hole.filled(usize::MAX), None);
}

#[test]
fn what_comes_before_events_with_places_belongs_to_older_holes() {
    let text =
        |name: &str, prevs: &[&str]| Event::new(name, ALICE, "m.room.message", json!({})).after(prevs).pdu();
    // The hole leads from d to b, which has its place; a is missing in an older hole.
    let batch = || vec![text("d", &["c"]), text("c", &["b"]), text("b", &["a"]), text("a", &["z"])];
    let own = |missing: &[&str], placed: &[&str]| {
        let placed = placed.iter().map(|name| id(name)).collect();
        let own = hole(10, 20, missing).own(batch(), &placed);
        own.iter().map(|pdu| pdu.event_id().clone()).collect::<Vec<_>>()
    };
    assert_eq!(own(&["d"], &["b"]), [id("d"), id("c"), id("b")]);
    assert_eq!(own(&["d"], &[]), [id("d"), id("c"), id("b"), id("a")]);
    assert_eq!(own(&["x"], &["b"]).len(), 4, "nothing says where they belong");
}
