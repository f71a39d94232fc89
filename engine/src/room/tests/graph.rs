use super::*;
use crate::room::graph::{PREV_EVENTS_MAX, by_age, by_auth, is_followed, prev_events, rank};

fn message(name: &str) -> Event {
    Event::new(name, ALICE, "m.room.message", json!({}))
}

fn names(events: &[Pdu]) -> Vec<&str> {
    events.iter().map(|event| &event.event_id().as_str()[1..]).collect()
}

#[test]
fn an_event_refers_to_the_newest_extremities() {
    let tips: Vec<_> = (0..25).map(|number| message(&format!("tip{number}")).arc()).collect();
    let prev = prev_events(tips.iter());
    assert_eq!(prev.len(), PREV_EVENTS_MAX);
    assert_eq!((prev[0].event_id(), prev[19].event_id()), (&id("tip24"), &id("tip5")));
}

#[test]
fn an_extremity_ends_with_the_event_that_follows_it() {
    let (left, right) = (message("left").pdu(), message("right").pdu());
    let next = message("next").after(&["left"]).pdu();
    assert!(is_followed(&left, &next));
    assert!(!is_followed(&right, &next));
}

#[test]
fn ranks_count_from_the_highest_auth_event() {
    assert_eq!(rank([]), 0);
    assert_eq!(rank([0, 4, 2]), 5);
}

#[test]
fn what_authorises_comes_first_and_circles_are_left_out() {
    let events = vec![
        message("a").by(&["c", "elsewhere"]).pdu(),
        message("b").by(&["a", "c"]).pdu(),
        message("c").pdu(),
        message("x").by(&["y"]).pdu(),
        message("y").by(&["x"]).pdu(),
        message("z").by(&["y"]).pdu(),
    ];
    assert_eq!(names(&by_auth(events)), ["c", "a", "b"]);
}

#[test]
fn old_events_come_by_age_unless_they_follow_each_other() {
    let events = vec![
        message("late").at(1).after(&["early"]).pdu(),
        message("early").at(9).pdu(),
        message("other").at(3).after(&["unknown"]).pdu(),
    ];
    assert_eq!(names(&by_age(events)), ["other", "early", "late"]);
}
