//! Whatever arrives, parsing answers with an event or an error.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[@!$#]?[a-z]{0,3}:?[a-z]{0,3}".prop_map(Value::from),
        (200_usize..400).prop_map(|length| Value::from("x".repeat(length))),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,6}", inner, 0..4)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

const FIELDS: [&str; 16] = [
    "type",
    "sender",
    "room_id",
    "event_id",
    "state_key",
    "content",
    "origin_server_ts",
    "depth",
    "prev_events",
    "auth_events",
    "redacts",
    "hashes",
    "signatures",
    "unsigned",
    "origin",
    "membership",
];

/// An event that is well-formed but for some fields.
fn nearly_event() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(vec![
        "m.room.create",
        "m.room.member",
        "m.room.redaction",
        "m.room.power_levels",
        "m.room.aliases",
        "m.room.message",
    ]);
    let changes = prop::collection::vec((prop::sample::select(FIELDS.to_vec()), json(), any::<bool>()), 0..4);
    (kinds, changes).prop_map(|(kind, changes)| {
        let mut event = json!({
            "type": kind, "sender": "@a:b", "room_id": "!x:b", "event_id": "$x:b", "state_key": "@a:b",
            "content": { "membership": "join" }, "origin_server_ts": 1, "depth": 1, "prev_events": [],
            "auth_events": [], "hashes": { "sha256": "x" }, "signatures": {},
        });
        for (field, value, is_removed) in changes {
            if is_removed {
                event.as_object_mut().unwrap().remove(field);
            } else {
                event[field] = value;
            }
        }
        event
    })
}

/// What can be done with an event from a peer before it is authorised.
fn parse_and_use(bytes: &[u8]) {
    for version in &SUPPORTED {
        let version = rules(version).unwrap();
        if let Ok(object) = serde_json::from_slice(bytes) {
            let _ = verify(&object, &[].into(), version);
        }
        let Ok(pdu) = Pdu::parse(bytes, version) else { continue };
        // What was accepted is canonical: it parses to itself.
        let again = Pdu::parse(pdu.raw(), version).unwrap();
        assert_eq!((again.event_id(), again.raw()), (pdu.event_id(), pdu.raw()));
        let redacted = redact(&pdu, version).unwrap();
        let hashed = !version.event_format.require_event_id;
        assert!(!hashed || Pdu::parse(redacted.raw(), version).unwrap().event_id() == pdu.event_id());
        let shown = client_event(&pdu, version, &Unsigned::default(), RoomIdField::Present);
        let _: Value = serde_json::from_str(shown.get()).unwrap();
        let shown: Value = serde_json::from_str(stripped(&pdu).get()).unwrap();
        assert_eq!(shown["type"], pdu.kind());
        let _ =
            crate::auth::auth_keys(pdu.event_type(), pdu.sender(), pdu.state_key(), pdu.content(), version);
        let _ = crate::auth::check(&pdu, |_| None, |_, _| None, version);
    }
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        parse_and_use(&bytes);
    }

    #[test]
    fn json_never_panics(json in json()) {
        parse_and_use(json.to_string().as_bytes());
    }

    #[test]
    fn events_with_odd_fields_never_panic(event in nearly_event()) {
        parse_and_use(event.to_string().as_bytes());
    }

    /// A state in which everything authorises the event, however odd its own fields and theirs are.
    #[test]
    fn odd_state_never_panics(
        event in nearly_event(),
        state in prop::collection::vec(nearly_event(), 0..4),
    ) {
        for version in &SUPPORTED {
            let version = rules(version).unwrap();
            let parse = |event: &Value| Pdu::parse(event.to_string().as_bytes(), version).ok().map(Arc::new);
            let Some(event) = parse(&event) else { continue };
            let state: Vec<_> = state.iter().filter_map(parse).collect();
            let by_kind = |kind: &ruma::events::StateEventType| {
                state.iter().find(|held| held.kind() == kind.to_string()).cloned()
            };
            let _ = crate::auth::check(&event, |_| state.first().cloned(), |kind, _| by_kind(kind), version);
            if let Some(create) = state.iter().find(|held| held.kind() == "m.room.create") {
                let levels = state.iter().find(|held| held.kind() == "m.room.power_levels").cloned();
                let powers = crate::auth::Powers::new(create.clone(), levels, version);
                let _ = (powers.level(event.sender()), powers.may_redact(event.sender()));
                let _ = powers.may_send_state(event.sender(), "m.room.topic");
            }
        }
    }
}
