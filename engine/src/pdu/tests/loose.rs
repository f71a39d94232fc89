//! Events with numbers that canonical JSON forbids, in the versions that do not enforce it.
//!
//! Spec: room versions 1 to 5, "Canonical JSON".

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use ruma::{
    serde::{Base64, base64::Standard},
    signatures::{self, KeyPair, PublicKeyMap},
};
use sha2::{Digest, Sha256};

use super::{super::loose::Loose, *};
use crate::room_version::RoomVersion;

/// The versions that do not enforce canonical JSON.
fn loose_versions() -> impl Iterator<Item = &'static RoomVersion> {
    SUPPORTED[..5].iter().map(|version| rules(version).unwrap())
}

fn key() -> SigningKey {
    SigningKey::new(&[1; 32], "test").unwrap()
}

fn keys() -> PublicKeyMap {
    [("example.org".to_owned(), [(key().id(), key().public_key())].into())].into()
}

/// An event with this content, in JSON, hashed and signed.
fn sealed(kind: &str, content: &str, version: &RoomVersion) -> String {
    let event = json!({
        "type": kind, "sender": "@alice:example.org", "room_id": "!room:example.org", "origin_server_ts": 1,
        "event_id": "$x:example.org", "state_key": "", "depth": 3, "prev_events": [], "auth_events": [],
    });
    let open = event.to_string();
    let event = format!("{},\"content\":{content}", open.strip_suffix('}').unwrap());
    let hashed = format!("{event}}}");
    let hash = Sha256::digest(Loose::parse(hashed.as_bytes(), version).unwrap().bytes().unwrap());
    let event = format!("{event},\"hashes\":{{\"sha256\":\"{}\"}}", BASE64_STANDARD_NO_PAD.encode(hash));
    let signed = format!("{event}}}");
    let signed =
        Loose::parse(signed.as_bytes(), version).unwrap().redacted(version).unwrap().bytes().unwrap();
    let signature = Base64::<Standard, _>::new(key().sign(&signed).as_bytes()).encode();
    format!("{event},\"signatures\":{{\"example.org\":{{\"ed25519:test\":\"{signature}\"}}}}}}")
}

/// Where no number is in the way, all is as for other events.
#[test]
fn an_event_that_is_canonical_has_the_same_hashes_signatures_and_redaction() {
    for version in loose_versions() {
        for (kind, content) in [
            ("m.room.message", r#"{"body":"hi","n":[1,{"b":null,"a":true}]}"#),
            ("m.room.power_levels", r#"{"users":{"@alice:example.org":100},"ban":50,"other":1}"#),
        ] {
            let json = sealed(kind, content, version);
            let pdu = Pdu::parse(json.as_bytes(), version).unwrap();
            let object = pdu.to_object().unwrap();
            let loose = Loose::parse(json.as_bytes(), version).unwrap();
            assert_eq!(loose.form(), object);
            assert_eq!(loose.bytes().unwrap(), *pdu.raw());
            let hash = signatures::reference_hash(&object, &version.rules).unwrap();
            assert_eq!(loose.reference_hash(version).unwrap(), hash);
            assert_eq!(verify(&object, &keys(), version).unwrap(), Verified::All, "{kind} in {}", version.id);
            assert_eq!(loose.verify(&keys(), version).unwrap(), Verified::All);
            let redacted = redact(&pdu, version).unwrap();
            assert_eq!(loose.redacted(version).unwrap().bytes().unwrap(), *redacted.raw());
        }
    }
}

#[test]
fn numbers_stay_as_they_are_written_and_are_hashed_and_signed_so() {
    let content = r#"{"n":[1.50,9007199254740992,-0,1e3],"body":"hi"}"#;
    let written = r#""content":{"body":"hi","n":[1.50,9007199254740992,-0,1e3]}"#;
    for version in loose_versions() {
        let json = sealed("m.room.message", content, version);
        let with_more = format!("{},\"unsigned\":{{\"age\":1.5}}}}", json.strip_suffix('}').unwrap());
        let received = Unchecked::parse(with_more.as_bytes(), version).unwrap();
        let raw = std::str::from_utf8(received.pdu.raw()).unwrap();
        assert!(raw.contains(written) && !raw.contains("unsigned"), "{raw}");
        assert_eq!(received.verify(&keys(), version).unwrap(), Verified::All, "version {}", version.id);
        assert_eq!(Pdu::id_of(json.as_bytes(), version).as_ref(), Some(received.pdu.event_id()));
        assert_eq!(Pdu::parse(json.as_bytes(), version).unwrap(), received.pdu);
        let redacted = redact(&received.pdu, version).unwrap();
        assert_eq!(redacted.content().get(), "{}");
        // Another number is another event, which the signature does not cover.
        let changed = json.replace("1.50", "1.5");
        let changed = Unchecked::parse(changed.as_bytes(), version).unwrap();
        assert_eq!(changed.verify(&keys(), version).unwrap(), Verified::Signatures);
        let retyped = json.replace("m.room.message", "m.room.topic");
        let retyped = Unchecked::parse(retyped.as_bytes(), version).unwrap();
        assert!(matches!(retyped.verify(&keys(), version), Err(PduError::Signature(_))));
        assert!(matches!(received.verify(&[].into(), version), Err(PduError::Signature(_))));
        // What comes after it may name it.
        let next = make(&version.id, draft("m.room.message", None, &json!({})), &[Arc::new(received.pdu)]);
        assert!(Pdu::parse(next.raw(), version).is_ok());
    }
    for version in &SUPPORTED[5..] {
        let json = sealed("m.room.message", content, rules(&SUPPORTED[4]).unwrap());
        let refused = Unchecked::parse(json.as_bytes(), rules(version).unwrap());
        assert!(matches!(refused, Err(PduError::Json(_))), "version {version}");
    }
}

/// Spec: room versions 1 to 5, "`m.room.power_levels` events accept values as floats".
#[test]
fn floats_among_power_levels_are_cut_off() {
    let content =
        r#"{"ban":50.9,"users":{"@alice:example.org":100,"@bob:example.org":5.114698e1},"kick":-0.5}"#;
    for version in loose_versions() {
        let json = sealed("m.room.power_levels", content, version);
        let received = Unchecked::parse(json.as_bytes(), version).unwrap();
        assert_eq!(received.verify(&keys(), version).unwrap(), Verified::All);
        let expected = json!({
            "ban": 50, "users": { "@alice:example.org": 100, "@bob:example.org": 51 }, "kick": 0,
        });
        let levels: Value = serde_json::from_str(received.pdu.content().get()).unwrap();
        assert_eq!(levels, expected);
        assert!(std::str::from_utf8(received.pdu.raw()).unwrap().contains("5.114698e1"));
        let kept = redact(&received.pdu, version).unwrap();
        assert!(std::str::from_utf8(kept.raw()).unwrap().contains("5.114698e1"), "its signature holds");
    }
}
