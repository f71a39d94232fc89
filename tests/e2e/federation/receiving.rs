//! Events of a server made by hand: what becomes of good, late, bad and forged ones.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::sync::Arc;

use engine::pdu::Pdu;
use serde_json::{Value, json};
use tests::{Guest, Reply, Server, Stranger, segment};

use super::{User, eventually, path};

/// What a stranger's events say in their transactions.
pub(super) fn text(text: &str) -> Value {
    json!({ "msgtype": "m.text", "body": text })
}

/// Alice's public room with a guest of a stranger in it.
pub(super) async fn room_with_guest(
    server: &Server,
    stranger: &Stranger,
    version: &str,
) -> (User, String, Guest) {
    let alice = User(server.client("alice").await);
    let room = alice.create(version, json!({})).await;
    let guest = stranger.join(server, &room, "mallory").await;
    (alice, room, guest)
}

pub(super) fn raw(pdu: &Pdu) -> Value {
    serde_json::from_slice(pdu.raw()).unwrap()
}

pub(super) fn ids(events: &[&Arc<Pdu>]) -> Vec<String> {
    events.iter().map(|event| event.event_id().to_string()).collect()
}

/// Whether users see an event.
pub(super) async fn is_shown(user: &User, room: &str, event: &Pdu) -> bool {
    let answer = user.0.get(&path(room, &format!("event/{}", segment(event.event_id().as_str())))).await;
    answer.status == 200
}

#[tokio::test]
async fn each_event_of_a_transaction_has_its_own_answer_and_a_repeated_transaction_the_same() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let good = stranger.event(&mut guest, "m.room.message", None, &text("good"));
    // Nobody of the stranger may do this.
    let tips = guest.tips.clone();
    let forbidden =
        stranger.event_after(&guest, &tips, "m.room.topic", Some(""), &json!({ "topic": "mine" }));
    // Its content was changed after it was signed: the redacted form stays.
    let mut changed = raw(&stranger.event(&mut guest, "m.room.message", None, &text("honest")));
    changed["content"]["body"] = json!("changed");
    // Its signature is another event's.
    let mut forged = raw(&stranger.event_after(&guest, &tips, "m.room.message", None, &text("forged")));
    forged["signatures"] = raw(&good)["signatures"].clone();
    let mut large = raw(&stranger.event_after(&guest, &tips, "m.room.message", None, &text("large")));
    large["content"]["body"] = json!("x".repeat(66_000));
    let pdus = json!([raw(&good), raw(&forbidden), changed, forged, large, { "type": "nothing" }, "nothing", {
        "room_id": "!elsewhere:example.org", "type": "m.room.message" }]);
    let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": pdus });
    let uri = "/_matrix/federation/v1/send/first";
    let answer = stranger.put(&server, uri, body.clone()).await.ok();
    let results = answer["pdus"].as_object().unwrap();
    assert_eq!(results[good.event_id().as_str()], json!({}), "{answer}");
    assert!(results[forbidden.event_id().as_str()]["error"].is_string(), "{answer}");
    assert_eq!(results.len(), 5, "{answer}");
    assert_eq!(results.values().filter(|result| result.get("error").is_some()).count(), 3, "{answer}");
    let shown = alice.messages(&room).await;
    let sent = |body: &str| shown.iter().any(|event| event["content"]["body"] == body);
    assert!(sent("good") && !sent("changed") && !sent("forged"), "{shown:?}");
    assert!(!is_shown(&alice, &room, &forbidden).await);
    assert_eq!(stranger.put(&server, uri, body).await.ok(), answer);
    // Limits.
    let many: Vec<Value> = (0..51).map(|_| raw(&good)).collect();
    let refused = stranger
        .put(&server, "/_matrix/federation/v1/send/many", json!({ "origin": stranger.name(), "pdus": many }))
        .await;
    assert_eq!((refused.status, refused.body["errcode"].as_str()), (400, Some("M_BAD_JSON")));
    let many: Vec<Value> = (0..101).map(|_| json!({ "edu_type": "nothing", "content": {} })).collect();
    let refused = stranger
        .put(&server, "/_matrix/federation/v1/send/edus", json!({ "origin": stranger.name(), "edus": many }))
        .await;
    assert_eq!((refused.status, refused.body["errcode"].as_str()), (400, Some("M_BAD_JSON")));
}

#[tokio::test]
async fn what_a_rejected_event_authorises_is_rejected_and_what_only_follows_it_is_not() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    for version in ["1", "2", "6", "11", "12"] {
        let alice = User(server.client(&format!("alice{version}")).await);
        let room = alice.create(version, json!({})).await;
        let mut guest = stranger.join(&server, &room, "mallory").await;
        // The guest makes itself powerful, and uses the power.
        let mut levels: Value =
            serde_json::from_str(guest.state[&("m.room.power_levels".into(), String::new())].content().get())
                .unwrap();
        levels["users"][guest.user.as_str()] = json!(100);
        let own = guest.state.clone();
        let usurped = stranger.event(&mut guest, "m.room.power_levels", Some(""), &levels);
        let used = stranger.event(&mut guest, "m.room.topic", Some(""), &json!({ "topic": "mine" }));
        // It goes on, with honest auth events, after the rejected ones.
        guest.state = own;
        let after = stranger.event(&mut guest, "m.room.message", None, &text("after"));
        let results = stranger.send(&server, &format!("usurp{version}"), &[&usurped, &used, &after]).await;
        for event in [&usurped, &used] {
            assert!(results[event.event_id().as_str()]["error"].is_string(), "version {version}: {results}");
        }
        assert_eq!(results[after.event_id().as_str()], json!({}), "version {version}: {results}");
        assert!(is_shown(&alice, &room, &after).await, "version {version}");
        assert_eq!(alice.state(&room, "m.room.topic", "").await, None, "version {version}");
        // Our next event does not come after a rejected one.
        let words = format!("mine {version}");
        let said = alice.say(&room, &words).await;
        let sent = eventually("our event is sent", async || {
            stranger.received().into_iter().find(|event| event["content"]["body"] == *words)
        })
        .await;
        let prev = sent["prev_events"].to_string();
        assert!(
            prev.contains(after.event_id().as_str()) && !prev.contains(used.event_id().as_str()),
            "{said}: {sent}"
        );
    }
}

#[tokio::test]
async fn an_event_that_the_room_does_not_allow_any_more_is_hidden_and_led_on_from() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "10").await;
    let before = stranger.event(&mut guest, "m.room.message", None, &text("before"));
    stranger.send(&server, "before", &[&before]).await;
    alice.0.post(&path(&room, "ban"), &json!({ "user_id": guest.user })).await.ok();
    // The stranger has not heard of the ban, or does not care.
    let evading = stranger.event(&mut guest, "m.room.message", None, &text("evading"));
    let results = stranger.send(&server, "evading", &[&evading]).await;
    assert_eq!(results[evading.event_id().as_str()], json!({}), "{results}");
    assert!(!is_shown(&alice, &room, &evading).await);
    let said = alice.say(&room, "quiet now").await;
    let event = alice.0.get(&path(&room, &format!("event/{}", segment(&said)))).await.ok();
    assert_eq!(event["content"]["body"], "quiet now");
    // Whoever asks for it by ID gets it.
    let other = Stranger::start().await;
    let mut friend = other.join(&server, &room, "carol").await;
    let uri = format!("/_matrix/federation/v1/event/{}", segment(evading.event_id().as_str()));
    let got = other.get(&server, &uri).await.ok();
    assert_eq!(got["pdus"][0]["content"]["body"], "evading");
    // Another server saw it before the ban: its event refers to both.
    let mut tips = friend.tips.clone();
    tips.push(evading.clone());
    let merging = other.event_after(&friend, &tips, "m.room.message", None, &text("merging"));
    friend.take(&merging);
    let results = other.send(&server, "merging", &[&merging]).await;
    assert_eq!(results[merging.event_id().as_str()], json!({}), "{results}");
    assert!(is_shown(&alice, &room, &merging).await);
    assert!(!is_shown(&alice, &room, &evading).await);
    let banned =
        alice.0.get(&path(&room, &format!("state/m.room.member/{}", segment(guest.user.as_str())))).await;
    assert_eq!(banned.ok()["membership"], "ban");
}

/// Answers `get_missing_events` and `event` from some events, and other questions about rooms with what is given.
pub(super) fn give(stranger: &Stranger, events: &[&Arc<Pdu>]) {
    let events: Vec<(String, Value)> =
        events.iter().map(|event| (event.event_id().to_string(), raw(event))).collect();
    stranger.on(move |heard| {
        let all = || events.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>();
        if heard.uri.contains("/get_missing_events/") {
            return Some(Reply::Json(200, json!({ "events": all() })));
        }
        let id = heard.uri.split("/_matrix/federation/v1/event/").nth(1)?;
        let (_, event) = events.iter().find(|(known, _)| segment(known) == id)?;
        Some(Reply::Json(200, json!({ "pdus": [event] })))
    });
}

#[tokio::test]
async fn events_that_are_missing_are_fetched_and_a_rejected_one_among_them_stops_nothing() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let first = stranger.event(&mut guest, "m.room.message", None, &text("first"));
    let own = guest.state.clone();
    let bad = stranger.event(&mut guest, "m.room.topic", Some(""), &json!({ "topic": "mine" }));
    guest.state = own;
    let third = stranger.event(&mut guest, "m.room.message", None, &text("third"));
    let last = stranger.event(&mut guest, "m.room.message", None, &text("last"));
    give(&stranger, &[&first, &bad, &third]);
    let results = stranger.send(&server, "last", &[&last]).await;
    assert_eq!(results[last.event_id().as_str()], json!({}), "{results}");
    for event in [&first, &third, &last] {
        assert!(is_shown(&alice, &room, event).await);
    }
    assert!(!is_shown(&alice, &room, &bad).await);
    let asked = stranger.heard("/get_missing_events/");
    assert_eq!(asked.len(), 1);
    let asked = asked[0].json();
    assert_eq!(asked["latest_events"], json!(ids(&[&last])));
    assert!(asked["limit"].as_u64().unwrap() <= 20, "{asked}");
}

#[tokio::test]
async fn where_events_cannot_be_had_the_state_is_fetched() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let state: Vec<String> = guest.state.values().map(|event| event.event_id().to_string()).collect();
    let chain = state.clone();
    let renamed = json!({ "membership": "join", "displayname": "M" });
    let user = guest.user.to_string();
    let lost = stranger.event(&mut guest, "m.room.member", Some(&user), &renamed);
    let last = stranger.event(&mut guest, "m.room.message", None, &text("last"));
    let event = raw(&lost);
    stranger.on(move |heard| {
        if heard.uri.contains("/state_ids/") {
            return Some(Reply::Json(200, json!({ "pdu_ids": state, "auth_chain_ids": chain })));
        }
        heard.uri.contains("/v1/event/").then(|| Reply::Json(200, json!({ "pdus": [event] })))
    });
    let results = stranger.send(&server, "last", &[&last]).await;
    assert_eq!(results[last.event_id().as_str()], json!({}), "{results}");
    assert!(is_shown(&alice, &room, &last).await);
    let member = alice.0.get(&path(&room, &format!("state/m.room.member/{}", segment(&user)))).await.ok();
    assert_eq!(member["displayname"], "M");
    assert!(!stranger.heard("/state_ids/").is_empty());
}

#[tokio::test]
async fn a_redaction_counts_whether_it_comes_before_or_after_its_target() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    for version in ["10", "11"] {
        let alice = User(server.client(&format!("alice{version}")).await);
        let room = alice.create(version, json!({})).await;
        let mut guest = stranger.join(&server, &room, "mallory").await;
        let fork = guest.tips.clone();
        let target = stranger.event_after(&guest, &fork, "m.room.message", None, &text("regretted"));
        let redact = |guest: &mut Guest, target: &str| {
            if version == "11" {
                return stranger.event(guest, "m.room.redaction", None, &json!({ "redacts": target }));
            }
            let before = guest.tips.clone();
            let event = stranger.event_after(guest, &before, "m.room.redaction", None, &json!({}));
            let mut event = raw(&event);
            event["redacts"] = target.into();
            let event = Arc::new(stranger.seal(event, guest.rules));
            guest.take(&event);
            event
        };
        let redaction = redact(&mut guest, target.event_id().as_str());
        let results = stranger.send(&server, &format!("redaction{version}"), &[&redaction]).await;
        assert_eq!(results[redaction.event_id().as_str()], json!({}), "{results}");
        assert!(!is_shown(&alice, &room, &redaction).await, "what it redacts is not known yet");
        let seen_by = alice.0.get("/_matrix/client/v3/sync").await.ok()["next_batch"].clone();
        let results = stranger.send(&server, &format!("target{version}"), &[&target]).await;
        assert_eq!(results[target.event_id().as_str()], json!({}), "{results}");
        let shown =
            alice.0.get(&path(&room, &format!("event/{}", segment(target.event_id().as_str())))).await.ok();
        assert_eq!(shown["content"], json!({}), "version {version}: {shown}");
        assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], redaction.event_id().as_str());
        let since = format!("/_matrix/client/v3/sync?since={}", seen_by.as_str().unwrap());
        let sync = alice.0.get(&since).await.ok();
        let told = sync["rooms"]["join"][&*room]["timeline"]["events"].as_array().unwrap();
        let told: Vec<_> = told.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
        assert_eq!(told, [target.event_id().as_str(), redaction.event_id().as_str()], "version {version}");
        // A guest may not redact what users of other servers said.
        let said = alice.say(&room, "mine").await;
        let overreach = redact(&mut guest, &said);
        stranger.send(&server, &format!("overreach{version}"), &[&overreach]).await;
        let shown = alice.0.get(&path(&room, &format!("event/{}", segment(&said)))).await.ok();
        assert_eq!(shown["content"]["body"], "mine", "version {version}");
        assert!(!is_shown(&alice, &room, &overreach).await, "clients do not see what does not apply");
        let next = stranger.event(&mut guest, "m.room.message", None, &text("go on"));
        let results = stranger.send(&server, &format!("next{version}"), &[&next]).await;
        assert_eq!(results[next.event_id().as_str()], json!({}), "it is part of the graph: {results}");
        assert!(is_shown(&alice, &room, &next).await);
    }
}

/// Whoever redacts what is not there yet cannot keep others from redacting it.
#[tokio::test]
async fn of_early_redactions_those_count_that_are_permitted() {
    let (server, stranger, other) =
        (Server::start_federating("").await, Stranger::start().await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let mut mallory = other.join(&server, &room, "mallory").await;
    let fork = guest.tips.clone();
    let target = stranger.event_after(&guest, &fork, "m.room.message", None, &text("regretted"));
    let content = json!({ "redacts": target.event_id() });
    let refused = other.event(&mut mallory, "m.room.redaction", None, &content);
    other.send(&server, "refused", &[&refused]).await;
    let permitted = [(); 2].map(|()| stranger.event(&mut guest, "m.room.redaction", None, &content));
    stranger.send(&server, "permitted", &[&permitted[0], &permitted[1]]).await;
    let results = stranger.send(&server, "target", &[&target]).await;
    assert_eq!(results[target.event_id().as_str()], json!({}), "{results}");
    let shown =
        alice.0.get(&path(&room, &format!("event/{}", segment(target.event_id().as_str())))).await.ok();
    assert_eq!(shown["content"], json!({}), "{shown}");
    assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], permitted[0].event_id().as_str());
    assert!(is_shown(&alice, &room, &permitted[1]).await);
    assert!(!is_shown(&alice, &room, &refused).await);
}

/// What an event comes after may be had without what comes before that, and be redacted by then; the whole of it may
/// come later, from a server that does not know the redaction.
#[tokio::test]
async fn a_redaction_counts_when_its_target_gets_its_place_only_later() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let state = ids(&guest.state.values().collect::<Vec<_>>());
    let before = stranger.event(&mut guest, "m.room.message", None, &text("before"));
    let target = stranger.event(&mut guest, "m.room.message", None, &text("regretted"));
    let redaction =
        stranger.event(&mut guest, "m.room.redaction", None, &json!({ "redacts": target.event_id() }));
    let event = raw(&target);
    stranger.on(move |heard| {
        if heard.uri.contains("/state_ids/") {
            return Some(Reply::Json(200, json!({ "pdu_ids": state, "auth_chain_ids": state })));
        }
        heard.uri.contains("/v1/event/").then(|| Reply::Json(200, json!({ "pdus": [event] })))
    });
    let results = stranger.send(&server, "redaction", &[&redaction]).await;
    assert_eq!(results[redaction.event_id().as_str()], json!({}), "{results}");
    assert!(!stranger.heard("/state_ids/").is_empty());
    let results = stranger.send(&server, "late", &[&before, &target]).await;
    assert_eq!(results[target.event_id().as_str()], json!({}), "{results}");
    let shown =
        alice.0.get(&path(&room, &format!("event/{}", segment(target.event_id().as_str())))).await.ok();
    assert_eq!(shown["content"], json!({}), "{shown}");
    assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], redaction.event_id().as_str());
}

/// What clients are not shown is given to other servers.
#[tokio::test]
async fn a_redaction_counts_for_what_is_soft_failed_after_it() {
    let (server, stranger, other) =
        (Server::start_federating("").await, Stranger::start().await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    other.join(&server, &room, "carol").await;
    let fork = guest.tips.clone();
    let target = stranger.event_after(&guest, &fork, "m.room.message", None, &text("regretted"));
    let content = json!({ "redacts": target.event_id() });
    let redaction = stranger.event(&mut guest, "m.room.redaction", None, &content);
    stranger.send(&server, "redaction", &[&redaction]).await;
    let ban = json!({ "user_id": guest.user });
    alice.0.post(&path(&room, "ban"), &ban).await.ok();
    stranger.send(&server, "target", &[&target]).await;
    assert!(!is_shown(&alice, &room, &target).await, "its sender is banned by now");
    assert!(!is_shown(&alice, &room, &redaction).await, "neither is what takes it back");
    let uri = format!("/_matrix/federation/v1/event/{}", segment(target.event_id().as_str()));
    let given = other.get(&server, &uri).await.ok();
    assert_eq!(given["pdus"][0]["content"], json!({}), "{given}");
}

/// A server that does not give what its events refer to holds up itself, not the room.
#[tokio::test]
async fn a_server_that_does_not_answer_holds_up_nobody_else() {
    let server = Server::start_federating("").await;
    let (slow, quick) = (Stranger::start().await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &slow, "11").await;
    let mut friend = quick.join(&server, &room, "carol").await;
    let _lost = slow.event(&mut guest, "m.room.message", None, &text("lost"));
    let last = slow.event(&mut guest, "m.room.message", None, &text("last"));
    slow.on(|heard| heard.uri.contains("/get_missing_events/").then_some(Reply::Silence));
    let body = json!({ "origin": slow.name(), "origin_server_ts": 1, "pdus": [raw(&last)] });
    let stuck = slow.put(&server, "/_matrix/federation/v1/send/stuck", body);
    let goes_on = async {
        eventually("the server asks for what is missing", async || {
            (!slow.heard("/get_missing_events/").is_empty()).then_some(())
        })
        .await;
        let hello = quick.event(&mut friend, "m.room.message", None, &text("hello"));
        let results = quick.send(&server, "hello", &[&hello]).await;
        assert_eq!(results[hello.event_id().as_str()], json!({}), "{results}");
        assert!(is_shown(&alice, &room, &hello).await);
    };
    tokio::select! {
        biased;
        answer = stuck => panic!("it was answered first: {}", answer.body),
        () = goes_on => {}
    }
}

/// What was received and not dealt with when the server was killed is dealt with afterwards.
#[tokio::test]
async fn received_events_survive_a_kill() {
    let (mut server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, room, mut guest) = room_with_guest(&server, &stranger, "11").await;
    let first = stranger.event(&mut guest, "m.room.message", None, &text("first"));
    let last = stranger.event(&mut guest, "m.room.message", None, &text("last"));
    stranger.on(|heard| heard.uri.contains("/get_missing_events/").then_some(Reply::Silence));
    let body = json!({ "origin": stranger.name(), "origin_server_ts": 1, "pdus": [raw(&last)] });
    let stuck = stranger.put(&server, "/_matrix/federation/v1/send/stuck", body);
    let asked = eventually("the server asks for what is missing", async || {
        (!stranger.heard("/get_missing_events/").is_empty()).then_some(())
    });
    tokio::select! {
        biased;
        answer = stuck => panic!("it was answered first: {}", answer.body),
        () = asked => {}
    }
    server.kill();
    give(&stranger, &[&first]);
    server.restart().await;
    eventually("the events are there", async || {
        (is_shown(&alice, &room, &first).await && is_shown(&alice, &room, &last).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_with_too_many_requests_is_told_to_wait_and_others_are_not() {
    let mut server = Server::start_federating("").await;
    server.set("rate_limits.enabled", "true");
    server.set("rate_limits.federation_concurrent", "1");
    server.set("rate_limits.federation_waiting", "1");
    server.restart().await;
    let (loud, quiet) = (Stranger::start().await, Stranger::start().await);
    let (_, _, mut guest) = room_with_guest(&server, &loud, "11").await;
    let _lost = loud.event(&mut guest, "m.room.message", None, &text("lost"));
    let last = loud.event(&mut guest, "m.room.message", None, &text("last"));
    loud.on(|heard| heard.uri.contains("/get_missing_events/").then_some(Reply::Silence));
    let body = json!({ "origin": loud.name(), "origin_server_ts": 1, "pdus": [raw(&last)] });
    let stuck = loud.put(&server, "/_matrix/federation/v1/send/stuck", body);
    let uri = format!("/_matrix/federation/v1/query/profile?user_id={}", segment("@nobody:example.org"));
    let check = async {
        eventually("the server asks for what is missing", async || {
            (!loud.heard("/get_missing_events/").is_empty()).then_some(())
        })
        .await;
        // One of two waits; the other is refused.
        let answer = tokio::select! {
            answer = loud.get(&server, &uri) => answer,
            answer = loud.get(&server, &uri) => answer,
        };
        assert_eq!((answer.status, answer.body["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
        assert!(answer.body["retry_after_ms"].is_u64(), "{}", answer.body);
        assert_eq!(quiet.get(&server, &uri).await.status, 404);
    };
    tokio::select! {
        biased;
        answer = stuck => panic!("it was answered first: {}", answer.body),
        () = check => {}
    }
}
