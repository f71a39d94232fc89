//! Joining rooms of other servers without waiting for their members.
//!
//! Spec: server-server API, `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, `omit_members`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use engine::pdu::Pdu;
use serde_json::{Value, json};
use tests::{Link, Reply, Server, Stranger, Synapse, segment};

use super::{User, eventually, path};

/// Members of Synapse's room; `GANGLION_JOIN_MEMBERS` asks for more.
const MEMBERS: usize = 20;

fn kinds(events: &Value) -> Vec<(String, String)> {
    let events = events.as_array().unwrap().iter();
    events
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            (text("type"), text("state_key"))
        })
        .collect()
}

async fn join_as(stranger: &Stranger, server: &Server, room: &str, user: &str, query: &str) -> Value {
    let id = segment(room);
    let user = format!("@{user}:{}", stranger.name());
    let template = stranger
        .get(server, &format!("/_matrix/federation/v1/make_join/{id}/{}?ver=11", segment(&user)))
        .await
        .ok();
    let rules = engine::room_version::rules(&"11".try_into().unwrap()).unwrap();
    let join = stranger.seal(template["event"].clone(), rules);
    let uri = format!("/_matrix/federation/v2/send_join/{id}/{}{query}", segment(join.event_id().as_str()));
    stranger.put(server, &uri, serde_json::from_slice(join.raw()).unwrap()).await.ok()
}

#[tokio::test]
async fn members_are_left_out_of_the_answer_to_a_join_if_that_is_wanted() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let named = alice.create("11", json!({ "name": "Tea" })).await;
    let unnamed = alice.create("11", json!({})).await;
    for name in ["bob", "carol"] {
        let user = User(server.client(name).await);
        user.join(&named, server.name()).await;
        user.join(&unnamed, server.name()).await;
    }
    let members =
        |answer: &Value| kinds(&answer["state"]).iter().filter(|key| key.0 == "m.room.member").count();
    let whole = join_as(&stranger, &server, &named, "one", "").await;
    assert_eq!((&whole["members_omitted"], members(&whole)), (&json!(false), 3));
    let lean = join_as(&stranger, &server, &named, "two", "?omit_members=true").await;
    assert_eq!((&lean["members_omitted"], members(&lean)), (&json!(true), 0));
    let mut both = [server.name(), stranger.name()];
    both.sort_unstable();
    assert_eq!(lean["servers_in_room"], json!(both));
    assert!(kinds(&lean["state"]).contains(&("m.room.name".to_owned(), String::new())));
    // What authorises the state is there, and nothing twice.
    let chain = kinds(&lean["auth_chain"]);
    assert!(chain.contains(&("m.room.member".to_owned(), alice.id().to_owned())), "{chain:?}");
    assert!(!chain.iter().any(|key| key.0 == "m.room.create"), "{chain:?}");
    // A room without a name is named after members.
    let lean = join_as(&stranger, &server, &unnamed, "one", "?omit_members=true").await;
    assert_eq!(members(&lean), 3);
    assert_eq!(lean["servers_in_room"], json!([server.name()]));
    // What they said of themselves may have been redacted since they were looked for.
    let slip = json!({ "membership": "join", "displayname": "a slip" });
    let slip = alice.0.set_state(&unnamed, "m.room.member", alice.id(), &slip).await.ok();
    alice.sync_token().await;
    let redact = format!("redact/{}/1", segment(slip["event_id"].as_str().unwrap()));
    alice.0.put(&path(&unnamed, &redact), &json!({})).await.ok();
    let lean = join_as(&stranger, &server, &unnamed, "two", "?omit_members=true").await;
    let mut state = lean["state"].as_array().unwrap().iter();
    let hero = state.find(|event| event["state_key"] == alice.id()).unwrap();
    assert_eq!(hero["content"], json!({ "membership": "join" }));
}

async fn members(user: &User, room: &str) -> Vec<String> {
    let answer = user.0.get(&path(room, "members")).await.ok();
    let mut members: Vec<_> = answer["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["state_key"].as_str().unwrap().to_owned())
        .collect();
    members.sort();
    members
}

async fn syncs(user: &User, room: &str, lazily: bool) -> Value {
    let filter = format!("{{\"room\":{{\"state\":{{\"lazy_load_members\":{lazily}}}}}}}");
    let sync = user.0.get(&format!("/_matrix/client/v3/sync?filter={}", segment(&filter))).await.ok();
    sync["rooms"]["join"][room].clone()
}

#[tokio::test]
async fn a_room_can_be_used_before_its_members_are_there_and_completes_after_a_kill() {
    let link = Link::start().await;
    let (server, mut other) = (Server::start_behind(&link).await, Server::start_federating("").await);
    let alice = User(server.client("alice").await);
    let bob = User(other.client("bob").await);
    let room = alice.create("11", json!({ "name": "Tea" })).await;
    let mut guests = Vec::new();
    for name in ["carol", "dave", "erin"] {
        let guest = User(server.client(name).await);
        guest.join(&room, server.name()).await;
        guests.push(guest);
    }
    link.hold("/state");
    let token = bob.sync_token().await;
    bob.join(&room, server.name()).await;
    alice.sees(&room, &bob, "join").await;
    bob.say(&room, "hello from afar").await;
    alice.hears(&room, "hello from afar").await;
    // A member whom the state lacks speaks, renames herself, and leaves.
    guests[0].say(&room, "carol speaks").await;
    bob.hears(&room, "carol speaks").await;
    let renamed = json!({ "membership": "join", "displayname": "Carola" });
    guests[0].set(&room, "m.room.member", guests[0].id(), &renamed).await;
    guests[1].leave(&room).await;
    alice.say(&room, "alice speaks").await;
    bob.hears(&room, "alice speaks").await;
    assert_eq!(bob.state(&room, "m.room.name", "").await, Some(json!({ "name": "Tea" })));
    // Who loads members lazily sees the room; who wants them all does not yet.
    assert!(syncs(&bob, &room, true).await["timeline"]["events"].is_array());
    assert!(syncs(&bob, &room, false).await.is_null());
    let waiting = tokio::time::timeout(Duration::from_millis(500), members(&bob, &room)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    other.kill();
    other.restart().await;
    bob.say(&room, "still here").await;
    alice.hears(&room, "still here").await;
    assert!(syncs(&bob, &room, false).await.is_null());
    link.heal();
    eventually("all members are there", async || {
        (members(&bob, &room).await == members(&alice, &room).await).then_some(())
    })
    .await;
    assert_eq!(members(&bob, &room).await.len(), 5);
    // Who wants all members is told of the room with all of them.
    let path = format!("/_matrix/client/v3/sync?since={}", segment(&token));
    let told = bob.0.get(&path).await.ok()["rooms"]["join"][&room].clone();
    let mut known: Vec<_> =
        kinds(&told["state"]["events"]).into_iter().chain(kinds(&told["timeline"]["events"])).collect();
    known.retain(|key| key.0 == "m.room.member");
    known.sort();
    known.dedup();
    assert_eq!(known.len(), 5, "{told}");
    assert_eq!(told["summary"]["m.joined_member_count"], 4);
    assert_eq!(bob.membership(&room, &guests[1]).await.as_deref(), Some("leave"));
    let carol = bob.state(&room, "m.room.member", guests[0].id()).await.unwrap();
    assert_eq!(carol["displayname"], "Carola");
    // And goes on as any other room.
    guests[2].say(&room, "erin speaks").await;
    bob.hears(&room, "erin speaks").await;
    bob.say(&room, "good").await;
    alice.hears(&room, "good").await;
}

/// Whether users see an event.
async fn is_shown(user: &User, room: &str, event: &Pdu) -> bool {
    let answer = user.0.get(&path(room, &format!("event/{}", segment(event.event_id().as_str())))).await;
    answer.status == 200
}

/// Somebody whose ban is among the members that came later goes on meanwhile, and changes what others may do.
#[tokio::test]
async fn events_that_came_before_the_members_are_judged_anew() {
    let (founder, other) = (Stranger::start().await, Stranger::start().await);
    let mut server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    let mallory = format!("@mallory:{}", other.name());
    let levels = json!({ "users": { room.user.as_str(): 100, &mallory: 50 }, "state_default": 50 });
    let levels = founder.event(&mut room, "m.room.power_levels", Some(""), &levels);
    founder.let_in(&mut room, &other, "mallory");
    founder.let_in(&mut room, &founder, "bob");
    let before_ban = room.clone();
    founder.event(&mut room, "m.room.member", Some(&mallory), &json!({ "membership": "ban" }));
    let whole = founder.host_without_members(&room);
    other.host_without_members(&before_ban);
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    let join = Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap());
    // Mallory goes on after the join, as if there were no ban.
    let mut banned = before_ban.clone();
    (banned.user, banned.tips) = (mallory.try_into().unwrap(), vec![join.clone()]);
    let topic = other.event(&mut banned, "m.room.topic", Some(""), &json!({ "topic": "mine" }));
    let mut silence: Value = serde_json::from_str(levels.content().get()).unwrap();
    silence["events_default"] = json!(50);
    let silence = other.event(&mut banned, "m.room.power_levels", Some(""), &silence);
    let speech = json!({ "msgtype": "m.text", "body": "mallory speaks" });
    let speech = other.event(&mut banned, "m.room.message", None, &speech);
    let results = other.send(&server, "banned", &[&topic, &silence, &speech]).await;
    for event in [&topic, &silence, &speech] {
        assert_eq!(results[event.event_id().as_str()], json!({}), "{results}");
        assert!(is_shown(&alice, &id, event).await);
    }
    assert_eq!(alice.state(&id, "m.room.topic", "").await, Some(json!({ "topic": "mine" })));
    // Bob is silenced by it.
    let mut honest = room.clone();
    (honest.user, honest.tips) = (format!("@bob:{}", founder.name()).try_into().unwrap(), vec![join]);
    let honest = founder.event(
        &mut honest,
        "m.room.message",
        None,
        &json!({ "msgtype": "m.text", "body": "bob speaks" }),
    );
    let results = founder.send(&server, "honest", &[&honest]).await;
    assert_eq!(results[honest.event_id().as_str()], json!({}), "{results}");
    assert!(!is_shown(&alice, &id, &honest).await);
    let lazily = segment(r#"{"room":{"state":{"lazy_load_members":true}}}"#);
    let sync = alice.0.get(&format!("/_matrix/client/v3/sync?filter={lazily}")).await.ok();
    let told = kinds(&sync["rooms"]["join"][&id]["timeline"]["events"]);
    assert!(told.contains(&("m.room.topic".to_owned(), String::new())), "{sync}");
    let since = sync["next_batch"].as_str().unwrap().to_owned();
    server.kill();
    *whole.lock() = true;
    server.restart().await;
    eventually("bob is heard", async || is_shown(&alice, &id, &honest).await.then_some(())).await;
    for event in [&topic, &silence, &speech] {
        assert!(!is_shown(&alice, &id, event).await, "{}", event.kind());
    }
    assert_eq!(alice.state(&id, "m.room.topic", "").await, None);
    let now = alice.state(&id, "m.room.power_levels", "").await.unwrap();
    assert_eq!(now.get("events_default"), None, "{now}");
    let shown: Vec<_> = alice
        .messages(&id)
        .await
        .into_iter()
        .filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned))
        .collect();
    assert_eq!(shown, ["bob speaks"]);
    // Who had been told otherwise is told how it is.
    let path = format!("/_matrix/client/v3/sync?filter={lazily}&since={}", segment(&since));
    let told = alice.0.get(&path).await.ok()["rooms"]["join"][&id].clone();
    let state = told["state"]["events"].as_array().unwrap();
    assert!(state.iter().any(|event| event["event_id"] == levels.event_id().as_str()), "{told}");
    // What we say comes after what stands, and is authorised by it.
    alice.say(&id, "alice speaks").await;
    let sent = eventually("our event is sent", async || {
        founder.received().into_iter().find(|event| event["content"]["body"] == "alice speaks")
    })
    .await;
    assert_eq!(sent["prev_events"], json!([honest.event_id()]), "{sent}");
    let auth = sent["auth_events"].to_string();
    assert!(
        auth.contains(levels.event_id().as_str()) && !auth.contains(silence.event_id().as_str()),
        "{sent}"
    );
}

/// A state without a member whose event is refused, since this server left meanwhile, say, would be another state.
#[tokio::test]
async fn a_room_is_not_complete_without_the_members_that_are_refused() {
    let founder = Stranger::start().await;
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    founder.let_in(&mut room, &founder, "bob");
    *founder.host_without_members(&room).lock() = true;
    let bob = format!("@bob:{}", founder.name());
    let member = room.state[&("m.room.member".to_owned(), bob.clone())].event_id();
    let (uri, is_refused) = (format!("/event/{}", segment(member.as_str())), Arc::new(AtomicBool::new(true)));
    let (part, refuses) = (uri.clone(), is_refused.clone());
    founder.on_first(move |heard| {
        let error = json!({ "errcode": "M_FORBIDDEN", "error": "your server is not in the room" });
        (heard.uri.contains(&part) && refuses.load(Ordering::Relaxed)).then_some(Reply::Json(403, error))
    });
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    eventually("bob is asked for", async || (!founder.heard(&uri).is_empty()).then_some(())).await;
    let waiting = tokio::time::timeout(Duration::from_millis(500), members(&alice, &id)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    is_refused.store(false, Ordering::Relaxed);
    eventually("all members are there", async || members(&alice, &id).await.contains(&bob).then_some(()))
        .await;
}

/// Spec: client-server API, `POST /rooms/{roomId}/invite`, 400.
#[tokio::test]
async fn whoevers_server_lacks_the_room_version_is_not_invited() {
    let (server, old) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("12", json!({})).await;
    old.on(|heard| {
        let error = json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "?", "room_version": "12" });
        heard.uri.contains("/v2/invite/").then_some(Reply::Json(400, error))
    });
    let invite = json!({ "user_id": format!("@guest:{}", old.name()) });
    alice.0.post(&path(&room, "invite"), &invite).await.is(400, "M_UNSUPPORTED_ROOM_VERSION");
}

/// A redaction without a target is not shown, and yet others come after it.
#[tokio::test]
async fn what_follows_a_hidden_event_stands_once_the_members_are_there() {
    let (founder, other) = (Stranger::start().await, Stranger::start().await);
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    founder.let_in(&mut room, &other, "carol");
    let whole = founder.host_without_members(&room);
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    room.take(&Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap()));
    let hidden = founder.event(&mut room, "m.room.redaction", None, &json!({ "redacts": "$nowhere" }));
    let said = founder.event(&mut room, "m.room.message", None, &text("founder speaks"));
    let results = founder.send(&server, "founder", &[&hidden, &said]).await;
    assert_eq!(results[said.event_id().as_str()], json!({}), "{results}");
    assert!(!is_shown(&alice, &id, &hidden).await);
    room.user = format!("@carol:{}", other.name()).try_into().unwrap();
    let speech = other.event(&mut room, "m.room.message", None, &text("carol speaks"));
    other.host_without_members(&room);
    let results = other.send(&server, "carol", &[&speech]).await;
    assert_eq!(results[speech.event_id().as_str()], json!({}), "{results}");
    *whole.lock() = true;
    assert_eq!(members(&alice, &id).await.len(), 3);
    assert!(is_shown(&alice, &id, &speech).await);
    assert!(!is_shown(&alice, &id, &hidden).await);
    alice.say(&id, "alice speaks").await;
    let sent = eventually("our event is sent", async || {
        founder.received().into_iter().find(|event| event["content"]["body"] == "alice speaks")
    })
    .await;
    assert_eq!(sent["prev_events"], json!([speech.event_id()]), "{sent}");
}

/// Somebody whose ban is among the members that came later redacts what others said.
#[tokio::test]
async fn redactions_that_do_not_stand_once_the_members_are_there_are_undone() {
    let (founder, other) = (Stranger::start().await, Stranger::start().await);
    let server = Server::start_federating("").await;
    let alice = User(server.client("alice").await);
    let mut room = founder.found_room("founder");
    let mallory = format!("@mallory:{}", other.name());
    let levels = json!({ "users": { room.user.as_str(): 100, &mallory: 50 } });
    founder.event(&mut room, "m.room.power_levels", Some(""), &levels);
    founder.let_in(&mut room, &other, "mallory");
    let before_ban = room.clone();
    founder.event(&mut room, "m.room.member", Some(&mallory), &json!({ "membership": "ban" }));
    let whole = founder.host_without_members(&room);
    other.host_without_members(&before_ban);
    let id = room.room_id.to_string();
    alice.join(&id, founder.name()).await;
    let join = founder.heard("/send_join/")[0].json();
    let join = Arc::new(Pdu::parse(join.to_string().as_bytes(), room.rules).unwrap());
    room.take(&join);
    let said = ["taken back by nobody", "taken back by both", "taken back by the founder"]
        .map(|body| founder.event(&mut room, "m.room.message", None, &text(body)));
    founder.send(&server, "said", &[&said[0], &said[1], &said[2]]).await;
    let redacts = |event: &Pdu| json!({ "redacts": event.event_id() });
    let mut banned = before_ban.clone();
    (banned.user, banned.tips) = (mallory.try_into().unwrap(), room.tips.clone());
    let taken =
        [&said[0], &said[1]].map(|event| other.event(&mut banned, "m.room.redaction", None, &redacts(event)));
    let results = other.send(&server, "banned", &[&taken[0], &taken[1]]).await;
    assert_eq!(results[taken[1].event_id().as_str()], json!({}), "{results}");
    let stands =
        [&said[1], &said[2]].map(|event| founder.event(&mut room, "m.room.redaction", None, &redacts(event)));
    founder.send(&server, "stands", &[&stands[0], &stands[1]]).await;
    let event = async |event: &Pdu| {
        alice.0.get(&path(&id, &format!("event/{}", segment(event.event_id().as_str())))).await.ok()
    };
    for event_id in &said {
        assert_eq!(event(event_id).await["content"], json!({}));
    }
    *whole.lock() = true;
    assert_eq!(members(&alice, &id).await.len(), 3);
    assert_eq!(event(&said[0]).await["content"]["body"], "taken back by nobody");
    for (said, redaction) in [(&said[1], &stands[0]), (&said[2], &stands[1])] {
        let event = event(said).await;
        assert_eq!(event["content"], json!({}));
        let because = &event["unsigned"]["redacted_because"]["event_id"];
        assert_eq!(because, redaction.event_id().as_str(), "{event}");
    }
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

/// How long it takes to join a room of Synapse: until it can be used, and until all members are there.
#[tokio::test]
async fn a_large_room_of_synapse_can_be_used_at_once() {
    let count = std::env::var("GANGLION_JOIN_MEMBERS").map_or(MEMBERS, |count| count.parse().unwrap());
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    let room = bob.create("11", json!({ "name": "Crowd" })).await;
    for number in 1..count {
        let user = User(synapse.client(&format!("member{number}")).await);
        user.join(&room, synapse.server_name()).await;
    }
    let start = tokio::time::Instant::now();
    alice.join(&room, synapse.server_name()).await;
    alice.say(&room, "here").await;
    let usable = start.elapsed();
    assert_eq!(members(&alice, &room).await.len(), count + 1);
    let complete = start.elapsed();
    bob.hears(&room, "here").await;
    println!("joined a room with {count} members: usable after {usable:?}, complete after {complete:?}");
}

#[tokio::test]
async fn what_is_said_while_a_join_is_answered_is_there_once_it_is() {
    let link = Link::start().await;
    let (server, other) = (Server::start_behind(&link).await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let shared = alice.create("11", json!({})).await;
    bob.join(&shared, server.name()).await;
    for is_invited in [false, true] {
        let room = alice.create("11", json!({ "preset": "public_chat" })).await;
        if is_invited {
            alice.invite(&room, &bob).await;
            bob.is_invited(&room).await;
        }
        link.hold_answers("/send_join/");
        let joins = bob.join(&room, server.name());
        let speaks = async {
            alice.sees(&room, &bob, "join").await;
            alice.say(&room, "welcome").await;
            // A server gets what is sent to it in order: by then it has got the welcome, too.
            let said = format!("invited: {is_invited}");
            alice.say(&shared, &said).await;
            bob.hears(&shared, &said).await;
            assert_ne!(bob.membership(&room, &bob).await.as_deref(), Some("join"));
            link.heal();
        };
        tokio::join!(joins, speaks);
        bob.hears(&room, "welcome").await;
        bob.say(&room, "thank you").await;
        alice.hears(&room, "thank you").await;
    }
}

#[tokio::test]
async fn a_join_goes_on_when_the_client_hangs_up() {
    let link = Link::start().await;
    let (server, other) = (Server::start_behind(&link).await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let room = alice.create("11", json!({ "preset": "public_chat" })).await;
    link.hold_answers("/send_join/");
    tokio::select! {
        () = bob.join(&room, server.name()) => panic!("the answer is held"),
        () = alice.sees(&room, &bob, "join") => {}
    }
    link.heal();
    bob.sees(&room, &bob, "join").await;
    alice.say(&room, "welcome").await;
    bob.hears(&room, "welcome").await;
}
