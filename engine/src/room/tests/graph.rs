use super::*;
use crate::room::graph::{by_age, by_auth, rank};

fn message(name: &str) -> Event {
    Event::new(name, ALICE, "m.room.message", json!({}))
}

fn names(events: &[Pdu]) -> Vec<&str> {
    events.iter().map(|event| &event.event_id().as_str()[1..]).collect()
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
