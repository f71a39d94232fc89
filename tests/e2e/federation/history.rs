//! History that only another server has.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events".

use serde_json::json;
use tests::{Server, Synapse};

use super::User;

/// Messages that are there before the join.
const MESSAGES: usize = 500;

#[tokio::test]
async fn five_hundred_messages_of_synapse_are_paged_back_through() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    let room = bob.create("11", json!({})).await;
    for number in 0..MESSAGES {
        bob.say(&room, &format!("message {number}")).await;
    }
    alice.join(&room, synapse.server_name()).await;
    // The beginning can be found by its time, though it is not here yet.
    let path = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=0&dir=f", tests::segment(&room));
    let first = alice.0.get(&path).await.ok();
    let same = bob.0.get(&path).await.ok();
    assert_eq!(first, same);
    let events = alice.0.all_messages(&room).await;
    let said: Vec<_> = events.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    let expected: Vec<_> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    assert_eq!(said, expected);
    assert_eq!(events[0]["type"], "m.room.create");
}
