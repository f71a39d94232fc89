use ruma::{MilliSecondsSinceUnixEpoch, UserId, server_name, uint};
use serde_json::value::to_raw_value;

use super::*;
use crate::{
    pdu::Draft,
    room::local::{date, repeats},
};

fn draft(kind: &str, state_key: Option<&str>, content: &Value) -> Draft {
    let state_key = state_key.map(ToOwned::to_owned);
    Draft {
        kind: kind.into(),
        state_key,
        content: to_raw_value(content).unwrap(),
        redacts: None,
        dated: None,
    }
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

#[test]
fn an_event_is_dated_after_what_it_replaces_if_the_server_dated_that() {
    let at = MilliSecondsSinceUnixEpoch;
    let held = Event::new("topic", ALICE, "m.room.topic", json!({})).state("").pdu();
    let date = |now, held| date(at(now), held, server_name!("one"));
    assert_eq!(date(uint!(5), None), at(uint!(5)));
    assert_eq!(date(uint!(5), Some(&held)), at(uint!(5)));
    assert_eq!(date(uint!(1), Some(&held)), at(uint!(2)), "in the same millisecond");
    assert_eq!(date(uint!(0), Some(&held)), at(uint!(2)), "the clock was set back");
    let other = Event::new("topic", CAROL, "m.room.topic", json!({})).state("").pdu();
    assert_eq!(date(uint!(0), Some(&other)), at(uint!(0)), "another server's clock says nothing");
    let far = Event::new("topic", ALICE, "m.room.topic", json!({})).state("").dated(3_600_000).pdu();
    assert_eq!(date(uint!(0), Some(&far)), at(uint!(0)), "too far ahead");
    assert_eq!(date(uint!(1), Some(&far)), at(uint!(3_600_001)));
}
