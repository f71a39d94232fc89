//! Endpoints and spellings from before `/sync` and `v3`.

use serde_json::{Value, json};
use tests::{Client, Server, segment};

#[tokio::test]
async fn stable_paths_answer_under_their_former_spellings() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "name": "tea" })).await;
    for path in [
        "account/whoami".to_owned(),
        "joined_rooms".to_owned(),
        "sync?timeout=0".to_owned(),
        "capabilities".to_owned(),
        "pushrules/".to_owned(),
        format!("rooms/{}/state/m.room.name", segment(&room)),
        format!("rooms/{}/messages?dir=b", segment(&room)),
    ] {
        let now = alice.get(&format!("/_matrix/client/v3/{path}")).await.ok();
        let then = alice.get(&format!("/_matrix/client/r0/{path}")).await.ok();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&then), keys(&now), "{path}");
    }
}

/// Relations and aliases of rooms had other spellings before they were specified.
#[tokio::test]
async fn endpoints_answer_where_their_drafts_had_them() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({ "room_alias_name": "tea" })).await;
    let said = alice.say(&room, "1", "tea?").await;
    let about = |of: &str| json!({ "rel_type": "m.annotation", "event_id": of, "key": "yes" });
    let mut sent = vec![said.clone()];
    for txn in ["2", "3"] {
        let content = json!({ "m.relates_to": about(sent.last().unwrap()) });
        let answer = alice.send(&room, "m.reaction", txn, &content).await.ok();
        sent.push(answer["event_id"].as_str().unwrap().to_owned());
    }
    let unstable = format!("/_matrix/client/unstable/rooms/{}/relations/{}", segment(&room), segment(&said));
    for rest in ["", "/m.annotation", "/m.annotation/m.reaction"] {
        let found = alice.get(&format!("{unstable}{rest}")).await.ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), 1, "{rest}: {found}");
        assert_eq!(found["chunk"][0]["event_id"], sent[1]);
        let deep = alice.get(&format!("{unstable}{rest}?org.matrix.msc3981.recurse=true")).await.ok();
        assert_eq!(deep["chunk"].as_array().unwrap().len(), 2, "{rest}: {deep}");
    }
    let aliases = format!("/_matrix/client/unstable/org.matrix.msc2432/rooms/{}/aliases", segment(&room));
    assert_eq!(alice.get(&aliases).await.ok(), json!({ "aliases": ["#tea:localhost"] }));
}

#[tokio::test]
async fn initial_sync_has_all_rooms_and_their_last_messages() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    let invited = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    for number in 0..5 {
        alice.say(&room, &number.to_string(), &number.to_string()).await;
    }
    let all = alice.get("/_matrix/client/v3/initialSync?limit=3").await.ok();
    assert!(all["end"].is_string() && all["presence"].is_array());
    let rooms = all["rooms"].as_array().unwrap();
    let of = |id: &str| rooms.iter().find(|room| room["room_id"] == id).unwrap();
    assert_eq!(of(&room)["membership"], "join");
    assert_eq!(of(&invited)["membership"], "invite");
    let invite = &of(&invited)["invite"];
    assert_eq!((&invite["room_id"], &invite["state_key"]), (&json!(invited), &json!(alice.user_id)));
    assert!(invite["event_id"].is_string() && invite["origin_server_ts"].is_u64(), "{invite}");
    let chunk = of(&room)["messages"]["chunk"].as_array().unwrap();
    let bodies: Vec<_> = chunk.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    assert_eq!(bodies, ["2", "3", "4"]);
    let state = of(&room)["state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.name"));

    let one = alice.get(&Client::room(&room, "initialSync?limit=3")).await.ok();
    assert_eq!((&one["room_id"], &one["membership"]), (&json!(room), &json!("join")));
    let ids = |chunk: &Value| -> Vec<Value> {
        chunk.as_array().unwrap().iter().map(|event| event["event_id"].clone()).collect()
    };
    assert_eq!(ids(&one["messages"]["chunk"]), ids(&of(&room)["messages"]["chunk"]));
    bob.get(&Client::room(&room, "initialSync")).await.is(403, "M_FORBIDDEN");

    bob.join(&room).await.ok();
    alice.post(&Client::room(&room, "ban"), &json!({ "user_id": bob.user_id })).await.ok();
    let archived = bob.get("/_matrix/client/v3/initialSync?archived=true").await.ok();
    let rooms = archived["rooms"].as_array().unwrap();
    assert_eq!(rooms.iter().find(|known| known["room_id"] == room).unwrap()["membership"], "ban");
}

/// What is nested in an event has the form of the event: here with the room's ID, in `/sync` without.
#[tokio::test]
async fn nested_events_have_the_form_of_the_outer_one() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let root = alice.say(&room, "1", "rot").await;
    let relates = |rel_type: &str| json!({ "rel_type": rel_type, "event_id": root });
    let reply = json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": relates("m.thread") });
    alice.send(&room, "m.room.message", "2", &reply).await.ok();
    let new = json!({ "msgtype": "m.text", "body": "root" });
    let edit = json!({
        "msgtype": "m.text", "body": "root", "m.new_content": new, "m.relates_to": relates("m.replace"),
    });
    alice.send(&room, "m.room.message", "3", &edit).await.ok();
    let gone = alice.say(&room, "4", "gone").await;
    let path = Client::room(&room, &format!("redact/{}/5", segment(&gone)));
    alice.put(&path, &json!({})).await.ok();
    let nested = |events: &Value| {
        let events = events.as_array().unwrap();
        let unsigned = |id: &str| &events.iter().find(|event| event["event_id"] == id).unwrap()["unsigned"];
        let relations = &unsigned(&root)["m.relations"];
        let because = &unsigned(&gone)["redacted_because"];
        let nested = [&relations["m.thread"]["latest_event"], &relations["m.replace"], because];
        assert!(nested.iter().all(|event| event["event_id"].is_string()), "{nested:?}");
        nested.map(|event| event["room_id"].clone())
    };
    let with = [json!(room), json!(room), json!(room)];
    let all = alice.get("/_matrix/client/v3/initialSync?limit=20").await.ok();
    assert_eq!(nested(&all["rooms"][0]["messages"]["chunk"]), with);
    let one = alice.get(&Client::room(&room, "initialSync?limit=20")).await.ok();
    assert_eq!(nested(&one["messages"]["chunk"]), with);
    let page = alice.get(&Client::room(&room, "messages?dir=b&limit=20")).await.ok();
    assert_eq!(nested(&page["chunk"]), with);
    let synced = alice.sync("timeout=0").await;
    let events = &synced["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!(nested(events), [Value::Null, Value::Null, Value::Null]);
}

#[tokio::test]
async fn events_come_in_a_stream() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let start = bob.get("/_matrix/client/v3/initialSync").await.ok()["end"].as_str().unwrap().to_owned();
    let said = alice.say(&room, "1", "hello").await;
    let mut from = start;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let path = format!("/_matrix/client/v3/events?from={}&timeout=1000", segment(&from));
        let page = bob.get(&path).await.ok();
        seen.extend(page["chunk"].as_array().unwrap().iter().map(|event| event["event_id"].clone()));
        from = page["end"].as_str().unwrap().to_owned();
        if seen.contains(&json!(said)) {
            break;
        }
    }
    assert!(seen.contains(&json!(said)), "{seen:?}");
    let garbage = bob.get("/_matrix/client/v3/events?from=garbage").await;
    assert_eq!(garbage.status, 400, "{garbage:?}");
}

/// Without a place to start from, they come from now on; what they have no place for stays for `/sync`.
#[tokio::test]
async fn a_stream_has_invites_and_nothing_old_and_takes_no_messages_away() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "old").await;
    let messages = json!({ "messages": { &bob.user_id: { "*": { "n": 1 } } } });
    alice.put("/_matrix/client/v3/sendToDevice/m.test/1", &messages).await.ok();
    let path = "/_matrix/client/v3/events";
    let page = bob.get(&format!("{path}?timeout=0")).await.ok();
    assert_eq!(page["chunk"], json!([]));
    let say = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        alice.say(&room, "2", "new").await
    };
    let from_now_on = format!("{path}?timeout=30000");
    let (page, said) = tokio::join!(bob.get(&from_now_on), say);
    let page = page.ok();
    let of_room = |page: &Value| -> Vec<Value> {
        let events = page["chunk"].as_array().unwrap().iter();
        events.filter(|event| !event["event_id"].is_null()).map(|event| event["event_id"].clone()).collect()
    };
    assert_eq!(of_room(&page), [json!(said)]);
    let invited = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let from = segment(page["end"].as_str().unwrap());
    let page = bob.get(&format!("{path}?from={from}&timeout=30000")).await.ok();
    let invite = page["chunk"].as_array().unwrap().iter().find(|event| event["type"] == "m.room.member");
    let invite = invite.unwrap_or_else(|| panic!("{page}"));
    assert_eq!((&invite["room_id"], &invite["state_key"]), (&json!(invited), &json!(bob.user_id)));
    assert!(invite["event_id"].is_string() && invite["content"]["membership"] == "invite", "{invite}");
    let from = segment(page["end"].as_str().unwrap());
    bob.get(&format!("{path}?from={from}&timeout=0")).await.ok();
    assert_eq!(bob.sync("timeout=0").await["to_device"]["events"][0]["content"]["n"], 1);
}

#[tokio::test]
async fn a_single_event_is_found_by_its_id_alone() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({})).await;
    let said = alice.say(&room, "1", "hello").await;
    let path = format!("/_matrix/client/v3/events/{}", segment(&said));
    let event = alice.get(&path).await.ok();
    assert_eq!((&event["event_id"], &event["room_id"]), (&json!(said), &json!(room)));
    assert_eq!(event["content"]["body"], "hello");
    bob.get(&path).await.is(404, "M_NOT_FOUND");
    alice.get("/_matrix/client/v3/events/%24nothing").await.is(404, "M_NOT_FOUND");
    alice.get("/_matrix/client/v3/events/nothing").await.is(400, "M_INVALID_PARAM");
    server.anonymous().get(&path).await.is(401, "M_MISSING_TOKEN");
}
