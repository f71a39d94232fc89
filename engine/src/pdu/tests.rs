use std::sync::Arc;

use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, room_id, server_name, user_id};
use serde_json::{Value, json, value::to_raw_value};

use super::{client::*, *};
use crate::room_version::{SUPPORTED, rules};

mod canonical;
mod fuzz;
mod loose;
mod redaction;
mod vectors;

fn make(version: &RoomVersionId, draft: Draft, prev: &[Arc<Pdu>]) -> Pdu {
    let rules = rules(version).unwrap();
    let named = rules.authorization.room_create_event_id_as_room_id && prev.is_empty();
    let context = BuildContext {
        room_id: (!named).then(|| room_id!("!room:example.org")),
        sender: user_id!("@alice:example.org"),
        origin_server_ts: MilliSecondsSinceUnixEpoch(1_700_000_000_000_u64.try_into().unwrap()),
        prev_events: prev,
        auth_events: prev,
        event_id_localpart: "local",
        rules,
        key: &SigningKey::new(&[1; 32], "test").unwrap(),
        server_name: server_name!("example.org"),
    };
    build(draft, &context).unwrap()
}

fn draft(kind: &str, state_key: Option<&str>, content: &Value) -> Draft {
    let content = to_raw_value(content).unwrap();
    Draft {
        kind: kind.into(),
        state_key: state_key.map(ToOwned::to_owned),
        content,
        redacts: None,
        dated: None,
    }
}

fn create(version: &RoomVersionId) -> Arc<Pdu> {
    let content = json!({ "creator": "@alice:example.org", "room_version": version });
    Arc::new(make(version, draft("m.room.create", Some(""), &content), &[]))
}

#[test]
fn a_built_event_parses_to_itself_in_every_version() {
    for version in &SUPPORTED {
        let first = create(version);
        let next = make(
            version,
            draft("m.room.message", None, &json!({ "body": "hi" })),
            std::slice::from_ref(&first),
        );
        let parsed = Pdu::parse(next.raw(), rules(version).unwrap()).unwrap();
        assert_eq!(parsed.event_id(), next.event_id(), "version {version}");
        assert_eq!(parsed.raw(), next.raw());
        assert_eq!(parsed.prev_events(), [first.event_id().clone()]);
        assert_eq!(parsed.depth(), 2);
    }
}

#[test]
fn the_signature_of_a_built_event_holds_until_it_is_changed() {
    for version in &SUPPORTED {
        let event = create(version);
        let key = SigningKey::new(&[1; 32], "test").unwrap();
        let keys = [("example.org".to_owned(), [(key.id(), key.public_key())].into())].into();
        let mut object = event.to_object().unwrap();
        assert_eq!(verify(&object, &keys, rules(version).unwrap()).unwrap(), Verified::All);
        object.insert("sender".to_owned(), "@mallory:example.org".to_owned().into());
        assert!(verify(&object, &keys, rules(version).unwrap()).is_err(), "version {version}");
    }
}

/// The field is about memberships; elsewhere anybody may write anything into it.
#[test]
fn who_lets_a_user_in_signs_the_membership_and_nothing_else() {
    let key = SigningKey::new(&[1; 32], "test").unwrap();
    let keys = [("example.org".to_owned(), [(key.id(), key.public_key())].into())].into();
    for version in &SUPPORTED {
        let rules = rules(version).unwrap();
        for authorised in [json!("@bob:two.example"), json!(7)] {
            let content = json!({ "body": "hi", "join_authorised_via_users_server": authorised });
            let message = make(version, draft("m.room.message", None, &content), &[create(version)]);
            let object = message.to_object().unwrap();
            let own = [server_name!("example.org").to_owned()];
            assert_eq!(signers(&object, rules), own.into(), "version {version}");
            assert_eq!(verify(&object, &keys, rules).unwrap(), Verified::All, "version {version}");
        }
        let content = json!({ "membership": "join", "join_authorised_via_users_server": "@bob:two.example" });
        let join = draft("m.room.member", Some("@alice:example.org"), &content);
        let object = make(version, join, &[create(version)]).to_object().unwrap();
        let is_restricted = rules.authorization.restricted_join_rule;
        assert_eq!(signers(&object, rules).len(), if is_restricted { 2 } else { 1 }, "version {version}");
        assert_eq!(verify(&object, &keys, rules).is_err(), is_restricted, "version {version}");
    }
}

#[test]
fn redaction_keeps_the_event_id() {
    for version in &SUPPORTED {
        let message =
            make(version, draft("m.room.message", None, &json!({ "body": "hi" })), &[create(version)]);
        let redacted = redact(&message, rules(version).unwrap()).unwrap();
        assert_eq!(redacted.content().get(), "{}");
        let parsed = Pdu::parse(redacted.raw(), rules(version).unwrap()).unwrap();
        assert_eq!(parsed.event_id(), message.event_id(), "version {version}");
    }
}

#[test]
fn a_redaction_names_its_target_in_both_places_for_clients() {
    for version in &SUPPORTED {
        let first = create(version);
        let target = first.event_id().clone();
        let draft = Draft {
            redacts: Some(target.clone()),
            ..draft("m.room.redaction", None, &json!({ "reason": "x" }))
        };
        let redaction = make(version, draft, &[first]);
        let rules = rules(version).unwrap();
        assert_eq!(redaction.redacts(rules), Some(&*target));
        let json = client_event(&redaction, rules, &Unsigned::default(), RoomIdField::Absent);
        let json: Value = serde_json::from_str(json.get()).unwrap();
        assert_eq!(json["redacts"], target.as_str());
        assert_eq!(json["content"], json!({ "reason": "x", "redacts": target }));
    }
}

#[test]
fn the_room_version_says_where_a_redaction_names_its_target() {
    for version in &SUPPORTED {
        let rules = rules(version).unwrap();
        let named = |field: Option<&str>, content: Option<&str>| {
            let redaction = make(version, draft("m.room.redaction", None, &json!({})), &[create(version)]);
            let mut event: Value = serde_json::from_slice(redaction.raw()).unwrap();
            if let Some(target) = field {
                event["redacts"] = target.into();
            }
            if let Some(target) = content {
                event["content"]["redacts"] = target.into();
            }
            let event = Pdu::from_stored(redaction.event_id().clone(), event.to_string().into()).unwrap();
            let shown = client_event(&event, rules, &Unsigned::default(), RoomIdField::Absent);
            let shown: Value = serde_json::from_str(shown.get()).unwrap();
            let target = event.redacts(rules).map(ToString::to_string);
            if let Some(target) = &target {
                assert_eq!([&shown["redacts"], &shown["content"]["redacts"]], [target, target], "{version}");
            }
            target
        };
        let (field, content) = (Some("$field"), Some("$content"));
        let in_content = rules.redaction.content_field_redacts;
        let expected = if in_content { content } else { field };
        assert_eq!(named(field, content).as_deref(), expected, "version {version}");
        assert_eq!(named(field, None).as_deref(), field.filter(|_| !in_content), "version {version}");
        assert_eq!(named(None, content).as_deref(), content.filter(|_| in_content), "version {version}");
    }
}

#[test]
fn what_a_clients_redaction_names_is_put_where_the_room_version_has_it() {
    for version in &SUPPORTED {
        let first = create(version);
        let target = first.event_id().clone();
        let content = to_raw_value(&json!({ "redacts": target, "reason": "x" })).unwrap();
        let redaction = make(version, Draft::new("m.room.redaction".into(), None, content), &[first]);
        let event: Value = serde_json::from_slice(redaction.raw()).unwrap();
        let in_content = rules(version).unwrap().redaction.content_field_redacts;
        let (there, elsewhere) = if in_content {
            (&event["content"]["redacts"], &event["redacts"])
        } else {
            (&event["redacts"], &event["content"]["redacts"])
        };
        assert_eq!((there, elsewhere), (&json!(target), &Value::Null), "version {version}");
        assert_eq!(event["content"]["reason"], "x");
    }
}

#[test]
fn the_client_format_is_json_with_odd_strings_too() {
    let first = create(&RoomVersionId::V11);
    let v11 = rules(&RoomVersionId::V11).unwrap();
    let odd = "quote\" back\\slash \u{1} \u{1F600}";
    let event = make(&RoomVersionId::V11, draft(odd, Some(odd), &json!({ "a": odd })), &[first]);
    let unsigned = Unsigned {
        age_ms: Some(5),
        transaction_id: Some(odd),
        membership: Some("join"),
        ..Default::default()
    };
    let json: Value =
        serde_json::from_str(client_event(&event, v11, &unsigned, RoomIdField::Present).get()).unwrap();
    assert_eq!(json["type"], odd);
    assert_eq!(json["state_key"], odd);
    assert_eq!(json["room_id"], "!room:example.org");
    assert_eq!(json["unsigned"], json!({ "age": 5, "membership": "join", "transaction_id": odd }));
    let stripped: Value = serde_json::from_str(stripped(&event).get()).unwrap();
    assert_eq!(stripped["state_key"], odd);
}

#[test]
fn limits_are_enforced() {
    let version = rules(&RoomVersionId::V11).unwrap();
    let event =
        make(&RoomVersionId::V11, draft("m.room.message", None, &json!({})), &[create(&RoomVersionId::V11)]);
    let mut object = event.to_object().unwrap();
    object.insert("type".to_owned(), "x".repeat(256).into());
    let json = serde_json::to_vec(&object).unwrap();
    assert!(matches!(Pdu::parse(&json, version), Err(PduError::TooLarge(_))));
    object.insert("type".to_owned(), "x".to_owned().into());
    object.insert("padding".to_owned(), "x".repeat(SIZE_MAX).into());
    let json = serde_json::to_vec(&object).unwrap();
    assert!(matches!(Pdu::parse(&json, version), Err(PduError::TooLarge(_))));
    assert!(matches!(Pdu::parse(b"{\"depth\":1.5}", version), Err(PduError::Json(_))));
    assert!(matches!(Pdu::parse(b"{}", version), Err(PduError::Malformed(_))));
}
