//! Keys, device lists and to-device messages across servers.
//!
//! Spec: server-server API, "Device Management", "End-to-End Encryption", "Send-to-device messaging".

use serde_json::{Value, json};
use tests::{Client, Server, Stranger, Synapse, segment};

use super::{KEYS, bodies, device_keys, query, to_device, upload, users};
use crate::federation::{User, eventually};

/// Two users who share a room, on two servers.
struct Pair {
    alice: User,
    bob: User,
    room: String,
}

impl Pair {
    async fn of(alice: Client, bob: Client) -> Self {
        let (alice, bob) = (User(alice), User(bob));
        let room = alice.create("11", json!({})).await;
        bob.join(&room, alice.0.server_name()).await;
        alice.sees(&room, &bob, "join").await;
        Self { alice, bob, room }
    }
}

/// The devices of a user that another one is told of.
async fn devices(asker: &Client, of: &Client) -> Vec<String> {
    let found = query(asker, &of.user_id).await;
    let devices = found["device_keys"][&of.user_id].as_object().cloned().unwrap_or_default();
    devices.keys().cloned().collect()
}

/// Syncs on until a user's devices are said to have changed, or not to matter any more.
async fn until(client: &Client, since: &mut String, which: &str, user: &Client) {
    let response = client.sync_until(since, |response| users(response, which).contains(&user.user_id)).await;
    response["next_batch"].as_str().unwrap().clone_into(since);
}

/// Everything that goes from one server to the other, in this direction.
async fn tell(pair: &Pair) {
    let (alice, bob) = (&pair.alice.0, &pair.bob.0);
    let mut since = bob.token_of_sync().await;
    upload(alice).await;
    until(bob, &mut since, "changed", alice).await;
    assert_eq!(devices(bob, alice).await, [alice.device_id.as_str()]);
    // From now on the list is kept there, and follows what happens here.
    let phone = alice.another_device(&alice.password()).await;
    let body = json!({ "device_keys": device_keys(&phone.user_id, &phone.device_id) });
    phone.post(&format!("{KEYS}/upload"), &body).await.ok();
    until(bob, &mut since, "changed", alice).await;
    eventually("the phone is known", async || (devices(bob, alice).await.len() == 2).then_some(())).await;
    let path = format!("/_matrix/client/v3/devices/{}", segment(&phone.device_id));
    alice.put(&path, &json!({ "display_name": "A phone" })).await.ok();
    phone.post("/_matrix/client/v3/logout", &json!({})).await.ok();
    until(bob, &mut since, "changed", alice).await;
    eventually("the phone is gone", async || (devices(bob, alice).await.len() == 1).then_some(())).await;

    let claim = json!({ "one_time_keys": { &alice.user_id: { &alice.device_id: "signed_curve25519" } } });
    let mut claimed = Vec::new();
    for _ in 0..3 {
        let answer = bob.post(&format!("{KEYS}/claim"), &claim).await.ok();
        let keys = answer["one_time_keys"][&alice.user_id][&alice.device_id].as_object().unwrap();
        claimed.extend(keys.keys().cloned());
    }
    claimed.sort();
    assert_eq!(claimed, ["signed_curve25519:AAAA", "signed_curve25519:AAAB", "signed_curve25519:FB"]);

    let message = |n: u64| json!({ "messages": { &bob.user_id: { "*": { "n": n } } } });
    for n in 0..3 {
        alice.put(&to_device(&format!("over{n}")), &message(n)).await.ok();
        alice.put(&to_device(&format!("over{n}")), &message(n)).await.ok();
    }
    receives(bob, &mut since, &[0, 1, 2]).await;
}

/// Waits for to-device messages, which are these and come in this order.
async fn receives(client: &Client, since: &mut String, expected: &[u64]) {
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let response = client.sync_until(since, |response| !bodies(response).is_empty()).await;
        got.extend(bodies(&response));
        response["next_batch"].as_str().unwrap().clone_into(since);
    }
    assert_eq!(got, expected);
}

#[tokio::test]
async fn keys_device_lists_and_messages_cross_over_between_ganglions() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let pair = Pair::of(one.client("alice").await, two.client("bob").await).await;
    tell(&pair).await;
    // Another pair, the other way round: who joined is told of as well.
    let back = Pair { alice: pair.bob, bob: pair.alice, room: pair.room };
    tell(&back).await;
    let (bob, alice) = (&back.alice.0, &back.bob.0);
    // What the other server may know of a user is what the user shows everyone.
    let master = json!({ "master_key": {
        "user_id": bob.user_id, "usage": ["master"], "keys": { "ed25519:Zmlyc3Q": "Zmlyc3Q" },
    } });
    let mut since = alice.token_of_sync().await;
    bob.post(&format!("{KEYS}/device_signing/upload"), &master).await.ok();
    until(alice, &mut since, "changed", bob).await;
    eventually("the master key is known", async || {
        let found = query(alice, &bob.user_id).await;
        found["master_keys"][&bob.user_id]["keys"]["ed25519:Zmlyc3Q"].is_string().then_some(())
    })
    .await;
    // A user who leaves the last shared room is no concern any more.
    back.alice.leave(&back.room).await;
    until(alice, &mut since, "left", bob).await;
}

#[tokio::test]
async fn keys_device_lists_and_messages_cross_over_to_synapse_and_back() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let ours = Pair::of(server.client("alice").await, synapse.client("bob").await).await;
    tell(&ours).await;
    let theirs = Pair::of(synapse.client("carol").await, server.client("dave").await).await;
    tell(&theirs).await;
}

#[tokio::test]
async fn what_is_sent_while_the_other_server_is_down_arrives_once() {
    let (mut one, mut two) = (Server::start_federating("").await, Server::start_federating("").await);
    let pair = Pair::of(one.client("alice").await, two.client("bob").await).await;
    let (alice, bob) = (&pair.alice.0, &pair.bob.0);
    let mut since = bob.token_of_sync().await;
    upload(alice).await;
    until(bob, &mut since, "changed", alice).await;
    assert_eq!(devices(bob, alice).await, [alice.device_id.as_str()]);
    two.kill();
    let message = |n: u64| json!({ "messages": { &bob.user_id: { "*": { "n": n } } } });
    for n in 0..120 {
        alice.put(&to_device(&format!("down{n}")), &message(n)).await.ok();
    }
    let phone = alice.another_device(&alice.password()).await;
    upload(&phone).await;
    // Neither side remembers more than is on its disk.
    one.kill();
    two.restart().await;
    // Of a server that does not answer, what is kept is better than nothing.
    assert_eq!(devices(bob, alice).await, [alice.device_id.as_str()]);
    let stranger = format!("@nobody:{}", alice.server_name());
    let body = json!({ "device_keys": { &stranger: [] }, "timeout": 1000 });
    let found = bob.post(&format!("{KEYS}/query"), &body).await.ok();
    assert!(found["failures"][alice.server_name()].is_object(), "{found}");
    let claim = json!({ "timeout": 1000, "one_time_keys": { &alice.user_id: { &alice.device_id: "a" } } });
    let answer = bob.post(&format!("{KEYS}/claim"), &claim).await.ok();
    assert!(answer["failures"][alice.server_name()].is_object(), "{answer}");

    one.restart().await;
    receives(bob, &mut since, &(0..120).collect::<Vec<_>>()).await;
    eventually("the phone is known", async || (devices(bob, alice).await.len() == 2).then_some(())).await;
    // A duplicate would have come by now: this one comes after them all.
    alice.put(&to_device("last"), &message(1000)).await.ok();
    receives(bob, &mut since, &[1000]).await;
}

/// Every answer about keys is about users of the server that is asked.
#[tokio::test]
async fn other_servers_get_only_local_users_keys() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let pair = Pair::of(one.client("alice").await, two.client("bob").await).await;
    let (alice, bob) = (&pair.alice.0, &pair.bob.0);
    let body: Value =
        json!({ "device_keys": { &alice.user_id: [], "@nobody:nowhere.test": [] }, "timeout": 500 });
    upload(alice).await;
    let found = eventually("the keys are there", async || {
        let found = bob.post(&format!("{KEYS}/query"), &body).await.ok();
        found["device_keys"][&alice.user_id][&alice.device_id].is_object().then_some(found)
    })
    .await;
    assert!(found["failures"]["nowhere.test"].is_object(), "{found}");
    assert!(found["user_signing_keys"].as_object().unwrap().is_empty());
    let named = &found["device_keys"][&alice.user_id][&alice.device_id];
    assert_eq!(named["keys"], device_keys(&alice.user_id, &alice.device_id)["keys"]);
}

#[tokio::test]
async fn another_servers_messages_are_no_larger_than_events() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = server.client("alice").await;
    let message = |id: &str, content: Value| {
        json!({ "edu_type": "m.direct_to_device", "content": {
            "sender": format!("@carol:{}", stranger.name()), "type": "m.test", "message_id": id,
            "messages": { &alice.user_id: { "*": content } },
        } })
    };
    let large = json!({ "n": 1, "text": "x".repeat(70_000) });
    let edus = [message("large", large), message("small", json!({ "n": 2 }))];
    let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": [], "edus": edus });
    stranger.put(&server, "/_matrix/federation/v1/send/messages", body).await.ok();
    assert_eq!(bodies(&alice.sync("timeout=0").await), [2]);
}
