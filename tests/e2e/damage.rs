//! Rows of the store that cannot be read: what needs them fails or goes without them, and all else goes on.

use std::time::Duration;

use bytes::Bytes;
use engine::id::{ShortEventId, ShortRoomId, TimelineIndex};
use reqwest::Method;
use ruma::OwnedEventId;
use serde_json::{Value, json};
use storage::{Backend, Direction, Durability, Files, KeyRange, Storage, Table, schema};
use tests::{Client, Server, segment};

use crate::federation::eventually;

/// Longer than the server may think about anything here.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

/// Messages of a room: more than the server keeps at hand for each.
const MESSAGES: usize = 100;

/// The store of a server that has stopped.
async fn store_of(server: &Server) -> Storage {
    let files = Files { path: server.data_dir().join("store"), cache_bytes: 16 << 20 };
    let store = Backend::Sled(files).open().await.unwrap();
    Storage::open(store, Durability::Always).await.unwrap()
}

async fn short_of(storage: &Storage, event: &str) -> ShortEventId {
    let event = OwnedEventId::try_from(event).unwrap();
    storage.get(&schema::EVENT_IDS, &event).await.unwrap().unwrap()
}

/// Writes what no build can read in the place of an event.
async fn damage_event(server: &Server, event: &str) {
    let storage = store_of(server).await;
    let short = short_of(&storage, event).await;
    let events = Table::<ShortEventId, Bytes>::new(schema::EVENTS.id().0, "EVENTS");
    let mut batch = storage::Batch::new();
    batch.put(&events, &short, &Bytes::from_static(b"\xffdamaged"));
    storage.commit(batch).await.unwrap();
    storage.close().await.unwrap();
}

/// The same for an event's place in the timeline.
async fn damage_place(server: &Server, event: &str) {
    let storage = store_of(server).await;
    let short = short_of(&storage, event).await;
    // As they are: another may be damaged already.
    let places = Table::<(ShortRoomId, TimelineIndex), Bytes>::new(schema::TIMELINE.id().0, "TIMELINE");
    let rows = storage.range(&places, KeyRange::all(), Direction::Ascending, usize::MAX).await.unwrap();
    let (place, _) = rows.into_iter().find(|(_, at)| **at == short.0.to_be_bytes()).unwrap();
    let mut batch = storage::Batch::new();
    batch.put(&places, &place, &Bytes::from_static(b"\xff"));
    storage.commit(batch).await.unwrap();
    storage.close().await.unwrap();
}

/// Asks for something: there has to be an answer, whatever it is.
async fn answered(client: &Client, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
    let answer = tokio::time::timeout(ANSWERS_MAX, client.attempt(method, path, body)).await;
    let answer = answer.unwrap_or_else(|_| panic!("{path} hangs"));
    let answer = answer.unwrap_or_else(|error| panic!("{path}: {error:?}"));
    assert!((200..600).contains(&answer.status), "{path}: {}", answer.status);
    (answer.status, answer.body)
}

/// Everything that reads a room's events.
async fn read_all(client: &Client, room: &str, event: &str, since: &str) {
    let filter = segment(&json!({ "room": { "timeline": { "limit": 100 } } }).to_string());
    let paths = [
        Client::room(room, "messages?dir=b&limit=100"),
        Client::room(room, "messages?dir=f&limit=100"),
        Client::room(room, &format!("context/{}", segment(event))),
        Client::room(room, &format!("event/{}", segment(event))),
        Client::room(room, "members"),
        Client::room(room, "state"),
        Client::room(room, "threads").replace("/v3/", "/v1/"),
        Client::room(room, &format!("relations/{}", segment(event))).replace("/v3/", "/v1/"),
        Client::room(room, "timestamp_to_event?ts=1&dir=f").replace("/v3/", "/v1/"),
        Client::room(room, "initialSync?limit=100"),
        format!("/_matrix/client/v3/sync?timeout=0&filter={filter}"),
        format!("/_matrix/client/v3/sync?timeout=0&since={since}&filter={filter}"),
        "/_matrix/client/v3/notifications".to_owned(),
    ];
    for path in paths {
        answered(client, Method::GET, &path, None).await;
    }
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 100, "required_state": [["*", "*"]] });
    let sliding = json!({ "lists": { "all": list } });
    answered(client, Method::POST, "/_matrix/client/v4/sync", Some(&sliding)).await;
    let search = json!({ "search_categories": { "room_events": { "search_term": "tea" } } });
    answered(client, Method::POST, "/_matrix/client/v3/search", Some(&search)).await;
    let receipt = Client::room(room, &format!("receipt/m.read/{}", segment(event)));
    answered(client, Method::POST, &receipt, Some(&json!({}))).await;
    let redaction = Client::room(room, &format!("redact/{}/once", segment(event)));
    answered(client, Method::PUT, &redaction, Some(&json!({}))).await;
}

/// Alice with two rooms, the first with many messages; the messages, and a token of a sync before them.
async fn server() -> (Server, Client, [String; 2], Vec<String>, String) {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let rooms = [alice.create_room(json!({})).await, alice.create_room(json!({})).await];
    let since = alice.token_of_sync().await;
    let mut messages = Vec::new();
    for number in 0..MESSAGES {
        messages.push(alice.say(&rooms[0], &number.to_string(), &format!("tea number {number}")).await);
    }
    (server, alice, rooms, messages, since)
}

/// The other room is as it was, and nothing has panicked.
async fn all_else_goes_on(server: &Server, alice: &Client, room: &str) {
    let said = alice.say(room, "after", "coffee").await;
    let sync = alice.sync("timeout=0").await;
    let events = sync["rooms"]["join"][room]["timeline"]["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["event_id"] == said.as_str()), "{events:?}");
    let log = server.log();
    let panicked = log.lines().find(|line| line.contains("panicked at"));
    assert_eq!(panicked, None);
}

#[tokio::test]
async fn an_old_event_that_cannot_be_read_is_left_out_or_an_error() {
    let (mut server, alice, [room, other], messages, since) = server().await;
    server.stop().await;
    damage_event(&server, &messages[10]).await;
    server.restart().await;
    read_all(&alice, &room, &messages[10], &since).await;
    // The room itself goes on.
    alice.say(&room, "after", "more tea").await;
    let newest = alice.get(&Client::room(&room, "messages?dir=b&limit=20")).await.ok();
    assert_eq!(newest["chunk"].as_array().unwrap().len(), 20);
    all_else_goes_on(&server, &alice, &other).await;
}

#[tokio::test]
async fn the_newest_event_that_cannot_be_read_keeps_nobody_from_other_rooms() {
    let (mut server, alice, [room, other], messages, since) = server().await;
    server.stop().await;
    damage_event(&server, messages.last().unwrap()).await;
    server.restart().await;
    read_all(&alice, &room, messages.last().unwrap(), &since).await;
    all_else_goes_on(&server, &alice, &other).await;
}

#[tokio::test]
async fn a_place_in_a_timeline_that_cannot_be_read_keeps_nobody_from_other_rooms() {
    let (mut server, alice, [room, other], messages, since) = server().await;
    server.stop().await;
    damage_place(&server, &messages[10]).await;
    server.restart().await;
    read_all(&alice, &room, &messages[10], &since).await;
    alice.say(&room, "after", "more tea").await;
    server.stop().await;
    damage_place(&server, messages.last().unwrap()).await;
    server.restart().await;
    read_all(&alice, &room, messages.last().unwrap(), &since).await;
    all_else_goes_on(&server, &alice, &other).await;
}

/// An event that cannot be read is not found; those after it are.
#[tokio::test]
async fn the_full_text_index_goes_on_after_an_event_that_cannot_be_read() {
    let (mut server, alice, [room, _], messages, _) = server().await;
    server.stop().await;
    damage_event(&server, &messages[10]).await;
    // It is made anew.
    std::fs::remove_dir_all(server.data_dir().join("search")).unwrap();
    server.restart().await;
    let last = alice.say(&room, "last", "biscuits").await;
    let found = async |term: &str| {
        let search = json!({ "search_categories": { "room_events": { "search_term": term } } });
        let answer = alice.post("/_matrix/client/v3/search", &search).await.ok();
        answer["search_categories"]["room_events"].clone()
    };
    eventually("what came after it is found", async || (found("biscuits").await["count"] == 1).then_some(()))
        .await;
    assert_eq!(found("biscuits").await["results"][0]["result"]["event_id"], last.as_str());
    assert_eq!(found("tea").await["count"], MESSAGES - 1);
    let said = server.log().matches("left out of the full-text index").count();
    assert_eq!(said, 1, "it is said once");
}
