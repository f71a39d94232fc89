//! Memberships.

use super::*;

const BAN: &str = "ban";
const INVITE: &str = "invite";
const JOIN: &str = "join";
const KNOCK: &str = "knock";
const LEAVE: &str = "leave";

/// What a user may become by their own doing: join rule, membership before, membership after.
fn becomes(rule: &str, before: Option<&str>, after: &str) -> (Vec<Event>, Event) {
    let before = before.map(|before| member(CAROL, before));
    (with(joined(&[BOB]), std::iter::once(join_rule(rule)).chain(before)), member(CAROL, after))
}

fn rows(after: &str, rows: &[(&'static str, Option<&str>, RangeInclusive<u8>)]) {
    for (rule, before, allowed) in rows {
        for number in ALL {
            let (state, event) = becomes(rule, *before, after);
            let room = Room::new(number, json!({}), &state);
            let verdict = room.check(&room.json(&event));
            let expected = allowed.contains(&number);
            assert_eq!(verdict.is_ok(), expected, "{rule}, {before:?} to {after}, {number}: {verdict:?}");
        }
    }
}

#[test]
fn joins() {
    rows(
        JOIN,
        &[
            ("public", None, ALL),
            ("public", Some(LEAVE), ALL),
            ("public", Some(INVITE), ALL),
            ("public", Some(JOIN), ALL),
            ("public", Some(KNOCK), ALL),
            ("public", Some(BAN), NEVER),
            ("invite", None, NEVER),
            ("invite", Some(LEAVE), NEVER),
            ("invite", Some(INVITE), ALL),
            ("invite", Some(JOIN), ALL),
            ("invite", Some(KNOCK), NEVER),
            ("invite", Some(BAN), NEVER),
            ("knock", None, NEVER),
            ("knock", Some(INVITE), 7..=12),
            ("knock", Some(JOIN), 7..=12),
            ("knock", Some(KNOCK), NEVER),
            ("knock", Some(BAN), NEVER),
            ("restricted", None, NEVER),
            ("restricted", Some(INVITE), 8..=12),
            ("restricted", Some(JOIN), 8..=12),
            ("restricted", Some(BAN), NEVER),
            ("knock_restricted", None, NEVER),
            ("knock_restricted", Some(INVITE), 10..=12),
            ("knock_restricted", Some(JOIN), 10..=12),
            ("knock_restricted", Some(BAN), NEVER),
            ("private", None, NEVER),
            ("private", Some(INVITE), NEVER),
            ("org.example.rule", Some(INVITE), NEVER),
        ],
    );
}

#[test]
fn knocks() {
    rows(
        KNOCK,
        &[
            ("knock", None, 7..=12),
            ("knock", Some(LEAVE), 7..=12),
            ("knock", Some(KNOCK), 7..=12),
            ("knock", Some(INVITE), NEVER),
            ("knock", Some(JOIN), NEVER),
            ("knock", Some(BAN), NEVER),
            ("knock_restricted", None, 10..=12),
            ("public", None, NEVER),
            ("invite", None, NEVER),
            ("restricted", None, NEVER),
        ],
    );
    let state = || with(joined(&[BOB]), [join_rule("knock")]);
    run(vec![Case::refused("a knock for another", state(), sets(BOB, CAROL, KNOCK))]);
}

#[test]
fn leaving() {
    rows(
        LEAVE,
        &[
            ("public", Some(JOIN), ALL),
            ("public", Some(INVITE), ALL),
            ("public", Some(KNOCK), 7..=12),
            ("public", None, NEVER),
            ("public", Some(LEAVE), NEVER),
            ("public", Some(BAN), NEVER),
        ],
    );
}

#[test]
fn own_changes_that_are_never_allowed() {
    for before in [None, Some(LEAVE), Some(JOIN), Some(INVITE)] {
        rows(BAN, &[("public", before, NEVER)]);
        rows(INVITE, &[("public", before, NEVER)]);
        rows("org.example.x", &[("public", before, NEVER)]);
    }
}

#[test]
fn the_first_join_is_the_creators() {
    let first = |room: &Room, user: &'static str| {
        let mut event = room.json(&member(user, JOIN));
        event["prev_events"] = json!([room.held("m.room.create", "").event_id()]);
        room.check(&event).is_ok()
    };
    for number in ALL {
        let room = Room::new(number, json!({}), &[]);
        assert!(first(&room, ALICE), "version {number}");
        assert!(!first(&room, BOB), "version {number}");
        // Without the create event as its only predecessor it needs a join rule.
        assert!(room.check(&room.json(&member(ALICE, JOIN))).is_err(), "version {number}");
    }
    // The content names the creator up to version 10, the sender of the event is it since.
    let named = |number: u8| {
        let mut room = Room { version: version(number), by_id: BTreeMap::new(), state: BTreeMap::new() };
        let content = json!({ "creator": BOB, "room_version": number.to_string() });
        room.insert(&(ALICE, "m.room.create", Some(""), content));
        (first(&room, ALICE), first(&room, BOB))
    };
    for number in ALL {
        assert_eq!(named(number), if number < 11 { (false, true) } else { (true, false) }, "{number}");
    }
}

#[test]
fn malformed_memberships() {
    let state = || with(joined(&[BOB]), [join_rule("public")]);
    let with_content = |content: Value| (CAROL, "m.room.member", Some(CAROL), content);
    run(vec![
        Case::refused("no membership", state(), with_content(json!({}))),
        Case::refused("no text", state(), with_content(json!({ "membership": 1 }))),
        Case::refused("no state key", state(), (CAROL, "m.room.member", None, json!({ "membership": JOIN }))),
        Case::refused("no user", state(), (CAROL, "m.room.member", Some("x"), json!({ "membership": JOIN }))),
        Case::refused("another's join", state(), sets(BOB, CAROL, JOIN)),
        Case::refused("the creator joins another", state(), sets(ALICE, CAROL, JOIN)),
    ]);
}

#[test]
fn invites() {
    let state = |before: Option<&str>| {
        let before = before.map(|before| member(CAROL, before));
        let levels = levels(json!({ "users": { BOB: 30 }, "invite": 30 }));
        with(joined(&[BOB, MALLORY]), [join_rule("invite"), levels].into_iter().chain(before))
    };
    run(vec![
        Case::allowed("enough power", state(None), sets(BOB, CAROL, INVITE)),
        Case::allowed("after leaving", state(Some(LEAVE)), sets(BOB, CAROL, INVITE)),
        Case::allowed("again", state(Some(INVITE)), sets(BOB, CAROL, INVITE)),
        Case::allowed("after a knock", state(Some(KNOCK)), sets(BOB, CAROL, INVITE)).versions(7..=12),
        Case::refused("of a member", state(Some(JOIN)), sets(BOB, CAROL, INVITE)),
        Case::refused("of one banned", state(Some(BAN)), sets(BOB, CAROL, INVITE)),
        Case::refused("too little power", state(None), sets(MALLORY, CAROL, INVITE)),
        Case::refused("from outside", joined(&[]), sets(BOB, CAROL, INVITE)),
        // Without power levels everybody may invite.
        Case::allowed("by default", joined(&[BOB]), sets(BOB, CAROL, INVITE)),
    ]);
}

#[test]
fn kicks_bans_and_unbans() {
    let state = |levels_of: Value, before: &str| {
        let users = json!({ "users": levels_of, "kick": 30, "ban": 50 });
        let mut state = joined(&[BOB, MALLORY]);
        state.extend([levels(users), member(CAROL, before)]);
        state
    };
    let bob = |level: i32| json!({ BOB: level });
    run(vec![
        Case::allowed("kick", state(bob(30), JOIN), sets(BOB, CAROL, LEAVE)),
        Case::allowed("invite taken back", state(bob(30), INVITE), sets(BOB, CAROL, LEAVE)),
        Case::allowed("knock refused", state(bob(30), KNOCK), sets(BOB, CAROL, LEAVE)).versions(7..=12),
        Case::refused("kick with too little", state(bob(29), JOIN), sets(BOB, CAROL, LEAVE)),
        Case::refused(
            "kick of an equal",
            state(json!({ BOB: 30, CAROL: 30 }), JOIN),
            sets(BOB, CAROL, LEAVE),
        ),
        Case::refused(
            "kick of a higher",
            state(json!({ BOB: 30, CAROL: 31 }), JOIN),
            sets(BOB, CAROL, LEAVE),
        ),
        Case::refused("kick from outside", joined(&[CAROL]), sets(BOB, CAROL, LEAVE)),
        Case::allowed("ban", state(bob(50), JOIN), sets(BOB, CAROL, BAN)),
        Case::allowed("ban of one outside", state(bob(50), LEAVE), sets(BOB, CAROL, BAN)),
        Case::allowed("ban once more", state(bob(50), BAN), sets(BOB, CAROL, BAN)),
        Case::refused("ban with too little", state(bob(49), JOIN), sets(BOB, CAROL, BAN)),
        Case::refused("ban of an equal", state(json!({ BOB: 50, CAROL: 50 }), JOIN), sets(BOB, CAROL, BAN)),
        Case::refused("ban from outside", joined(&[CAROL]), sets(BOB, CAROL, BAN)),
        Case::allowed("unban", state(bob(50), BAN), sets(BOB, CAROL, LEAVE)),
        Case::refused("unban with too little", state(bob(49), BAN), sets(BOB, CAROL, LEAVE)),
        // Defaults: 50 to kick and to ban.
        Case::refused("kick by default", joined(&[BOB, CAROL]), sets(BOB, CAROL, LEAVE)),
        Case::allowed("kick by the creator", joined(&[CAROL]), sets(ALICE, CAROL, LEAVE)),
        Case::allowed("ban by the creator", joined(&[CAROL]), sets(ALICE, CAROL, BAN)),
    ]);
}

#[test]
fn restricted_joins_need_a_member_who_may_invite() {
    let join = |via: Value| {
        let content = json!({ "membership": JOIN, "join_authorised_via_users_server": via });
        (CAROL, "m.room.member", Some(CAROL), content)
    };
    let state = |rule: &str, invite: i32, before: Option<&str>| {
        let before = before.map(|before| member(CAROL, before));
        let levels = levels(json!({ "users": { BOB: 30, ALICE: 100 }, "invite": invite }));
        with(joined(&[BOB]), [join_rule(rule), levels].into_iter().chain(before))
    };
    for (rule, since) in [("restricted", 8), ("knock_restricted", 10)] {
        let state = |invite, before| {
            let mut state = state(rule, invite, before);
            // Since version 12 creators are not among the users.
            if since == 10 {
                state.retain(|event| event.1 != "m.room.power_levels");
                state.push(levels(json!({ "users": { BOB: 30 }, "invite": invite })));
            }
            state
        };
        run(vec![
            Case::allowed("via bob", state(30, None), join(BOB.into())).versions(since..=11),
            Case::allowed("via bob", state(30, Some(LEAVE)), join(BOB.into())).versions(since..=11),
            Case::refused("too little power", state(31, None), join(BOB.into())).versions(since..=11),
            Case::refused("not a member", state(0, None), join(MALLORY.into())).versions(since..=12),
            Case::refused("no user", state(0, None), join(json!(1))).versions(since..=12),
            Case::refused("banned", state(0, Some(BAN)), join(BOB.into())).versions(since..=12),
            Case::allowed("invited", state(100, Some(INVITE)), join(MALLORY.into())).versions(since..=12),
            Case::refused("rule unknown", state(0, None), join(BOB.into())).versions(1..=since - 1),
        ]);
    }
    // A creator of version 12 may invite whatever the level.
    let levels = levels(json!({ "invite": 1_000_000 }));
    let state = with(joined(&[BOB]), [join_rule("restricted"), levels]);
    run(vec![
        Case::allowed("via a creator", state.clone(), join(ALICE.into())).versions(12..=12),
        Case::refused("via bob", state, join(BOB.into())).versions(12..=12),
    ]);
}
