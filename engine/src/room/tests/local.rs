use ruma::UserId;
use serde_json::value::to_raw_value;

use super::*;
use crate::{pdu::Draft, room::local::repeats};

fn draft(kind: &str, state_key: Option<&str>, content: &Value) -> Draft {
    let state_key = state_key.map(ToOwned::to_owned);
    Draft { kind: kind.into(), state_key, content: to_raw_value(content).unwrap(), redacts: None }
}

fn user(user: &str) -> &UserId {
    user.try_into().unwrap()
}

#[test]
fn a_state_event_repeats_the_same_sender_and_content_only() {
    let held = Event::new("topic", ALICE, "m.room.topic", json!({ "topic": "tea", "by": 1 })).state("").pdu();
    let same = draft("m.room.topic", Some(""), &json!({ "by": 1, "topic": "tea" }));
    assert!(repeats(&held, user(ALICE), &same), "the order of keys says nothing");
    assert!(!repeats(&held, user(BOB), &same));
    assert!(!repeats(&held, user(ALICE), &draft("m.room.topic", Some(""), &json!({ "topic": "tea" }))));
}
