//! Nothing acknowledged is lost, however the server ends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Server};

const ROUNDS: u64 = 10;

/// What was acknowledged: the event of each body.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

/// Sends numbered messages until told to stop; each is retried with its transaction ID until it is acknowledged.
async fn send_without_pause(client: Client, room: String, stop: Arc<AtomicBool>, acknowledged: Acknowledged) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let body = format!("{} {number}", client.user_id);
        let path = Client::room(&room, &format!("send/m.room.message/n{number}"));
        let content = json!({ "msgtype": "m.text", "body": body });
        loop {
            match client.attempt(Method::PUT, &path, Some(&content)).await {
                Ok(answer) if answer.status == 200 => {
                    let event_id = answer.body["event_id"].as_str().unwrap().to_owned();
                    acknowledged.lock().unwrap().insert(body, event_id);
                    break;
                }
                // The server is down, or on its way down.
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        number += 1;
    }
}

/// Syncs on without pause and notes every message that arrives.
async fn read_without_pause(
    client: Client,
    room: String,
    since: String,
    stop: Arc<AtomicBool>,
) -> Vec<String> {
    let (mut since, mut seen) = (since, Vec::new());
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        let filter = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A100%7D%7D%7D";
        let path = format!("/_matrix/client/v3/sync?since={since}&timeout=200&filter={filter}");
        let Ok(answer) = client.attempt(Method::GET, &path, None).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if answer.status != 200 {
            continue;
        }
        let timeline = &answer.body["rooms"]["join"][&room]["timeline"];
        let mut events = timeline["events"].as_array().cloned().unwrap_or_default();
        if timeline["limited"] == true {
            // The reader fell behind: what lies between is paged back to.
            match page_back(&client, &room, timeline["prev_batch"].as_str().unwrap(), &since).await {
                Some(gap) => events.extend(gap),
                None => continue,
            }
        }
        seen.extend(
            events.iter().filter_map(|event| event["content"]["body"].as_str()).map(ToOwned::to_owned),
        );
        let next = answer.body["next_batch"].as_str().unwrap().to_owned();
        let is_quiet = next == since;
        since = next;
        if is_last && is_quiet {
            return seen;
        }
    }
}

/// The events between two tokens; none if the server went down in between.
async fn page_back(client: &Client, room: &str, from: &str, to: &str) -> Option<Vec<Value>> {
    let (mut events, mut from) = (Vec::new(), from.to_owned());
    loop {
        let path = Client::room(room, &format!("messages?dir=b&from={from}&to={to}&limit=100"));
        let answer =
            client.attempt(Method::GET, &path, None).await.ok().filter(|answer| answer.status == 200)?;
        events.extend(answer.body["chunk"].as_array()?.iter().cloned());
        match answer.body["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => return Some(events),
        }
    }
}

#[tokio::test]
async fn killed_ten_times_it_loses_nothing_and_repeats_nothing() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let since = alice.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Acknowledged::default();
    let mut senders = Vec::new();
    for name in ["bob", "carol", "mallory", "trent"] {
        let client = server.client(name).await;
        client.join(&room).await.ok();
        senders.push(tokio::spawn(send_without_pause(
            client,
            room.clone(),
            stop.clone(),
            acknowledged.clone(),
        )));
    }
    let quiet = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read_without_pause(alice.clone(), room.clone(), since, quiet.clone()));
    for _ in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        server.kill();
        server.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    quiet.store(true, Ordering::Relaxed);
    let seen = reader.await.unwrap();
    let mut stored = BTreeMap::<String, Vec<String>>::new();
    for event in alice.all_messages(&room).await {
        if let Some(body) = event["content"]["body"].as_str() {
            let ids = stored.entry(body.to_owned()).or_default();
            ids.push(event["event_id"].as_str().unwrap().to_owned());
        }
    }
    let acknowledged = acknowledged.lock().unwrap();
    assert!(acknowledged.len() > 50, "only {} messages were sent", acknowledged.len());
    for (body, event_id) in acknowledged.iter() {
        assert_eq!(stored.get(body), Some(&vec![event_id.clone()]), "seed 7: {body}");
    }
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len(), "seed 7: a client saw a message twice");
    let missed: Vec<_> = stored.keys().filter(|body| once.binary_search(body).is_err()).collect();
    assert!(missed.is_empty(), "seed 7: a client missed {missed:?}");
}

#[tokio::test]
async fn accounts_rooms_and_tokens_survive_a_restart() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "tea" })).await;
    let since = alice.sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    alice.say(&room, "1", "before").await;
    server.stop().await;
    server.restart().await;
    alice.say(&room, "2", "after").await;
    let sync = alice.sync(&format!("since={since}&timeout=1000")).await;
    let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    let bodies: Vec<_> = events.iter().map(|event| event["content"]["body"].as_str().unwrap()).collect();
    assert_eq!(bodies, ["before", "after"]);
}

/// What an account sets off in its rooms goes on after a crash.
#[tokio::test]
async fn a_compacted_store_has_all_that_was_in_it() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "attic" })).await;
    for number in 0..50 {
        alice.say(&room, &format!("b{number}"), "box").await;
    }
    let history = async || {
        let page = alice.get(&Client::room(&room, "messages?dir=b&limit=100")).await.ok();
        let events = page["chunk"].as_array().unwrap().iter();
        events.map(|event| (event["event_id"].clone(), event["content"].clone())).collect::<Vec<_>>()
    };
    let before = history().await;
    let running = server.command(&["compact"], "").await;
    assert!(!running.status.success(), "a running server writes to its store");
    let complaint = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(complaint.contains("the server must be stopped first"), "{complaint}");
    server.stop().await;
    for _ in 0..2 {
        let output = server.command(&["compact"], "").await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("MiB now"));
    }
    server.restart().await;
    assert_eq!(history().await, before);
    alice.say(&room, "last", "one more").await;
}

#[tokio::test]
async fn a_converted_store_has_all_that_was_in_it() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "attic" })).await;
    alice.say(&room, "b", "box").await;
    let history = async || {
        let events = alice.all_messages(&room).await;
        events.iter().map(|event| (event["event_id"].clone(), event["content"].clone())).collect::<Vec<_>>()
    };
    let before = history().await;
    let running = server.command(&["convert"], "").await;
    assert!(!running.status.success(), "a running server writes to its store");
    server.kill();
    for backend in ["fjall", "sled"] {
        server.set("storage.backend", backend);
        let refused = server.command(&["compact"], "").await;
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(complaint.contains("`ganglion convert`"), "{complaint}");
        for expected in ["is converted", "already"] {
            let output = server.command(&["convert"], "").await;
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && told.contains(expected), "{told}");
        }
        server.restart().await;
        assert_eq!(history().await, before);
        server.stop().await;
    }
}

#[tokio::test]
async fn profile_changes_and_departures_are_taken_up_again() {
    const ROOMS: usize = 30;
    let mut server = Server::start_with("").await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await.ok();
        rooms.push(room);
    }
    let since = alice.token_of_sync().await;
    let name = format!("/_matrix/client/v3/profile/{}/displayname", tests::segment(&bob.user_id));
    bob.put(&name, &json!({ "displayname": "Robert" })).await.ok();
    server.kill();
    server.restart().await;
    until_everywhere(&alice, &bob, &rooms, &since, |member| member["displayname"] == "Robert").await;

    let deactivation = json!({ "erase": false });
    bob.with_password(Method::POST, "/_matrix/client/v3/account/deactivate", deactivation).await.ok();
    server.kill();
    server.restart().await;
    until_everywhere(&alice, &bob, &rooms, &since, |member| member["membership"] == "leave").await;
    // What is done is not done again.
    let before = alice.token_of_sync().await;
    server.stop().await;
    server.restart().await;
    let after = alice.sync(&format!("since={before}&timeout=0")).await;
    assert!(after["rooms"]["join"].is_null(), "{after}");
}

/// Waits until a user's membership events in all rooms are as wanted.
async fn until_everywhere(
    observer: &Client,
    user: &Client,
    rooms: &[String],
    since: &str,
    is_it: impl Fn(&Value) -> bool,
) {
    let mut since = since.to_owned();
    for _ in 0..60 {
        let mut missing = 0;
        for room in rooms {
            let member = observer.state(room, "m.room.member", &user.user_id).await.ok();
            missing += usize::from(!is_it(&member));
        }
        if missing == 0 {
            return;
        }
        let next = observer.sync(&format!("since={since}&timeout=1000")).await;
        next["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    panic!("some rooms were not told");
}
