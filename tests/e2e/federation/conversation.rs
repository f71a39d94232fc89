//! Two users on two servers: everything that they do in rooms together.

use reqwest::Method;
use serde_json::json;
use tests::{Server, Synapse, segment};

use super::{User, eventually, path};

/// Who the test's two users are, and how the other's room is named there.
struct Pair {
    /// On this server.
    ours: User,
    /// On the other.
    theirs: User,
    our_name: String,
    their_name: String,
}

const VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

async fn with_synapse(server: &Server, synapse: &Synapse, name: &str) -> Pair {
    Pair {
        ours: User(server.client(&format!("a-{name}")).await),
        theirs: User(synapse.client(&format!("b-{name}")).await),
        our_name: server.name().to_owned(),
        their_name: synapse.server_name().to_owned(),
    }
}

/// `guest` joins `host`'s room by its alias, and they talk.
async fn join_by_alias_and_talk(
    host: &User,
    guest: &User,
    host_name: &str,
    version: &str,
    alias: &str,
) -> String {
    let room = host.create(version, json!({ "room_alias_name": alias, "name": "Tea" })).await;
    for number in 0..5 {
        host.say(&room, &format!("before {number}")).await;
    }
    guest.join(&format!("#{alias}:{host_name}"), host_name).await;
    host.sees(&room, guest, "join").await;
    guest.say(&room, "hello, host").await;
    host.hears(&room, "hello, host").await;
    host.say(&room, "hello, guest").await;
    guest.hears(&room, "hello, guest").await;
    // What was said before the join is fetched when it is asked for.
    guest.hears(&room, "before 0").await;
    let name = guest.state(&room, "m.room.name", "").await.unwrap();
    assert_eq!(name["name"], "Tea", "room version {version}");
    room
}

#[tokio::test]
async fn rooms_of_every_version_are_shared_with_synapse() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let pair = with_synapse(&server, &synapse, "versions").await;
    for version in VERSIONS {
        let alias = format!("v{version}");
        join_by_alias_and_talk(&pair.ours, &pair.theirs, &pair.our_name, version, &alias).await;
        join_by_alias_and_talk(&pair.theirs, &pair.ours, &pair.their_name, version, &alias).await;
    }
}

/// Invites: accepted, declined; leaving and joining again; kicks and bans.
async fn come_and_go(host: &User, guest: &User, host_name: &str, guest_is_ours: bool) {
    let room = host.create("11", json!({ "preset": "private_chat", "name": "Den" })).await;
    host.invite(&room, guest).await;
    let invite = guest.is_invited(&room).await;
    let stripped = invite["invite_state"]["events"].as_array().unwrap();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "Den"), "{invite}");
    if guest_is_ours {
        assert!(stripped.iter().all(|event| event.get("depth").is_none()), "{invite}");
    }
    guest.0.post(&path(&room, "leave"), &json!({ "reason": "no time for tea" })).await.ok();
    host.sees(&room, guest, "leave").await;
    let refusal = host.state(&room, "m.room.member", guest.id()).await;
    assert_eq!(refusal.expect("a member")["reason"], "no time for tea");
    host.invite(&room, guest).await;
    guest.is_invited(&room).await;
    guest.join(&room, host_name).await;
    host.sees(&room, guest, "join").await;
    guest.say(&room, "here I am").await;
    host.hears(&room, "here I am").await;
    guest.leave(&room).await;
    host.sees(&room, guest, "leave").await;
    host.say(&room, "gone").await;
    host.invite(&room, guest).await;
    guest.is_invited(&room).await;
    guest.join(&room, host_name).await;
    host.say(&room, "again").await;
    guest.hears(&room, "again").await;
    host.0.post(&path(&room, "kick"), &json!({ "user_id": guest.id() })).await.ok();
    eventually("the guest is out", async || {
        let rooms = guest.0.get("/_matrix/client/v3/joined_rooms").await.ok();
        let joined = rooms["joined_rooms"].as_array().unwrap().iter().any(|joined| *joined == room);
        (!joined).then_some(())
    })
    .await;
    host.0.post(&path(&room, "ban"), &json!({ "user_id": guest.id() })).await.ok();
    let refused = guest
        .0
        .post(&format!("/_matrix/client/v3/join/{room}?via={host_name}&server_name={host_name}"), &json!({}))
        .await;
    assert_eq!(refused.status, 403, "{}", refused.body);
}

#[tokio::test]
async fn users_of_synapse_come_and_go_and_ours_there() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let pair = with_synapse(&server, &synapse, "come").await;
    come_and_go(&pair.ours, &pair.theirs, &pair.our_name, false).await;
    come_and_go(&pair.theirs, &pair.ours, &pair.their_name, true).await;
}

/// Knocking, and a restricted room.
async fn ask_to_be_let_in(host: &User, guest: &User, host_name: &str) {
    let rules = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    let room = host.create("11", json!({ "preset": "private_chat", "initial_state": [rules] })).await;
    let knock = format!("/_matrix/client/v3/knock/{room}?via={host_name}&server_name={host_name}");
    guest.0.post(&knock, &json!({})).await.ok();
    host.sees(&room, guest, "knock").await;
    host.invite(&room, guest).await;
    guest.is_invited(&room).await;
    guest.join(&room, host_name).await;
    host.sees(&room, guest, "join").await;

    let club = host.create("11", json!({})).await;
    let allow = json!({ "type": "m.room_membership", "room_id": club });
    let content = json!({ "join_rule": "restricted", "allow": [allow] });
    let rules = json!({ "type": "m.room.join_rules", "state_key": "", "content": content });
    let room = host.create("11", json!({ "preset": "private_chat", "initial_state": [rules] })).await;
    let join = format!("/_matrix/client/v3/join/{room}?via={host_name}&server_name={host_name}");
    let refused = guest.0.post(&join, &json!({})).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    guest.join(&club, host_name).await;
    host.sees(&club, guest, "join").await;
    guest.0.post(&join, &json!({})).await.ok();
    host.sees(&room, guest, "join").await;
    guest.say(&room, "let in").await;
    host.hears(&room, "let in").await;
}

#[tokio::test]
async fn knocks_and_restricted_joins_work_with_synapse() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let pair = with_synapse(&server, &synapse, "knock").await;
    ask_to_be_let_in(&pair.ours, &pair.theirs, &pair.our_name).await;
    ask_to_be_let_in(&pair.theirs, &pair.ours, &pair.their_name).await;
}

/// Edits, reactions, redactions, state, receipts, typing.
async fn everything_in_a_room(host: &User, guest: &User, host_name: &str) {
    let room = host.create("12", json!({})).await;
    guest.join(&room, host_name).await;
    host.sees(&room, guest, "join").await;
    let first = guest.say(&room, "frist").await;
    host.hears(&room, "frist").await;
    let edit = json!({
        "msgtype": "m.text", "body": "* first", "m.new_content": { "msgtype": "m.text", "body": "first" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": first },
    });
    guest.send(&room, "m.room.message", "edit", &edit).await;
    host.hears(&room, "* first").await;
    let relates = json!({ "rel_type": "m.annotation", "event_id": first, "key": "👍" });
    let reaction = host.send(&room, "m.reaction", "reaction", &json!({ "m.relates_to": relates })).await;
    eventually("the reaction arrives", async || {
        guest.messages(&room).await.into_iter().find(|event| event["event_id"] == reaction)
    })
    .await;
    host.0.put(&path(&room, &format!("redact/{reaction}/r")), &json!({})).await.ok();
    eventually("the reaction is redacted", async || {
        let events = guest.messages(&room).await;
        let found = events.into_iter().find(|event| event["event_id"] == reaction)?;
        found["content"].as_object()?.is_empty().then_some(())
    })
    .await;
    host.set(&room, "m.room.topic", "", &json!({ "topic": "tea" })).await;
    eventually("the topic arrives", async || {
        (guest.state(&room, "m.room.topic", "").await?["topic"] == "tea").then_some(())
    })
    .await;
    let mut since = host.sync_token().await;
    guest.0.post(&path(&room, &format!("receipt/m.read/{first}")), &json!({})).await.ok();
    eventually("the receipt arrives", async || {
        let events = host.ephemeral(&room, &mut since).await;
        events.iter().any(|event| event["content"][&first]["m.read"][guest.id()].is_object()).then_some(())
    })
    .await;
    guest
        .0
        .put(&path(&room, &format!("typing/{}", guest.id())), &json!({ "typing": true, "timeout": 30000 }))
        .await
        .ok();
    eventually("the typing notice arrives", async || {
        let events = host.ephemeral(&room, &mut since).await;
        events.iter().any(|event| event["content"]["user_ids"][0] == guest.id()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn everything_said_and_shown_in_a_room_arrives_at_synapse_and_from_it() {
    let (server, synapse) = (Server::start_federating("").await, Synapse::start().await);
    let pair = with_synapse(&server, &synapse, "all").await;
    everything_in_a_room(&pair.ours, &pair.theirs, &pair.our_name).await;
    everything_in_a_room(&pair.theirs, &pair.ours, &pair.their_name).await;
    let profile = json!({ "displayname": "Bea" });
    let path = format!("/_matrix/client/v3/profile/{}", pair.theirs.id());
    pair.theirs.0.put(&format!("{path}/displayname"), &profile).await.ok();
    assert_eq!(pair.ours.0.get(&path).await.ok()["displayname"], "Bea");
}

/// Both sides write while the other is down, and agree afterwards.
#[tokio::test]
async fn either_side_may_be_killed_and_nothing_is_lost_or_doubled() {
    let (mut server, mut synapse) = (Server::start_federating("").await, Synapse::start().await);
    let pair = with_synapse(&server, &synapse, "killed").await;
    let room = pair.ours.create("11", json!({})).await;
    pair.theirs.join(&room, &pair.our_name).await;
    pair.ours.sees(&room, &pair.theirs, "join").await;
    synapse.kill();
    for number in 0..60 {
        pair.ours.say(&room, &format!("while they were away {number}")).await;
    }
    pair.ours.set(&room, "m.room.topic", "", &json!({ "topic": "ours" })).await;
    server.kill();
    synapse.restart().await;
    for number in 0..5 {
        pair.theirs.say(&room, &format!("while we were away {number}")).await;
    }
    server.restart().await;
    pair.theirs.hears(&room, "while they were away 59").await;
    pair.theirs.say(&room, "are you back?").await;
    pair.ours.hears(&room, "are you back?").await;
    for number in 0..5 {
        pair.ours.hears(&room, &format!("while we were away {number}")).await;
    }
    for (user, texts) in [(&pair.ours, 5), (&pair.theirs, 60)] {
        let events = user.messages(&room).await;
        let mut bodies: Vec<_> =
            events.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
        let told = bodies.len();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), told, "something is there twice");
        assert!(told >= texts, "{told}");
    }
    let agree = async |kind: &str| {
        let (ours, theirs) =
            (pair.ours.state(&room, kind, "").await, pair.theirs.state(&room, kind, "").await);
        (ours == theirs).then_some(())
    };
    for kind in ["m.room.topic", "m.room.power_levels", "m.room.join_rules"] {
        eventually("both agree", async || agree(kind).await).await;
    }
}

#[tokio::test]
async fn two_ganglions_share_rooms() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    for version in ["1", "3", "10", "12"] {
        join_by_alias_and_talk(&alice, &bob, one.name(), version, &format!("v{version}")).await;
    }
    come_and_go(&alice, &bob, one.name(), true).await;
    ask_to_be_let_in(&bob, &alice, two.name()).await;
    everything_in_a_room(&alice, &bob, one.name()).await;
}

/// A direct chat begins so. The invited user's server has to sign the invite, however it comes about.
#[tokio::test]
async fn a_new_room_reaches_those_whom_it_invites() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let direct = json!({ "preset": "trusted_private_chat", "invite": [bob.id()], "is_direct": true });
    let room = alice.0.create_room(direct).await;
    let invite = bob.is_invited(&room).await;
    let events = invite["invite_state"]["events"].as_array().unwrap();
    let own = events.iter().find(|event| event["state_key"] == bob.id()).unwrap();
    assert_eq!((&own["sender"], &own["content"]["is_direct"]), (&json!(alice.id()), &json!(true)));
    bob.0.join(&room).await.ok();
    bob.say(&room, "hello").await;
    alice.hears(&room, "hello").await;
    // A state event that invites is an invite, too.
    let room = alice.create("11", json!({ "preset": "private_chat" })).await;
    alice.set(&room, "m.room.member", bob.id(), &json!({ "membership": "invite", "reason": "tea" })).await;
    let invite = bob.is_invited(&room).await;
    let events = invite["invite_state"]["events"].as_array().unwrap();
    let own = events.iter().find(|event| event["state_key"] == bob.id()).unwrap();
    assert_eq!(own["content"]["reason"], "tea");
    bob.0.join(&room).await.ok();
}

/// Rooms that the user's own server is not in are left through one that is.
#[tokio::test]
async fn a_deactivated_user_turns_down_invites_and_takes_back_knocks() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let invited = alice.create("11", json!({ "preset": "private_chat" })).await;
    alice.invite(&invited, &bob).await;
    bob.is_invited(&invited).await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let knocked = alice.create("11", json!({ "preset": "private_chat", "initial_state": [rule] })).await;
    let knock = format!("/_matrix/client/v3/knock/{}?via={}", segment(&knocked), segment(one.name()));
    bob.0.post(&knock, &json!({})).await.ok();
    alice.sees(&knocked, &bob, "knock").await;
    let joined = alice.create("11", json!({})).await;
    bob.join(&joined, one.name()).await;
    let path = "/_matrix/client/v3/account/deactivate";
    bob.0.with_password(Method::POST, path, json!({})).await.ok();
    for room in [&invited, &knocked, &joined] {
        alice.sees(room, &bob, "leave").await;
    }
}

/// A refusal is not part of what a former member has seen of the room, and yet their clients have to learn of it.
#[tokio::test]
async fn a_former_member_is_told_how_a_knock_ends() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice.create("11", json!({ "preset": "private_chat", "initial_state": [rule] })).await;
    alice.invite(&room, &bob).await;
    bob.join(&room, one.name()).await;
    bob.leave(&room).await;
    alice.sees(&room, &bob, "leave").await;
    let knock = format!("/_matrix/client/v3/knock/{}?via={}", segment(&room), segment(one.name()));
    let since = bob.0.token_of_sync().await;
    bob.0.post(&knock, &json!({ "reason": "tea" })).await.ok();
    let sync = bob.0.sync(&format!("since={since}&timeout=0")).await;
    let events = sync["rooms"]["knock"][&room]["knock_state"]["events"].as_array().unwrap();
    let own: Vec<_> = events.iter().filter(|event| event["state_key"] == bob.id()).collect();
    assert_eq!(own.len(), 1, "{sync}");
    alice.sees(&room, &bob, "knock").await;
    let since = sync["next_batch"].as_str().unwrap();
    alice.0.moderate("kick", &room, bob.id()).await.ok();
    let sync = bob.0.sync_until(since, |sync| sync["rooms"]["leave"][&room].is_object()).await;
    let events = &sync["rooms"]["leave"][&room]["timeline"]["events"];
    assert_eq!(
        (&events[0]["sender"], &events[0]["content"]["membership"]),
        (&json!(alice.id()), &json!("leave"))
    );
    // So does a first sync that has left rooms.
    let filter = segment(&json!({ "room": { "include_leave": true } }).to_string());
    let sync = bob.0.sync(&format!("filter={filter}")).await;
    let events = sync["rooms"]["leave"][&room]["timeline"]["events"].as_array().unwrap();
    assert_eq!(events.last().unwrap()["sender"], alice.id(), "{sync}");
}

/// What was said before a room was joined, and while it was left, is paged through in order, however small the pages.
#[tokio::test]
async fn what_was_said_while_nobody_was_there_has_its_place() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let (alice, bob) = (User(one.client("alice").await), User(two.client("bob").await));
    let room = alice.create("11", json!({})).await;
    alice.say(&room, "before").await;
    bob.join(&room, one.name()).await;
    bob.say(&room, "here").await;
    alice.hears(&room, "here").await;
    bob.leave(&room).await;
    alice.sees(&room, &bob, "leave").await;
    alice.say(&room, "away").await;
    bob.join(&room, one.name()).await;
    for limit in [2, 100] {
        let mut said = Vec::new();
        let mut from = String::new();
        loop {
            let page = bob.0.get(&path(&room, &format!("messages?dir=b&limit={limit}{from}"))).await.ok();
            let events = page["chunk"].as_array().unwrap().iter();
            said.extend(events.filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned)));
            let Some(end) = page["end"].as_str() else { break };
            from = format!("&from={end}");
        }
        assert_eq!(said, ["away", "here", "before"], "{limit} at a time");
    }
}

/// The invite has no place in the room as this server then knows it, so that what came with it goes on telling of the room.
#[tokio::test]
async fn an_invite_tells_of_its_room_also_once_others_have_joined() {
    let (one, two) = (Server::start_federating("").await, Server::start_federating("").await);
    let alice = User(one.client("alice").await);
    let (bob, carol) = (User(two.client("bob").await), User(two.client("carol").await));
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    let encryption = json!({ "type": "m.room.encryption", "content": algorithm });
    let more =
        json!({ "name": "Den", "creation_content": { "type": "m.space" }, "initial_state": [encryption] });
    let room = alice.create("11", more).await;
    alice.invite(&room, &bob).await;
    bob.is_invited(&room).await;
    carol.join(&room, one.name()).await;
    carol.sees(&room, &alice, "join").await;
    let invite = bob.is_invited(&room).await;
    let stripped = invite["invite_state"]["events"].as_array().unwrap();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "Den"), "{invite}");
    assert_eq!(stripped.iter().filter(|event| event["state_key"] == bob.id()).count(), 1, "{invite}");
    let filters = json!({ "room_types": ["m.space"], "is_encrypted": true });
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [], "filters": filters });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let answer = bob.0.post(path, &json!({ "lists": { "spaces": list } })).await.ok();
    let stripped = answer["rooms"][&room]["invite_state"].as_array().unwrap();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "Den"), "{answer}");
    bob.0.join(&room).await.ok();
    bob.sees(&room, &carol, "join").await;
}
