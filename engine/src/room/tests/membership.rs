use ruma::{UserId, server_name};

use super::*;
use crate::{
    id::TimelineIndex,
    room::membership::{MembershipAction as Action, MembershipRefusal as Refusal, Stay, dismissed, inviters},
};

const JOIN: Action = Action::Join { meets_allow_rule: None };

#[test]
fn actions_lead_to_memberships() {
    let away = Refusal::NotAllowed("the user is not in the room");
    for (action, present, expected) in [
        (JOIN, None, Ok(Some("join"))),
        (JOIN, Some("join"), Ok(None)),
        (JOIN, Some("ban"), Ok(Some("join"))), // the authorization rules refuse it
        (Action::Knock, Some("leave"), Ok(Some("knock"))),
        (Action::Knock, Some("knock"), Ok(None)),
        (Action::Leave, None, Err(Refusal::NotJoined)),
        (Action::Leave, Some("leave"), Ok(None)),
        (Action::Leave, Some("invite"), Ok(Some("leave"))),
        (Action::Invite, Some("invite"), Ok(Some("invite"))),
        (Action::Kick, Some("knock"), Ok(Some("leave"))),
        (Action::Kick, Some("leave"), Err(away)),
        (Action::Kick, Some("ban"), Err(away)),
        (Action::Kick, None, Err(away)),
        (Action::Ban, None, Ok(Some("ban"))),
        (Action::Unban, Some("ban"), Ok(Some("leave"))),
        (Action::Unban, Some("leave"), Err(Refusal::NotBanned)),
    ] {
        assert_eq!(action.leads_to(present), expected, "{action:?} of {present:?}");
    }
}

#[test]
fn a_join_by_an_allow_rule_needs_an_authoriser() {
    let join = |meets_allow_rule| Action::Join { meets_allow_rule };
    let refused = Refusal::NotAllowed("you are in none of the rooms that may join");
    for (version, rule, action, present, expected) in [
        ("10", "restricted", join(Some(true)), None, Ok(true)),
        ("10", "restricted", join(Some(true)), Some("leave"), Ok(true)),
        ("10", "restricted", join(Some(true)), Some("invite"), Ok(false)),
        ("10", "restricted", join(None), Some("join"), Ok(false)),
        ("10", "restricted", join(Some(false)), None, Err(refused)),
        ("10", "restricted", join(None), None, Err(Refusal::UnableToAuthorise)),
        ("10", "restricted", Action::Knock, None, Ok(false)),
        ("10", "knock_restricted", join(Some(true)), None, Ok(true)),
        ("9", "knock_restricted", join(Some(true)), None, Ok(false)),
        ("7", "restricted", join(None), None, Ok(false)),
        ("10", "public", join(None), None, Ok(false)),
    ] {
        let join_rules = Event::new("rules", ALICE, "m.room.join_rules", json!({ "join_rule": rule })).pdu();
        let needed = action.needs_authoriser(present, Some(&join_rules), rules(version));
        assert_eq!(needed, expected, "{action:?} of {present:?} under {rule} in version {version}");
    }
    assert_eq!(join(None).needs_authoriser(None, None, rules("10")), Ok(false), "without a rule, by invite");
}

#[test]
fn inviters_are_of_the_server_and_the_creators_first() {
    let content = json!({ "room_version": "12", "additional_creators": [CAROL, "nobody", 7, "@dave:one"] });
    let create = Event::new("create", ALICE, "m.room.create", content).state("").pdu();
    let levels = json!({ "users": { BOB: 50, CAROL: 100 } });
    let levels = Event::new("levels", ALICE, "m.room.power_levels", levels).state("").pdu();
    let recent = [CAROL, "@erin:one"].map(|user| <&UserId>::try_from(user).unwrap());
    let one = inviters(server_name!("one"), Some(&create), Some(&levels), recent.into_iter());
    assert_eq!(one, [ALICE, "@dave:one", BOB, "@erin:one"]);
}

#[test]
fn the_server_of_who_was_sent_away_is_told() {
    let server = |sender, user, membership| {
        let event = Event::member("event", sender, user, membership).pdu();
        dismissed(&event).map(ToString::to_string)
    };
    assert_eq!(server(ALICE, CAROL, "leave").as_deref(), Some("two"));
    assert_eq!(server(ALICE, CAROL, "ban").as_deref(), Some("two"));
    assert_eq!(server(ALICE, CAROL, "invite"), None);
    assert_eq!(server(CAROL, CAROL, "leave"), None);
    assert_eq!(server(ALICE, BOB, "ban"), None);
    assert_eq!(dismissed(&Event::new("m", ALICE, "m.room.message", json!({})).pdu()), None);
}

#[test]
fn a_stay_begins_with_its_membership_and_remembers_the_last_end() {
    let at = TimelineIndex;
    let stay = |membership: &str, since, left: Option<i64>| Stay {
        membership: membership.to_owned(),
        since: at(since),
        left: left.map(at),
    };
    let next =
        |known, before, membership: &str, place| Stay::after(known, before, membership.to_owned(), at(place));
    let joined = next(None, "leave", "join", 3);
    assert_eq!(joined, stay("join", 3, None));
    let renamed = next(Some(joined), "join", "join", 5);
    assert_eq!(renamed, stay("join", 3, None), "a new profile does not begin it again");
    let left = next(Some(renamed), "join", "leave", 7);
    assert_eq!(left, stay("leave", 7, Some(7)));
    let invited = next(Some(left), "leave", "invite", 8);
    assert_eq!(invited, stay("invite", 8, Some(7)));
    assert_eq!(next(Some(invited), "invite", "join", 9), stay("join", 9, Some(7)));
}
