//! ruma's rules, which flatten the event for each look, say what is right.

use std::task::{Context, Poll, Waker};

use js_int::{UInt, int, uint};
use proptest::{collection::vec, prelude::*, sample::select};
use ruma::{
    events::AnySyncTimelineEvent, owned_room_id, owned_user_id, power_levels::NotificationPowerLevels,
    push::PushConditionPowerLevelsCtx, room_version_rules::AuthorizationRules, serde::Raw,
};
use serde_json::json;

use super::*;

/// ruma's answer; its futures have nothing to wait for.
fn oracle(rules: &Ruleset, event: &Value, context: &PushConditionRoomCtx) -> Vec<String> {
    let raw = Raw::<AnySyncTimelineEvent>::from_json(serde_json::value::to_raw_value(event).unwrap());
    let answer = std::pin::pin!(async { rules.get_actions(&raw, context).await.to_vec() });
    match answer.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(actions) => names(&actions),
        Poll::Pending => panic!("ruma waited"),
    }
}

fn ours(rules: &Ruleset, event: &Value, context: &PushConditionRoomCtx) -> Vec<String> {
    let event = PushEvent::parse(event.to_string().as_bytes()).unwrap();
    let compiled = CompiledRules::new(rules);
    let subscribed: Subscribed<'_> = &|root| root == SUBSCRIBED;
    compiled
        .evaluate(&event, context, Some(subscribed))
        .map(|outcome| names(&outcome.actions))
        .unwrap_or_default()
}

fn names(actions: &[Action]) -> Vec<String> {
    actions.iter().map(|action| serde_json::to_string(action).unwrap()).collect()
}

fn context(members: u32, name: &str) -> PushConditionRoomCtx {
    let mut levels = NotificationPowerLevels::new();
    levels.room = int!(50);
    let users = [(owned_user_id!("@boss:a"), int!(100))].into();
    let rules = ruma::room_version_rules::RoomPowerLevelsRules::new(&AuthorizationRules::V11, []);
    let levels = PushConditionPowerLevelsCtx::new(users, int!(0), levels, rules);
    let room = owned_room_id!("!room:a");
    PushConditionRoomCtx::new(room, UInt::from(members), owned_user_id!("@me:a"), name.to_owned())
        .with_power_levels(levels)
        .with_has_thread_subscription_fn(|root| Box::pin(async move { root == SUBSCRIBED }))
}

/// The root of the thread that the user is subscribed to.
const SUBSCRIBED: &str = "$mine";

const PATHS: &[&str] = &[
    "type",
    "sender",
    "room_id",
    "state_key",
    "content.body",
    "content.msgtype",
    r"content.m\.mentions.user_ids",
    r"content.m\.mentions.room",
    r"content.m\.mentions",
    r"content.m\.relates_to.rel_type",
    "content.list",
    "content.number",
    "content",
    "nothing.at.all",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-2_i64..3).prop_map(Value::from),
        text().prop_map(Value::from),
        Just(json!("@me:a")),
        Just(json!("m.room.message")),
    ]
}

fn text() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "me", "Me", " ", "_", "-", "é", "!", "@room", ""]), 0..9)
        .prop_map(|parts| parts.concat())
}

/// Patterns without two wildcards in a row: ruma takes the second of them for a character of the text.
fn pattern() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "B", "me", " ", "*", "?", "é", "!", "@room", "*"]), 0..5).prop_map(|mut parts| {
        parts.dedup_by(|one, other| "*?".contains(*one) && "*?".contains(*other));
        parts.concat()
    })
}

fn condition() -> impl Strategy<Value = Value> {
    let count = (select(vec!["", "==", "<", ">", "<=", ">="]), 0_u8..4);
    prop_oneof![
        (select(PATHS), pattern())
            .prop_map(|(key, pattern)| json!({"kind": "event_match", "key": key, "pattern": pattern})),
        (select(PATHS), scalar())
            .prop_map(|(key, value)| json!({"kind": "event_property_is", "key": key, "value": value})),
        (select(PATHS), scalar())
            .prop_map(|(key, value)| json!({"kind": "event_property_contains", "key": key, "value": value})),
        count.prop_map(|(sign, count)| json!({"kind": "room_member_count", "is": format!("{sign}{count}")})),
        Just(json!({"kind": "contains_display_name"})),
        any::<bool>().prop_map(
            |subscribed| json!({"kind": "io.element.msc4306.thread_subscription", "subscribed": subscribed})
        ),
        select(vec!["room", "other"])
            .prop_map(|key| json!({"kind": "sender_notification_permission", "key": key})),
        Just(json!({"kind": "org.example.unknown", "key": "room"})),
    ]
}

fn conditional(prefix: &'static str) -> impl Strategy<Value = Vec<Value>> {
    vec((vec(condition(), 0..3), any::<bool>()), 0..4).prop_map(move |rules| {
        let rules = rules.into_iter().enumerate();
        rules
            .map(|(number, (conditions, highlight))| {
                json!({
                    "rule_id": format!("{prefix}{number}"), "default": false, "enabled": number != 2,
                    "conditions": conditions,
                    "actions": ["notify", {"set_tweak": "highlight", "value": highlight},
                        {"set_tweak": "sound", "value": format!("{prefix}{number}")}],
                })
            })
            .collect()
    })
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let content = vec(pattern(), 0..3).prop_map(|patterns| {
        let rules = patterns.into_iter().enumerate();
        let rule = |(number, pattern)| {
            json!({"rule_id": format!("c{number}"), "default": false, "enabled": true, "pattern": pattern,
                "actions": ["notify", {"set_tweak": "sound", "value": format!("c{number}")}]})
        };
        rules.map(rule).collect::<Vec<_>>()
    });
    let simple = |ids: Vec<&'static str>| {
        select(ids).prop_map(|id| json!([{"rule_id": id, "default": false, "enabled": true, "actions": []}]))
    };
    (
        conditional("o"),
        conditional("u"),
        conditional("p"),
        content,
        simple(vec!["!room:a", "!other:a"]),
        simple(vec!["@boss:a", "@he:a"]),
        any::<bool>(),
    )
        .prop_map(|(over, under, post, content, room, sender, predefined)| {
            let mut rules: Ruleset = serde_json::from_value(json!({
                "override": over, "underride": under, "content": content, "postcontent": post, "room": room, "sender": sender,
            }))
            .unwrap();
            if predefined {
                rules.update_with_server_default(Ruleset::server_default(&owned_user_id!("@me:a")));
            }
            rules
        })
}

fn event() -> impl Strategy<Value = Value> {
    (
        select(vec!["@me:a", "@boss:a", "@he:a"]),
        select(vec!["m.room.message", "m.room.encrypted", "m.room.member", "m.reaction"]),
        prop_oneof![text(), Just("hello me".to_owned()), Just("hi @room".to_owned())],
        proptest::option::of(select(vec![
            json!({}),
            json!({"room": true}),
            json!({"user_ids": ["@me:a"]}),
            json!({"user_ids": ["@he:a"]}),
            json!(null),
        ])),
        vec(scalar(), 0..3),
        scalar(),
        proptest::option::of(select(vec!["", "@me:a"])),
        proptest::option::of((
            select(vec!["m.thread", "m.replace"]),
            select(vec![json!(SUBSCRIBED), json!("$other"), json!("no ID"), json!(7)]),
        )),
    )
        .prop_map(|(sender, kind, body, mentions, list, number, state_key, relation)| {
            let mut event = json!({
                "type": kind, "sender": sender, "room_id": "!room:a", "event_id": "$e",
                "content": {"body": body, "msgtype": "m.text", "list": list, "number": number},
            });
            if let Some(mentions) = mentions {
                event["content"]["m.mentions"] = mentions;
            }
            if let Some((rel_type, target)) = relation {
                event["content"]["m.relates_to"] = json!({"rel_type": rel_type, "event_id": target});
            }
            if let Some(state_key) = state_key {
                event["state_key"] = state_key.into();
            }
            event
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn compiled_rules_do_as_rumas(
        rules in ruleset(),
        events in vec(event(), 1..4),
        members in 0_u32..4,
        name in select(vec!["me", "Me b", "é", "nobody", "!a"]),
    ) {
        let context = context(members, name);
        for event in events {
            prop_assert_eq!(ours(&rules, &event, &context), oracle(&rules, &event, &context), "{}", event);
        }
    }
}

fn sounds(rules: &Value, event: &Value) -> bool {
    let rules: Ruleset = serde_json::from_value(rules.clone()).unwrap();
    !ours(&rules, event, &context(2, "me")).is_empty()
}

fn rule(condition: &Value) -> Value {
    json!({"override": [{"rule_id": "r", "default": false, "enabled": true, "actions": ["notify"],
        "conditions": [condition]}]})
}

#[test]
fn stars_pass_line_breaks_and_names_are_no_patterns() {
    let event = |body: &str| json!({"type": "m.room.message", "sender": "@he:a", "content": {"body": body}});
    let glob = rule(&json!({"kind": "event_match", "key": "content.body", "pattern": "tea*cup"}));
    assert!(sounds(&glob, &event("tea\nand a cup")));
    assert!(!sounds(&glob, &event("steam and a cup")));
    let name = rule(&json!({"kind": "contains_display_name"}));
    let rules: Ruleset = serde_json::from_value(name).unwrap();
    assert!(ours(&rules, &event("anything"), &context(2, "*")).is_empty());
    assert!(!ours(&rules, &event("oh *, you"), &context(2, "*")).is_empty());
}

#[test]
fn a_pattern_of_many_wildcards_is_harmless() {
    let pattern = "?".repeat(60_000);
    let rules = rule(&json!({"kind": "event_match", "key": "content.body", "pattern": pattern}));
    let event = json!({"type": "m.room.message", "sender": "@he:a", "content": {"body": "a".repeat(60_000)}});
    assert!(sounds(&rules, &event));
    let stars = rule(&json!({"kind": "event_match", "key": "content.body", "pattern": "*a".repeat(20_000)}));
    assert!(sounds(&stars, &event));
}

/// Trying these patterns at every place of the text takes from half a minute to hours.
#[test]
fn repetitive_patterns_and_texts_are_harmless() {
    let text = "a".repeat(2 << 20);
    for pattern in ["a".repeat(30_000), format!("{}b", "a".repeat(30_000)), format!("{}?b", "a".repeat(1000))]
    {
        let rules = rule(&json!({"kind": "event_match", "key": "content.body", "pattern": pattern}));
        let event = json!({"type": "m.room.message", "sender": "@he:a", "content": {"body": text}});
        assert!(!sounds(&rules, &event));
    }
}

#[test]
fn overlapping_finds_count() {
    let event = |body: &str| json!({"type": "m.room.message", "sender": "@he:a", "content": {"body": body}});
    let glob =
        |pattern: &str| rule(&json!({"kind": "event_match", "key": "content.body", "pattern": pattern}));
    assert!(sounds(&glob("aa aa"), &event("xaa aa aa")));
    assert!(!sounds(&glob("aa aa"), &event("xaa aa aax")));
    assert!(sounds(&glob("a? a?"), &event("xab ac ad")));
    assert!(!sounds(&glob("a? a?"), &event("xab ac adx")));
    let long = format!("{}?é", "a".repeat(200));
    assert!(sounds(&glob(&long), &event(&format!("{} {}bé", "a".repeat(500), "a".repeat(200)))));
    assert!(!sounds(&glob(&long), &event(&format!("{} {}bé", "a".repeat(500), "a".repeat(199)))));
}

#[test]
fn paths_are_split_at_dots_that_are_not_escaped() {
    assert_eq!(split_path(r"content.m\.relates_to.a\\b.c\d"), ["content", "m.relates_to", r"a\b", r"c\d"]);
}

#[test]
fn a_room_of_two_is_counted() {
    let event = json!({"type": "m.room.message", "sender": "@he:a", "content": {"body": ""}});
    assert!(sounds(&rule(&json!({"kind": "room_member_count", "is": "2"})), &event));
    assert_eq!(uint!(2), context(2, "me").member_count);
}
