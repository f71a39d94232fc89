//! What may be lost on the way: presence, receipts; and profiles, which are asked for.

use serde_json::{Value, json};
use tests::{Guest, Reply, Server, Stranger, Synapse, segment};

use super::{User, eventually, path};

/// Two users of two servers in one room.
async fn in_one_room(alice: &User, bob: &User) -> String {
    let room = alice.create("11", json!({})).await;
    bob.join(&room, alice.0.server_name()).await;
    alice.sees(&room, bob, "join").await;
    room
}

/// `watcher` learns of the presence of `shower`, from the server that is asked and from `/sync`.
async fn sees_presence(watcher: &User, shower: &User, status: &str) {
    let path = format!("/_matrix/client/v3/presence/{}/status", segment(shower.id()));
    let mut since = watcher.sync_token().await;
    shower.0.put(&path, &json!({ "presence": "online", "status_msg": status })).await.ok();
    eventually("presence arrives", async || {
        let query = format!("since={}&timeout=500&set_presence=offline", segment(&since));
        let sync = watcher.0.sync(&query).await;
        sync["next_batch"].as_str().unwrap().clone_into(&mut since);
        let events = sync["presence"]["events"].as_array().cloned().unwrap_or_default();
        let is_it =
            |event: &Value| event["sender"] == shower.id() && event["content"]["status_msg"] == status;
        events.iter().any(is_it).then_some(())
    })
    .await;
    assert_eq!(watcher.0.get(&path).await.ok()["status_msg"], status);
}

/// Receipts of threads do not stand in the way of each other.
async fn sees_threaded_receipts(watcher: &User, reader: &User, room: &str) {
    let (root, said) = (watcher.say(room, "a root").await, format!("{} in a thread", watcher.id()));
    let content = json!({
        "msgtype": "m.text", "body": said,
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    let threaded = watcher.send(room, "m.room.message", "thread", &content).await;
    reader.hears(room, &said).await;
    let mut since = watcher.sync_token().await;
    for (event, thread) in [(&root, "main"), (&threaded, &root)] {
        let body = json!({ "thread_id": thread });
        reader.0.post(&path(room, &format!("receipt/m.read/{event}")), &body).await.ok();
    }
    let (mut main, mut thread) = (false, false);
    eventually("both receipts arrive", async || {
        for event in watcher.ephemeral(room, &mut since).await {
            main |= event["content"][&root]["m.read"][reader.id()]["thread_id"] == "main";
            thread |= event["content"][&threaded]["m.read"][reader.id()]["thread_id"] == root.as_str();
        }
        (main && thread).then_some(())
    })
    .await;
}

#[tokio::test]
async fn presence_and_threaded_receipts_go_between_synapse_and_ganglion() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    let room = in_one_room(&alice, &bob).await;
    sees_presence(&alice, &bob, "from synapse").await;
    sees_presence(&bob, &alice, "from ganglion").await;
    sees_threaded_receipts(&alice, &bob, &room).await;
    sees_threaded_receipts(&bob, &alice, &room).await;
}

#[tokio::test]
async fn presence_is_kept_where_the_operator_wants_it_and_seen_by_those_who_share_a_room() {
    let quiet = Server::start_federating("send_presence = false\n").await;
    let other = Server::start_federating("").await;
    let (alice, bob) = (User(quiet.client("alice").await), User(other.client("bob").await));
    let (carol, dave) = (User(quiet.client("carol").await), User(other.client("dave").await));
    let room = in_one_room(&alice, &bob).await;
    carol.join(&room, quiet.name()).await;
    sees_presence(&alice, &bob, "here").await;
    // A client that starts later is told of all who are there.
    let first = carol.0.sync("timeout=0&set_presence=offline").await;
    let events = first["presence"]["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["sender"] == bob.id()), "{first}");
    let path = |user: &User| format!("/_matrix/client/v3/presence/{}/status", segment(user.id()));
    alice.0.put(&path(&alice), &json!({ "presence": "online", "status_msg": "hush" })).await.ok();
    sees_threaded_receipts(&bob, &alice, &room).await;
    assert_eq!(bob.0.get(&path(&alice)).await.ok()["presence"], "offline");
    alice.0.get(&path(&dave)).await.is(403, "M_FORBIDDEN");
}

/// What a server got of a type of EDU.
fn edus(stranger: &Stranger, kind: &str) -> Vec<Value> {
    let transactions = stranger.heard("/_matrix/federation/v1/send/");
    let edus = transactions.iter().filter_map(|heard| heard.json()["edus"].as_array().cloned()).flatten();
    edus.filter(|edu| edu["edu_type"] == kind).map(|edu| edu["content"].clone()).collect()
}

#[tokio::test]
async fn a_server_that_comes_to_a_room_is_told_who_is_there() {
    let (server, early, late) =
        (Server::start_federating("").await, Stranger::start().await, Stranger::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(server.client("bob").await));
    let room = alice.create("11", json!({})).await;
    let elsewhere = bob.create("11", json!({})).await;
    let path = |user: &User| format!("/_matrix/client/v3/presence/{}/status", segment(user.id()));
    for user in [&alice, &bob] {
        let status = format!("status of {}", user.id());
        user.0.put(&path(user), &json!({ "presence": "online", "status_msg": status })).await.ok();
    }
    let knows = |stranger: &Stranger, user: &User| {
        let told = edus(stranger, "m.presence");
        let mut told = told.iter().filter_map(|content| content["push"].as_array()).flatten();
        told.any(|push| {
            push["user_id"] == user.id() && push["status_msg"] == format!("status of {}", user.id())
        })
    };
    early.join(&server, &room, "early").await;
    eventually("the first server knows alice", async || knows(&early, &alice).then_some(())).await;
    late.join(&server, &room, "late").await;
    eventually("the second server knows alice", async || knows(&late, &alice).then_some(())).await;
    // Who is in another room is none of their business, until they share one.
    assert!(!knows(&early, &bob) && !knows(&late, &bob));
    late.join(&server, &elsewhere, "late").await;
    eventually("the second server knows bob", async || knows(&late, &bob).then_some(())).await;
    bob.join(&room, server.name()).await;
    eventually("the first server knows bob", async || knows(&early, &bob).then_some(())).await;
}

#[tokio::test]
async fn a_receipt_that_comes_before_its_event_counts_once_the_event_is_there() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut guest = stranger.join(&server, &room, "carol").await;
    let content = json!({ "msgtype": "m.text", "body": "read before it came" });
    let event = stranger.event(&mut guest, "m.room.message", None, &content);
    let receipts = json!({ &room: { "m.read": { guest.user.as_str(): {
        "data": { "ts": 1_500_000_000_000_u64 }, "event_ids": [event.event_id()],
    } } } });
    let body = json!({
        "origin": stranger.name(), "origin_server_ts": 1, "pdus": [],
        "edus": [{ "edu_type": "m.receipt", "content": receipts }],
    });
    let mut since = alice.sync_token().await;
    stranger.put(&server, "/_matrix/federation/v1/send/receipt", body).await.ok();
    stranger.send(&server, "event", &[&event]).await;
    eventually("the receipt is there", async || {
        let news = alice.ephemeral(&room, &mut since).await;
        let of_event = |event_: &Value| event_["content"][event.event_id().as_str()]["m.read"].clone();
        news.iter().map(of_event).find(|read| read[guest.user.as_str()]["ts"] == 1_500_000_000_000_u64)
    })
    .await;
}

/// Sends receipts of a guest, each for a thread.
async fn send_receipts(
    stranger: &Stranger,
    server: &Server,
    guest: &Guest,
    txn: &str,
    read: &[(&str, &str)],
) {
    let receipt = |(event, thread): &(&str, &str)| {
        let receipt = json!({ "data": { "ts": 1, "thread_id": thread }, "event_ids": [event] });
        let content = json!({ guest.room_id.as_str(): { "m.read": { guest.user.as_str(): receipt } } });
        json!({ "edu_type": "m.receipt", "content": content })
    };
    let edus: Vec<_> = read.iter().map(receipt).collect();
    let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": [], "edus": edus });
    stranger.put(server, &format!("/_matrix/federation/v1/send/{txn}"), body).await.ok();
}

/// The threads of a room in which a user has receipts, with the events.
async fn threads_read(watcher: &User, room: &str, reader: &str) -> Vec<(String, String)> {
    let sync = watcher.0.sync("timeout=0").await;
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
    let contents = events.iter().filter_map(|event| event["content"].as_object()).flatten();
    let reads = contents.filter_map(|(event, content)| {
        let thread = content["m.read"][reader]["thread_id"].as_str()?;
        Some((thread.to_owned(), event.clone()))
    });
    reads.collect()
}

#[tokio::test]
async fn receipts_are_for_threads_that_their_events_are_in_and_for_so_many() {
    const THREADS_MAX: usize = 200;
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let guest = stranger.join(&server, &room, "carol").await;
    let said = alice.say(&room, "in no thread").await;
    let long = format!("${}", "x".repeat(300));
    let read = [(said.as_str(), "no thread"), (&said, "$another"), (&said, &long), (&said, "main")];
    send_receipts(&stranger, &server, &guest, "few", &read).await;
    let expected = vec![("main".to_owned(), said.clone())];
    assert_eq!(threads_read(&alice, &room, guest.user.as_str()).await, expected);

    // A root is in its own thread.
    let mut roots = Vec::new();
    for number in 0..=THREADS_MAX {
        roots.push(alice.say(&room, &format!("root {number}")).await);
    }
    let read: Vec<_> = roots.iter().map(|root| (root.as_str(), root.as_str())).collect();
    for (number, read) in read.chunks(100).enumerate() {
        send_receipts(&stranger, &server, &guest, &format!("many{number}"), read).await;
    }
    let threads = threads_read(&alice, &room, guest.user.as_str()).await;
    let has = |root: &String| threads.iter().any(|(thread, _)| thread == root);
    assert_eq!(threads.len(), THREADS_MAX + 1, "the main timeline and the newest threads");
    assert!(!has(&roots[0]) && roots[1..].iter().all(has));
}

/// Spec: server-server API, `m.receipt`: a receipt is for one event.
#[tokio::test]
async fn a_receipt_is_for_a_few_events_at_most() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let guest = stranger.join(&server, &room, "carol").await;
    let (first, last) = (alice.say(&room, "first").await, alice.say(&room, "last").await);
    let unknown = (0..20).map(|number| format!("$unknown{number}"));
    let events: Vec<_> = [first.clone()].into_iter().chain(unknown).chain([last.clone()]).collect();
    let receipt = json!({ "data": { "ts": 1 }, "event_ids": events });
    let content = json!({ &room: { "m.read": { guest.user.as_str(): receipt } } });
    let edus = [json!({ "edu_type": "m.receipt", "content": content })];
    let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": [], "edus": edus });
    stranger.put(&server, "/_matrix/federation/v1/send/many", body).await.ok();
    let sync = alice.0.sync("timeout=0").await;
    let events = sync["rooms"]["join"][&room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
    let has = |event: &str| events.iter().any(|read| read["content"].get(event).is_some());
    assert!(has(&first), "the first of them counts: {events:?}");
    assert!(!has(&last), "one after twenty others does not: {events:?}");
}

#[tokio::test]
async fn profiles_of_other_servers_are_kept_for_a_moment() {
    let (one, mut two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let path = format!("/_matrix/client/v3/profile/{}", segment(bob.id()));
    bob.0.put(&format!("{path}/displayname"), &json!({ "displayname": "Bob" })).await.ok();
    assert_eq!(alice.0.get(&path).await.ok()["displayname"], "Bob");
    let nobody = format!("/_matrix/client/v3/profile/{}", segment(&format!("@nobody:{}", two.name())));
    alice.0.get(&nobody).await.is(404, "M_NOT_FOUND");
    two.kill();
    assert_eq!(alice.0.get(&format!("{path}/displayname")).await.ok()["displayname"], "Bob");
    alice.0.get(&format!("{path}/avatar_url")).await.is(404, "M_NOT_FOUND");
    let other = format!("/_matrix/client/v3/profile/{}", segment(&format!("@other:{}", two.name())));
    assert_eq!(alice.0.get(&other).await.status, 502);
}

/// Spec: server-server API, `/query/profile`: null says that a field is not set.
#[tokio::test]
async fn fields_that_another_server_says_are_not_set_are_not_shown() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    stranger.on(|heard| {
        let profile = json!({
            "displayname": null, "avatar_url": 5, "m.tz": "Europe/London", "org.example.a": null, "org.example.b": 1,
        });
        heard.uri.contains("/query/profile").then_some(Reply::Json(200, profile))
    });
    let path = format!("/_matrix/client/v3/profile/{}", segment(&format!("@bob:{}", stranger.name())));
    let profile = alice.0.get(&path).await.ok();
    assert_eq!(profile, json!({ "m.tz": "Europe/London", "org.example.b": 1 }));
    for field in ["displayname", "avatar_url", "org.example.a"] {
        alice.0.get(&format!("{path}/{field}")).await.is(404, "M_NOT_FOUND");
    }
}
