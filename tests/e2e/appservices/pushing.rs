//! What a service is sent, and when.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tests::{Client, Peer, PeerKind, Server, free_port, segment};

use super::{
    acting, ghost, join,
    service::{Received, Service, registration},
    text,
};

fn bodies(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["content"]["body"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_service_is_sent_what_happens_where_its_users_are() {
    let mut service = Service::start().await;
    let (server, client) = service.server().await;
    let alice = server.client("alice").await;
    let bob = ghost(&client, "_irc_bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "room" })).await;
    alice.say(&room, "1", "unheard").await;
    alice.moderate("invite", &room, &bob).await.ok();
    let invite = service.events("m.room.member", 1).await.remove(0);
    assert_eq!((&invite["state_key"], &invite["content"]["membership"]), (&json!(bob), &json!("invite")));
    assert_eq!((&invite["room_id"], &invite["sender"]), (&json!(room), &json!(alice.user_id)));
    let shown = invite["unsigned"]["invite_room_state"].as_array().unwrap();
    assert!(shown.iter().any(|event| event["type"] == "m.room.name"), "{invite}");
    alice.say(&room, "2", "unheard").await;
    join(&client, &bob, &room).await;
    let joined = service.events("m.room.member", 1).await.remove(0);
    assert_eq!(joined["unsigned"]["prev_content"]["membership"], "invite", "{joined}");
    alice.say(&room, "3", "heard").await;
    let send = acting(&Client::room(&room, "send/m.room.message/1"), &bob);
    client.put(&send, &text("own")).await.ok();
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    alice.say(&other, "1", "unheard").await;
    let last = alice.say(&room, "4", "heard too").await;
    let heard = service.events("m.room.message", 3).await;
    assert_eq!(bodies(&heard), ["heard", "own", "heard too"]);
    alice.put(&Client::room(&room, &format!("redact/{}/1", segment(&last))), &json!({})).await.ok();
    assert_eq!(service.events("m.room.redaction", 1).await[0]["redacts"], json!(last));

    alice.moderate("kick", &room, &bob).await.ok();
    assert_eq!(service.events("m.room.member", 1).await[0]["content"]["membership"], "leave");
    alice.say(&room, "5", "unheard").await;
    // An alias of the service's concerns it as well, whoever is there.
    let alias = segment(&format!("#_irc_other:{}", server.name()));
    let alias = format!("/_matrix/client/v3/directory/room/{alias}");
    client.put(&alias, &json!({ "room_id": other })).await.ok();
    alice.say(&other, "2", "by its alias").await;
    let heard = service.events("m.room.message", 1).await;
    assert_eq!(bodies(&heard), ["by its alias"]);
    client.delete(&alias, &json!({})).await.ok();
    alice.say(&other, "3", "unheard").await;
    alice.moderate("invite", &other, &bob).await.ok();
    let mut unheard = Vec::new();
    while unheard.is_empty() {
        let next = service.next().await;
        let events = next.body["events"].as_array().unwrap().clone();
        assert!(events.iter().all(|event| event["type"] != "m.room.message"), "{events:?}");
        unheard.extend(events.into_iter().filter(|event| event["type"] == "m.room.member"));
    }
}

/// Transactions until one has a message with this text; what was not taken has to come again as it was.
async fn transactions_until(service: &mut Service, last: &str) -> Vec<Received> {
    let mut received = Vec::new();
    loop {
        let next = service.next().await;
        if !next.line.contains("/transactions/") {
            continue;
        }
        let is_last =
            next.body["events"].as_array().unwrap().iter().any(|event| event["content"]["body"] == last);
        let ends = is_last && next.is_taken;
        received.push(next);
        if ends {
            return received;
        }
    }
}

/// Whatever a service does not take comes again as it was, also from the next process, and in order; what it took does
/// not come again under another ID.
#[tokio::test]
async fn a_service_that_was_away_is_told_everything_once_and_in_order() {
    let mut service = Service::start().await;
    let (mut server, client) = service.server().await;
    let [alice, carol] = server.clients(["alice", "carol"]).await;
    let bob = ghost(&client, "_irc_bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let left = alice.create_room(json!({ "preset": "public_chat" })).await;
    for room in [&room, &left] {
        join(&client, &bob, room).await;
        carol.join(room).await.ok();
    }
    alice.say(&room, "0", "0").await;
    transactions_until(&mut service, "0").await;
    service.fail(true).await;
    let mut expected = Vec::new();
    for number in 1..=130 {
        alice.say(&room, &number.to_string(), &number.to_string()).await;
        expected.push(number.to_string());
        if number == 60 {
            server.kill();
            server.restart().await;
        }
    }
    // Who is gone by the time of the telling was there when it happened.
    alice.say(&left, "1", "before the leave").await;
    client.post(&acting(&Client::room(&left, "leave"), &bob), &json!({})).await.ok();
    alice.say(&left, "2", "after the leave").await;
    server.kill();
    server.restart().await;
    alice.say(&room, "last", "last").await;
    service.fail(false).await;
    client.post("/_matrix/client/v1/appservice/irc/ping", &json!({})).await.ok();
    expected.extend(["before the leave".to_owned(), "last".to_owned()]);

    let received = transactions_until(&mut service, "last").await;
    let mut told = Vec::new();
    let mut done = BTreeSet::new();
    let mut failed: Option<&Received> = None;
    for received in &received {
        if let Some(failed) = failed {
            assert_eq!(
                (failed.txn_id(), &failed.body["events"]),
                (received.txn_id(), &received.body["events"])
            );
        }
        failed = Some(received).filter(|received| !received.is_taken);
        if received.is_taken {
            assert!(done.insert(received.txn_id()), "{} was taken twice", received.txn_id());
            let events = received.body["events"].as_array().unwrap();
            assert!(events.len() <= 100);
            told.extend(events.iter().filter_map(|event| event["content"]["body"].as_str()));
        }
    }
    assert_eq!(told, expected);
    server.kill();
    server.restart().await;
    alice.say(&room, "more", "more").await;
    let more = transactions_until(&mut service, "more").await;
    // What was taken just when the server stopped comes again as it was: the service knows it by its ID.
    let (again, new): (Vec<_>, Vec<_>) = more.iter().partition(|received| done.contains(received.txn_id()));
    let last = received.last().unwrap();
    for again in again {
        assert_eq!((again.txn_id(), &again.body), (last.txn_id(), &last.body));
    }
    let events = new.iter().map(|received| received.body["events"].as_array().unwrap().len());
    assert_eq!(events.sum::<usize>(), 1);
}

#[tokio::test]
async fn a_service_is_told_who_types_and_reads() {
    let mut service = Service::start().await;
    let (server, client) = service.server().await;
    let alice = server.client("alice").await;
    let bob = ghost(&client, "_irc_bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    join(&client, &bob, &room).await;
    let event = alice.say(&room, "1", "hello").await;
    for room in [&other, &room] {
        let typing = Client::room(room, &format!("typing/{}", segment(&alice.user_id)));
        alice.put(&typing, &json!({ "typing": true, "timeout": 30_000 })).await.ok();
    }
    let typing = service.ephemeral("m.typing").await;
    let expected = json!({ "type": "m.typing", "room_id": room, "content": { "user_ids": [alice.user_id] } });
    assert_eq!(typing, expected);
    alice.post(&Client::room(&room, &format!("receipt/m.read/{}", segment(&event))), &json!({})).await.ok();
    let receipt = service.ephemeral("m.receipt").await;
    assert_eq!(receipt["room_id"], json!(room));
    assert!(receipt["content"][&event]["m.read"][&alice.user_id]["ts"].is_u64(), "{receipt}");
    let presence = format!("/_matrix/client/v3/presence/{}/status", segment(&alice.user_id));
    alice.put(&presence, &json!({ "presence": "online", "status_msg": "here" })).await.ok();
    let presence = service.ephemeral("m.presence").await;
    assert_eq!(
        (&presence["sender"], &presence["content"]["presence"]),
        (&json!(alice.user_id), &json!("online"))
    );
}

#[tokio::test]
async fn a_service_is_told_what_its_devices_are_sent() {
    let mut service = Service::start().await;
    let (mut server, client) = service.server().await;
    let alice = server.client("alice").await;
    let bob = ghost(&client, "_irc_bob").await;
    let device = acting("/_matrix/client/v3/devices/BRIDGE", &bob);
    assert_eq!(client.put(&device, &json!({})).await.status, 201);
    let send = async |txn: &str| {
        let path = format!("/_matrix/client/v3/sendToDevice/m.secret/{txn}");
        alice.put(&path, &json!({ "messages": { &bob: { "*": { "number": txn } } } })).await.ok();
    };
    send("1").await;
    let message = service.message().await;
    let expected = json!({
        "type": "m.secret", "sender": alice.user_id, "content": { "number": "1" },
        "to_user_id": bob, "to_device_id": "BRIDGE",
    });
    assert_eq!(message, expected);
    service.fail(true).await;
    send("2").await;
    server.kill();
    service.fail(false).await;
    server.restart().await;
    assert_eq!(service.message().await["content"]["number"], "2");
}

/// A real bridge's library: it registers users, is sent what happens, answers, and asks to be pinged.
#[tokio::test]
async fn a_bridge_made_with_mautrix_works() {
    let service = Service::start().await;
    let port = free_port();
    let registration = registration(&format!("http://127.0.0.1:{port}"));
    let registrations = service.register(&registration);
    let server = Server::start_with_settings(&[("appservices.registrations", &registrations)]).await;
    let mut bridge = Peer::start(PeerKind::MautrixBridge, &server.url());
    let tokens = json!({ "as_token": registration["as_token"], "hs_token": registration["hs_token"] });
    let mut start = json!({ "id": "irc", "bot": "irc_bot", "domain": server.name(), "port": port });
    start.as_object_mut().unwrap().extend(tokens.as_object().unwrap().clone());
    bridge.call("start", start).await;
    bridge.call("ping", json!({})).await;
    let alice = server.client("alice").await;
    let ghost = format!("@_irc_bob:{}", server.name());
    // The bridge makes the user when it is asked for it.
    let room = alice.create_room(json!({ "preset": "private_chat", "invite": [ghost] })).await;
    bridge.call("wait", json!({ "fact": { "what": "invite", "room_id": room, "user_id": ghost } })).await;
    bridge.call("join", json!({ "room_id": room, "user_id": ghost })).await;
    let hello = alice.say(&room, "1", "hello").await;
    let heard = json!({ "what": "message", "room_id": room, "event_id": hello, "body": "hello" });
    bridge.call("wait", json!({ "fact": heard })).await;
    let token = alice.token_of_sync().await;
    let said =
        json!({ "room_id": room, "user_id": ghost, "body": "from there", "ts": 1_500_000_000_000_u64 });
    bridge.call("send", said).await;
    let event = alice.event_of_sync(&token, &room, |event| event["content"]["body"] == "from there").await;
    assert_eq!(
        (&event["sender"], &event["origin_server_ts"]),
        (&json!(ghost), &json!(1_500_000_000_000_u64))
    );
    let typing = Client::room(&room, &format!("typing/{}", segment(&alice.user_id)));
    alice.put(&typing, &json!({ "typing": true, "timeout": 30_000 })).await.ok();
    let typing = json!({ "what": "typing", "room_id": room, "user_id": alice.user_id, "typing": true });
    bridge.call("wait", json!({ "fact": typing })).await;
}
