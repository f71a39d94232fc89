use std::collections::BTreeMap;

use super::*;
use crate::room::partial;

fn key(user: &str) -> (String, String) {
    ("m.room.member".to_owned(), user.to_owned())
}

#[test]
fn members_of_auth_events_fill_in_but_replace_none() {
    let held = Event::member("held", ALICE, ALICE, "join").arc();
    let mut state = BTreeMap::from([(key(ALICE), held)]);
    let rejected = Arc::new(Event::member("rejected", BOB, BOB, "join").pdu().rejected());
    let auth_events = [
        Event::member("older", ALICE, ALICE, "join").arc(),
        Event::member("carol", CAROL, CAROL, "join").arc(),
        rejected,
        Event::create().arc(),
    ];
    partial::add_members(&mut state, &auth_events);
    let names: Vec<_> = state.values().map(|event| event.event_id().as_str()).collect();
    assert_eq!(names, ["$held", "$carol"]);
}
