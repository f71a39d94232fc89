//! Scenarios that the specification's proposals and other implementations discuss, re-created.
//!
//! Spec: room version 2, "State resolution" (MSC1442); MSC4297, "Problem A" and "Problem B".

use super::*;

const PL: &str = "m.room.power_levels";
const RULES: &str = "m.room.join_rules";
const MEMBER: &str = "m.room.member";
const TOPIC: &str = "m.room.topic";

const ALICE: u8 = 0;
const BOB: u8 = 1;
const CAROL: u8 = 2;
const MALLORY: u8 = 3;

/// An event: its name, who sends what, and the names of the events before it.
type Sent = (&'static str, u8, &'static str, Option<u8>, Value, &'static [&'static str]);

fn membership(membership: &str) -> Value {
    json!({ "membership": membership })
}

/// A graph of named events over the same start: a public room of alice with bob and carol in it.
struct Story {
    graph: Graph,
    after: BTreeMap<&'static str, StateSet>,
    ids: BTreeMap<&'static str, OwnedEventId>,
}

impl Story {
    fn new(version: &str) -> Self {
        let mut graph = Graph::new(&version.try_into().unwrap(), 1);
        for user_number in [BOB, CAROL] {
            let own = user(user_number);
            assert!(graph.send(0, user_number, MEMBER, own.as_str(), &membership("join")));
        }
        // Only alice has power.
        assert!(graph.send(0, ALICE, PL, "", &levels(version, &[])));
        let after = BTreeMap::from([("start", graph.forks[0].clone())]);
        Self { graph, after, ids: BTreeMap::new() }
    }

    fn state(&self, prev: &[&str]) -> StateSet {
        let states: Vec<_> = prev.iter().map(|name| self.after[name].clone()).collect();
        let resolved = resolve(self.graph.version, &states, &self.graph).unwrap();
        if matches!(self.graph.version.state_res, StateResolutionVersion::V2(_)) {
            let graph = Graph { forks: states, ..self.graph.clone() };
            assert_eq!(resolved, graph.oracle(), "after {prev:?}");
        }
        resolved
    }

    fn send(&mut self, (name, sender, kind, target, content, prev): Sent) {
        let before = self.state(prev);
        let key = target.map(|target| user(target).to_string()).unwrap_or_default();
        self.graph.forks = vec![before];
        assert!(self.graph.send(0, sender, kind, &key, &content), "{name} is allowed");
        let state = self.graph.forks.remove(0);
        self.ids.insert(name, state[&(kind.to_owned(), key)].clone());
        self.after.insert(name, state);
    }

    /// The name of the event that holds a key after these events; empty if it is none of the story's.
    fn holds(&self, ends: &[&str], kind: &str, target: Option<u8>) -> &str {
        let key = target.map(|target| user(target).to_string()).unwrap_or_default();
        match self.state(ends).get(&(kind.to_owned(), key)) {
            None => "none",
            Some(held) => self.ids.iter().find(|(_, id)| *id == held).map_or("", |(name, _)| name),
        }
    }
}

fn levels(version: &str, users: &[(u8, i64)]) -> Value {
    let mut content = json!({ "users": {} });
    if version != "12" {
        content["users"][user(ALICE).as_str()] = 100.into();
    }
    for (number, level) in users {
        content["users"][user(*number).as_str()] = (*level).into();
    }
    content
}

/// Tells a story in each version and checks who holds what at its ends.
fn tell(
    versions: &[&str],
    story: impl Fn(&str) -> Vec<Sent>,
    ends: &[&str],
    held: &[(&str, Option<u8>, &str)],
) {
    for version in versions {
        let mut told = Story::new(version);
        for sent in story(version) {
            told.send(sent);
        }
        for (kind, target, name) in held {
            assert_eq!(told.holds(ends, kind, *target), *name, "{kind} {target:?} in version {version}");
            let backwards: Vec<_> = ends.iter().rev().copied().collect();
            assert_eq!(told.holds(&backwards, kind, *target), *name, "backwards, version {version}");
        }
    }
}

const SECOND: &[&str] = &["2", "6", "10", "11", "12"];

fn topic(text: &str) -> Value {
    json!({ "topic": text })
}

#[test]
fn a_ban_beats_the_banned_moderators_power_levels() {
    let story = |version: &str| {
        vec![
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["start"][..]),
            ("renamed", ALICE, MEMBER, Some(ALICE), membership("join"), &["promoted"]),
            ("ban", ALICE, MEMBER, Some(BOB), membership("ban"), &["renamed"]),
            ("theirs", BOB, PL, None, levels(version, &[(BOB, 50), (CAROL, 50)]), &["promoted"]),
        ]
    };
    let held = [(PL, None, "promoted"), (MEMBER, Some(BOB), "ban"), (MEMBER, Some(ALICE), "renamed")];
    tell(SECOND, story, &["ban", "theirs"], &held);
}

#[test]
fn a_demotion_beats_the_demoted_moderators_topic() {
    let story = |version: &str| {
        vec![
            ("first", ALICE, TOPIC, None, topic("1"), &["start"][..]),
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["first"]),
            ("second", ALICE, TOPIC, None, topic("2"), &["promoted"]),
            ("demoted", ALICE, PL, None, levels(version, &[]), &["second"]),
            ("theirs", BOB, PL, None, levels(version, &[(BOB, 50), (CAROL, 0)]), &["promoted"]),
            ("third", BOB, TOPIC, None, topic("3"), &["theirs"]),
        ]
    };
    tell(SECOND, story, &["demoted", "third"], &[(PL, None, "demoted"), (TOPIC, None, "second")]);
}

#[test]
fn a_topic_is_reset_to_the_one_before_the_banned_users() {
    let story = |version: &str| {
        vec![
            ("first", ALICE, TOPIC, None, topic("1"), &["start"][..]),
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["first"]),
            ("second", BOB, TOPIC, None, topic("2"), &["promoted"]),
            ("ban", ALICE, MEMBER, Some(BOB), membership("ban"), &["second"]),
        ]
    };
    let held = [(TOPIC, None, "first"), (PL, None, "promoted"), (MEMBER, Some(BOB), "ban")];
    tell(SECOND, story, &["ban", "first"], &held);
}

#[test]
fn a_join_does_not_evade_rules_that_were_closed_meanwhile() {
    let story = |_: &str| {
        vec![
            ("closed", ALICE, RULES, None, json!({ "join_rule": "invite" }), &["start"][..]),
            ("joined", MALLORY, MEMBER, Some(MALLORY), membership("join"), &["start"]),
        ]
    };
    let held = [(RULES, None, "closed"), (MEMBER, Some(MALLORY), "none")];
    tell(SECOND, story, &["closed", "joined"], &held);
}

#[test]
fn power_levels_aside_follow_from_those_in_between() {
    let story = |version: &str| {
        let both = levels(version, &[(BOB, 50), (CAROL, 50)]);
        let fewer = levels(version, &[(BOB, 50), (CAROL, 0)]);
        vec![
            ("first", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["start"][..]),
            ("second", BOB, PL, None, both, &["first"]),
            ("third", CAROL, PL, None, fewer, &["second"]),
        ]
    };
    tell(SECOND, story, &["third", "first"], &[(PL, None, "third")]);
}

#[test]
fn topics_follow_the_mainline_through_merges() {
    let story = |version: &str| {
        let theirs = levels(version, &[(BOB, 50), (CAROL, 0)]);
        vec![
            ("first", ALICE, TOPIC, None, topic("1"), &["start"][..]),
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["first"]),
            ("second", ALICE, TOPIC, None, topic("2"), &["promoted"]),
            ("demoted", ALICE, PL, None, levels(version, &[]), &["second"]),
            ("theirs", BOB, PL, None, theirs, &["promoted"]),
            ("third", BOB, TOPIC, None, topic("3"), &["theirs"]),
            ("merged", CAROL, MEMBER, Some(CAROL), membership("join"), &["demoted", "third"]),
            ("fourth", ALICE, TOPIC, None, topic("4"), &["demoted"]),
        ]
    };
    let held = [(TOPIC, None, "fourth"), (PL, None, "demoted"), (MEMBER, Some(CAROL), "merged")];
    tell(SECOND, story, &["fourth", "merged"], &held);
}

#[test]
fn concurrent_joins_both_hold() {
    let story = |_: &str| {
        vec![
            ("mallory", MALLORY, MEMBER, Some(MALLORY), membership("join"), &["start"][..]),
            ("carol", CAROL, MEMBER, Some(CAROL), membership("leave"), &["start"]),
        ]
    };
    let held = [(MEMBER, Some(MALLORY), "mallory"), (MEMBER, Some(CAROL), "carol")];
    tell(&["1", "2", "6", "10", "11", "12"], story, &["mallory", "carol"], &held);
}

#[test]
fn an_admin_beats_a_moderator() {
    let story = |version: &str| {
        let theirs = levels(version, &[(BOB, 50), (CAROL, 50)]);
        let admins = levels(version, &[(BOB, 50), (MALLORY, 20)]);
        vec![
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["start"][..]),
            ("moderators", BOB, PL, None, theirs, &["promoted"]),
            ("admins", ALICE, PL, None, admins, &["promoted"]),
        ]
    };
    // Alice's is applied first; bob's then takes the level of mallory away, which he may, and is the later one.
    tell(SECOND, story, &["moderators", "admins"], &[(PL, None, "moderators")]);
    let story = |version: &str| {
        let theirs = levels(version, &[(BOB, 50), (CAROL, 50)]);
        vec![
            ("promoted", ALICE, PL, None, levels(version, &[(BOB, 50)]), &["start"][..]),
            ("moderators", BOB, PL, None, theirs, &["promoted"]),
            ("admins", ALICE, PL, None, levels(version, &[]), &["promoted"]),
        ]
    };
    tell(SECOND, story, &["moderators", "admins"], &[(PL, None, "admins")]);
}

/// Another server told an old join rule, after alice, who had set both, left.
#[test]
fn problem_a_the_agreed_state_must_not_refuse_the_rules() {
    for (version, expected) in [("2", "none"), ("11", "none"), ("12", "second")] {
        let mut story = Story::new(version);
        let rule = |rule: &str| json!({ "join_rule": rule });
        for sent in [
            ("first", ALICE, RULES, None, rule("public"), &["start"][..]),
            ("second", ALICE, RULES, None, rule("invite"), &["first"]),
            ("left", ALICE, MEMBER, Some(ALICE), membership("leave"), &["second"]),
            ("renamed", BOB, MEMBER, Some(BOB), membership("join"), &["left"]),
        ] {
            story.send(sent);
        }
        let mut told = story.after["renamed"].clone();
        told.insert((RULES.to_owned(), String::new()), story.ids["first"].clone());
        story.after.insert("told", told);
        assert_eq!(story.holds(&["renamed", "told"], RULES, None), expected, "version {version}");
        assert_eq!(story.holds(&["told", "renamed"], MEMBER, Some(ALICE)), "left", "version {version}");
    }
}

/// Another server told old power levels; the promotion in between is in the chains of both states.
#[test]
fn problem_b_what_lies_between_is_replayed() {
    for (version, expected) in [("2", "first"), ("11", "first"), ("12", "third")] {
        let mut story = Story::new(version);
        let both = levels(version, &[(BOB, 60), (CAROL, 50)]);
        for sent in [
            ("first", ALICE, PL, None, levels(version, &[(MALLORY, 0)]), &["start"][..]),
            ("second", ALICE, PL, None, levels(version, &[(BOB, 60)]), &["first"]),
            ("third", BOB, PL, None, both, &["second"]),
            ("joined", MALLORY, MEMBER, Some(MALLORY), membership("join"), &["third"]),
        ] {
            story.send(sent);
        }
        let mut told = story.after["joined"].clone();
        told.insert((PL.to_owned(), String::new()), story.ids["first"].clone());
        story.after.insert("told", told);
        assert_eq!(story.holds(&["joined", "told"], PL, None), expected, "version {version}");
    }
}

/// Version 1 goes by depth: first the shallower of what authorises, as long as the next is allowed.
#[test]
fn version_1_resolves_by_depth() {
    let story = |version: &str| {
        vec![
            ("ban", ALICE, MEMBER, Some(BOB), membership("ban"), &["start"][..]),
            ("renamed", BOB, MEMBER, Some(BOB), membership("join"), &["start"]),
            ("promoted", ALICE, PL, None, levels(version, &[(CAROL, 50)]), &["start"]),
            ("theirs", CAROL, TOPIC, None, topic("c"), &["promoted"]),
            ("other", ALICE, TOPIC, None, topic("a"), &["ban"]),
        ]
    };
    // The ban is the shallower one and stays; the deeper topic holds.
    let held = [(MEMBER, Some(BOB), "ban"), (TOPIC, None, "other")];
    tell(&["1"], story, &["other", "renamed", "theirs"], &held);
    let story = |_: &str| {
        vec![
            ("renamed", BOB, MEMBER, Some(BOB), membership("join"), &["start"][..]),
            ("ban", ALICE, MEMBER, Some(BOB), membership("ban"), &["start"]),
            ("only", ALICE, TOPIC, None, topic("a"), &["start"]),
        ]
    };
    // The ban is the deeper one, and allowed; a key that one state lacks is no conflict.
    tell(&["1"], story, &["renamed", "ban", "only"], &[(MEMBER, Some(BOB), "ban"), (TOPIC, None, "only")]);
}
