use std::collections::BTreeSet;

use engine::pdu::SigningKey;
use ruma::{CanonicalJsonValue, serde::Base64, server_name, signatures::sign_json};
use serde_json::json;

use super::{
    document::VALID_MAX_MS,
    ring::{RETRY_FIRST_MS, SILENCES_MAX},
    *,
};

fn document(sign_with: &[(&str, &SigningKey)]) -> String {
    let key = SigningKey::new(&[3; 32], "now").unwrap();
    let old = SigningKey::new(&[4; 32], "past").unwrap();
    let document = json!({
        "server_name": "example.org", "valid_until_ts": 5_000,
        "verify_keys": { key.id(): { "key": key.public_key() } },
        "old_verify_keys": { old.id(): { "key": old.public_key(), "expired_ts": 1_000 } },
    });
    let mut object: CanonicalJsonObject = serde_json::from_value(document).unwrap();
    object.insert("signatures".to_owned(), CanonicalJsonObject::new().into());
    for (signer, key) in sign_with {
        sign_json(signer, *key, &mut object).unwrap();
    }
    serde_json::to_string(&object).unwrap()
}

#[test]
fn keys_are_taken_from_their_own_server_alone_and_only_if_it_signed_them() {
    let key = SigningKey::new(&[3; 32], "now").unwrap();
    let old = SigningKey::new(&[4; 32], "past").unwrap();
    let server = server_name!("example.org");
    // A notary's signature and that of an old key do not matter.
    let good = document(&[("example.org", &key), ("example.org", &old), ("notary.org", &old)]);
    let published = read_keys(server, &good, 2_000).unwrap();
    assert_eq!(published.keys["ed25519:now"].valid_until_ms, 5_000);
    assert_eq!(published.keys["ed25519:past"].valid_until_ms, 1_000);
    for bad in [&[][..], &[("example.org", &old)], &[("notary.org", &key)]] {
        assert!(read_keys(server, &document(bad), 2_000).is_err());
    }
    assert!(read_keys(server_name!("other.org"), &good, 2_000).is_err());
    assert!(read_keys(server, &good.replace("5000", "6000"), 2_000).is_err(), "changed after it was signed");
}

#[test]
fn a_key_counts_while_it_is_valid_and_at_most_a_week() {
    let key = SigningKey::new(&[3; 32], "now").unwrap();
    let text = document(&[("example.org", &key)]);
    let published = read_keys(server_name!("example.org"), &text, 0).unwrap();
    let is_usable =
        |id: &str, at_ms| !usable(&published.keys, &BTreeMap::from([(id.to_owned(), at_ms)])).is_empty();
    assert!(is_usable("ed25519:now", 5_000) && !is_usable("ed25519:now", 5_001));
    assert!(is_usable("ed25519:past", 1_000) && !is_usable("ed25519:past", 1_001));
    assert!(is_usable("ed25519:past", 0) && !is_usable("ed25519:other", 0));
    let object: CanonicalJsonObject = serde_json::from_str(&text).unwrap();
    let mut far = object;
    far.remove("signatures");
    far.insert("valid_until_ts".to_owned(), CanonicalJsonValue::Integer(js_int::Int::MAX));
    sign_json("example.org", &key, &mut far).unwrap();
    let far = serde_json::to_string(&far).unwrap();
    let published = read_keys(server_name!("example.org"), &far, 7).unwrap();
    assert_eq!(published.keys["ed25519:now"].valid_until_ms, 7 + VALID_MAX_MS);
}

#[test]
fn a_server_that_fails_is_asked_less_and_less_often() {
    let mut known = Known::default();
    let mut waits = Vec::new();
    for _ in 0..9 {
        known.asked(false, 0);
        waits.push(known.ask_again_ms / RETRY_FIRST_MS);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
    known.asked(true, 0);
    assert_eq!(known.ask_again_ms, ASK_AGAIN_MS);
}

#[test]
fn what_is_signed_by_a_silent_server_may_be_checked_later_until_it_seems_gone() {
    let server = server_name!("example.org").to_owned();
    let wanted = BTreeMap::from([("ed25519:now".to_owned(), 1)]);
    let servers = BTreeSet::from([server.clone()]);
    let mut known = Known::default();
    let silent = |known: &Known| {
        let mut found = FoundKeys::default();
        found.add(&server, &wanted, (known.wanted(&wanted), known.silence()));
        found.silent(&servers).map(|(_, silence)| silence)
    };
    assert_eq!(silent(&known), None, "it was not asked");
    for failure in 1..=SILENCES_MAX + 1 {
        known.asked(false, 0);
        let silence = if failure <= SILENCES_MAX { Silence::Brief } else { Silence::Long };
        assert_eq!(silent(&known), Some(silence));
    }
    known.asked(true, 0);
    assert_eq!(silent(&known), None, "it answered, and has no such key");
}

/// One event with a time at which its key is not valid does not take that key from others.
#[test]
fn each_signature_is_checked_with_keys_of_its_own_time() {
    let server = server_name!("example.org").to_owned();
    let key = ServerKeyRecord {
        key: Base64::<ruma::serde::base64::Standard>::new(vec![7; 32]).encode(),
        valid_until_ms: 5,
    };
    let keys = DatedKeys::from([("ed25519:now".to_owned(), key)]);
    let mut found = FoundKeys::default();
    found.add(&server, &BTreeMap::from([("ed25519:now".to_owned(), 9)]), (keys, None));
    let servers = BTreeSet::from([server]);
    assert_eq!(found.valid_at(&servers, 5).len(), 1);
    assert!(found.valid_at(&servers, 6).is_empty());
}

#[test]
fn a_server_has_so_many_keys_at_most() {
    let key = |valid_until_ms| ServerKeyRecord { key: String::new(), valid_until_ms };
    let keys = |numbers: std::ops::Range<u64>| -> DatedKeys {
        numbers.map(|number| (format!("ed25519:{number:04}"), key(number))).collect()
    };
    let most = KEYS_MAX as u64;
    let mut known = Known::default();
    assert!(known.add(keys(0..most)).is_empty());
    assert_eq!(known.add(keys(most..most + 2)), ["ed25519:0000", "ed25519:0001"]);
    assert_eq!(known.keys.len(), KEYS_MAX);
}
