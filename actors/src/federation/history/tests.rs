use engine::{
    id::{ShortEventId, ShortRoomId},
    room::event::Standing,
    state::StateRoot,
};
use serde_json::json;

use super::*;

fn id(name: &str) -> OwnedEventId {
    format!("${name}").try_into().unwrap()
}

/// An event of a depth, after some others.
fn event(name: &str, depth: u64, prev_events: &[&str]) -> Pdu {
    let kind = if name == "create" { "m.room.create" } else { "m.room.message" };
    let json = json!({
        "type": kind, "sender": "@bob:b", "room_id": "!room:b", "content": {}, "depth": depth,
        "origin_server_ts": 1, "auth_events": [],
        "prev_events": prev_events.iter().map(|name| id(name)).collect::<Vec<_>>(),
    });
    Pdu::from_stored(id(name), json.to_string().into_bytes().into()).unwrap()
}

/// An event as it stands here.
fn stored(pdu: Pdu, standing: Standing) -> StoredEvent {
    StoredEvent {
        short: ShortEventId(1),
        room: ShortRoomId(1),
        pdu: Arc::new(pdu),
        index: None,
        standing,
        before: StateRoot::default(),
        after: StateRoot::default(),
        replaces: None,
        redacted_by: None,
        sent_by: None,
        rank: 0,
        has_relations: false,
        lacks_members: false,
    }
}

fn check(page: &[Pdu], known: Vec<StoredEvent>, expected: &[&str]) {
    let known = known.into_iter().map(|event| (event.pdu.event_id().clone(), Arc::new(event))).collect();
    let expected: Vec<_> = expected.iter().map(|name| id(name)).collect();
    assert_eq!(edges(page, &known), expected);
}

#[test]
fn a_state_is_asked_for_where_a_page_begins() {
    let page = [event("d", 4, &["c", "b"]), event("c", 3, &["unknown"]), event("b", 2, &["a", "elsewhere"])];
    let first = || event("a", 1, &["before"]);
    check(&page, Vec::new(), &["b", "c"]);
    let elsewhere = || event("elsewhere", 1, &["before"]);
    for (standing, expected) in [
        (Standing::Accepted, &["c"][..]),
        (Standing::SoftFailed, &["c"]),
        (Standing::Outlier, &["b", "c"]),
        (Standing::Rejected, &["b", "c"]),
    ] {
        check(&page, vec![stored(first(), standing), stored(elsewhere(), standing)], expected);
    }
    check(&[event("a", 2, &["create"]), event("create", 1, &[])], Vec::new(), &[]);
}

#[test]
fn a_state_is_asked_for_after_an_event_whose_state_lacks_members() {
    let lacking =
        |name| StoredEvent { lacks_members: true, ..stored(event(name, 1, &["x"]), Standing::Accepted) };
    let page = [event("after", 2, &["leave"]), event("leave", 1, &["x"])];
    check(&page, vec![lacking("leave")], &["after"]);
    check(&page[..1], vec![lacking("leave")], &["after"]);
    check(&page, vec![lacking("leave"), lacking("after")], &[]);
}
