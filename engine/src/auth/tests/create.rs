//! The create event, and what every event owes to it and to its own auth events.

use super::*;

/// A create event in a room that is still empty.
fn create(number: u8, change: impl Fn(&mut Value)) -> Result<(), AuthFailure> {
    let room = Room { version: version(number), by_id: BTreeMap::new(), state: BTreeMap::new() };
    let content = json!({ "creator": ALICE, "room_version": number.to_string() });
    let mut event = room.json(&(ALICE, "m.room.create", Some(""), content));
    change(&mut event);
    room.check(&event)
}

/// The versions in which a changed create event is allowed.
fn allowed_in(change: impl Fn(&mut Value)) -> Vec<u8> {
    ALL.filter(|number| create(*number, &change).is_ok()).collect()
}

fn versions(range: RangeInclusive<u8>) -> Vec<u8> {
    range.collect()
}

#[test]
fn create_events() {
    let remove = |event: &mut Value, key: &str| drop(event["content"].as_object_mut().unwrap().remove(key));
    assert_eq!(allowed_in(|_| ()), versions(ALL));
    assert_eq!(allowed_in(|event| event["prev_events"] = json!(["$before:one"])), versions(NEVER));
    assert_eq!(
        allowed_in(|event| event["sender"] = CAROL.into()),
        versions(12..=12),
        "another server's room"
    );
    assert_eq!(allowed_in(|event| remove(event, "creator")), versions(11..=12));
    assert_eq!(allowed_in(|event| event["room_id"] = "!0:one".into()), versions(1..=11));
    assert_eq!(allowed_in(|event| event["content"]["m.federate"] = false.into()), versions(ALL));
}

#[test]
fn create_events_name_their_room_version() {
    assert_eq!(
        allowed_in(|event| event["content"]["room_version"] = "org.example.x".into()),
        versions(NEVER)
    );
    assert_eq!(allowed_in(|event| event["content"]["room_version"] = 1.into()), versions(NEVER));
    assert_eq!(allowed_in(|event| event["content"]["room_version"] = "13".into()), versions(NEVER));
    let unnamed = allowed_in(|event| {
        event["content"].as_object_mut().unwrap().remove("room_version");
    });
    assert_eq!(unnamed, versions(1..=1));
}

#[test]
fn additional_creators_are_user_ids() {
    for (creators, since_12) in [
        (json!([]), true),
        (json!([BOB, CAROL]), true),
        (json!("@bob:one"), false),
        (json!([BOB, 1]), false),
        (json!(["bob"]), false),
        (json!(["@bob"]), false),
        (json!({ "@bob:one": 1 }), false),
        (Value::Null, false),
    ] {
        let allowed = allowed_in(|event| event["content"]["additional_creators"] = creators.clone());
        assert_eq!(allowed, versions(1..=if since_12 { 12 } else { 11 }), "{creators}");
    }
}

/// A message with changed auth events.
fn message_with(number: u8, change: impl Fn(&Room, &mut Vec<String>)) -> Result<(), AuthFailure> {
    let room = Room::new(number, json!({}), &with(joined(&[BOB]), [join_rule("public")]));
    let mut event = room.json(&message(BOB));
    let mut ids: Vec<String> = serde_json::from_value(event["auth_events"].clone()).unwrap();
    change(&room, &mut ids);
    event["auth_events"] = json!(ids);
    room.check(&event)
}

#[test]
fn auth_events_are_the_selected_ones() {
    let id = |room: &Room, kind: &str, key: &str| room.held(kind, key).event_id().to_string();
    let create = |room: &Room| id(room, "m.room.create", "");
    for number in ALL {
        let fares = |change: &dyn Fn(&Room, &mut Vec<String>)| message_with(number, change).is_ok();
        assert!(fares(&|_, _| ()), "as selected, version {number}");
        assert!(!fares(&|room, ids| ids.push(id(room, "m.room.member", BOB))), "twice, version {number}");
        assert!(!fares(&|room, ids| ids.push(id(room, "m.room.member", ALICE))), "other, version {number}");
        assert!(!fares(&|room, ids| ids.push(id(room, "m.room.join_rules", ""))), "rules, version {number}");
        assert!(!fares(&|_, ids| ids.push("$unknown:one".to_owned())), "unknown, version {number}");
        // The create event is one of them before version 12, and must not be since.
        assert!(!fares(&|room, ids| ids.push(create(room))), "create once more, version {number}");
        assert_eq!(fares(&|room, ids| ids.retain(|id| *id != create(room))), number == 12, "no create");
    }
}

#[test]
fn auth_events_are_accepted_ones_of_the_same_room() {
    for number in ALL {
        let mut room = Room::new(number, json!({}), &joined(&[BOB]));
        let event = room.json(&message(BOB));
        assert!(room.check(&event).is_ok());
        let held = room.held("m.room.member", BOB).clone();
        room.by_id.insert(held.event_id().clone(), Arc::new((*held).clone().rejected()));
        assert!(room.check(&event).is_err(), "rejected, version {number}");
        let mut other = room.json(&member(BOB, "join"));
        other["room_id"] = "!other:one".into();
        let other = Pdu::from_stored(held.event_id().clone(), other.to_string().into()).unwrap();
        room.by_id.insert(held.event_id().clone(), Arc::new(other));
        assert!(room.check(&event).is_err(), "another room's, version {number}");
    }
}

#[test]
fn version_12_rooms_are_named_after_an_accepted_create_event() {
    let mut room = Room::new(12, json!({}), &joined(&[BOB]));
    let event = room.json(&message(BOB));
    assert!(room.check(&event).is_ok());
    let create = room.held("m.room.create", "").clone();
    room.by_id.insert(create.event_id().clone(), Arc::new((*create).clone().rejected()));
    assert!(room.check(&event).is_err(), "rejected");
    room.by_id.remove(create.event_id());
    assert!(room.check(&event).is_err(), "unknown");
}

#[test]
fn rooms_that_do_not_federate() {
    let here = |event: Event| with(joined(&[BOB, CAROL]), [join_rule("public"), event]);
    let closed = || json!({ "m.federate": false });
    run(vec![
        Case::allowed("a local message", here(topic(ALICE)), message(BOB)).create(closed()),
        Case::refused("a remote message", here(topic(ALICE)), message(CAROL)).create(closed()),
        Case::refused("a remote join", here(topic(ALICE)), member(MALLORY, "join")).create(closed()),
        Case::refused("a remote leave", here(topic(ALICE)), member(CAROL, "leave")).create(closed()),
        Case::allowed("a remote message", here(topic(ALICE)), message(CAROL))
            .create(json!({ "m.federate": true })),
        Case::refused("an unreadable flag", here(topic(ALICE)), message(CAROL))
            .create(json!({ "m.federate": "no" })),
    ]);
}

#[test]
fn nothing_is_allowed_without_a_create_event_in_the_state() {
    for number in ALL {
        let room = Room::new(number, json!({}), &joined(&[]));
        let event = room.pdu(&room.json(&message(ALICE)));
        let by_key = |kind: &StateEventType, key: &str| {
            let found = room.state.get(&(kind.to_string(), key.to_owned())).cloned();
            found.filter(|event| event.kind() != "m.room.create")
        };
        assert!(check_against(&event, by_key, room.version).is_err());
    }
}
