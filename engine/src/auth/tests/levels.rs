//! Power levels: what they demand, and who may change them how.

use super::*;

/// A change of the power levels, by bob who has 50.
fn change(from: &Value, to: &Value) -> (Vec<Event>, Event) {
    let whole = |given: &Value| {
        let mut content = json!({ "users": { BOB: 50 }, "events": { "m.room.power_levels": 50 } });
        for (key, value) in given.as_object().unwrap() {
            match (key.as_str(), value) {
                ("users" | "events", Value::Object(levels)) => {
                    levels.iter().for_each(|(name, level)| content[key][name] = level.clone());
                }
                (key, value) => content[key] = value.clone(),
            }
        }
        content
    };
    (with(joined(&[BOB]), [levels(whole(from))]), (BOB, "m.room.power_levels", Some(""), whole(to)))
}

fn rows(rows: &[(Value, Value, RangeInclusive<u8>)]) {
    for (from, to, allowed) in rows {
        for number in ALL {
            let (state, event) = change(from, to);
            let room = Room::new(number, json!({}), &state);
            let verdict = room.check(&room.json(&event));
            assert_eq!(verdict.is_ok(), allowed.contains(&number), "{from} to {to}, {number}: {verdict:?}");
        }
    }
}

#[test]
fn numbers_change_below_ones_own_level() {
    for field in ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"] {
        let of = |level: i64| json!({ field: level });
        rows(&[
            (of(10), of(50), ALL),
            (of(50), of(-5), ALL),
            (of(10), of(51), NEVER),
            (of(51), of(50), NEVER),
            (of(51), of(51), ALL),
            (json!({}), of(50), ALL),
            (json!({}), of(51), NEVER),
            (of(50), json!({}), ALL),
            (of(51), json!({}), NEVER),
        ]);
    }
}

#[test]
fn levels_of_events_and_notifications() {
    let of = |field: &str, level: i64| json!({ field: { "x": level } });
    let none = |field: &str| json!({ field: {} });
    for (field, limited) in [("events", ALL), ("notifications", 6..=12)] {
        let unlimited = if *limited.start() == 1 { NEVER } else { 1..=limited.start() - 1 };
        rows(&[
            (of(field, 10), of(field, 50), ALL),
            (of(field, 50), none(field), ALL),
            (none(field), of(field, 50), ALL),
            (json!({}), of(field, 50), ALL),
            (of(field, 51), of(field, 51), ALL),
            (of(field, 10), of(field, 51), unlimited.clone()),
            (of(field, 51), of(field, 10), unlimited.clone()),
            (of(field, 51), none(field), unlimited.clone()),
            (of(field, 51), json!({}), unlimited.clone()),
            (none(field), of(field, 51), unlimited),
        ]);
    }
}

#[test]
fn levels_of_users() {
    let of = |user: &str, level: i64| json!({ "users": { user: level } });
    rows(&[
        (of(CAROL, 49), of(CAROL, 50), ALL),
        (of(CAROL, 49), json!({}), ALL),
        (json!({}), of(CAROL, 50), ALL),
        (json!({}), of(CAROL, 51), NEVER),
        (of(CAROL, 50), of(CAROL, 49), NEVER),
        (of(CAROL, 50), json!({}), NEVER),
        (of(CAROL, 50), of(CAROL, 50), ALL),
        (of(CAROL, 51), of(CAROL, 10), NEVER),
        // Oneself: down, but not up.
        (json!({}), of(BOB, 49), ALL),
        (json!({}), of(BOB, 51), NEVER),
    ]);
}

#[test]
fn strings_are_numbers_before_version_10() {
    rows(&[
        (json!({ "ban": 50 }), json!({ "ban": "50" }), 1..=9),
        (json!({ "ban": 50 }), json!({ "ban": " 40 " }), 1..=9),
        (json!({ "ban": 50 }), json!({ "ban": "+40" }), 1..=9),
        (json!({ "ban": 50 }), json!({ "ban": "51" }), NEVER),
        (json!({ "ban": 50 }), json!({ "ban": "high" }), NEVER),
        (json!({ "ban": 50 }), json!({ "ban": "" }), NEVER),
        (json!({ "ban": 50 }), json!({ "ban": "5 0" }), NEVER),
        (json!({ "ban": 50 }), json!({ "ban": true }), NEVER),
        (json!({ "ban": 50 }), json!({ "ban": [] }), NEVER),
        (json!({}), json!({ "users": { CAROL: "40" } }), 1..=9),
        (json!({}), json!({ "users": { CAROL: "60" } }), NEVER),
        (json!({}), json!({ "users": { CAROL: "x" } }), NEVER),
        (json!({}), json!({ "events": { "x": "40" } }), 1..=9),
        (json!({}), json!({ "notifications": { "room": "40" } }), 1..=9),
    ]);
}

#[test]
fn malformed_levels() {
    rows(&[
        (json!({}), json!({ "users": { "carol": 1 } }), NEVER),
        (json!({}), json!({ "users": { "@carol": 1 } }), NEVER),
        (json!({}), json!({ "users": [] }), NEVER),
        (json!({}), json!({ "users": 1 }), NEVER),
        (json!({}), json!({ "events": [] }), NEVER),
        (json!({}), json!({ "events": { "x": null } }), NEVER),
        (json!({}), json!({ "other": { "x": null } }), ALL),
    ]);
    // The first power levels are read, too.
    let first = |content: Value| levels(content);
    run(vec![
        Case::allowed("empty", joined(&[]), first(json!({}))),
        Case::allowed("above one's own", joined(&[]), first(json!({ "ban": 1000, "users": { BOB: 1000 } }))),
        Case::refused("no users", joined(&[]), first(json!({ "users": "x" }))),
        Case::refused("no user", joined(&[]), first(json!({ "users": { "x": 1 } }))),
        Case::refused("no number", joined(&[]), first(json!({ "kick": {} }))).versions(10..=12),
    ]);
}

#[test]
fn creators_of_version_12_have_no_level_and_need_none() {
    let creators = || json!({ "additional_creators": [CAROL] });
    let high =
        || with(joined(&[BOB, CAROL]), [levels(json!({ "users": { BOB: 9_000_000 }, "ban": 9_000_000 }))]);
    let only = |case: Case| case.versions(12..=12).create(creators());
    run(vec![
        only(Case::refused("the creator among users", joined(&[]), levels(json!({ "users": { ALICE: 1 } })))),
        only(Case::refused("another creator", joined(&[]), levels(json!({ "users": { CAROL: 100 } })))),
        only(Case::allowed("others among users", joined(&[]), levels(json!({ "users": { BOB: 100 } })))),
        only(Case::allowed("a creator changes all", high(), levels(json!({ "ban": 0 })))),
        only(Case::allowed("a creator bans anybody", high(), sets(CAROL, BOB, "ban"))),
        only(Case::refused("nobody bans a creator", high(), sets(BOB, ALICE, "ban"))),
        only(Case::refused("nobody kicks a creator", high(), sets(BOB, CAROL, "leave"))),
        only(Case::refused("nor a creator another", high(), sets(ALICE, CAROL, "leave"))),
        Case::allowed("before, creators are as others", high(), sets(BOB, CAROL, "leave")).versions(1..=11),
        Case::allowed("before, creators have levels", joined(&[]), levels(json!({ "users": { ALICE: 1 } })))
            .versions(1..=11),
        Case::refused("before, others are no creators", joined(&[CAROL]), topic(CAROL))
            .versions(1..=11)
            .create(creators()),
        only(Case::allowed("a creator without power levels", joined(&[CAROL]), topic(CAROL))),
    ]);
}

#[test]
fn levels_that_events_need() {
    let content = json!({
        "users": { BOB: 30, ALICE: 100 }, "users_default": 5, "events_default": 10, "state_default": 40,
        "events": { "org.example.low": 0, "m.room.topic": 30, "m.room.message": 31 },
    });
    let state = || {
        let mut content = content.clone();
        content["users"].as_object_mut().unwrap().remove(ALICE);
        with(joined(&[BOB, CAROL]), [levels(content)])
    };
    let low = |user: &'static str| (user, "org.example.low", None, json!({}));
    let low_state = |user: &'static str| (user, "org.example.low", Some(""), json!({}));
    let other = |user: &'static str, key: Option<&'static str>| (user, "org.example.other", key, json!({}));
    run(vec![
        Case::allowed("by type", state(), topic(BOB)),
        Case::refused("by type", state(), message(BOB)),
        Case::allowed("low message", state(), low(CAROL)),
        Case::allowed("low state", state(), low_state(CAROL)),
        Case::allowed("other message", state(), other(BOB, None)),
        Case::refused("other message", state(), other(CAROL, None)),
        Case::refused("other state", state(), other(BOB, Some(""))),
        Case::allowed("default state", joined(&[BOB]), message(BOB)),
        Case::refused("default state", joined(&[BOB]), topic(BOB)),
        Case::allowed("the creator's 100 by default", joined(&[]), topic(ALICE)),
        // Power levels without users leave the creator without power, before version 12.
        Case::refused("no default", with(joined(&[]), [levels(json!({}))]), topic(ALICE)).versions(1..=11),
        Case::allowed("no default", with(joined(&[]), [levels(json!({}))]), topic(ALICE)).versions(12..=12),
        // An empty list needs 50 for state, and nothing for messages.
        Case::refused("state", with(joined(&[BOB]), [levels(json!({ "users": { BOB: 49 } }))]), topic(BOB)),
        Case::allowed("state", with(joined(&[BOB]), [levels(json!({ "users": { BOB: 50 } }))]), topic(BOB)),
        Case::allowed("message", with(joined(&[CAROL]), [levels(json!({}))]), message(CAROL)),
    ]);
}
