//! Users who left and asked that what they sent be erased.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Server, segment};

async fn deactivate(client: &Client, erase: bool) {
    let body = json!({ "erase": erase });
    client.with_password(Method::POST, "/_matrix/client/v3/account/deactivate", body).await.ok();
}

/// What a reader gets of an event, read in several ways that must agree.
async fn content(reader: &Client, room: &str, event_id: &str) -> Value {
    let path = Client::room(room, &format!("event/{}", segment(event_id)));
    let single = reader.get(&path).await.ok()["content"].clone();
    let find = |events: &Value| {
        let mut events = events.as_array().into_iter().flatten();
        events.find(|event| event["event_id"] == event_id).map(|event| event["content"].clone())
    };
    let paged = reader.get(&Client::room(room, "messages?dir=b&limit=100")).await.ok();
    assert_eq!(find(&paged["chunk"]).as_ref(), Some(&single));
    for format in ["client", "federation"] {
        let filter = json!({ "event_format": format, "room": { "timeline": { "limit": 50 } } });
        let synced = reader.sync(&format!("timeout=0&filter={}", segment(&filter.to_string()))).await;
        let synced = find(&synced["rooms"]["join"][room]["timeline"]["events"]);
        assert_eq!(synced.as_ref(), Some(&single), "in the format {format}");
    }
    single
}

#[tokio::test]
async fn newcomers_get_redacted_what_an_erased_user_sent() {
    let mut server = Server::start().await;
    let [alice, bob, carol, dora] = server.clients(["alice", "bob", "carol", "dora"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    let secret = bob.say(&room, "1", "a secret").await;
    let edit = json!({
        "msgtype": "m.text", "body": "* a bigger secret", "m.new_content": { "msgtype": "m.text", "body": "a bigger secret" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": secret },
    });
    bob.send(&room, "m.room.message", "2", &edit).await.ok();
    let kept = carol.say(&room, "1", "no secret").await;
    carol.leave(&room).await.ok();
    deactivate(&bob, true).await;
    dora.join(&room).await.ok();
    for restarts in [false, true] {
        if restarts {
            server.restart().await;
        }
        assert_eq!(content(&alice, &room, &secret).await["body"], "a secret", "who saw it still does");
        assert_eq!(content(&dora, &room, &secret).await, json!({}), "newcomers do not");
        assert_eq!(content(&dora, &room, &kept).await["body"], "no secret");
        let event = dora.get(&Client::room(&room, &format!("event/{}", segment(&secret)))).await.ok();
        assert!(!event.to_string().contains("bigger"), "neither in what is bundled: {event}");
    }
    let page = carol.get(&Client::room(&room, "messages?dir=b&limit=100")).await.ok();
    assert!(page.to_string().contains("a secret"), "who left before saw it, too: {page}");
    let body = json!({ "search_categories": { "room_events": { "search_term": "bigger" } } });
    let found = async |client: &Client| {
        let answer = client.post("/_matrix/client/v3/search", &body).await.ok();
        answer["search_categories"]["room_events"]["count"].as_u64()
    };
    assert_eq!((found(&alice).await, found(&dora).await), (Some(1), Some(0)));
}

#[tokio::test]
async fn who_does_not_ask_for_erasure_is_read_as_before() {
    let server = Server::start().await;
    let [alice, bob, dora] = server.clients(["alice", "bob", "dora"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    let said = bob.say(&room, "1", "for ever").await;
    deactivate(&bob, false).await;
    dora.join(&room).await.ok();
    assert_eq!(content(&dora, &room, &said).await["body"], "for ever");
    // The room keeps its name, whoever gave it.
    deactivate(&alice, true).await;
    let eve = server.client("eve").await;
    eve.join(&room).await.ok();
    assert_eq!(eve.state(&room, "m.room.name", "").await.ok()["name"], "tea");
    let synced = eve.sync("timeout=0").await;
    let told = synced["rooms"]["join"][&room].to_string();
    assert!(told.contains("\"name\":\"tea\""), "{told}");
}

#[tokio::test]
async fn other_servers_that_come_later_get_it_redacted_too() {
    let server = Server::start_federating("").await;
    let (early, late) = (Server::start_federating("").await, Server::start_federating("").await);
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (carol, dora) = (early.client("carol").await, late.client("dora").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let join = async |client: &Client| {
        let path = format!("/_matrix/client/v3/join/{}?via={}", segment(&room), segment(server.name()));
        client.post(&path, &json!({})).await.ok()
    };
    bob.join(&room).await.ok();
    join(&carol).await;
    let since = carol.token_of_sync().await;
    let secret = bob.say(&room, "1", "a secret").await;
    carol.event_of_sync(&since, &room, |event| event["event_id"] == secret.as_str()).await;
    deactivate(&bob, true).await;
    alice.say(&room, "1", "he is gone").await;
    join(&dora).await;
    let page = dora.get(&Client::room(&room, "messages?dir=b&limit=100")).await.ok();
    let events = page["chunk"].as_array().unwrap();
    let found = events.iter().find(|event| event["event_id"] == secret.as_str());
    assert_eq!(found.map(|event| &event["content"]), Some(&json!({})), "{page}");
    assert!(page.to_string().contains("he is gone"), "{page}");
    let page = carol.get(&Client::room(&room, "messages?dir=b&limit=100")).await.ok();
    assert!(page.to_string().contains("a secret"), "{page}");
}
