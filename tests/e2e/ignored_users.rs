//! Users whom a user ignores: their messages are left out wherever events are read, their state is not.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

async fn ignore(client: &Client, users: &[&str]) {
    let users: serde_json::Map<_, _> = users.iter().map(|user| ((*user).to_owned(), json!({}))).collect();
    let path =
        format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(&client.user_id));
    client.put(&path, &json!({ "ignored_users": users })).await.ok();
}

fn bodies(events: &Value) -> Vec<&str> {
    events.as_array().into_iter().flatten().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[tokio::test]
async fn messages_of_the_ignored_are_not_synced_or_paged() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    mallory.join(&room).await.ok();
    let insult = mallory.say(&room, "1", "an insult").await;
    let kind = bob.say(&room, "1", "something kind").await;
    let since = alice.token_of_sync().await;
    // Whoever waits in a sync is not told of what comes from the ignored.
    ignore(&alice, &[&mallory.user_id]).await;
    mallory.say(&room, "2", "another insult").await;
    mallory
        .set_state(
            &room,
            "m.room.member",
            &mallory.user_id,
            &json!({ "membership": "join", "displayname": "M" }),
        )
        .await
        .ok();
    bob.say(&room, "2", "more of it").await;
    let next = alice.sync(&format!("since={since}&timeout=0")).await;
    let timeline = &next["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!(bodies(timeline), ["more of it"]);
    let is_state = |event: &Value| event["state_key"] == mallory.user_id.as_str();
    assert!(timeline.as_array().unwrap().iter().any(is_state), "state is always sent: {timeline}");
    let first = alice.sync("timeout=0").await;
    let joined = &first["rooms"]["join"][&room];
    assert_eq!(bodies(&joined["timeline"]["events"]), ["something kind", "more of it"]);
    let page = alice.get(&Client::room(&room, "messages?dir=b&limit=50")).await.ok();
    assert_eq!(bodies(&page["chunk"]), ["more of it", "something kind"]);
    let context = Client::room(&room, &format!("context/{}?limit=10", segment(&kind)));
    let context = alice.get(&context).await.ok();
    assert_eq!(bodies(&context["events_before"]), Vec::<&str>::new());
    assert_eq!(bodies(&context["events_after"]), ["more of it"]);
    for rest in [format!("context/{}", segment(&insult)), format!("event/{}", segment(&insult))] {
        alice.get(&Client::room(&room, &rest)).await.is(404, "M_NOT_FOUND");
        bob.get(&Client::room(&room, &rest)).await.ok();
    }
    // Nobody is ignored by anybody else's wish, and not for good.
    let page = bob.get(&Client::room(&room, "messages?dir=b&limit=50")).await.ok();
    assert_eq!(bodies(&page["chunk"]).len(), 4);
    ignore(&alice, &[]).await;
    let page = alice.get(&Client::room(&room, "messages?dir=b&limit=50")).await.ok();
    assert_eq!(bodies(&page["chunk"]).len(), 4);
}

#[tokio::test]
async fn the_ignored_stay_ignored_after_a_restart() {
    let mut server = Server::start().await;
    let [alice, mallory] = server.clients(["alice", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    mallory.join(&room).await.ok();
    mallory.say(&room, "1", "an insult").await;
    // Nobody can ignore themselves.
    ignore(&alice, &[&mallory.user_id, &alice.user_id]).await;
    alice.say(&room, "1", "peace").await;
    server.restart().await;
    assert_eq!(bodies(&alice.all_messages(&room).await.into()), ["peace"]);
    let synced = alice.sync("timeout=0").await;
    assert_eq!(bodies(&synced["rooms"]["join"][&room]["timeline"]["events"]), ["peace"]);
}

#[tokio::test]
async fn the_ignored_cannot_invite() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    ignore(&alice, &[&mallory.user_id]).await;
    let since = alice.token_of_sync().await;
    let unwanted = mallory.create_room(json!({ "invite": [alice.user_id] })).await;
    let wanted = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    let synced = alice.sync_until(&since, |sync| sync["rooms"]["invite"][&wanted].is_object()).await;
    assert!(synced["rooms"]["invite"][&unwanted].is_null(), "{synced}");
    let lists = json!({ "all": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } });
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let slid = alice.post(sliding, &json!({ "lists": lists })).await.ok();
    assert!(slid["rooms"][&wanted].is_object(), "{slid}");
    assert!(slid["rooms"][&unwanted].is_null(), "{slid}");
    ignore(&alice, &[]).await;
    assert!(alice.sync("timeout=0").await["rooms"]["invite"][&unwanted].is_object());
}

#[tokio::test]
async fn sliding_sync_leaves_out_messages_of_the_ignored() {
    let server = Server::start().await;
    let [alice, mallory] = server.clients(["alice", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    mallory.join(&room).await.ok();
    alice.say(&room, "1", "peace").await;
    mallory.say(&room, "1", "an insult").await;
    ignore(&alice, &[&mallory.user_id]).await;
    let lists = json!({ "all": { "ranges": [[0, 9]], "timeline_limit": 10, "required_state": [] } });
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let slid = alice.post(sliding, &json!({ "lists": lists })).await.ok();
    assert_eq!(bodies(&slid["rooms"][&room]["timeline"]), ["peace"]);
    assert_eq!(slid["rooms"][&room]["notification_count"], 0);
}

#[tokio::test]
async fn the_ignored_are_not_counted() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    mallory.join(&room).await.ok();
    let root = bob.say(&room, "1", "a thread").await;
    let reply = |body: &str| {
        json!({
            "msgtype": "m.text", "body": body,
            "m.relates_to": { "rel_type": "m.thread", "event_id": root },
        })
    };
    bob.send(&room, "m.room.message", "2", &reply("kind")).await.ok();
    mallory.send(&room, "m.room.message", "1", &reply("alice: an insult")).await.ok();
    let unread = async || {
        let synced = alice.sync("timeout=0").await;
        synced["rooms"]["join"][&room]["unread_notifications"]["notification_count"].as_u64()
    };
    assert_eq!(unread().await, Some(3));
    ignore(&alice, &[&mallory.user_id]).await;
    assert_eq!(unread().await, Some(2));
    let thread = async |client: &Client| {
        let event = client.get(&Client::room(&room, &format!("event/{}", segment(&root)))).await.ok();
        event["unsigned"]["m.relations"]["m.thread"].clone()
    };
    assert_eq!((&thread(&alice).await["count"], &thread(&bob).await["count"]), (&json!(1), &json!(2)));
    assert_eq!(thread(&alice).await["latest_event"]["content"]["body"], "kind");
    let relations = format!("/_matrix/client/v1/rooms/{}/relations/{}", segment(&room), segment(&root));
    assert_eq!(bodies(&alice.get(&relations).await.ok()["chunk"]), ["kind"]);
    assert_eq!(bodies(&bob.get(&relations).await.ok()["chunk"]).len(), 2);
    // A thread that an ignored user began is there, but its first message is not shown.
    ignore(&alice, &[&bob.user_id]).await;
    let threads = format!("/_matrix/client/v1/rooms/{}/threads", segment(&room));
    let chunk = alice.get(&threads).await.ok()["chunk"].clone();
    assert_eq!(chunk[0]["event_id"], root);
    assert_eq!(chunk[0]["content"], json!({}));
    assert_eq!(bob.get(&threads).await.ok()["chunk"][0]["content"]["body"], "a thread");
}

#[tokio::test]
async fn presence_of_the_ignored_is_not_told() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    mallory.join(&room).await.ok();
    ignore(&alice, &[&mallory.user_id]).await;
    let since = alice.token_of_sync().await;
    let status = |client: &Client| format!("/_matrix/client/v3/presence/{}/status", segment(&client.user_id));
    let away = json!({ "presence": "unavailable", "status_msg": "away" });
    mallory.put(&status(&mallory), &away).await.ok();
    bob.put(&status(&bob), &away).await.ok();
    let is_from = |sync: &Value, client: &Client| {
        let events = sync["presence"]["events"].as_array();
        events.into_iter().flatten().any(|event| {
            event["sender"] == client.user_id.as_str() && event["content"]["status_msg"] == "away"
        })
    };
    let synced = alice.sync_until(&since, |sync| is_from(sync, &bob)).await;
    assert!(!is_from(&synced, &mallory), "{synced}");
    let again = alice.sync(&format!("since={since}&timeout=0")).await;
    assert!(!is_from(&again, &mallory), "{again}");
}

/// The contents of a room's ephemeral events in one response, by their type, from `/sync` or from sliding sync.
fn ephemeral(sync: &Value, room: &str) -> (Vec<Value>, Vec<Value>) {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array();
    let slid = ["typing", "receipts"].map(|name| &sync["extensions"][name]["rooms"][room]);
    let all = events.into_iter().flatten().chain(slid.into_iter().filter(|event| event.is_object()));
    let (typing, receipts): (Vec<_>, Vec<_>) = all.partition(|event| event["type"] == "m.typing");
    let contents = |events: Vec<&Value>| events.iter().map(|event| event["content"].clone()).collect();
    (contents(typing), contents(receipts))
}

#[tokio::test]
async fn receipts_and_typing_of_the_ignored_are_not_told() {
    let server = Server::start().await;
    let [alice, bob, mallory] = server.clients(["alice", "bob", "mallory"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    mallory.join(&room).await.ok();
    let event = alice.say(&room, "1", "hello").await;
    let read = Client::room(&room, &format!("receipt/m.read/{}", segment(&event)));
    let typing = |client: &Client| Client::room(&room, &format!("typing/{}", segment(&client.user_id)));
    let begin = json!({ "typing": true, "timeout": 120_000 });
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let lists = json!({ "all": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } });
    let extensions = json!({ "typing": { "enabled": true }, "receipts": { "enabled": true } });
    let slide = async |pos: &str| {
        // A first request starts a connection over; each has its own here.
        let conn_id = if pos.is_empty() { "fresh" } else { "kept" };
        let body = json!({ "conn_id": conn_id, "lists": lists, "extensions": extensions });
        alice.post(&format!("{sliding}?timeout=0{pos}"), &body).await.ok()
    };
    ignore(&alice, &[&mallory.user_id]).await;
    let (hers, his) = (alice.token_of_sync().await, bob.token_of_sync().await);
    let pos = format!("&pos={}", slide("&first").await["pos"].as_str().unwrap());
    mallory.post(&read, &json!({})).await.ok();
    mallory.put(&typing(&mallory), &begin).await.ok();
    let types = |sync: &Value, client: &Client| {
        ephemeral(sync, &room).0.iter().any(|content| content["user_ids"] == json!([client.user_id]))
    };
    let reads = |sync: &Value, client: &Client| {
        let receipts = ephemeral(sync, &room).1;
        receipts.iter().any(|content| content[&event]["m.read"][&client.user_id].is_object())
    };
    // Once bob has seen both, they are there to be told.
    bob.sync_until(&his, |sync| types(sync, &mallory)).await;
    bob.sync_until(&his, |sync| reads(sync, &mallory)).await;
    let nothing = (Vec::new(), Vec::new());
    assert_eq!(ephemeral(&alice.sync(&format!("since={hers}&timeout=0")).await, &room), nothing);
    assert_eq!(ephemeral(&alice.sync("timeout=0").await, &room), nothing);
    assert_eq!(ephemeral(&slide(&pos).await, &room), nothing);
    assert_eq!(ephemeral(&slide("").await, &room), nothing);
    // What others do beside them is told, and only that.
    bob.post(&read, &json!({})).await.ok();
    bob.put(&typing(&bob), &begin).await.ok();
    alice.sync_until(&hers, |sync| types(sync, &bob)).await;
    alice.sync_until(&hers, |sync| reads(sync, &bob)).await;
    let later = alice.sync(&format!("since={hers}&timeout=0")).await;
    for sync in [later, alice.sync("timeout=0").await, slide(&pos).await, slide("").await] {
        assert!(types(&sync, &bob) && reads(&sync, &bob), "{sync}");
        let told = json!(ephemeral(&sync, &room)).to_string();
        assert!(!told.contains(mallory.user_id.as_str()), "{sync}");
    }
}
