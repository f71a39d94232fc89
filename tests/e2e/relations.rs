//! Events that relate to others: edits, reactions, threads, references.

mod bundled;

use serde_json::{Value, json};
use tests::{Client, Server, segment};

fn related(rel_type: &str, target: &str, mut content: Value) -> Value {
    content["m.relates_to"] = json!({ "rel_type": rel_type, "event_id": target });
    content
}

fn edit(target: &str, text: &str) -> Value {
    let new = json!({ "msgtype": "m.text", "body": text });
    related("m.replace", target, json!({ "msgtype": "m.text", "body": text, "m.new_content": new }))
}

fn reply(root: &str, text: &str) -> Value {
    related("m.thread", root, json!({ "msgtype": "m.text", "body": text }))
}

fn reaction(target: &str, key: &str) -> Value {
    json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key } })
}

async fn send(client: &Client, room: &str, kind: &str, txn: &str, content: Value) -> String {
    let answer = client.send(room, kind, txn, &content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn redact(client: &Client, room: &str, event: &str, txn: &str) {
    let path = Client::room(room, &format!("redact/{}/{txn}", segment(event)));
    client.put(&path, &json!({})).await.ok();
}

fn relations(room: &str, event: &str, rest: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/relations/{}{rest}", segment(room), segment(event))
}

fn threads(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/threads{rest}", segment(room))
}

async fn bundle(client: &Client, room: &str, event: &str) -> Value {
    let event = client.get(&Client::room(room, &format!("event/{}", segment(event)))).await.ok();
    event["unsigned"]["m.relations"].clone()
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["chunk"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_latest_valid_edit_comes_with_its_message() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let hello = alice.say(&room, "1", "helo").await;
    assert_eq!(bundle(&bob, &room, &hello).await, Value::Null);
    let first = send(&alice, &room, "m.room.message", "2", edit(&hello, "hello")).await;
    let second = send(&alice, &room, "m.room.message", "3", edit(&hello, "hello!")).await;
    send(&bob, &room, "m.room.message", "4", edit(&hello, "not his")).await;
    send(&alice, &room, "org.example.other", "5", edit(&hello, "not its type")).await;
    let without = related("m.replace", &hello, json!({ "msgtype": "m.text", "body": "nothing new" }));
    send(&alice, &room, "m.room.message", "6", without).await;
    send(&alice, &room, "m.room.message", "7", edit(&first, "an edit of an edit")).await;
    let edited = bundle(&bob, &room, &hello).await;
    assert_eq!(edited["m.replace"]["event_id"], second);
    assert_eq!(edited["m.replace"]["content"]["m.new_content"]["body"], "hello!");
    assert_eq!(bundle(&bob, &room, &first).await, Value::Null);

    let is_bundled = |events: &Value| {
        let mut events = events.as_array().unwrap().iter();
        let event = events.find(|event| event["event_id"] == hello.as_str()).unwrap();
        assert_eq!(event["content"]["body"], "helo");
        assert_eq!(event["unsigned"]["m.relations"]["m.replace"]["event_id"], second);
    };
    is_bundled(&bob.get(&Client::room(&room, "messages?dir=b&limit=20")).await.ok()["chunk"]);
    is_bundled(&bob.sync("timeout=0").await["rooms"]["join"][&room]["timeline"]["events"]);
    let context = bob.get(&Client::room(&room, &format!("context/{}", segment(&first)))).await.ok();
    is_bundled(&context["events_before"]);
    let context = bob.get(&Client::room(&room, &format!("context/{}", segment(&hello)))).await.ok();
    is_bundled(&json!([context["event"]]));

    redact(&alice, &room, &second, "8").await;
    assert_eq!(bundle(&bob, &room, &hello).await["m.replace"]["event_id"], first);
    redact(&alice, &room, &hello, "9").await;
    assert_eq!(bundle(&bob, &room, &hello).await, Value::Null);
}

#[tokio::test]
async fn nobody_annotates_an_event_twice_alike() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let hello = alice.say(&room, "1", "hello").await;
    let tea = send(&alice, &room, "m.reaction", "2", reaction(&hello, "tea")).await;
    alice.send(&room, "m.reaction", "3", &reaction(&hello, "tea")).await.is(400, "M_DUPLICATE_ANNOTATION");
    assert_eq!(send(&alice, &room, "m.reaction", "2", reaction(&hello, "tea")).await, tea);
    send(&alice, &room, "m.reaction", "4", reaction(&hello, "milk")).await;
    send(&bob, &room, "m.reaction", "5", reaction(&hello, "tea")).await;
    assert_eq!(bundle(&alice, &room, &hello).await, Value::Null);
    redact(&alice, &room, &tea, "6").await;
    let again = send(&alice, &room, "m.reaction", "7", reaction(&hello, "tea")).await;
    let found = bob.get(&relations(&room, &hello, "/m.annotation/m.reaction")).await.ok();
    assert_eq!(found["chunk"].as_array().unwrap().len(), 3);
    assert!(ids(&found).contains(&again.as_str()));
    assert!(!ids(&found).contains(&tea.as_str()));
    let cake = reaction(&hello, "cake");
    let both = tokio::join!(
        alice.send(&room, "m.reaction", "8", &cake),
        alice.send(&room, "m.reaction", "9", &cake),
    );
    assert_eq!(both.0.status + both.1.status, 600);
}

#[tokio::test]
async fn what_relates_to_an_event_comes_in_pages() {
    let server = Server::start().await;
    let (alice, mallory) = (server.client("alice").await, server.client("mallory").await);
    let room = alice.create_room(json!({})).await;
    let hello = alice.say(&room, "hello", "hello").await;
    let mut sent = Vec::new();
    for number in 0..7 {
        let content = related("m.reference", &hello, json!({ "number": number }));
        sent.push(send(&alice, &room, "org.example.note", &number.to_string(), content).await);
    }
    sent.push(send(&alice, &room, "m.reaction", "tea", reaction(&hello, "tea")).await);
    let mut paged = Vec::new();
    let mut from = String::new();
    loop {
        let page = alice.get(&relations(&room, &hello, &format!("?limit=3{from}"))).await.ok();
        paged.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        assert_eq!(page["prev_batch"].is_null(), from.is_empty());
        match page["next_batch"].as_str() {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    paged.reverse();
    assert_eq!(paged, sent);
    let forward = alice.get(&relations(&room, &hello, "/m.reference?dir=f&limit=2")).await.ok();
    assert_eq!(ids(&forward), &sent[..2]);
    let next = forward["next_batch"].as_str().unwrap();
    let second =
        alice.get(&relations(&room, &hello, &format!("/m.reference?dir=f&limit=9&from={next}"))).await.ok();
    assert_eq!(ids(&second), &sent[2..7]);
    let to_first = alice.get(&relations(&room, &hello, &format!("/m.reference?dir=f&to={next}"))).await.ok();
    assert_eq!(ids(&to_first), &sent[..2]);
    let none = alice.get(&relations(&room, &hello, "/m.reference/m.room.message")).await.ok();
    assert_eq!(none["chunk"], json!([]));
    let references = bundle(&alice, &room, &hello).await;
    let listed: Vec<_> = sent[..7].iter().map(|id| json!({ "event_id": id })).collect();
    assert_eq!(references, json!({ "m.reference": { "chunk": listed } }));

    let below = send(&alice, &room, "m.reaction", "below", reaction(&sent[0], "milk")).await;
    let direct = alice.get(&relations(&room, &hello, "/m.annotation")).await.ok();
    assert_eq!(ids(&direct), [sent[7].as_str()]);
    assert_eq!(direct["recursion_depth"], Value::Null);
    let deep = alice.get(&relations(&room, &hello, "/m.annotation?recurse=true")).await.ok();
    assert_eq!(ids(&deep), [below.as_str(), sent[7].as_str()]);
    assert!(deep["recursion_depth"].as_u64().unwrap() >= 3);

    alice.get(&relations(&room, "$unknown", "")).await.is(404, "M_NOT_FOUND");
    mallory.get(&relations(&room, &hello, "")).await.is(404, "M_NOT_FOUND");
    mallory.get(&relations("!unknown:localhost", &hello, "")).await.is(404, "M_NOT_FOUND");
    alice.get(&relations(&room, &hello, "?from=garbage")).await.is(400, "M_INVALID_PARAM");
    alice.get(&relations(&room, &hello, "?limit=0")).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn threads_are_summed_up_and_listed_by_their_latest_event() {
    let server = Server::start().await;
    let (alice, bob, carol) =
        (server.client("alice").await, server.client("bob").await, server.client("carol").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for client in [&bob, &carol] {
        client.join(&room).await.ok();
    }
    let tea = alice.say(&room, "tea", "tea?").await;
    let cake = bob.say(&room, "cake", "cake?").await;
    let yes = send(&bob, &room, "m.room.message", "1", reply(&tea, "yes")).await;
    let no = send(&alice, &room, "m.room.message", "2", reply(&tea, "no")).await;
    let of_course = send(&bob, &room, "m.room.message", "3", reply(&cake, "of course")).await;
    send(&bob, &room, "m.room.message", "4", edit(&of_course, "OF COURSE")).await;
    let thread = bundle(&bob, &room, &tea).await["m.thread"].clone();
    assert_eq!(thread["count"], 2);
    assert_eq!(thread["latest_event"]["event_id"], no);
    assert_eq!(thread["current_user_participated"], true);
    assert_eq!(bundle(&carol, &room, &tea).await["m.thread"]["current_user_participated"], false);
    let thread = bundle(&carol, &room, &cake).await["m.thread"].clone();
    let latest = &thread["latest_event"];
    assert_eq!(latest["unsigned"]["m.relations"]["m.replace"]["content"]["body"], "OF COURSE");
    let nested = alice.send(&room, "m.room.message", "5", &reply(&yes, "not here")).await;
    nested.is(400, "M_UNKNOWN");

    let list = carol.get(&threads(&room, "")).await.ok();
    assert_eq!(ids(&list), [cake.as_str(), tea.as_str()]);
    assert_eq!(list["chunk"][1]["unsigned"]["m.relations"]["m.thread"]["count"], 2);
    let late = send(&carol, &room, "m.room.message", "6", reply(&tea, "late")).await;
    let first = carol.get(&threads(&room, "?limit=1")).await.ok();
    assert_eq!(ids(&first), [tea.as_str()]);
    let next = first["next_batch"].as_str().unwrap();
    let second = carol.get(&threads(&room, &format!("?limit=1&from={next}"))).await.ok();
    assert_eq!(ids(&second), [cake.as_str()]);
    assert_eq!(second["next_batch"], Value::Null);
    let hers = carol.get(&threads(&room, "?include=participated")).await.ok();
    assert_eq!(ids(&hers), [tea.as_str()]);
    let his = bob.get(&threads(&room, "?include=participated")).await.ok();
    assert_eq!(ids(&his), [tea.as_str(), cake.as_str()]);

    redact(&carol, &room, &late, "7").await;
    let list = carol.get(&threads(&room, "")).await.ok();
    assert_eq!(ids(&list), [cake.as_str(), tea.as_str()]);
    assert_eq!(bundle(&carol, &room, &tea).await["m.thread"]["count"], 2);
    redact(&bob, &room, &of_course, "8").await;
    assert_eq!(ids(&carol.get(&threads(&room, "")).await.ok()), [tea.as_str()]);

    let dave = server.client("dave").await;
    let private = alice.create_room(json!({})).await;
    dave.get(&threads(&private, "")).await.is(403, "M_FORBIDDEN");
    carol.get(&threads(&room, "?include=some")).await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn who_left_sees_no_later_edits_and_replies() {
    let server = Server::start().await;
    let (alice, bob) = (server.client("alice").await, server.client("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let hello = alice.say(&room, "1", "hello").await;
    let early = send(&alice, &room, "m.room.message", "2", edit(&hello, "early")).await;
    send(&alice, &room, "m.room.message", "3", reply(&hello, "early")).await;
    bob.leave(&room).await.ok();
    send(&alice, &room, "m.room.message", "4", edit(&hello, "late")).await;
    send(&alice, &room, "m.room.message", "5", reply(&hello, "late")).await;
    let bundled = bundle(&bob, &room, &hello).await;
    assert_eq!(bundled["m.replace"]["event_id"], early);
    assert_eq!(bundled["m.thread"]["count"], 1);
    assert_eq!(bundled["m.thread"]["latest_event"]["content"]["body"], "early");
    let found = bob.get(&relations(&room, &hello, "")).await.ok();
    assert_eq!(found["chunk"].as_array().unwrap().len(), 2);
    assert_eq!(bundle(&alice, &room, &hello).await["m.thread"]["count"], 2);
}
