//! The specification's cryptographic test vectors, and hashes computed by hand.
//!
//! Spec: appendices, "Cryptographic Test Vectors"; server-server API, "Calculating the reference hash for an event".

use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use ruma::{
    CanonicalJsonObject,
    serde::Base64,
    server_name,
    signatures::{sign_json, verify_json},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{super::build::hash_and_sign, *};

fn key() -> SigningKey {
    let seed: Base64 = Base64::parse("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
    SigningKey::new(seed.as_bytes().try_into().unwrap(), "1").unwrap()
}

fn object(value: Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

#[test]
fn signed_json() {
    for (given, signature) in [
        (json!({}), "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            json!({ "one": 1, "two": "Two" }),
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ] {
        let mut signed = object(given.clone());
        sign_json("domain", &key(), &mut signed).unwrap();
        let mut expected = given;
        expected["signatures"] = json!({ "domain": { "ed25519:1": signature } });
        assert_eq!(signed, object(expected));
        let keys = [("domain".to_owned(), [(key().id(), key().public_key())].into())].into();
        verify_json(&keys, &signed).unwrap();
        signed.insert("one".to_owned(), false.into());
        assert!(verify_json(&keys, &signed).is_err());
    }
}

#[test]
fn signed_events() {
    let minimal = json!({
        "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain", "origin_server_ts": 1_000_000,
        "signatures": {}, "hashes": {}, "type": "X", "content": {}, "prev_events": [], "auth_events": [],
        "depth": 3, "unsigned": { "age_ts": 1_000_000 },
    });
    let redactable = json!({
        "content": { "body": "Here is the message content" }, "event_id": "$0:domain", "origin": "domain",
        "origin_server_ts": 1_000_000, "type": "m.room.message", "room_id": "!r:domain",
        "sender": "@u:domain", "signatures": {}, "unsigned": { "age_ts": 1_000_000 },
    });
    for (given, hash, signature) in [
        (
            minimal,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            redactable,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ] {
        let version = rules(&RoomVersionId::V1).unwrap();
        let mut signed = object(given.clone());
        hash_and_sign(&mut signed, server_name!("domain"), &key(), version).unwrap();
        let mut expected = given;
        expected["hashes"] = json!({ "sha256": hash });
        expected["signatures"] = json!({ "domain": { "ed25519:1": signature } });
        assert_eq!(signed, object(expected));
    }
}

#[test]
fn a_changed_body_fails_the_hash_but_not_the_signature() {
    let keys = [("domain".to_owned(), [(key().id(), key().public_key())].into())].into();
    for id in &SUPPORTED {
        let version = rules(id).unwrap();
        let mut event = object(json!({
            "room_id": "!x:domain", "sender": "@a:domain", "event_id": "$x:domain", "origin_server_ts": 1,
            "type": "m.room.message", "content": { "body": "hi" }, "prev_events": [], "auth_events": [],
            "depth": 3,
        }));
        hash_and_sign(&mut event, server_name!("domain"), &key(), version).unwrap();
        assert_eq!(verify(&event, &keys, version).unwrap(), Verified::All);
        let mut unsigned = event.clone();
        unsigned.insert("unsigned".to_owned(), object(json!({ "age": 1 })).into());
        assert_eq!(verify(&unsigned, &keys, version).unwrap(), Verified::All, "version {id}");
        let mut changed = event.clone();
        changed.insert("content".to_owned(), object(json!({ "body": "ha" })).into());
        assert_eq!(verify(&changed, &keys, version).unwrap(), Verified::Signatures, "version {id}");
        let mut retyped = event.clone();
        retyped.insert("type".to_owned(), "m.room.topic".into());
        assert!(matches!(verify(&retyped, &keys, version), Err(PduError::Signature(_))), "version {id}");
        let mut bare = event;
        bare.insert("signatures".to_owned(), object(json!({})).into());
        assert!(matches!(verify(&bare, &keys, version), Err(PduError::Signature(_))), "version {id}");
    }
}

/// The ID is the hash of the redacted event without signatures and `unsigned`, with what the version redacts.
#[test]
fn an_event_id_is_the_hash_of_the_redacted_event() {
    let event = json!({
        "auth_events": [], "content": { "membership": "join", "displayname": "A" }, "depth": 1,
        "hashes": { "sha256": "x" }, "origin": "domain", "origin_server_ts": 1, "prev_events": [],
        "room_id": "!x:domain", "sender": "@a:domain", "signatures": { "domain": { "ed25519:1": "x" } },
        "state_key": "@a:domain", "type": "m.room.member", "unsigned": { "age": 1 },
    });
    let redacted_with = |origin: &str| {
        format!(
            r#"{{"auth_events":[],"content":{{"membership":"join"}},"depth":1,"hashes":{{"sha256":"x"}},{origin}"origin_server_ts":1,"prev_events":[],"room_id":"!x:domain","sender":"@a:domain","state_key":"@a:domain","type":"m.room.member"}}"#
        )
    };
    for id in SUPPORTED.iter().skip(2) {
        let is_at_least_11 = matches!(id, RoomVersionId::V11 | RoomVersionId::V12);
        let mut event = event.clone();
        if *id == RoomVersionId::V12 {
            event["room_id"] = "!x".into();
        }
        let redacted = redacted_with(if is_at_least_11 { "" } else { "\"origin\":\"domain\"," });
        let redacted = redacted.replace("!x:domain", event["room_id"].as_str().unwrap());
        let hash = Sha256::digest(redacted);
        let expected = if *id == RoomVersionId::V3 {
            BASE64_STANDARD_NO_PAD.encode(hash)
        } else {
            BASE64_URL_SAFE_NO_PAD.encode(hash)
        };
        let pdu = Pdu::parse(event.to_string().as_bytes(), rules(id).unwrap()).unwrap();
        assert_eq!(pdu.event_id().as_str(), format!("${expected}"), "version {id}");
    }
}
