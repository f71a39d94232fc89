//! What a redaction leaves of an event, per room version.
//!
//! Spec: "Redactions" of each room version.

use serde_json::{Map, json};

use super::*;

/// A content key, and the versions that keep it.
type Kept = (&'static str, std::ops::RangeInclusive<usize>);

const ALWAYS: std::ops::RangeInclusive<usize> = 1..=12;

/// The keys of `content` that each type keeps.
const CONTENT: &[(&str, &[Kept])] = &[
    ("m.room.member", &[("membership", ALWAYS), ("join_authorised_via_users_server", 9..=12)]),
    (
        "m.room.create",
        &[
            ("creator", ALWAYS),
            ("room_version", 11..=12),
            ("m.federate", 11..=12),
            ("predecessor", 11..=12),
            ("type", 11..=12),
            ("additional_creators", 11..=12),
            ("org.example.other", 11..=12),
        ],
    ),
    ("m.room.join_rules", &[("join_rule", ALWAYS), ("allow", 8..=12)]),
    (
        "m.room.power_levels",
        &[
            ("ban", ALWAYS),
            ("events", ALWAYS),
            ("events_default", ALWAYS),
            ("kick", ALWAYS),
            ("redact", ALWAYS),
            ("state_default", ALWAYS),
            ("users", ALWAYS),
            ("users_default", ALWAYS),
            ("invite", 11..=12),
        ],
    ),
    ("m.room.aliases", &[("aliases", 1..=5)]),
    ("m.room.history_visibility", &[("history_visibility", ALWAYS)]),
    ("m.room.redaction", &[("redacts", 11..=12)]),
    ("m.room.message", &[]),
    ("m.room.topic", &[]),
    ("m.room.server_acl", &[]),
    ("m.room.third_party_invite", &[]),
    ("m.room.encryption", &[]),
    ("org.example.member", &[]),
];

/// The keys of the event itself; `content` apart.
const TOP: &[Kept] = &[
    ("event_id", ALWAYS),
    ("type", ALWAYS),
    ("room_id", ALWAYS),
    ("sender", ALWAYS),
    ("state_key", ALWAYS),
    ("hashes", ALWAYS),
    ("signatures", ALWAYS),
    ("depth", ALWAYS),
    ("prev_events", ALWAYS),
    ("auth_events", ALWAYS),
    ("origin_server_ts", ALWAYS),
    ("prev_state", 1..=10),
    ("origin", 1..=10),
    ("membership", 1..=10),
];

fn event(kind: &str, content: &Value) -> Value {
    json!({
        "event_id": "$x:domain", "type": kind, "room_id": "!x:domain", "sender": "@a:domain",
        "state_key": "", "content": content, "hashes": { "sha256": "x" },
        "signatures": { "domain": { "ed25519:1": "x" } }, "depth": 1, "prev_events": [], "auth_events": [],
        "origin_server_ts": 1, "prev_state": [], "origin": "domain", "membership": "join",
        "unsigned": { "age": 1 }, "age_ts": 1, "redacts": "$y:domain", "org.example.other": 1,
    })
}

fn redacted(version: &RoomVersionId, event: &Value) -> Value {
    let id = "$x:domain".try_into().unwrap();
    let pdu = Pdu::from_stored(id, event.to_string().into()).unwrap();
    serde_json::from_slice(redact(&pdu, rules(version).unwrap()).unwrap().raw()).unwrap()
}

fn kept(keys: &[Kept], version: usize, from: &Value) -> Map<String, Value> {
    let keys = keys.iter().filter(|(_, versions)| versions.contains(&version));
    keys.map(|(key, _)| ((*key).to_owned(), from[*key].clone())).collect()
}

#[test]
fn every_type_keeps_its_keys_in_every_version() {
    // Each content has every key of every type, and some that nothing keeps.
    let all = CONTENT.iter().flat_map(|(_, keys)| keys.iter().map(|(key, _)| *key));
    let others = ["body", "topic", "displayname", "reason", "notifications", "deny"];
    let content: Map<String, Value> = all.chain(others).map(|key| (key.to_owned(), key.into())).collect();
    let content = Value::Object(content);
    for (number, version) in (1..).zip(&SUPPORTED) {
        for (kind, keys) in CONTENT {
            let event = event(kind, &content);
            let mut expected = kept(TOP, number, &event);
            let content = match (*kind, number) {
                ("m.room.create", 11..) => content.clone(),
                _ => Value::Object(kept(keys, number, &content)),
            };
            expected.insert("content".to_owned(), content);
            assert_eq!(redacted(version, &event), Value::Object(expected), "{kind} in version {version}");
        }
    }
}

#[test]
fn a_third_party_invite_keeps_what_is_signed_since_version_11() {
    let invite = json!({ "display_name": "A", "signed": { "mxid": "@a:domain", "token": "t" } });
    let content = json!({ "membership": "invite", "third_party_invite": invite });
    for (number, version) in (1..).zip(&SUPPORTED) {
        let left = redacted(version, &event("m.room.member", &content))["content"].clone();
        let expected = if number >= 11 {
            json!({ "membership": "invite", "third_party_invite": { "signed": invite["signed"] } })
        } else {
            json!({ "membership": "invite" })
        };
        assert_eq!(left, expected, "version {version}");
    }
}

#[test]
fn a_redacted_event_is_redacted_no_further() {
    for version in &SUPPORTED {
        for (kind, _) in CONTENT {
            let once = redacted(version, &event(kind, &json!({ "membership": "join", "creator": "@a:b" })));
            assert_eq!(redacted(version, &once), once, "{kind} in version {version}");
        }
    }
}
