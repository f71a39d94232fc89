//! Rooms in which a policy server is asked before anything is sent.
//!
//! Spec: server-server API, "Policy Servers".

use engine::pdu::{self, Pdu, SigningKey};
use ruma::OwnedServerName;
use serde_json::{Value, json};
use tests::{Reply, Server, Stranger, segment};

use super::{User, path};

/// Makes a stranger a policy server that refuses spam; returns its key.
fn police(stranger: &Stranger) -> String {
    let key = SigningKey::new(&[9; 32], "policy_server").unwrap();
    let public = key.public_key().encode();
    let name: OwnedServerName = stranger.name().try_into().unwrap();
    let rules = engine::room_version::rules(&"11".try_into().unwrap()).unwrap();
    stranger.on(move |heard| {
        if heard.uri != "/_matrix/policy/v1/sign" {
            return None;
        }
        if heard.json().to_string().contains("too fast") {
            return Some(Reply::Json(429, slow_down()));
        }
        if heard.json().to_string().contains("malformed") {
            return Some(Reply::Json(400, json!({ "errcode": "M_INVALID_PARAM", "error": "no such thing" })));
        }
        if heard.json().to_string().contains("log out") {
            return Some(Reply::Json(401, json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "who are you?" })));
        }
        if heard.json().to_string().contains("spam") {
            return Some(Reply::Json(400, json!({ "errcode": "M_FORBIDDEN", "error": "no spam here" })));
        }
        let event = Pdu::parse(&heard.body, rules).unwrap();
        let signed = pdu::countersign(&event, &key, &name, rules).unwrap();
        let signed: Value = serde_json::from_slice(signed.raw()).unwrap();
        let signature = &signed["signatures"][name.as_str()]["ed25519:policy_server"];
        Some(Reply::Json(200, json!({ name.as_str(): { "ed25519:policy_server": signature } })))
    });
    public
}

fn slow_down() -> Value {
    json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": 7000, "org.example.why": [1] })
}

fn asked(stranger: &Stranger) -> usize {
    stranger.heard("/_matrix/policy/v1/sign").len()
}

async fn is_shown(user: &User, room: &str, event: &Pdu) -> bool {
    user.0.get(&path(room, &format!("event/{}", segment(event.event_id().as_str())))).await.status == 200
}

#[tokio::test]
async fn what_the_policy_server_refuses_is_not_sent_and_not_shown() {
    let server = Server::start_federating("").await;
    let (police_server, other) = (Stranger::start().await, Stranger::start().await);
    let key = police(&police_server);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let content = json!({ "via": police_server.name(), "public_keys": { "ed25519": key } });
    alice.set(&room, "m.room.policy", "", &content).await;
    // Not in the room, it is not asked.
    alice.say(&room, "spam, but nobody is asked").await;
    assert_eq!(asked(&police_server), 0);
    police_server.join(&server, &room, "police").await;
    let mut guest = other.join(&server, &room, "guest").await;
    let before = asked(&police_server);
    let hello = alice.say(&room, "hello").await;
    assert_eq!(asked(&police_server), before + 1);
    // The same transaction again is no new event.
    assert_eq!(alice.say(&room, "hello").await, hello);
    assert_eq!(asked(&police_server), before + 1);
    let sent = super::eventually("it is sent", async || {
        other
            .received()
            .into_iter()
            .find(|event| event["event_id"] == hello || event["content"]["body"] == "hello")
    })
    .await;
    assert!(sent["signatures"][police_server.name()]["ed25519:policy_server"].is_string(), "{sent}");
    let spam = json!({ "msgtype": "m.text", "body": "spam" });
    let refused = alice.0.put(&path(&room, "send/m.room.message/spam"), &spam).await;
    assert_eq!(
        (refused.status, &refused.body),
        (400, &json!({ "errcode": "M_FORBIDDEN", "error": "no spam here" }))
    );
    // Its words are passed on, unless clients would take themselves for logged out.
    let no_such_thing = json!({ "errcode": "M_INVALID_PARAM", "error": "no such thing" });
    for (text, status, said) in [("too fast", 429, slow_down()), ("malformed", 400, no_such_thing)] {
        let content = json!({ "msgtype": "m.text", "body": text });
        let txn = path(&room, &format!("send/m.room.message/{}", segment(text)));
        let refused = alice.0.put(&txn, &content).await;
        assert_eq!((refused.status, refused.body), (status, said));
    }
    let log_out = json!({ "msgtype": "m.text", "body": "log out" });
    let refused = alice.0.put(&path(&room, "send/m.room.message/out"), &log_out).await;
    assert_eq!((refused.status, &refused.body["errcode"]), (502, &json!("M_UNKNOWN")), "{}", refused.body);
    // Memberships are events, too.
    let bob = User(server.client("bob").await);
    let before = asked(&police_server);
    bob.join(&room, server.name()).await;
    assert_eq!(asked(&police_server), before + 1);
    // What others send without a signature is asked about; what is signed is not.
    let message = |body: &str| json!({ "msgtype": "m.text", "body": body });
    let fine = other.event(&mut guest, "m.room.message", None, &message("fine"));
    let tips = guest.tips.clone();
    let spam = other.event_after(&guest, &tips, "m.room.message", None, &message("spam of others"));
    let before = asked(&police_server);
    let results = other.send(&server, "mixed", &[&fine, &spam]).await;
    assert_eq!(results[spam.event_id().as_str()], json!({}), "{results}");
    assert_eq!(asked(&police_server), before + 2);
    assert!(is_shown(&alice, &room, &fine).await);
    assert!(!is_shown(&alice, &room, &spam).await);
    let policy_key = SigningKey::new(&[9; 32], "policy_server").unwrap();
    let name: OwnedServerName = police_server.name().try_into().unwrap();
    let signed = other.event(&mut guest, "m.room.message", None, &message("signed beforehand"));
    let signed = pdu::countersign(&signed, &policy_key, &name, guest.rules).unwrap();
    let results = other.send(&server, "signed", &[&signed]).await;
    assert_eq!(results[signed.event_id().as_str()], json!({}), "{results}");
    assert_eq!(asked(&police_server), before + 2);
    assert!(is_shown(&alice, &room, &signed).await);
    // A policy server that is broken can be removed without being asked.
    police_server.on(|heard| heard.uri.contains("/policy/").then(|| Reply::Json(500, json!({}))));
    let stuck = alice.0.put(&path(&room, "send/m.room.message/stuck"), &message("stuck")).await;
    assert_eq!(stuck.status, 502, "{}", stuck.body);
    alice.set(&room, "m.room.policy", "", &json!({})).await;
    alice.say(&room, "free again").await;
}
