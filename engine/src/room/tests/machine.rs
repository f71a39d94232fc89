//! The machine as its owners use it: one server alone, servers that exchange events, states that lack members.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    owner::{Owner, draft},
    *,
};
use crate::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    room::{
        StoredEvent,
        admit::Placement,
        again::Again,
        event::Standing,
        graph::PREV_EVENTS_MAX,
        local::Refusal,
        receive::{OldStep, Outlier, Received, Step},
    },
    state::StateRoot,
};

const BAN: &str = "ban";
const JOIN: &str = "join";

fn member(owner: &mut Owner, sender: &str, user: &str, membership: &str) -> Arc<StoredEvent> {
    owner.send(sender, "m.room.member", Some(user), json!({ "membership": membership }))
}

fn say(owner: &mut Owner, sender: &str, body: &str) -> Arc<StoredEvent> {
    owner.send(sender, "m.room.message", None, json!({ "body": body }))
}

fn redaction(sender: &str, target: &str) -> Arc<Pdu> {
    let mut event = Event::new("redaction", sender, "m.room.redaction", json!({}));
    event.0["redacts"] = target.into();
    event.arc()
}

/// A copy of a room, as another server has it that got all of its events.
fn copy(owner: &Owner) -> Owner {
    let mut other = Owner::new("two", "10");
    for pdu in owner.accepted() {
        if pdu.kind() == "m.room.create" {
            other.admit(&pdu, &Placement::default());
        } else {
            assert_eq!(other.receive(&pdu), Received::Accepted, "{}", pdu.kind());
        }
    }
    assert_eq!(other.state(), owner.state());
    other
}

#[test]
fn a_local_event_stands_on_the_extremities_and_on_what_authorises_it() {
    let mut owner = Owner::with_room("10");
    let tip = owner.tips[0].clone();
    let event = say(&mut owner, ALICE, "hi");
    assert_eq!(event.pdu.prev_events(), [tip.pdu.event_id().clone()]);
    assert_eq!(event.pdu.depth(), tip.pdu.depth() + 1);
    let auth: BTreeSet<_> = event.pdu.auth_events().iter().collect();
    let state = owner.state();
    let keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", ALICE)];
    let wanted = keys.map(|(kind, key)| &state[&(kind.to_owned(), key.to_owned())]);
    assert_eq!(auth, wanted.into_iter().collect());
    assert_eq!(event.rank, 3, "create, join, power levels, message");
    assert_eq!((event.before, event.after), (tip.after, tip.after));
    assert_eq!(owner.tip_ids(), [event.pdu.event_id().clone()].into());
}

#[test]
fn what_the_rules_or_the_limits_refuse_is_not_made() {
    let mut owner = Owner::with_room("10");
    let outside = owner.make(BOB, &draft("m.room.message", None, &json!({})));
    assert!(matches!(outside, Err(Refusal::Forbidden(_))), "{outside:?}");
    let large = owner.make(ALICE, &draft("m.room.message", None, &json!({ "body": "x".repeat(70_000) })));
    assert!(matches!(large, Err(Refusal::Malformed(_))), "{large:?}");
}

#[test]
fn a_member_who_moves_is_told_of() {
    let mut owner = Owner::with_room("10");
    let joined = member(&mut owner, BOB, BOB, JOIN);
    let (pdu, placement) =
        owner.make(ALICE, &draft("m.room.member", Some(BOB), &json!({ "membership": BAN }))).unwrap();
    let (banned, moved) = owner.admit(&Arc::new(pdu), &placement);
    assert_eq!(banned.replaces, Some(joined.short));
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].before.as_ref().unwrap().short, joined.short);
    assert_eq!(moved[0].after.as_ref().unwrap().short, banned.short);
}

#[test]
fn an_event_names_the_newest_extremities_and_is_authorised_by_their_state() {
    let mut owner = Owner::with_room("10");
    member(&mut owner, BOB, BOB, JOIN);
    let mut other = copy(&owner);
    // The oldest of many branches has levels of its own.
    let levels = json!({ "users": { ALICE: 100 }, "events_default": 0, "ban": 60 });
    let apart = owner.send(ALICE, "m.room.power_levels", Some(""), levels);
    for number in 0..PREV_EVENTS_MAX {
        let (pdu, _) =
            other.make(BOB, &draft("m.room.message", None, &json!({ "body": number.to_string() }))).unwrap();
        assert_eq!(owner.receive(&Arc::new(pdu)), Received::Accepted);
    }
    assert_eq!(owner.tips.len(), PREV_EVENTS_MAX + 1);
    let event = say(&mut owner, ALICE, "so many");
    assert_eq!(event.pdu.prev_events().len(), PREV_EVENTS_MAX);
    assert!(!event.pdu.prev_events().contains(apart.pdu.event_id()));
    assert!(!event.pdu.auth_events().contains(apart.pdu.event_id()), "its branch does not know these levels");
    assert_eq!(owner.tip_ids(), [apart.pdu.event_id().clone(), event.pdu.event_id().clone()].into());
    assert_eq!(other.receive(&apart.pdu), Received::Accepted);
}

#[test]
fn what_is_missing_is_to_be_fetched_first() {
    let mut owner = Owner::with_room("10");
    let mut other = copy(&owner);
    let joined = member(&mut owner, BOB, BOB, JOIN);
    let said = say(&mut owner, BOB, "hello");
    let lacking = Received::Lacks {
        prev_events: vec![joined.pdu.event_id().clone()],
        auth_events: vec![joined.pdu.event_id().clone()],
    };
    assert_eq!(other.receive(&said.pdu), lacking);
    // As an outlier it authorises others, but nothing is known of the state after it.
    let outlier = other.ask(|room| room.receive_outlier(&joined.pdu, None)).unwrap();
    assert_eq!((outlier.verdict, outlier.rank), (Ok(()), joined.rank));
    other.hide(&joined.pdu, Standing::Outlier, &Placement { rank: outlier.rank, ..Placement::default() });
    assert!(other.ask(|room| room.receive_outlier(&joined.pdu, None)).is_none(), "it is known now");
    let prev_events = vec![joined.pdu.event_id().clone()];
    assert_eq!(other.receive(&said.pdu), Received::Lacks { prev_events, auth_events: Vec::new() });
    assert_eq!(other.receive(&joined.pdu), Received::Accepted);
    assert_eq!(other.receive(&said.pdu), Received::Accepted);
    assert_eq!(other.receive(&said.pdu), Received::Accepted, "again");
    assert_eq!(other.tip_ids(), owner.tip_ids());
}

#[test]
fn an_outlier_that_its_auth_events_do_not_allow_is_rejected_for_good() {
    let mut owner = Owner::with_room("10");
    let create = owner.accepted()[0].event_id().as_str()[1..].to_owned();
    let pdu = Event::new("said", BOB, "m.room.message", json!({})).by(&[&create]).after(&[&create]).arc();
    let Outlier { verdict, rank } = owner.ask(|room| room.receive_outlier(&pdu, None)).unwrap();
    assert!(verdict.is_err());
    owner.hide(&pdu, Standing::Rejected, &Placement { rank, ..Placement::default() });
    assert!(matches!(owner.receive(&pdu), Received::Rejected(_)));
    let lost = Event::new("lost", BOB, "m.room.message", json!({})).by(&["nowhere"]).arc();
    assert!(
        owner.ask(|room| room.receive_outlier(&lost, None)).is_none(),
        "it may come with its auth events"
    );
}

#[test]
fn a_room_begins_once() {
    let mut owner = Owner::with_room("10");
    let create = owner.accepted()[0].clone();
    assert_eq!(owner.receive(&create), Received::Accepted);
    let mut other = Event::create();
    other.0["name"] = "other".into();
    assert!(matches!(owner.receive(&other.arc()), Received::Rejected(_)));
}

#[test]
fn an_event_of_somebody_banned_is_soft_failed_beside_the_ban_and_rejected_after_it() {
    let mut owner = Owner::with_room("10");
    member(&mut owner, BOB, BOB, JOIN);
    let mut other = copy(&owner);
    let beside = say(&mut other, BOB, "while the ban is on its way");
    let ban = member(&mut owner, ALICE, BOB, BAN);
    let state = owner.state();
    let old = owner.ask(|room| room.receive_old(&beside.pdu, None));
    assert!(
        matches!(old, OldStep::Settle { standing: Standing::SoftFailed, reason: Some(_), .. }),
        "{old:?}"
    );
    assert_eq!(owner.receive(&beside.pdu), Received::SoftFailed);
    assert_eq!(owner.tip_ids(), [ban.pdu.event_id().clone()].into(), "a soft-failed event is no extremity");
    let ban_name = ban.pdu.event_id().as_str()[1..].to_owned();
    let names: Vec<_> = beside.pdu.auth_events().iter().map(|id| id.as_str()[1..].to_owned()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let after = Event::new("after", BOB, "m.room.message", json!({})).after(&[&ban_name]).by(&names).arc();
    assert!(matches!(owner.receive(&after), Received::Rejected(_)));
    assert_eq!(owner.state(), state);
}

#[test]
fn an_event_that_a_hole_lacks_goes_there() {
    let mut owner = Owner::with_room("10");
    let mut other = copy(&owner);
    let before = other.root;
    let said = say(&mut owner, ALICE, "hello");
    assert_eq!(other.judge(&said.pdu, Some(TimelineIndex(5))), Step::Fill(TimelineIndex(5), before));
    assert!(matches!(other.judge(&said.pdu, None), Step::Settle { standing: Standing::Accepted, .. }));
}

#[test]
fn an_older_event_waits_for_its_state_and_moves_nothing() {
    let mut owner = Owner::with_room("10");
    let joined = member(&mut owner, BOB, BOB, JOIN);
    let said = say(&mut owner, BOB, "hello");
    let mut other = copy(&owner);
    let topic = owner.send(ALICE, "m.room.topic", Some(""), json!({ "topic": "tea" }));
    assert_eq!(other.ask(|room| room.receive_old(&said.pdu, None)), OldStep::Done, "it has its place");
    let OldStep::Settle { standing, placement, .. } = other.ask(|room| room.receive_old(&topic.pdu, None))
    else {
        panic!("it can be judged")
    };
    assert_eq!((standing, placement.before), (Standing::Accepted, other.root));
    let old = other.ask(|room| room.admit_old(&topic.pdu, &placement, topic.short, false));
    assert_ne!(old.after, placement.before, "its own state has the topic");
    assert_eq!(other.tip_ids(), [said.pdu.event_id().clone()].into());
    let mut stranger = Owner::with_room("10");
    assert_eq!(stranger.ask(|room| room.receive_old(&said.pdu, None)), OldStep::Wait);
    let beginning = Event::create().at(2).arc();
    assert_eq!(stranger.ask(|room| room.receive_old(&beginning, None)), OldStep::Done);
    drop(joined);
}

#[test]
fn a_redaction_that_does_not_apply_is_part_of_the_graph_and_not_of_the_timeline() {
    let mut owner = Owner::with_room("10");
    member(&mut owner, BOB, BOB, JOIN);
    let said = say(&mut owner, ALICE, "mine");
    for (sender, target, is_shown) in [
        (ALICE, said.pdu.event_id().as_str(), true),
        // On another server than the author, and without power.
        (CAROL, said.pdu.event_id().as_str(), false),
        (ALICE, "$unknown", false),
    ] {
        let redaction = redaction(sender, target);
        let (event, _) = owner.fork().admit(&redaction, &Placement::default());
        assert_eq!(event.index.is_some(), is_shown, "{sender} redacts {target}");
        assert_eq!(event.standing, Standing::Accepted);
        // In a hole what it redacts may be about to come.
        let is_void = owner.fork().ask(|room| room.is_void(&redaction, StateRoot::default()));
        assert_eq!(is_void, !is_shown && target != "$unknown", "{sender} redacts {target}");
    }
}

/// Who loses the power to redact later has redacted all the same, and who gains it has not.
#[test]
fn a_redaction_counts_by_the_levels_before_it() {
    let mut owner = Owner::with_room("10");
    member(&mut owner, CAROL, CAROL, JOIN);
    let said = say(&mut owner, ALICE, "mine");
    let powerless = owner.root;
    owner.send(ALICE, "m.room.power_levels", Some(""), json!({ "users": { ALICE: 100, CAROL: 50 } }));
    let powerful = owner.root;
    let redaction = redaction(CAROL, said.pdu.event_id().as_str());
    for (before, now, applies) in [(powerful, powerless, true), (powerless, powerful, false)] {
        owner.root = now;
        assert_eq!(owner.ask(|room| room.redacts((&redaction, before), &said.pdu)), applies);
        assert_eq!(owner.ask(|room| room.is_withheld(&redaction, before)), !applies);
    }
}

/// Otherwise the room that had it first would have it no more.
#[test]
fn an_event_with_the_id_of_another_rooms_event_is_not_taken_in() {
    let mut owner = Owner::with_room("10");
    let mut other = copy(&owner);
    let joined = member(&mut owner, BOB, BOB, JOIN);
    other.hold_elsewhere(&joined.pdu);
    assert!(other.ask(|room| room.is_elsewhere(joined.pdu.event_id())));
    assert!(matches!(other.receive(&joined.pdu), Received::Rejected(_)));
    assert_eq!(other.ask(|room| room.receive_old(&joined.pdu, None)), OldStep::Done);
    assert!(other.ask(|room| room.receive_outlier(&joined.pdu, None)).is_none());
    assert!(!owner.ask(|room| room.is_elsewhere(joined.pdu.event_id())), "it is at home here");
}

/// Otherwise who leaves a room and comes back would be out of it where branches meet.
#[test]
fn what_replaces_an_own_event_holds_also_if_the_clock_was_set_back() {
    let mut one = Owner::with_room("10");
    member(&mut one, BOB, BOB, JOIN);
    let leave = member(&mut one, BOB, BOB, "leave");
    let mut two = copy(&one);
    one.set_back = 500;
    let join = member(&mut one, BOB, BOB, JOIN);
    assert!(join.pdu.origin_server_ts() > leave.pdu.origin_server_ts());
    let aside = member(&mut two, CAROL, CAROL, JOIN);
    assert_eq!(one.receive(&aside.pdu), Received::Accepted);
    assert_eq!(two.receive(&join.pdu), Received::Accepted);
    let key = |user: &str| ("m.room.member".to_owned(), user.to_owned());
    for owner in [&one, &two] {
        assert_eq!(owner.state()[&key(BOB)], *join.pdu.event_id());
        assert_eq!(owner.state()[&key(CAROL)], *aside.pdu.event_id());
    }
}

#[test]
fn what_was_redacted_before_it_got_its_place_stays_so() {
    let mut owner = Owner::with_room("10");
    let mut other = copy(&owner);
    let said = say(&mut owner, ALICE, "regretted");
    other.hide(&said.pdu, Standing::Outlier, &Placement::default());
    let redaction = ShortEventId(77);
    let outlier = other.redact(said.pdu.event_id(), redaction);
    let OldStep::Settle { placement, .. } = other.ask(|room| room.receive_old(&said.pdu, None)) else {
        panic!("it can be judged")
    };
    let old = other.ask(|room| room.admit_old(&said.pdu, &placement, said.short, false));
    let hidden = placement.event(ShortRoomId(1), &said.pdu, Standing::Rejected, said.short);
    assert_eq!(other.receive(&said.pdu), Received::Accepted);
    let placed = other.event(said.pdu.event_id()).unwrap();
    assert_eq!(placed.standing, Standing::Accepted);
    for event in [&old, &hidden, &*placed] {
        assert_eq!((event.short, event.redacted_by), (outlier.short, Some(redaction)));
        assert_eq!(event.pdu.content().get(), "{}");
    }
}

#[test]
fn a_key_that_goes_back_to_an_older_event_is_recorded() {
    let mut one = Owner::with_room("10");
    member(&mut one, CAROL, CAROL, JOIN);
    one.send(ALICE, "m.room.power_levels", Some(""), json!({ "users": { ALICE: 100, CAROL: 50 } }));
    // The clock of carol's server is ahead, so that what it says counts as newer than what is said after it.
    let mut ahead = one.fork();
    let tea = ahead.send(CAROL, "m.room.topic", Some(""), json!({ "topic": "tea" }));
    assert_eq!(one.receive(&tea.pdu), Received::Accepted);
    let beside = say(&mut ahead, CAROL, "who says something else?");
    let coffee = one.send(ALICE, "m.room.topic", Some(""), json!({ "topic": "coffee" }));
    let key = ("m.room.topic".to_owned(), String::new());
    assert_eq!(one.state()[&key], *coffee.pdu.event_id());
    assert_eq!(one.receive(&beside.pdu), Received::Accepted);
    assert_eq!(one.state()[&key], *tea.pdu.event_id());
    let [record] = &one.resets[..] else { panic!("{:?}", one.resets) };
    let lost = ("m.room.topic".to_owned(), String::new(), coffee.pdu.event_id().clone());
    assert_eq!(record.lost, [lost]);
    assert!(record.events.iter().any(|(_, _, id, _)| id == coffee.pdu.event_id()), "its inputs are there");
}

/// A room that was joined without bob's ban, and a message of his from before anybody knew here.
fn partial() -> (Owner, Arc<StoredEvent>, StateRoot, Arc<StoredEvent>) {
    let mut resident = Owner::with_room("10");
    let joined = member(&mut resident, BOB, BOB, JOIN);
    let said = say(&mut resident.fork(), BOB, "said on the side");
    member(&mut resident, ALICE, BOB, BAN);
    let full = resident.root;
    resident.lacks_members = true;
    // The member is left out of the state, as the answer to a join may do it.
    let key = ("m.room.member".to_owned(), BOB.to_owned());
    resident.root = resident.without(&key);
    let join = member(&mut resident, CAROL, CAROL, JOIN);
    drop(joined);
    (resident, join, full, said)
}

#[test]
fn a_member_whom_the_state_lacks_is_taken_from_the_auth_events_until_all_are_there() {
    let (mut owner, join, full, said) = partial();
    assert_eq!(owner.receive(&said.pdu), Received::Accepted, "whether he is banned is not known");
    let known = owner.event(said.pdu.event_id()).unwrap();
    owner.lacks_members = false;
    let since = [join.pdu.event_id().clone(), said.pdu.event_id().clone()].into();
    owner.tips.clear();
    owner.root = full;
    let Again::Stands(first, Some(tips)) = owner.ask(|room| room.judge_again(&join, &since, Some(full)))
    else {
        panic!("the join stands")
    };
    assert!(tips.is_empty());
    owner.root = first.after;
    owner.tips = vec![Arc::new(first)];
    let again = owner.ask(|room| room.judge_again(&known, &since, None));
    let Again::Refused(refused, _) = again else { panic!("{again:?}") };
    assert_eq!(refused.standing, Standing::SoftFailed);
}

/// What is rejected stays so, once all members are there, too.
#[test]
fn an_older_event_is_not_rejected_for_want_of_a_member() {
    let (mut owner, join, _, said) = partial();
    let name = |id: &ruma::OwnedEventId| id.as_str()[1..].to_owned();
    let names: Vec<_> = said.pdu.auth_events().iter().map(name).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let join = name(join.pdu.event_id());
    let older = Event::new("older", BOB, "m.room.message", json!({})).after(&[&join]).by(&names).arc();
    for (lacks_members, expected) in [(true, Standing::Accepted), (false, Standing::Rejected)] {
        owner.lacks_members = lacks_members;
        let step = owner.ask(|room| room.receive_old(&older, None));
        let OldStep::Settle { standing, reason, .. } = step else { panic!("{step:?}") };
        assert_eq!((standing, reason.is_some()), (expected, expected == Standing::Rejected));
    }
}

#[test]
fn nothing_is_concluded_from_a_state_whose_members_never_came() {
    let mut owner = Owner::with_room("10");
    member(&mut owner, BOB, BOB, JOIN);
    let mut other = copy(&owner);
    let said = say(&mut other, BOB, "hello");
    let before = owner.tips[0].clone();
    owner.give_up(&before);
    let prev = before.pdu.event_id().clone();
    let lacking = Received::Lacks { prev_events: vec![prev.clone()], auth_events: Vec::new() };
    assert_eq!(owner.receive(&said.pdu), lacking);
    assert_eq!(owner.receive(&before.pdu), Received::Accepted, "it is in the graph all the same");
    let state = owner.state().into_values().collect();
    let given = BTreeMap::from([(prev, state)]);
    let step = owner.judge_with(&said.pdu, &given);
    let Step::Settle { standing, placement, .. } = step else { panic!("{step:?}") };
    assert_eq!((standing, placement.before), (Standing::Accepted, owner.root));
    assert!(placement.missing.is_empty(), "there is no hole before it");
}

/// What one of two servers does next.
#[derive(Clone, Debug)]
enum Act {
    Say,
    Topic,
    Levels(u8),
    Ban,
    Join,
    Exchange,
}

fn acts() -> impl Strategy<Value = Vec<(bool, Act)>> {
    let act = prop_oneof![
        Just(Act::Say),
        Just(Act::Topic),
        (0..3_u8).prop_map(Act::Levels),
        Just(Act::Ban),
        Just(Act::Join),
        Just(Act::Exchange),
    ];
    prop::collection::vec((any::<bool>(), act), 1..24)
}

/// Gives one server what the other has, each event once what it needs is there.
fn exchange(from: &Owner, to: &mut Owner) {
    for pdu in from.accepted() {
        let received = to.receive(&pdu);
        assert!(!matches!(received, Received::Lacks { .. }), "events come in order: {received:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Two servers that go on apart and then hear of each other agree on the state, whatever was said, and nothing of
    /// it needs more than the machine asks for.
    #[test]
    fn servers_agree_once_they_have_exchanged_what_they_know(acts in acts()) {
        let mut one = Owner::with_room("10");
        member(&mut one, BOB, BOB, JOIN);
        let levels = json!({ "users": { ALICE: 100, BOB: 50 } });
        one.send(ALICE, "m.room.power_levels", Some(""), levels);
        let mut two = copy(&one);
        for (is_one, act) in acts {
            let (owner, user) = if is_one { (&mut one, ALICE) } else { (&mut two, BOB) };
            let (kind, key, content) = match act {
                Act::Say => ("m.room.message", None, json!({ "body": "hi" })),
                Act::Topic => ("m.room.topic", Some(""), json!({ "topic": user })),
                Act::Levels(by) => {
                    let levels = json!({ "users": { ALICE: 100, BOB: 50 }, "ban": 40 + by });
                    ("m.room.power_levels", Some(""), levels)
                }
                Act::Ban => ("m.room.member", Some(CAROL), json!({ "membership": BAN })),
                Act::Join => ("m.room.member", Some(user), json!({ "membership": JOIN })),
                Act::Exchange => {
                    exchange(&one, &mut two);
                    exchange(&two, &mut one);
                    continue;
                }
            };
            if let Ok((pdu, placement)) = owner.make(user, &draft(kind, key, &content)) {
                owner.admit(&Arc::new(pdu), &placement);
            }
        }
        exchange(&one, &mut two);
        exchange(&two, &mut one);
        prop_assert_eq!(one.tip_ids(), two.tip_ids());
        prop_assert_eq!(one.state(), two.state());
    }
}
