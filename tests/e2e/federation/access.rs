//! Who may do what in whose rooms: access control lists, invites, knocks, restricted rooms, spaces.

use engine::room_version;
use http::Method;
use serde_json::{Value, json};
use tests::{Reply, Server, Stranger, Synapse, segment};

use super::{User, eventually, path};

fn error(answer: &tests::Answer) -> (u16, Option<&str>) {
    (answer.status, answer.body["errcode"].as_str())
}

#[tokio::test]
async fn a_server_that_the_access_control_list_denies_is_kept_out() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({})).await;
    let mut guest = stranger.join(&server, &room, "mallory").await;
    let before = guest.tips[0].event_id().to_string();
    let (id, user) = (segment(&room), segment(guest.user.as_str()));
    // A port says nothing, wildcards do.
    let acl = json!({ "allow": ["*"], "deny": ["l?cal*t"] });
    alice.set(&room, "m.room.server_acl", "", &acl).await;
    let join = stranger.event(&mut guest, "m.room.message", None, &json!({ "body": "denied" }));
    let event = serde_json::from_slice::<Value>(join.raw()).unwrap();
    let invite = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
    let v1 = "/_matrix/federation/v1";
    let v2 = "/_matrix/federation/v2";
    let missing = json!({ "earliest_events": [], "latest_events": [before] });
    for (method, uri, body) in [
        (Method::GET, format!("{v1}/make_join/{id}/{user}?ver=11"), None),
        (Method::GET, format!("{v1}/make_leave/{id}/{user}"), None),
        (Method::GET, format!("{v1}/make_knock/{id}/{user}?ver=11"), None),
        (Method::PUT, format!("{v1}/send_join/{id}/$a"), Some(event.clone())),
        (Method::PUT, format!("{v2}/send_join/{id}/$a"), Some(event.clone())),
        (Method::PUT, format!("{v1}/send_leave/{id}/$a"), Some(event.clone())),
        (Method::PUT, format!("{v2}/send_leave/{id}/$a"), Some(event.clone())),
        (Method::PUT, format!("{v1}/send_knock/{id}/$a"), Some(event.clone())),
        (Method::GET, format!("{v1}/state/{id}?event_id={}", segment(&before)), None),
        (Method::GET, format!("{v1}/state_ids/{id}?event_id={}", segment(&before)), None),
        (Method::GET, format!("{v1}/backfill/{id}?v={}&limit=1", segment(&before)), None),
        (Method::GET, format!("{v1}/event_auth/{id}/{}", segment(&before)), None),
        (Method::POST, format!("{v1}/get_missing_events/{id}"), Some(missing)),
        (Method::GET, format!("{v1}/timestamp_to_event/{id}?ts=0&dir=f"), None),
    ] {
        let answer = stranger.request(&server, method, &uri, body).await;
        assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{uri}: {}", answer.body);
    }
    // An invite into it, of somebody here: the event must be one, so that it is refused for this alone.
    let dave = User(server.client("dave").await);
    let tips = guest.tips.clone();
    let event = stranger.event_after(
        &guest,
        &tips,
        "m.room.member",
        Some(dave.id()),
        &json!({ "membership": "invite" }),
    );
    let uri = format!("{v2}/invite/{id}/{}", segment(event.event_id().as_str()));
    let mut invite = invite;
    invite["event"] = serde_json::from_slice(event.raw()).unwrap();
    let answer = stranger.put(&server, &uri, invite).await;
    assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{}", answer.body);
    // Each event of a transaction, and EDUs of the room.
    let typing = json!({ "room_id": room, "user_id": guest.user, "typing": true });
    let body = json!({
        "origin": stranger.name(), "origin_server_ts": 1,
        "pdus": [serde_json::from_slice::<Value>(join.raw()).unwrap()],
        "edus": [{ "edu_type": "m.typing", "content": typing }],
    });
    let since = alice.sync_token().await;
    let answer = stranger.put(&server, &format!("{v1}/send/denied"), body).await.ok();
    assert!(answer["pdus"][join.event_id().as_str()]["error"].is_string(), "{answer}");
    let mut token = since;
    assert!(alice.ephemeral(&room, &mut token).await.iter().all(|event| event["type"] != "m.typing"));
    assert!(alice.messages(&room).await.iter().all(|event| event["content"]["body"] != "denied"));
    // What the list allows again is taken.
    alice.set(&room, "m.room.server_acl", "", &json!({ "allow": ["localhost"], "deny": ["*.evil"] })).await;
    let results = stranger.send(&server, "allowed", &[&join]).await;
    assert_eq!(results[join.event_id().as_str()], json!({}), "{results}");
    // A list without `allow`, or one that is no list, denies everyone.
    for acl in [json!({}), json!({ "allow": "*" })] {
        alice.set(&room, "m.room.server_acl", "", &acl).await;
        let answer = stranger.get(&server, &format!("{v1}/make_join/{id}/{user}?ver=11")).await;
        assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{acl}");
    }
    // What is no list or no boolean is left out of it.
    for acl in
        [json!({ "allow": ["*"], "allow_ip_literals": "no" }), json!({ "allow": [7, "*"], "deny": "*" })]
    {
        alice.set(&room, "m.room.server_acl", "", &acl).await;
        stranger.get(&server, &format!("{v1}/make_join/{id}/{user}?ver=11")).await.ok();
    }
    // Patterns that would keep a backtracking matcher busy for ages do not keep this one.
    let many = format!("{}b", "*a".repeat(100));
    alice.set(&room, "m.room.server_acl", "", &json!({ "allow": [many, "*"] })).await;
    stranger.get(&server, &format!("{v1}/make_join/{id}/{user}?ver=11")).await.ok();
}

#[tokio::test]
async fn room_versions_are_agreed_on_before_anything_else() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let rules = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    let room = alice.create("12", json!({ "initial_state": [rules] })).await;
    let user = segment(&format!("@mallory:{}", stranger.name()));
    let id = segment(&room);
    for make in ["make_join/", "make_join/?ver=1&ver=11", "make_knock/?ver=1&ver=11"] {
        let (make, query) = make.split_once('/').unwrap();
        let uri = format!("/_matrix/federation/v1/{make}/{id}/{user}{query}");
        let answer = stranger.get(&server, &uri).await;
        assert_eq!(error(&answer), (400, Some("M_INCOMPATIBLE_ROOM_VERSION")), "{uri}");
        assert_eq!(answer.body["room_version"], "12");
    }
    let answer = stranger.get(&server, &format!("/_matrix/federation/v1/make_knock/{id}/{user}")).await;
    assert_eq!(error(&answer), (400, Some("M_MISSING_PARAM")), "who knocks has to say");
    let knock =
        stranger.get(&server, &format!("/_matrix/federation/v1/make_knock/{id}/{user}?ver=12")).await.ok();
    assert_eq!(knock["event"]["content"]["membership"], "knock");
    // In someone else's name.
    let other = segment(&format!("@bob:{}", server.name()));
    let answer =
        stranger.get(&server, &format!("/_matrix/federation/v1/make_join/{id}/{other}?ver=12")).await;
    assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")));
    // An unknown room, an unknown question, an unknown method.
    let answer =
        stranger.get(&server, &format!("/_matrix/federation/v1/make_join/%21no/{user}?ver=12")).await;
    assert_eq!(error(&answer), (404, Some("M_NOT_FOUND")));
    let answer = stranger.get(&server, "/_matrix/federation/v1/query/weather?of=today").await;
    assert_eq!(error(&answer), (404, Some("M_UNRECOGNIZED")));
    let answer = stranger.put(&server, "/_matrix/federation/v1/query/profile", json!({})).await;
    assert_eq!(error(&answer), (405, Some("M_UNRECOGNIZED")));
}

/// Spec: server-server API, "Querying for information", "Published Room Directory", "Joining Rooms".
#[tokio::test]
async fn questions_are_answered_by_all_of_their_parameters() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let room = alice.create("11", json!({ "name": "Tea", "visibility": "public" })).await;
    let name = format!("/_matrix/client/v3/profile/{}/displayname", segment(alice.id()));
    alice.0.put(&name, &json!({ "displayname": "Alice" })).await.ok();
    let profile = format!("/_matrix/federation/v1/query/profile?user_id={}", segment(alice.id()));
    let answer = stranger.get(&server, &format!("{profile}&field=displayname")).await.ok();
    assert_eq!(answer, json!({ "displayname": "Alice" }));
    let answer = stranger.get(&server, &format!("{profile}&field=avatar_url")).await;
    assert_eq!(error(&answer), (404, Some("M_NOT_FOUND")));
    let answer = stranger.get(&server, "/_matrix/federation/v1/query/profile").await;
    assert_eq!(error(&answer), (400, Some("M_MISSING_PARAM")));
    let rooms = "/_matrix/federation/v1/publicRooms";
    for (query, found) in [
        ("", 1),
        ("?include_all_networks=true", 1),
        ("?third_party_instance_id=irc-freenode", 0),
        ("?limit=0&since=", 1),
    ] {
        let answer = stranger.get(&server, &format!("{rooms}{query}")).await.ok();
        assert_eq!(answer["chunk"].as_array().unwrap().len(), found, "{query}: {answer}");
    }
    for (query, found) in [
        (json!({}), 1),
        (json!({ "filter": { "generic_search_term": "tea" } }), 1),
        (json!({ "filter": { "generic_search_term": "coffee" } }), 0),
        (json!({ "third_party_instance_id": "irc-freenode" }), 0),
        (json!({ "third_party_instance_id": null, "include_all_networks": false }), 1),
    ] {
        let answer = stranger.request(&server, http::Method::POST, rooms, Some(query.clone())).await.ok();
        assert_eq!(answer["chunk"].as_array().unwrap().len(), found, "{query}: {answer}");
    }
    for query in ["?limit=many", "?since=nonsense", "?include_all_networks=perhaps"] {
        let answer = stranger.get(&server, &format!("{rooms}{query}")).await;
        assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")), "{query}");
    }
    stranger.join(&server, &room, "guest").await;
    let id = segment(&room);
    for (uri, errcode) in [
        (format!("state/{id}"), "M_MISSING_PARAM"),
        (format!("state_ids/{id}"), "M_MISSING_PARAM"),
        (format!("backfill/{id}?limit=5"), "M_MISSING_PARAM"),
        (format!("backfill/{id}?v=%24event"), "M_MISSING_PARAM"),
        (format!("timestamp_to_event/{id}?dir=f"), "M_MISSING_PARAM"),
        (format!("timestamp_to_event/{id}?ts=1"), "M_MISSING_PARAM"),
        (format!("timestamp_to_event/{id}?ts=1&dir=x"), "M_INVALID_PARAM"),
        ("query/directory".to_owned(), "M_MISSING_PARAM"),
        ("query/directory?room_alias=tea".to_owned(), "M_INVALID_PARAM"),
        (format!("hierarchy/{id}?suggested_only=maybe"), "M_INVALID_PARAM"),
    ] {
        let answer = stranger.get(&server, &format!("/_matrix/federation/v1/{uri}")).await;
        assert_eq!(error(&answer), (400, Some(errcode)), "{uri}");
    }
    // What another server does not understand of our request, or not at all, is none of the client's doing.
    let founded = stranger.found_room("founder");
    let join = format!(
        "/_matrix/client/v3/join/{}?via={}",
        segment(founded.room_id.as_str()),
        segment(stranger.name())
    );
    for (status, errcode) in [(400, "M_INVALID_PARAM"), (404, "M_UNRECOGNIZED"), (405, "M_UNRECOGNIZED")] {
        stranger.on(move |heard| {
            let refusal = json!({ "errcode": errcode, "error": "the test says so" });
            heard.uri.contains("/make_join/").then_some(Reply::Json(status, refusal))
        });
        alice.0.post(&join, &json!({})).await.is(502, "M_UNKNOWN");
    }
}

/// An array would do for a structure otherwise: a transaction that is none would count as taken.
#[tokio::test]
async fn a_body_that_has_to_be_an_object_may_not_be_an_array() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let v1 = "/_matrix/federation/v1";
    for (method, uri) in [
        (Method::PUT, format!("{v1}/send/array")),
        (Method::POST, format!("{v1}/publicRooms")),
        (Method::POST, format!("{v1}/user/keys/query")),
        (Method::POST, format!("{v1}/user/keys/claim")),
    ] {
        for body in [json!([]), json!([[], []]), json!([{}])] {
            let answer = stranger.request(&server, method.clone(), &uri, Some(body.clone())).await;
            assert_eq!(error(&answer), (400, Some("M_BAD_JSON")), "{uri} {body}: {}", answer.body);
        }
    }
}

/// An invite by a user of the stranger into a room that only the stranger knows.
struct Inviting {
    create: Value,
    event: Value,
    path: String,
}

fn invite(stranger: &Stranger, version: &str, target: &str) -> Inviting {
    let rules = room_version::rules(&version.try_into().unwrap()).unwrap();
    let host = format!("@host:{}", stranger.name());
    let own_room = format!("!room{version}:{}", stranger.name());
    let mut create = json!({
        "type": "m.room.create", "state_key": "", "sender": host, "room_id": own_room, "depth": 1,
        "content": { "room_version": version, "creator": host }, "origin_server_ts": 1, "prev_events": [], "auth_events": [],
    });
    if version == "12" {
        create.as_object_mut().unwrap().remove("room_id");
    }
    let create = stranger.seal(create, rules);
    let room = create.room_id().to_string();
    let event = stranger.seal(
        json!({
            "type": "m.room.member", "state_key": target, "sender": host, "room_id": room, "depth": 2,
            "content": { "membership": "invite" }, "origin_server_ts": 1,
            "prev_events": [create.event_id()], "auth_events": [],
        }),
        rules,
    );
    let path =
        format!("/_matrix/federation/v2/invite/{}/{}", segment(&room), segment(event.event_id().as_str()));
    let raw = |pdu: &engine::pdu::Pdu| serde_json::from_slice(pdu.raw()).unwrap();
    Inviting { create: raw(&create), event: raw(&event), path }
}

#[tokio::test]
async fn an_invite_is_signed_only_if_it_is_one_and_proves_its_room() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let body = |version: &str, invite: &Inviting, state: Value| json!({ "room_version": version, "event": invite.event, "invite_room_state": state });
    for version in ["11", "12"] {
        let good = invite(&stranger, version, alice.id());
        let stripped = json!({ "type": "m.room.create", "state_key": "", "sender": good.event["sender"], "content": {} });
        let elsewhere = invite(&stranger, if version == "12" { "12" } else { "10" }, "@other:example.org");
        let mut forged = good.create.clone();
        forged["origin_server_ts"] = json!(2);
        for (what, state) in [
            ("no create event", json!([])),
            ("a stripped one", json!([stripped])),
            ("a forged one", json!([forged])),
            (
                "another room's",
                json!([if version == "12" { elsewhere.event.clone() } else { elsewhere.create.clone() }]),
            ),
        ] {
            if version == "12" {
                let answer = stranger.put(&server, &good.path, body(version, &good, state)).await;
                assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")), "{what}: {}", answer.body);
            }
        }
        let answer = stranger.put(&server, &good.path, body(version, &good, json!([good.create]))).await.ok();
        assert!(answer["event"]["signatures"][server.name()].is_object(), "{answer}");
        let room = good.event["room_id"].as_str().unwrap();
        alice.is_invited(room).await;
        // What is no invite, or not of this user, or not signed, is not signed here either.
        let stranger_to_all = invite(&stranger, version, "@other:example.org");
        let nobody = invite(&stranger, version, &format!("@nobody:{}", server.name()));
        let mut unsigned = good.event.clone();
        unsigned["signatures"] = json!({});
        for (what, path, event, code) in [
            (
                "another server's user",
                &stranger_to_all.path,
                stranger_to_all.event.clone(),
                (400, "M_INVALID_PARAM"),
            ),
            ("nobody", &nobody.path, nobody.event.clone(), (403, "M_FORBIDDEN")),
            ("not signed", &good.path, unsigned, (400, "M_INVALID_PARAM")),
            ("another event", &nobody.path, good.event.clone(), (400, "M_INVALID_PARAM")),
        ] {
            let body = json!({ "room_version": version, "event": event, "invite_room_state": [good.create] });
            let answer = stranger.put(&server, path, body).await;
            assert_eq!(error(&answer), (code.0, Some(code.1)), "{what}: {}", answer.body);
        }
    }
    let good = invite(&stranger, "11", alice.id());
    let answer =
        stranger.put(&server, &good.path, body("org.example.unknown", &good, json!([good.create]))).await;
    assert_eq!(error(&answer), (400, Some("M_INCOMPATIBLE_ROOM_VERSION")));
    assert_eq!(answer.body["room_version"], "org.example.unknown");
}

/// The rules of another version would give the invite another ID than it has in the room.
#[tokio::test]
async fn an_invite_to_a_room_that_the_server_is_in_is_of_the_rooms_version() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(server.client("bob").await));
    let open = json!({ "power_level_content_override": { "invite": 0 } });
    let room = alice.create("11", open).await;
    let mut guest = stranger.join(&server, &room, "carol").await;
    let event =
        stranger.event(&mut guest, "m.room.member", Some(bob.id()), &json!({ "membership": "invite" }));
    let path =
        format!("/_matrix/federation/v2/invite/{}/{}", segment(&room), segment(event.event_id().as_str()));
    let event: Value = serde_json::from_slice(event.raw()).unwrap();
    let body = |version: &str| json!({ "room_version": version, "event": event, "invite_room_state": [] });
    let answer = stranger.put(&server, &path, body("10")).await;
    assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")), "{}", answer.body);
    assert_eq!(alice.membership(&room, &bob).await, None);
    stranger.put(&server, &path, body("11")).await.ok();
    bob.is_invited(&room).await;
}

#[tokio::test]
async fn an_invite_brings_no_more_than_introduces_a_room() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let good = invite(&stranger, "11", alice.id());
    let stripped = |kind: &str, text: &str| json!({ "type": kind, "state_key": "", "sender": good.event["sender"], "content": { "text": text } });
    let many: Vec<_> = (0..51).map(|number| stripped(&format!("org.example.{number}"), "")).collect();
    let large: Vec<_> = (0..5).map(|_| stripped("m.room.topic", &"x".repeat(60_000))).collect();
    for state in [many, large] {
        let body = json!({ "room_version": "11", "event": good.event, "invite_room_state": state });
        let answer = stranger.put(&server, &good.path, body).await;
        assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")), "{}", answer.body);
    }
    let body = json!({ "room_version": "11", "event": good.event, "invite_room_state": [good.create] });
    stranger.put(&server, &good.path, body).await.ok();
}

/// Who is invited and then uninvited hears of it, though their server is not in the room.
#[tokio::test]
async fn an_invite_can_be_taken_back() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    let room = alice.create("11", json!({ "preset": "private_chat" })).await;
    alice.invite(&room, &bob).await;
    bob.is_invited(&room).await;
    alice.0.post(&path(&room, "kick"), &json!({ "user_id": bob.id() })).await.ok();
    eventually("the invite is gone", async || {
        let sync = bob.0.get("/_matrix/client/v3/sync").await.ok();
        sync["rooms"]["invite"][&room].is_null().then_some(())
    })
    .await;
    // A stranger cannot end invites that it knows nothing of.
    let stranger = Stranger::start().await;
    alice.invite(&room, &bob).await;
    bob.is_invited(&room).await;
    let rules = room_version::rules(&"11".try_into().unwrap()).unwrap();
    let forged = stranger.seal(
        json!({
            "type": "m.room.member", "state_key": bob.id(), "sender": format!("@mallory:{}", stranger.name()),
            "room_id": room, "depth": 2, "content": { "membership": "leave" }, "origin_server_ts": 1,
            "prev_events": [], "auth_events": [],
        }),
        rules,
    );
    let results = stranger.send(&other, "forged", &[&forged]).await;
    assert!(results[forged.event_id().as_str()]["error"].is_string(), "{results}");
    bob.is_invited(&room).await;
}

fn restricted(allow: &[&str]) -> Value {
    let allow: Vec<_> =
        allow.iter().map(|room| json!({ "type": "m.room_membership", "room_id": room })).collect();
    let content = json!({ "join_rule": "restricted", "allow": allow });
    json!([{ "type": "m.room.join_rules", "state_key": "", "content": content }])
}

#[tokio::test]
async fn a_restricted_join_is_refused_with_the_reason() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let club = alice.create("11", json!({})).await;
    let user = segment(&format!("@mallory:{}", stranger.name()));
    let make = |room: &str| format!("/_matrix/federation/v1/make_join/{}/{user}?ver=11", segment(room));
    let create = async |allow: &[&str]| {
        alice.create("11", json!({ "preset": "private_chat", "initial_state": restricted(allow) })).await
    };
    let known = create(&[&club]).await;
    let unknown = create(&["!elsewhere:example.org"]).await;
    assert_eq!(error(&stranger.get(&server, &make(&known)).await), (403, Some("M_FORBIDDEN")));
    assert_eq!(
        error(&stranger.get(&server, &make(&unknown)).await),
        (400, Some("M_UNABLE_TO_AUTHORISE_JOIN"))
    );
    stranger.join(&server, &club, "mallory").await;
    let template = stranger.get(&server, &make(&known)).await.ok();
    assert_eq!(template["event"]["content"]["join_authorised_via_users_server"], alice.id());
    // The one who may invite has left.
    let boss = User(server.client("boss").await);
    let lost = boss.create("11", json!({ "initial_state": restricted(&[&club]) })).await;
    alice.0.post(&path(&club, "join"), &json!({})).await.ok();
    alice.0.post(&path(&lost, "join"), &json!({})).await.ok();
    let mut content = boss.state(&lost, "m.room.power_levels", "").await.unwrap();
    content["invite"] = json!(100);
    boss.set(&lost, "m.room.power_levels", "", &content).await;
    boss.leave(&lost).await;
    assert_eq!(error(&stranger.get(&server, &make(&lost)).await), (400, Some("M_UNABLE_TO_GRANT_JOIN")));
}

fn third_party_invite(identity: &Stranger) -> Value {
    use engine::pdu::SigningKey;
    let key = |key: &SigningKey| key.public_key().encode();
    json!({
        "display_name": "someone", "key_validity_url": "https://localhost/valid",
        "public_key": key(identity.key()), "public_keys": [{ "public_key": key(identity.key()) }],
    })
}

#[tokio::test]
async fn an_invite_of_an_address_becomes_one_of_its_owner() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let stranger = std::sync::Arc::new(Stranger::start().await);
    let alice = User(server.client("alice").await);
    let (bob, carol) = (User(server.client("bob").await), User(other.client("carol").await));
    let room = alice.create("11", json!({ "preset": "private_chat" })).await;
    for token in ["one", "two", "three"] {
        alice.set(&room, "m.room.third_party_invite", token, &third_party_invite(&stranger)).await;
    }
    let signed = |mxid: &str, token: &str| stranger.sign(&json!({ "mxid": mxid, "token": token }));
    // The owner is a user of a stranger, who is asked to sign the invite.
    let mallory = format!("@mallory:{}", stranger.name());
    let exchange = |room_id: &str, signed: Value| {
        let third_party = json!({ "display_name": "x", "signed": signed });
        json!({
            "type": "m.room.member", "room_id": room_id, "sender": alice.id(), "state_key": mallory,
            "content": { "membership": "invite", "third_party_invite": third_party },
        })
    };
    let uri = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", segment(&room));
    let rules = room_version::rules(&"11".try_into().unwrap()).unwrap();
    let signing = stranger.clone();
    stranger.on(move |heard| {
        let invite = heard.uri.contains("/v2/invite/").then(|| heard.json())?;
        Some(Reply::Json(200, json!({ "event": signing.countersign(&invite["event"], rules) })))
    });
    let answer = stranger.put(&server, &uri, exchange("!other:example.org", signed(&mallory, "one"))).await;
    assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")), "{}", answer.body);
    let answer = stranger.put(&server, &uri, exchange(&room, signed(&mallory, "unknown"))).await;
    assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{}", answer.body);
    let mut forged = signed(&mallory, "one");
    forged["mxid"] = json!("@someone:example.org");
    let answer = stranger.put(&server, &uri, exchange(&room, forged)).await;
    assert_eq!(error(&answer), (403, Some("M_FORBIDDEN")), "{}", answer.body);
    stranger.put(&server, &uri, exchange(&room, signed(&mallory, "one"))).await.ok();
    let member = alice.state(&room, "m.room.member", &mallory).await.unwrap();
    assert_eq!(
        (member["membership"].as_str(), &member["third_party_invite"]["display_name"]),
        (Some("invite"), &json!("someone"))
    );
    // The identity server tells a server of its user: one that is in the room, and one that is not.
    for (home, user, token) in [(&server, &bob, "two"), (&other, &carol, "three")] {
        let invite = json!({
            "medium": "email", "address": "a@example.org", "mxid": user.id(), "room_id": room, "sender": alice.id(),
            "signed": signed(user.id(), token),
        });
        let bound =
            json!({ "medium": "email", "address": "a@example.org", "mxid": user.id(), "invites": [invite] });
        home.anonymous().put("/_matrix/federation/v1/3pid/onbind", &bound).await.ok();
        user.is_invited(&room).await;
    }
    let nobody = json!({ "medium": "email", "address": "a@example.org", "mxid": "@nobody:example.org", "invites": [] });
    let answer = server.anonymous().put("/_matrix/federation/v1/3pid/onbind", &nobody).await;
    assert_eq!(error(&answer), (400, Some("M_INVALID_PARAM")));
}

async fn space(user: &User, name: &str, rooms: &[&str], via: &str) -> String {
    let space = user.create("11", json!({ "name": name, "creation_content": { "type": "m.space" } })).await;
    for room in rooms {
        user.set(&space, "m.space.child", room, &json!({ "via": [via] })).await;
    }
    space
}

async fn names(user: &User, space: &str) -> Vec<String> {
    let uri = format!("/_matrix/client/v1/rooms/{}/hierarchy", segment(space));
    let answer = user.0.get(&uri).await.ok();
    let rooms = answer["rooms"].as_array().unwrap();
    rooms.iter().map(|room| room["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// `host` has a space in a space, with an open room and a closed one; `guest` sees what is open.
async fn walk(host: &User, guest: &User, host_name: &str) {
    let open = host.create("11", json!({ "name": "open" })).await;
    let closed = host.create("11", json!({ "name": "closed", "preset": "private_chat" })).await;
    let inner = space(host, "inner", &[&open, &closed], host_name).await;
    let outer = space(host, "outer", &[&inner], host_name).await;
    guest.join(&outer, host_name).await;
    assert_eq!(names(guest, &outer).await, ["outer", "inner", "open"]);
    assert_eq!(names(host, &outer).await.len(), 4);
}

#[tokio::test]
async fn spaces_of_other_servers_are_walked() {
    let (server, other) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(server.client("alice").await), User(other.client("bob").await));
    walk(&alice, &bob, server.name()).await;
    // Asked directly.
    let stranger = Stranger::start().await;
    let open = alice.create("11", json!({ "name": "open" })).await;
    let closed = alice.create("11", json!({ "name": "closed", "preset": "private_chat" })).await;
    let outer = space(&alice, "outer", &[&open, &closed, "!unknown:example.org"], server.name()).await;
    let uri = |room: &str| format!("/_matrix/federation/v1/hierarchy/{}?suggested_only=false", segment(room));
    let answer = stranger.get(&server, &uri(&outer)).await.ok();
    assert_eq!(
        (answer["room"]["name"].as_str(), answer["room"]["room_type"].as_str()),
        (Some("outer"), Some("m.space"))
    );
    assert_eq!(answer["room"]["children_state"].as_array().unwrap().len(), 3);
    assert!(answer["room"]["children_state"][0]["origin_server_ts"].is_u64(), "{answer}");
    assert_eq!(answer["children"].as_array().unwrap().len(), 1);
    assert_eq!(answer["children"][0]["room_id"], open);
    let rules = (&answer["room"]["join_rule"], &answer["children"][0]["join_rule"]);
    assert_eq!(rules, (&json!("public"), &json!("public")));
    assert_eq!(answer["inaccessible_children"], json!([closed]));
    assert_eq!(error(&stranger.get(&server, &uri(&closed)).await), (404, Some("M_NOT_FOUND")));
}

#[tokio::test]
async fn spaces_are_walked_between_synapse_and_this_server() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(synapse.client("bob").await));
    walk(&alice, &bob, server.name()).await;
    walk(&bob, &alice, synapse.server_name()).await;
}

#[tokio::test]
async fn the_owner_of_an_invited_address_joins_with_the_proof() {
    let server = Server::start().await;
    let identity = Stranger::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let invite = third_party_invite(&identity);
    alice.set_state(&room, "m.room.third_party_invite", "token", &invite).await.ok();
    bob.set_state(&room, "m.room.third_party_invite", "x", &invite).await.is(403, "M_FORBIDDEN");
    let proof = |mxid: &str, token: &str| {
        let mut signed = identity.sign(&json!({ "mxid": mxid, "token": token }));
        signed["sender"] = json!(alice.user_id);
        json!({ "third_party_signed": signed })
    };
    let join = path(&room, "join");
    bob.post(&join, &json!({})).await.is(403, "M_FORBIDDEN");
    bob.post(&join, &proof(&carol.user_id, "token")).await.is(403, "M_FORBIDDEN");
    bob.post(&join, &proof(&bob.user_id, "another")).await.is(403, "M_FORBIDDEN");
    let mut forged = proof(&carol.user_id, "token");
    forged["third_party_signed"]["mxid"] = json!(bob.user_id);
    bob.post(&join, &forged).await.is(403, "M_FORBIDDEN");
    bob.post(&join, &proof(&bob.user_id, "token")).await.ok();
    let members = alice.get(&path(&room, "joined_members")).await.ok();
    assert!(members["joined"][&bob.user_id].is_object(), "{members}");
    // Nobody here finds out whose an address is.
    let address = json!({ "medium": "email", "address": "a@example.org", "id_server": "id.example.org", "id_access_token": "x" });
    let refused = alice.post(&path(&room, "invite"), &address).await;
    assert_eq!(refused.status, 400, "{refused:?}");
}

#[tokio::test]
async fn a_summary_of_a_room_comes_from_a_server_that_is_in_it() {
    let (here, there) = tokio::join!(Server::start_federating(""), Server::start_federating(""));
    let (alice, bob) = (here.client("alice").await, there.client("bob").await);
    let open = alice.create_room(json!({ "preset": "public_chat", "name": "tea", "topic": "t" })).await;
    let closed = alice.create_room(json!({ "preset": "private_chat", "name": "secret" })).await;
    let summary = |room: &str| {
        format!("/_matrix/client/v1/room_summary/{}?via={}", segment(room), segment(here.name()))
    };
    let told = bob.get(&summary(&open)).await.ok();
    assert_eq!((&told["name"], &told["membership"]), (&json!("tea"), &json!("leave")));
    assert_eq!((&told["num_joined_members"], &told["world_readable"]), (&json!(1), &json!(false)));
    assert_eq!(told["join_rule"], "public");
    bob.get(&summary(&closed)).await.is(404, "M_NOT_FOUND");
    bob.get(&summary("!nowhere:localhost")).await.is(404, "M_NOT_FOUND");
    // Who is invited may know where to.
    alice.moderate("invite", &closed, &bob.user_id).await.ok();
    let told = bob.get(&summary(&closed)).await.ok();
    assert_eq!((&told["name"], &told["membership"]), (&json!("secret"), &json!("invite")));
    // Nobody is invited to where they could never be.
    let own = json!({ "creation_content": { "m.federate": false } });
    let own = alice.create_room(own).await;
    alice.moderate("invite", &own, &bob.user_id).await.is(403, "M_FORBIDDEN");
}
