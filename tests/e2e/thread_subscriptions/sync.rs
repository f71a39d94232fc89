//! What clients hear of subscriptions, in sliding sync and from its companion endpoint.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server};
use tokio::time::Instant;

use super::{SLIDING, SWITCH, in_a_thread, reply, subscribe, subscribe_because_of, unsubscribe};

const STABLE: &str = "/_matrix/client/v4/sync";
const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";
const COMPANION: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions";

/// Asks for changes since `pos`: the extension's part of the response, and the next `pos`.
async fn changes(client: &Client, pos: &str, limit: Option<u64>, timeout_ms: u64) -> (Value, String) {
    let mut body = json!({ "extensions": { EXTENSION: { "enabled": true } } });
    if let Some(limit) = limit {
        body["extensions"][EXTENSION]["limit"] = limit.into();
    }
    let answer = client.post(&format!("{SLIDING}?timeout={timeout_ms}&pos={pos}"), &body).await.ok();
    (answer["extensions"][EXTENSION].clone(), answer["pos"].as_str().unwrap().to_owned())
}

async fn back(client: &Client, query: &str) -> Value {
    client.get(&format!("{COMPANION}?dir=b{query}")).await.ok()
}

/// The roots that an answer names in a room, by their bump stamps, newest first.
fn roots(answer: &Value, kind: &str, room: &str) -> Vec<String> {
    let threads = answer[kind][room].as_object().into_iter().flatten();
    let mut roots: Vec<_> = threads.map(|(root, to)| (to["bump_stamp"].as_u64().unwrap(), root)).collect();
    roots.sort_unstable_by(|one, other| other.cmp(one));
    roots.into_iter().map(|(_, root)| root.clone()).collect()
}

#[tokio::test]
async fn other_devices_hear_of_each_change_at_once() {
    let mut server = Server::start_with_settings(&[SWITCH]).await;
    let (alice, bob, room, root) = in_a_thread(&server).await;
    let phone = alice.another_device(&alice.password()).await;
    let (nothing, pos) = changes(&phone, "", None, 0).await;
    assert_eq!(nothing, Value::Null);
    let cause = reply(&bob, &room, &root, "1", "one").await;
    let started = Instant::now();
    let waiting = async {
        let mut next = pos.clone();
        loop {
            let (news, pos) = changes(&phone, &next, None, 30_000).await;
            if news != Value::Null {
                return (news, pos);
            }
            next = pos;
        }
    };
    let ((news, pos), ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        subscribe_because_of(&alice, &room, &root, &cause).await.ok();
    });
    assert!(started.elapsed() < Duration::from_secs(20), "a change wakes who waits");
    let first = &news["subscribed"][&room][&root];
    assert_eq!((&first["automatic"], &news["unsubscribed"]), (&json!(true), &Value::Null), "{news}");
    let (nothing, later) = changes(&phone, &pos, None, 0).await;
    assert_eq!(nothing, Value::Null);
    subscribe(&alice, &room, &root).await;
    server.restart().await;
    let (news, last) = changes(&phone, &later, None, 0).await;
    let second = &news["subscribed"][&room][&root];
    assert_eq!(second["automatic"], false);
    assert!(second["bump_stamp"].as_u64() > first["bump_stamp"].as_u64());
    unsubscribe(&alice, &room, &root).await;
    let (news, end) = changes(&phone, &last, None, 0).await;
    assert_eq!(roots(&news, "unsubscribed", &room), [&*root]);
    assert_eq!(news["subscribed"], Value::Null);
    // A request that comes again gets all of it again, as it is by now.
    let (again, _) = changes(&phone, &pos, None, 0).await;
    assert_eq!(again, news);
    unsubscribe(&alice, &room, &root).await;
    assert_eq!(changes(&phone, &end, None, 0).await.0, Value::Null, "nothing has changed");
    let whole = phone.post(STABLE, &json!({ "extensions": { EXTENSION: { "enabled": true } } })).await.ok();
    assert_eq!(whole["extensions"][EXTENSION], news);
    let without = phone.post(SLIDING, &json!({})).await.ok();
    assert_eq!(without["extensions"], json!({}));
    let nobody = json!({ "subscribed": {}, "unsubscribed": {} });
    assert_eq!(back(&bob, "").await, nobody, "nobody hears of others' threads");
}

#[tokio::test]
async fn what_is_too_much_for_a_response_is_found_going_back() {
    let mut server = Server::start_with_settings(&[SWITCH]).await;
    let [alice] = server.clients(["alice"]).await;
    let room = alice.create_room(json!({})).await;
    let mut threads = Vec::new();
    for number in 0..7 {
        threads.push(alice.say(&room, &format!("root{number}"), "a thread").await);
    }
    let (_, start) = changes(&alice, "", None, 0).await;
    for root in &threads {
        subscribe(&alice, &room, root).await;
    }
    unsubscribe(&alice, &room, &threads[1]).await;
    threads.reverse();
    let [t6, t5, t4, t3, t2, t1, t0] = &*threads.iter().map(String::as_str).collect::<Vec<_>>() else {
        panic!()
    };
    let (news, pos) = changes(&alice, &start, Some(3), 0).await;
    assert_eq!(roots(&news, "subscribed", &room), [*t6, *t5]);
    assert_eq!(roots(&news, "unsubscribed", &room), [*t1]);
    let from = news["prev_batch"].as_str().unwrap();
    assert_eq!(changes(&alice, &pos, Some(3), 0).await.0, Value::Null, "the rest is not forced on anybody");
    server.restart().await;
    let page = back(&alice, &format!("&from={from}&to={start}&limit=2")).await;
    assert_eq!(roots(&page, "subscribed", &room), [*t4, *t3]);
    let end = page["end"].as_str().unwrap();
    let page = back(&alice, &format!("&from={end}&to={start}&limit=2")).await;
    assert_eq!(
        (roots(&page, "subscribed", &room), &page["end"]),
        (vec![(*t2).to_owned(), (*t0).to_owned()], &Value::Null)
    );
    let all = back(&alice, "").await;
    assert_eq!(roots(&all, "subscribed", &room), [*t6, *t5, *t4, *t3, *t2, *t0]);
    assert_eq!((roots(&all, "unsubscribed", &room), &all["end"]), (vec![(*t1).to_owned()], &Value::Null));
    assert_eq!(back(&alice, &format!("&to={pos}")).await, json!({ "subscribed": {}, "unsubscribed": {} }));
    for query in ["dir=f", "dir=b&limit=0", "dir=b&from=nonsense", "dir=b&to=t1_7"] {
        alice.get(&format!("{COMPANION}?{query}")).await.is(400, "M_INVALID_PARAM");
    }
    alice.get(COMPANION).await.is(400, "M_MISSING_PARAM");
    server.anonymous().get(&format!("{COMPANION}?dir=b")).await.is(401, "M_MISSING_TOKEN");
    server.set(SWITCH.0, "false");
    server.restart().await;
    alice.get(&format!("{COMPANION}?dir=b")).await.is(404, "M_UNRECOGNIZED");
    assert_eq!(changes(&alice, &start, None, 0).await.0, Value::Null);
}
