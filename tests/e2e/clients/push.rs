//! Published clients name a push gateway, and it is told.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::{PeerKind, Server, free_port};

use super::Participant;
use crate::{
    federation::eventually,
    metrics::{samples, scrape},
    push::gateway::Gateway,
};

const APP: &str = "org.example.app";

fn pusher(pushkey: &str, mut data: Value, gateway: &Gateway) -> Value {
    data["url"] = gateway.url().into();
    json!({
        "kind": "http",
        "app_id": APP,
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": data,
    })
}

fn pushkey(told: &Value) -> &str {
    told["devices"][0]["pushkey"].as_str().unwrap()
}

/// What the gateway is told of one event, by pushkey; each of the two pushers is told once.
async fn told_of(gateway: &mut Gateway, event: &str) -> BTreeMap<String, Value> {
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        let next = gateway.next_event().await;
        assert_eq!(next["event_id"], event, "{next}");
        let before = told.insert(pushkey(&next).to_owned(), next);
        assert_eq!(before, None, "told twice");
    }
    told
}

async fn metric(port: u16, name: &str) -> u64 {
    let text = scrape(port).await;
    let value = samples(&text).get(format!("ganglion_{name}").as_str()).map(|value| value.parse().unwrap());
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}

async fn pushkeys(client: &mut Participant) -> Vec<String> {
    let answer = client.call("pushers", json!({})).await;
    answer["pushers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pusher| pusher["pushkey"].as_str().unwrap().to_owned())
        .collect()
}

/// matrix-js-sdk asks for event IDs alone, matrix-sdk for whole events.
#[tokio::test]
async fn what_notifies_reaches_the_gateway_that_clients_name() {
    let port = free_port();
    let metrics = format!("['127.0.0.1:{port}']");
    let settings = [("push.allow_private_addresses", "true"), ("listen.metrics", &metrics)];
    let server = Server::start_with_settings(&settings).await;
    let mut gateway = Gateway::start().await;
    let [alice, bob_account, carol_account] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut bob = Participant::peer(PeerKind::Js, &server);
    let mut carol = Participant::sdk(&server).await;
    for (client, account) in [(&mut bob, &bob_account), (&mut carol, &carol_account)] {
        account.join(&room).await.ok();
        client.call("login", json!({ "user": account.user_id, "password": account.password() })).await;
    }
    let short = pusher("short", json!({ "format": "event_id_only" }), &gateway);
    bob.call("set_pusher", json!({ "pusher": short })).await;
    carol.call("set_pusher", json!({ "pusher": pusher("whole", json!({}), &gateway) })).await;
    // The library adds a member of its own to what the server says.
    assert_eq!(bob.call("pushers", json!({})).await["pushers"][0]["data"], short["data"]);
    assert_eq!(pushkeys(&mut bob).await, ["short"]);
    assert_eq!(pushkeys(&mut carol).await, ["whole"]);

    let first = alice.say(&room, "1", "first").await;
    let told = told_of(&mut gateway, &first).await;
    let names: Vec<_> = told["short"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["counts", "devices", "event_id", "prio", "room_id"]);
    assert_eq!(told["whole"]["content"], json!({ "msgtype": "m.text", "body": "first" }));
    for told in told.values() {
        assert_eq!((&told["room_id"], &told["counts"]), (&json!(room), &json!({ "unread": 1 })));
    }
    bob.wait(json!({ "what": "message", "event_id": first })).await;
    bob.call("receipt", json!({ "room_id": room, "event_id": first })).await;
    let read = gateway.next().await;
    assert_eq!(
        (pushkey(&read), &read["counts"], read.get("event_id")),
        ("short", &json!({ "unread": 0 }), None)
    );

    // What a gateway answers with an error is told again, later.
    gateway.fail(true).await;
    let second = alice.say(&room, "2", "second").await;
    for _ in 0..2 {
        assert_eq!(gateway.next_failed().await["event_id"], second);
    }
    let both_rest = async || (metric(port, "pushers_resting").await == 2).then_some(());
    eventually("both pushers rest", both_rest).await;
    assert!(metric(port, "push_failures_total{cause=\"status_5xx\"}").await >= 2);
    gateway.fail(false).await;
    let told = told_of(&mut gateway, &second).await;
    assert_eq!(told["short"]["counts"], json!({ "unread": 1 }));
    assert_eq!(told["whole"]["counts"], json!({ "unread": 2 }));
    let none_rests = async || (metric(port, "pushers_resting").await == 0).then_some(());
    eventually("no pusher rests", none_rests).await;

    // A pushkey that the gateway rejects is gone.
    gateway.reject("short").await;
    let third = alice.say(&room, "3", "third").await;
    told_of(&mut gateway, &third).await;
    eventually("the pusher is gone", async || pushkeys(&mut bob).await.is_empty().then_some(())).await;
    assert_eq!(metric(port, "push_rejections_total").await, 1);
    let fourth = alice.say(&room, "4", "fourth").await;
    let told = gateway.next_event().await;
    assert_eq!((pushkey(&told), &told["event_id"]), ("whole", &json!(fourth)));
    carol.call("remove_pusher", json!({ "pushkey": "whole", "app_id": APP })).await;
    assert!(pushkeys(&mut carol).await.is_empty());
    assert!(metric(port, "push_requests_total{kind=\"event\"}").await >= 9);
    assert_eq!(metric(port, "push_requests_total{kind=\"counts\"}").await, 1);
    assert!(gateway.rest().is_empty());
}
