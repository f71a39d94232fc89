use std::collections::BTreeMap;

use ruma::{MilliSecondsSinceUnixEpoch, RoomId, UserId, server_name, uint};
use serde_json::value::to_raw_value;

use super::*;
use crate::{
    pdu::{Draft, SigningKey},
    room::local::{Ground, Refusal, repeats},
};

fn draft(kind: &str, state_key: Option<&str>, content: &Value) -> Draft {
    let state_key = state_key.map(ToOwned::to_owned);
    Draft { kind: kind.into(), state_key, content: to_raw_value(content).unwrap(), redacts: None }
}

fn user(user: &str) -> &UserId {
    user.try_into().unwrap()
}

fn make(membership: &str, draft: Draft) -> Result<Pdu, Refusal> {
    let create = Event::create().arc();
    let member = Event::member("alice", ALICE, ALICE, membership).by(&["create"]).arc();
    let key_of = |event: &Arc<Pdu>| (event.kind().to_owned(), event.state_key().unwrap().to_owned());
    let key = SigningKey::new(&[7; 32], "1").unwrap();
    let ground = Ground {
        room_id: <&RoomId>::try_from(ROOM).unwrap(),
        rules: rules("10"),
        prev_events: vec![Event::member("tip", ALICE, ALICE, "join").at(7).arc()],
        auth_events: BTreeMap::from([&create, &member].map(|event| (key_of(event), event.clone()))),
        create: Some(create),
        now: MilliSecondsSinceUnixEpoch(uint!(1000)),
        seed: "seed".to_owned(),
        server_name: server_name!("one"),
        key: &key,
    };
    ground.make(user(ALICE), draft)
}

#[test]
fn an_event_stands_on_the_extremities_and_on_what_authorises_it() {
    let pdu = make("join", draft("m.room.message", None, &json!({ "body": "hi" }))).unwrap();
    assert_eq!(pdu.prev_events(), [id("tip")]);
    assert_eq!(pdu.auth_events(), [id("create"), id("alice")]);
    assert_eq!((pdu.depth(), pdu.sender()), (8, user(ALICE)));
    assert_eq!(pdu.origin_server_ts(), MilliSecondsSinceUnixEpoch(uint!(1000)));
}

#[test]
fn what_the_rules_or_the_limits_refuse_is_not_made() {
    let outside = make("leave", draft("m.room.message", None, &json!({})));
    assert!(matches!(outside, Err(Refusal::Forbidden(_))), "{outside:?}");
    let large = make("join", draft("m.room.message", None, &json!({ "body": "x".repeat(70_000) })));
    assert!(matches!(large, Err(Refusal::Malformed(_))), "{large:?}");
}

#[test]
fn a_state_event_repeats_the_same_sender_and_content_only() {
    let held = Event::new("topic", ALICE, "m.room.topic", json!({ "topic": "tea", "by": 1 })).state("").pdu();
    let same = draft("m.room.topic", Some(""), &json!({ "by": 1, "topic": "tea" }));
    assert!(repeats(&held, user(ALICE), &same), "the order of keys says nothing");
    assert!(!repeats(&held, user(BOB), &same));
    assert!(!repeats(&held, user(ALICE), &draft("m.room.topic", Some(""), &json!({ "topic": "tea" }))));
}
