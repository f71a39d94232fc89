//! Searching messages, room names and topics.

use engine::id::ShortRoomId;
use serde_json::{Value, json};
use storage::text::{TextField, TextIndex, TextOrder, TextQuery, words};
use tests::{Client, Server, segment};

use crate::federation::eventually;

const SEARCH: &str = "/_matrix/client/v3/search";

/// The search's `room_events`, with further criteria.
async fn search_with(client: &Client, term: &str, more: Value) -> Value {
    let mut criteria = json!({ "search_term": term, "order_by": "recent" });
    criteria.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let body = json!({ "search_categories": { "room_events": criteria } });
    client.post(SEARCH, &body).await.ok()["search_categories"]["room_events"].take()
}

fn ids(found: &Value) -> Vec<String> {
    let results = found["results"].as_array().unwrap().iter();
    results.map(|result| result["result"]["event_id"].as_str().unwrap().to_owned()).collect()
}

async fn found(client: &Client, term: &str) -> Vec<String> {
    ids(&search_with(client, term, json!({})).await)
}

/// The index is a little behind the rooms: a search waits for it, but not for long on a busy machine.
async fn finds(client: &Client, term: &str, expected: impl AsRef<[String]>) {
    let is_found = async || (found(client, term).await == expected.as_ref()).then_some(());
    eventually(&format!("{term:?} finds {:?}", expected.as_ref()), is_found).await;
}

fn none() -> Vec<String> {
    Vec::new()
}

#[tokio::test]
async fn messages_names_and_topics_are_found_by_their_words() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let request = json!({ "preset": "public_chat", "name": "Botany", "topic": "Plants of the tea family" });
    let room = alice.create_room(request).await;
    bob.join(&room).await.ok();
    let camellia = alice.say(&room, "1", "Camellia sinensis is TEA").await;
    let cafe = bob.say(&room, "2", "I prefer café").await;
    finds(&bob, "cafe", std::slice::from_ref(&cafe)).await;
    assert_eq!(found(&bob, "tea").await.len(), 2);
    let bodies = search_with(&bob, "tea", json!({ "keys": ["content.body"] })).await;
    assert_eq!((ids(&bodies), &bodies["highlights"]), (vec![camellia.clone()], &json!(["tea"])));
    assert_eq!(bodies["count"], 1);
    let result = &bodies["results"][0]["result"];
    assert_eq!((&result["room_id"], &result["sender"]), (&json!(room), &json!(alice.user_id)));
    assert!(bodies["results"][0].get("context").is_none());
    let topics = search_with(&bob, "family tea", json!({ "keys": ["content.topic"] })).await;
    assert_eq!(topics["results"][0]["result"]["type"], "m.room.topic");
    let names = search_with(&bob, "botany", json!({})).await;
    assert_eq!(names["results"][0]["result"]["content"]["name"], "Botany");
    finds(&bob, "sinensis camellia", std::slice::from_ref(&camellia)).await;
    for term in ["camel", "sinensis coffee", "", "?!"] {
        finds(&bob, term, none()).await;
    }
    let of_bob = json!({ "filter": { "senders": [bob.user_id] } });
    assert_eq!(ids(&search_with(&bob, "tea", of_bob).await), none());
    let elsewhere = json!({ "filter": { "not_rooms": [room] } });
    assert_eq!(ids(&search_with(&bob, "tea", elsewhere).await), none());
    let messages = json!({ "filter": { "types": ["m.room.message"] } });
    assert_eq!(ids(&search_with(&bob, "tea", messages).await), std::slice::from_ref(&camellia));

    let more = json!({
        "keys": ["content.body"],
        "order_by": "rank",
        "include_state": true,
        "event_context": { "before_limit": 1, "after_limit": 1, "include_profile": true },
    });
    let rich = search_with(&bob, "camellia", more).await;
    let context = &rich["results"][0]["context"];
    assert_eq!(context["events_after"][0]["event_id"], json!(cafe));
    assert_eq!(context["events_before"].as_array().unwrap().len(), 1);
    assert!(context["start"].is_string() && context["end"].is_string());
    assert!(context["profile_info"].get(&alice.user_id).is_some());
    assert!(rich["results"][0]["rank"].as_f64().is_some_and(|rank| rank > 0.0));
    let state = rich["state"][&room].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
}

#[tokio::test]
async fn nobody_finds_what_they_may_not_see() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let history = json!({ "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "joined" } });
    let room = alice.create_room(json!({ "preset": "public_chat", "initial_state": [history] })).await;
    let before = alice.say(&room, "1", "tea before").await;
    bob.join(&room).await.ok();
    let during = alice.say(&room, "2", "tea during").await;
    bob.leave(&room).await.ok();
    let after = alice.say(&room, "3", "tea after").await;
    finds(&alice, "tea", [after.clone(), during.clone(), before]).await;
    let his = search_with(&bob, "tea", json!({})).await;
    assert_eq!((ids(&his), &his["count"]), (vec![during.clone()], &json!(1)));
    finds(&carol, "tea", none()).await;

    let open = alice.create_room(json!({ "preset": "public_chat" })).await;
    carol.join(&open).await.ok();
    let said = alice.say(&open, "1", "gossip").await;
    finds(&carol, "gossip", std::slice::from_ref(&said)).await;
    let ignore = json!({ "ignored_users": { alice.user_id.clone(): {} } });
    let path =
        format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&carol.user_id));
    carol.put(&path, &ignore).await.ok();
    finds(&carol, "gossip", none()).await;

    let edit = json!({
        "msgtype": "m.text",
        "body": "* rumor",
        "m.new_content": { "msgtype": "m.text", "body": "rumor" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": said },
    });
    let edit = alice.send(&open, "m.room.message", "2", &edit).await.ok();
    finds(&alice, "gossip", none()).await;
    finds(&alice, "rumor", std::slice::from_ref(&said)).await;
    let redact = async |event: &str, txn: &str| {
        let path = Client::room(&open, &format!("redact/{}/{txn}", segment(event)));
        alice.put(&path, &json!({})).await.ok();
    };
    redact(edit["event_id"].as_str().unwrap(), "3").await;
    finds(&alice, "rumor", none()).await;
    finds(&alice, "gossip", std::slice::from_ref(&said)).await;
    redact(&said, "4").await;
    finds(&alice, "gossip", none()).await;

    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.set_state(&room, "m.room.encryption", "", &encryption).await.ok();
    finds(&alice, "tea", none()).await;
}

#[tokio::test]
async fn results_come_in_pages_and_groups() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let mut rooms = Vec::new();
    for _ in 0..2 {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await.ok();
        rooms.push(room);
    }
    let mut said = Vec::new();
    for number in 0..6 {
        let user = if number < 3 { &alice } else { &bob };
        said.push(user.say(&rooms[number % 2], &number.to_string(), "tea time").await);
    }
    let newest_first: Vec<_> = said.iter().rev().cloned().collect();
    for order in ["recent", "rank"] {
        let criteria = json!({
            "search_term": "tea",
            "order_by": order,
            "filter": { "limit": 2 },
            "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
        });
        let body = json!({ "search_categories": { "room_events": criteria } });
        let page = async |token: Option<&str>| {
            let query = token.map_or_else(String::new, |token| format!("?next_batch={}", segment(token)));
            bob.post(&format!("{SEARCH}{query}"), &body).await.ok()["search_categories"]["room_events"].take()
        };
        let all_from = async |first: Value| {
            let (mut all, mut page_now) = (ids(&first), first);
            while let Some(token) = page_now["next_batch"].as_str().map(ToOwned::to_owned) {
                page_now = page(Some(&token)).await;
                all.extend(ids(&page_now));
                assert!(all.len() <= 6, "pages go on for ever");
            }
            all
        };
        let first = page(None).await;
        assert_eq!(first["count"], 6);
        for (group, is_in) in [
            (
                &first["groups"]["room_id"],
                &(|number: usize, id: &str| rooms[number % 2] == id) as &dyn Fn(usize, &str) -> bool,
            ),
            (&first["groups"]["sender"], &|number, id| (number < 3) == (alice.user_id == id)),
        ] {
            for (id, entry) in group.as_object().unwrap() {
                let mut in_group: Vec<String> = serde_json::from_value(entry["results"].clone()).unwrap();
                if let Some(token) = entry["next_batch"].as_str() {
                    in_group.extend(all_from(page(Some(token)).await).await);
                }
                let mut expected: Vec<_> =
                    (0..6).filter(|number| is_in(*number, id)).map(|number| said[number].clone()).collect();
                expected.sort();
                in_group.sort();
                assert_eq!(in_group, expected, "{order} {id}");
            }
        }
        let mut all = all_from(first).await;
        if order == "recent" {
            assert_eq!(all, newest_first);
        }
        all.sort();
        let mut expected = said.clone();
        expected.sort();
        assert_eq!(all, expected);
    }
}

#[tokio::test]
async fn the_index_survives_a_kill_and_is_made_anew_when_it_is_missing_or_damaged() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut said = vec![alice.say(&room, "1", "tea one").await];
    finds(&alice, "tea", &said).await;
    said.insert(0, alice.say(&room, "2", "tea two").await);
    server.kill();
    server.restart().await;
    finds(&alice, "tea", &said).await;
    server.kill();
    let folder = server.data_dir().join("search");
    std::fs::remove_dir_all(&folder).unwrap();
    server.restart().await;
    finds(&alice, "tea", &said).await;
    server.kill();
    for entry in std::fs::read_dir(folder.join("v1")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::write(path, "damage").unwrap();
        }
    }
    server.restart().await;
    said.insert(0, alice.say(&room, "3", "tea three").await);
    finds(&alice, "tea", &said).await;
}

/// How many texts of the index of a server that does not run have a word.
fn indexed(server: &Server, word: &str) -> usize {
    let query = TextQuery {
        words: words(word),
        fields: vec![TextField::Body],
        // One room holds it all, with one of the first numbers.
        rooms: (0..100).map(ShortRoomId).collect(),
        senders: None,
        before: None,
        order: TextOrder::Recent,
        skip: 0,
        limit: 10,
    };
    TextIndex::open(&server.data_dir().join("search")).unwrap().search(&query).unwrap().count
}

/// Nobody finds them anyway: the index itself must not have them.
#[tokio::test]
async fn words_of_redacted_and_purged_messages_leave_the_index() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let regretted = alice.say(&room, "1", "regretted").await;
    let edited = alice.say(&room, "2", "clumsy").await;
    let edit = json!({
        "msgtype": "m.text", "body": "* elegant",
        "m.new_content": { "msgtype": "m.text", "body": "elegant" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": edited },
    });
    alice.send(&room, "m.room.message", "3", &edit).await.ok();
    finds(&alice, "regretted", std::slice::from_ref(&regretted)).await;
    finds(&alice, "elegant", [edited]).await;
    server.stop().await;
    let counts = ["regretted", "clumsy", "elegant"].map(|word| indexed(&server, word));
    assert_eq!(counts, [1, 0, 1]);
    server.restart().await;
    let path = Client::room(&room, &format!("redact/{}/4", segment(&regretted)));
    alice.put(&path, &json!({})).await.ok();
    let kept = alice.say(&room, "5", "timeless").await;
    // The index is as far as this.
    finds(&alice, "timeless", std::slice::from_ref(&kept)).await;
    server.stop().await;
    let counts = ["regretted", "elegant", "timeless"].map(|word| indexed(&server, word));
    assert_eq!(counts, [0, 1, 1]);

    server.set("retention.enabled", "true");
    server.set("retention.interval", "100ms");
    server.restart().await;
    alice.set_state(&room, "m.room.retention", "", &json!({ "max_lifetime": 1 })).await.ok();
    let is_gone = async || {
        let messages = alice.all_messages(&room).await;
        let mut texts = messages.iter().filter(|event| event["type"] == "m.room.message");
        texts.next().is_none().then_some(())
    };
    eventually("the messages are gone", is_gone).await;
    // A room without a limit, so that the index has something to be found by.
    server.set("retention.enabled", "false");
    server.stop().await;
    server.restart().await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let fresh = alice.say(&room, "6", "fresh").await;
    finds(&alice, "fresh", [fresh]).await;
    server.stop().await;
    let counts = ["clumsy", "elegant", "timeless", "fresh"].map(|word| indexed(&server, word));
    assert_eq!(counts, [0, 0, 0, 1]);
}

#[tokio::test]
async fn an_upgraded_room_is_searched_with_the_one_that_it_replaces() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let old = alice.create_room(json!({ "preset": "public_chat", "room_version": "10" })).await;
    let said = alice.say(&old, "1", "tea of old").await;
    let answer = alice.post(&Client::room(&old, "upgrade"), &json!({ "new_version": "11" })).await.ok();
    let new = answer["replacement_room"].as_str().unwrap();
    let only = json!({ "filter": { "rooms": [new] } });
    assert_eq!(ids(&search_with(&alice, "tea", only).await), [said]);
}

#[tokio::test]
async fn what_is_no_search_is_refused() {
    let server = Server::start_with_settings(&[("search.enabled", "false")]).await;
    let alice = server.client("alice").await;
    let body = |criteria: Value| json!({ "search_categories": { "room_events": criteria } });
    server.anonymous().post(SEARCH, &body(json!({ "search_term": "x" }))).await.is(401, "M_MISSING_TOKEN");
    alice.post(SEARCH, &json!({})).await.is(400, "M_BAD_JSON");
    alice.post(SEARCH, &body(json!({}))).await.is(400, "M_BAD_JSON");
    for wrong in [
        json!({ "search_term": "x", "keys": ["content.url"] }),
        json!({ "search_term": "x", "order_by": "chance" }),
        json!({ "search_term": "x".repeat(5000) }),
    ] {
        alice.post(SEARCH, &body(wrong)).await.is(400, "M_INVALID_PARAM");
    }
    let with_token = format!("{SEARCH}?next_batch=nonsense");
    alice.post(&with_token, &body(json!({ "search_term": "x" }))).await.is(400, "M_INVALID_PARAM");
    assert_eq!(
        alice.post(SEARCH, &json!({ "search_categories": {} })).await.ok(),
        json!({ "search_categories": {} })
    );
    alice.post(SEARCH, &body(json!({ "search_term": "x" }))).await.is(404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn the_index_is_removed_while_search_is_off_and_made_anew_afterwards() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let before = alice.say(&room, "1", "tea before").await;
    finds(&alice, "tea", std::slice::from_ref(&before)).await;
    let folder = server.data_dir().join("search");
    assert!(folder.is_dir());
    server.set("search.enabled", "false");
    server.restart().await;
    assert!(!folder.exists());
    let meanwhile = alice.say(&room, "2", "tea meanwhile").await;
    server.set("search.enabled", "true");
    server.restart().await;
    finds(&alice, "tea", [meanwhile, before]).await;
}
