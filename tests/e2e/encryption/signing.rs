//! Which signatures on keys are taken.

use engine::pdu::SigningKey;
use ruma::{CanonicalJsonObject, canonical_json::CanonicalJsonValue, signatures::sign_json};
use serde_json::{Value, json};
use tests::Server;

use super::{KEYS, device_keys, query};

fn sign(object: &Value, user: &str, key: &SigningKey) -> Value {
    let mut object: CanonicalJsonObject = serde_json::from_value(object.clone()).unwrap();
    sign_json(user, key, &mut object).unwrap();
    serde_json::to_value(CanonicalJsonValue::Object(object)).unwrap()
}

/// Clients send along the signatures that they know of a key, also of devices that are gone.
#[tokio::test]
async fn a_signature_by_a_key_that_is_gone_does_not_stand_in_the_way() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let (user, device) = (alice.user_id.as_str(), alice.device_id.as_str());
    let key = SigningKey::new(&[5; 32], device).unwrap();
    let mut keys = device_keys(user, device);
    keys["keys"][key.id()] = key.public_key().encode().into();
    alice.post(&format!("{KEYS}/upload"), &json!({ "device_keys": keys })).await.ok();
    let master = json!({ "user_id": user, "usage": ["master"], "keys": { "ed25519:bWFzdGVy": "bWFzdGVy" } });
    let path = format!("{KEYS}/device_signing/upload");
    alice.post(&path, &json!({ "master_key": master })).await.ok();
    let upload = async |signed: &Value| {
        let body = json!({ user: { "bWFzdGVy": signed } });
        let answer = alice.post(&format!("{KEYS}/signatures/upload"), &body).await.ok();
        answer["failures"][user]["bWFzdGVy"]["errcode"].clone()
    };
    let signed_by = |name: &str| {
        let mut signed = master.clone();
        signed["signatures"] = json!({ user: { name: "c3RhbGU" } });
        signed
    };
    assert_eq!(upload(&signed_by("ed25519:GONE")).await, "M_INVALID_SIGNATURE", "nothing is left of it");
    assert_eq!(upload(&signed_by(&key.id())).await, "M_INVALID_SIGNATURE");
    let signed = sign(&signed_by("ed25519:GONE"), user, &key);
    assert_eq!(signed["signatures"][user].as_object().unwrap().len(), 2);
    for _ in 0..2 {
        assert_eq!(upload(&signed).await, Value::Null);
    }
    let found = query(&alice, user).await;
    let signatures = found["master_keys"][user]["signatures"][user].as_object().unwrap();
    assert_eq!(signatures.keys().collect::<Vec<_>>(), [&key.id()]);
}
