//! Dehydrated devices, which get messages while nobody is there.
//!
//! Spec: MSC3814.

use serde_json::json;
use tests::Server;

use super::{device_keys, query, to_device};

const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

#[tokio::test]
async fn a_dehydrated_device_gets_messages() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    alice.get(DEHYDRATED).await.is(404, "M_NOT_FOUND");
    let body = json!({
        "device_id": "DRY",
        "device_data": { "algorithm": "m.dehydration.v2" },
        "device_keys": device_keys(&alice.user_id, "DRY"),
        "one_time_keys": { "signed_curve25519:AAAA": { "key": "a" } },
    });
    assert_eq!(alice.put(DEHYDRATED, &body).await.ok()["device_id"], "DRY");
    assert_eq!(alice.get(DEHYDRATED).await.ok()["device_data"]["algorithm"], "m.dehydration.v2");
    let message = json!({ "messages": { &alice.user_id: { "DRY": { "n": 1 } } } });
    bob.put(&to_device("1"), &message).await.ok();
    let events = format!("{DEHYDRATED}/DRY/events");
    let page = alice.post(&events, &json!({})).await.ok();
    assert_eq!(page["events"][0]["content"]["n"], 1);
    let rest = alice.post(&events, &json!({ "next_batch": page["next_batch"] })).await.ok();
    assert_eq!(rest["events"], json!([]));
    bob.post(&events, &json!({})).await.is(403, "M_FORBIDDEN");
    bob.get(&events).await.is(403, "M_FORBIDDEN");
    assert_eq!(alice.delete(DEHYDRATED, &json!({})).await.ok()["device_id"], "DRY");
    alice.get(DEHYDRATED).await.is(404, "M_NOT_FOUND");
    let found = query(&bob, &alice.user_id).await;
    assert_eq!(found["device_keys"][&alice.user_id], json!({}));
}

/// As clients of today read: until no page follows.
#[tokio::test]
async fn a_dehydrated_devices_messages_are_read_in_pages() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let body = json!({
        "device_id": "DRY",
        "device_data": { "algorithm": "m.dehydration.v2" },
        "device_keys": device_keys(&alice.user_id, "DRY"),
    });
    alice.put(DEHYDRATED, &body).await.ok();
    let events = format!("{DEHYDRATED}/DRY/events");
    assert_eq!(alice.get(&events).await.ok(), json!({ "events": [] }));
    for n in 1..=102 {
        let message = json!({ "messages": { &alice.user_id: { "DRY": { "n": n } } } });
        bob.put(&to_device(&n.to_string()), &message).await.ok();
    }
    for (limit, pages) in [("", 2), ("&limit=50", 3), ("&limit=51", 2), ("&limit=1000", 2)] {
        let (mut read, mut from) = (Vec::new(), vec![String::new()]);
        while let Some(token) = from.last().filter(|_| from.len() <= pages) {
            let page = alice.get(&format!("{events}?from={token}{limit}")).await.ok();
            read.extend(page["events"].as_array().unwrap().iter().filter_map(|m| m["content"]["n"].as_u64()));
            match page["next_batch"].as_str() {
                Some(next) => from.push(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(read, (1..=102).collect::<Vec<u64>>(), "{limit}");
        assert_eq!(from.len(), pages, "{limit}");
    }
    alice.get(&format!("{events}?limit=0")).await.is(400, "M_INVALID_PARAM");
    alice.get(&format!("{events}?from=x")).await.is(400, "M_INVALID_PARAM");
}
