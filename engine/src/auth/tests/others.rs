//! Aliases, redactions, and events of any type.

use super::*;

#[test]
fn senders_are_members() {
    for membership in ["leave", "invite", "ban", "knock"] {
        let state = || with(joined(&[]), [member(BOB, membership)]);
        run(vec![
            Case::refused("message", state(), message(BOB)),
            Case::refused("state", state(), topic(BOB)),
            Case::refused("third party", state(), (BOB, "m.room.third_party_invite", Some("t"), json!({}))),
        ]);
    }
    run(vec![
        Case::allowed("joined", joined(&[BOB]), message(BOB)),
        Case::refused("never there", joined(&[]), message(BOB)),
    ]);
}

#[test]
fn state_keys_that_name_users_are_their_own() {
    let state = || with(joined(&[BOB]), [levels(json!({ "users": { BOB: 100 } }))]);
    let about = |key: &'static str| (BOB, "org.example.state", Some(key), json!({}));
    run(vec![
        Case::allowed("own", state(), about(BOB)),
        Case::refused("another's", state(), about(CAROL)),
        Case::refused("nobody's", state(), about("@")),
        Case::refused("own with more", state(), about("@bob:one_x")),
        Case::allowed("no user", state(), about("bob")),
    ]);
}

#[test]
fn aliases_belong_to_servers_up_to_version_5() {
    let aliases = |user: &'static str, key: Option<&'static str>| {
        (user, "m.room.aliases", key, json!({ "aliases": ["#a:two"] }))
    };
    run(vec![
        // Of one's own server: without power, and without being in the room.
        Case::allowed("own server", joined(&[CAROL]), aliases(CAROL, Some("two"))).versions(1..=5),
        Case::allowed("from outside", joined(&[]), aliases(CAROL, Some("two"))).versions(1..=5),
        Case::refused("another server", joined(&[]), aliases(ALICE, Some("two"))).versions(1..=5),
        Case::refused("no state key", joined(&[]), aliases(ALICE, None)).versions(1..=5),
        // Then they are as other state.
        Case::refused("without power", joined(&[CAROL]), aliases(CAROL, Some("two"))).versions(6..=12),
        Case::refused("from outside", joined(&[]), aliases(CAROL, Some("two"))).versions(6..=12),
        Case::allowed("another server", joined(&[]), aliases(ALICE, Some("two"))).versions(6..=12),
        Case::allowed("no state key", joined(&[]), aliases(ALICE, None)).versions(6..=12),
    ]);
}

#[test]
fn redactions_are_authorised_in_versions_1_and_2() {
    for number in ALL {
        let levels = levels(json!({ "users": { BOB: 50 }, "redact": 50 }));
        let room = Room::new(number, json!({}), &with(joined(&[BOB, CAROL]), [levels]));
        // The event's own ID counts, which is of the server "one" here.
        let fares = |sender: &'static str, target: &str| {
            let mut event = room.json(&(sender, "m.room.redaction", None, json!({})));
            event["redacts"] = target.into();
            room.check(&event).is_ok()
        };
        assert!(fares(BOB, "$x:two"), "enough power, version {number}");
        assert!(fares(CAROL, "$x:one"), "of the same server, version {number}");
        assert_eq!(fares(CAROL, "$x:two"), number > 2, "of another server, version {number}");
        let room = Room::new(number, json!({}), &joined(&[]));
        let event = room.json(&(CAROL, "m.room.redaction", None, json!({})));
        assert!(room.check(&event).is_err(), "from outside, version {number}");
    }
}

#[test]
fn since_version_3_redactions_apply_by_power_or_by_server() {
    for number in 3..=12 {
        let levels = levels(json!({ "users": { CAROL: 50 } }));
        let room = Room::new(number, json!({}), &with(joined(&[BOB, CAROL]), [levels.clone()]));
        let powers = Powers::new(
            room.held("m.room.create", "").clone(),
            Some(room.held("m.room.power_levels", "").clone()),
            room.version,
        );
        let applies = |sender: &'static str, target: &'static str| {
            let redaction = room.pdu(&room.json(&(sender, "m.room.redaction", None, json!({}))));
            redaction_applies(&redaction, &room.pdu(&room.json(&message(target))), &powers)
        };
        assert!(applies(CAROL, BOB), "by power, version {number}");
        assert!(applies(BOB, ALICE), "by server, version {number}");
        assert!(!applies(BOB, CAROL), "neither, version {number}");
        // Without what the create event says nobody could join any more.
        let redaction = room.pdu(&room.json(&(ALICE, "m.room.redaction", None, json!({}))));
        let create = room.held("m.room.create", "");
        assert!(!redaction_applies(&redaction, create, &powers), "never, version {number}");
    }
}

#[test]
fn auth_events_are_selected_by_type_and_membership() {
    let keys = |number: u8, event: &Event| {
        let (sender, kind, state_key, content) = event;
        let raw = serde_json::value::to_raw_value(content).unwrap();
        let sender = (*sender).try_into().unwrap();
        let keys = auth_keys(&(*kind).into(), sender, *state_key, &raw, version(number)).unwrap();
        let keys = keys.into_iter().map(|(kind, key)| format!("{kind} {key}"));
        keys.collect::<std::collections::BTreeSet<_>>()
    };
    let bob = format!("m.room.member {BOB}");
    let carol = format!("m.room.member {CAROL}");
    let (rules, levels) = ("m.room.join_rules ".to_owned(), "m.room.power_levels ".to_owned());
    let via = json!({ "membership": "join", "join_authorised_via_users_server": CAROL });
    let token = json!({ "membership": "invite", "third_party_invite": {
        "signed": { "token": "t", "mxid": CAROL, "signatures": {} } } });
    for number in ALL {
        assert!(keys(number, &(ALICE, "m.room.create", Some(""), json!({}))).is_empty());
        let check = |event: Event, expected: &[&String]| {
            let mut expected: std::collections::BTreeSet<_> =
                expected.iter().map(|key| (*key).clone()).collect();
            if number < 12 {
                expected.insert("m.room.create ".to_owned());
            }
            assert_eq!(keys(number, &event), expected, "{event:?} in version {number}");
        };
        check(message(BOB), &[&bob, &levels]);
        check(member(BOB, "join"), &[&bob, &levels, &rules]);
        check(member(BOB, "knock"), &[&bob, &levels, &rules]);
        check(member(BOB, "leave"), &[&bob, &levels]);
        check(sets(BOB, CAROL, "ban"), &[&bob, &carol, &levels]);
        check(sets(BOB, CAROL, "leave"), &[&bob, &carol, &levels]);
        check(sets(BOB, CAROL, "invite"), &[&bob, &carol, &levels, &rules]);
        let third = "m.room.third_party_invite t".to_owned();
        check((BOB, "m.room.member", Some(CAROL), token.clone()), &[&bob, &carol, &levels, &rules, &third]);
        let via = (BOB, "m.room.member", Some(BOB), via.clone());
        let authorising: &[&String] =
            if number < 8 { &[&bob, &levels, &rules] } else { &[&bob, &carol, &levels, &rules] };
        check(via, authorising);
    }
}
