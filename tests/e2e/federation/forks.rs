//! Servers that cannot reach each other for a while go on, and agree once they can.
//!
//! Spec: "State resolution" of the room versions.

use serde_json::{Value, json};
use tests::{Link, Server, Stranger, Synapse};

use super::{User, eventually, path};

/// The state of a room as a user's server has it: the event of each key.
async fn state(user: &User, room: &str) -> Vec<(String, String, String)> {
    let state = user.0.get(&path(room, "state")).await.ok();
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let mut state: Vec<_> = state
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (text(event, "type"), text(event, "state_key"), text(event, "event_id")))
        .collect();
    state.sort();
    state
}

/// Waits until all have the same state.
async fn agree(users: &[&User], room: &str, what: &str) {
    let mut told = 0;
    eventually(&format!("all agree on {what}"), async || {
        let first = state(users[0], room).await;
        for user in &users[1..] {
            let other = state(user, room).await;
            if other != first {
                told += 1;
                if told % 50 == 0 {
                    let differ: Vec<_> = first.iter().filter(|entry| !other.contains(entry)).collect();
                    eprintln!("{} still differs from {}: {differ:?}", user.id(), users[0].id());
                }
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn moderate(user: &User, room: &str, action: &str, target: &User) {
    user.0.post(&path(room, action), &json!({ "user_id": target.id() })).await.ok();
}

/// A room of `alice` with `bob` as a moderator, and further users of either side.
async fn shared_room(alice: &User, bob: &User, version: &str, others: &[&User], host: &str) -> String {
    let room = alice.create(version, json!({})).await;
    bob.join(&room, host).await;
    for other in others {
        other.join(&room, host).await;
    }
    let mut levels = alice.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["users"][bob.id()] = json!(50);
    alice.set(&room, "m.room.power_levels", "", &levels).await;
    for other in others {
        alice.sees(&room, other, "join").await;
        bob.sees(&room, other, "join").await;
    }
    eventually("the moderator is known on the other side", async || {
        (bob.state(&room, "m.room.power_levels", "").await? == levels).then_some(())
    })
    .await;
    room
}

/// Both sides change the same state, and ban each other's users, who do not know of it.
async fn quarrel(room: &str, (alice, erin): (&User, &User), (bob, dave): (&User, &User)) {
    alice.set(room, "m.room.topic", "", &json!({ "topic": "by alice" })).await;
    bob.set(room, "m.room.topic", "", &json!({ "topic": "by bob" })).await;
    bob.set(room, "m.room.name", "", &json!({ "name": "by bob" })).await;
    moderate(alice, room, "ban", dave).await;
    moderate(bob, room, "ban", erin).await;
    dave.say(room, "dave goes on").await;
    erin.say(room, "erin goes on").await;
    alice.say(room, "alice goes on").await;
    bob.say(room, "bob goes on").await;
}

async fn make_up(room: &str, alice: &User, bob: &User, what: &str) {
    alice.say(room, "alice is back").await;
    bob.hears(room, "alice is back").await;
    bob.say(room, "bob is back").await;
    alice.hears(room, "bob is back").await;
    agree(&[alice, bob], room, what).await;
}

async fn assert_outcome(room: &str, user: &User, erin: &User, dave: &User, what: &str) {
    assert_eq!(user.membership(room, dave).await.as_deref(), Some("ban"), "{what}");
    assert_eq!(user.membership(room, erin).await.as_deref(), Some("ban"), "{what}");
    assert_eq!(user.state(room, "m.room.name", "").await, Some(json!({ "name": "by bob" })), "{what}");
}

/// Two servers, each behind a link, with two users each.
struct Parted<'a> {
    links: [&'a Link; 2],
    names: [&'a str; 2],
    here: [User; 2],
    there: [User; 2],
}

/// Has them quarrel in rooms of these versions while they are apart, and agree once they are not.
async fn part_and_heal(parted: Parted<'_>, versions: &[&str]) {
    let Parted { links, names, here: [alice, erin], there: [bob, dave] } = parted;
    let mut rooms = Vec::new();
    for version in versions {
        rooms.push((version, shared_room(&alice, &bob, version, &[&erin, &dave], names[0]).await));
    }
    links[0].cut(names[1]);
    links[1].cut(names[0]);
    for (_, room) in &rooms {
        quarrel(room, (&alice, &erin), (&bob, &dave)).await;
    }
    for link in links {
        link.heal();
    }
    for (version, room) in &rooms {
        let what = format!("version {version}");
        make_up(room, &alice, &bob, &what).await;
        // Version 1 decides bans by depth: either may win there, but the same on both sides.
        if **version != "1" {
            assert_outcome(room, &alice, &erin, &dave, &what).await;
        }
    }
}

#[tokio::test]
async fn two_servers_agree_after_they_were_apart() {
    let (here, there) = (Link::start().await, Link::start().await);
    let (server, other) = (Server::start_behind(&here).await, Server::start_behind(&there).await);
    let parted = Parted {
        links: [&here, &there],
        names: [server.name(), other.name()],
        here: [User(server.client("alice").await), User(server.client("erin").await)],
        there: [User(other.client("bob").await), User(other.client("dave").await)],
    };
    part_and_heal(parted, &["1", "2", "11", "12"]).await;
}

#[tokio::test]
async fn this_server_and_synapse_agree_after_they_were_apart() {
    let (here, there) = (Link::start().await, Link::start().await);
    let (server, synapse) = (Server::start_behind(&here).await, Synapse::start_behind(&there).await);
    let parted = Parted {
        links: [&here, &there],
        names: [server.name(), synapse.server_name()],
        here: [User(server.client("alice").await), User(server.client("erin").await)],
        there: [User(synapse.client("bob").await), User(synapse.client("dave").await)],
    };
    part_and_heal(parted, &["2", "11", "12"]).await;
}

#[tokio::test]
async fn a_third_server_that_was_cut_off_agrees_with_the_others() {
    let links = [Link::start().await, Link::start().await, Link::start().await];
    let [here, there, away] = &links;
    let server = Server::start_behind(here).await;
    let (other, lone) = (Server::start_behind(there).await, Server::start_behind(away).await);
    let (alice, erin) = (User(server.client("alice").await), User(server.client("erin").await));
    let (bob, carol) = (User(other.client("bob").await), User(lone.client("carol").await));
    let dave = User(lone.client("dave").await);
    let room = shared_room(&alice, &carol, "11", &[&bob, &dave, &erin], server.name()).await;
    bob.sees(&room, &dave, "join").await;
    here.cut(lone.name());
    there.cut(lone.name());
    away.cut(server.name());
    away.cut(other.name());
    quarrel(&room, (&alice, &erin), (&carol, &dave)).await;
    bob.hears(&room, "alice goes on").await;
    bob.say(&room, "bob hears alice").await;
    alice.hears(&room, "bob hears alice").await;
    for link in &links {
        link.heal();
    }
    make_up(&room, &alice, &carol, "three servers").await;
    carol.hears(&room, "bob hears alice").await;
    bob.hears(&room, "bob is back").await;
    agree(&[&alice, &bob, &carol], &room, "three servers").await;
    assert_outcome(&room, &carol, &erin, &dave, "three servers").await;
}

/// Of an invite that state resolution takes back, the leave before it is what clients have been told already.
#[tokio::test]
async fn a_leave_that_holds_again_is_told_as_state() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let (alice, bob) = (User(server.client("alice").await), User(server.client("bob").await));
    let room = alice.create("11", json!({})).await;
    let mut mallory = stranger.join(&server, &room, "mallory").await;
    let mut levels = alice.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["users"][mallory.user.as_str()] = json!(50);
    levels["users"][format!("@boss:{}", stranger.name())] = json!(100);
    alice.set(&room, "m.room.power_levels", "", &levels).await;
    bob.join(&room, server.name()).await;
    let since = bob.sync_token().await;
    moderate(&alice, &room, "kick", &bob).await;
    let left = bob.0.sync_until(&since, |sync| sync["rooms"]["leave"].is_object()).await;
    let kick = left["rooms"]["leave"][&room]["timeline"]["events"][0]["event_id"].clone();
    let boss = stranger.join(&server, &room, "boss").await;
    (mallory.state, mallory.tips) = (boss.state.clone(), boss.tips.clone());
    // Two branches: one has the invite, the other one bans whoever sends it.
    let (invite, ban) = (json!({ "membership": "invite" }), json!({ "membership": "ban" }));
    let ban = stranger.event_after(&boss, &boss.tips, "m.room.member", Some(mallory.user.as_str()), &ban);
    let invite = stranger.event(&mut mallory, "m.room.member", Some(bob.id()), &invite);
    stranger.send(&server, "invite", &[&invite]).await;
    let since = left["next_batch"].as_str().unwrap();
    let invited = bob.0.sync_until(since, |sync| sync["rooms"]["invite"].is_object()).await;
    stranger.send(&server, "ban", &[&ban]).await;
    let since = invited["next_batch"].as_str().unwrap();
    let undone = bob.0.sync_until(since, |sync| sync["rooms"]["leave"].is_object()).await;
    let told = &undone["rooms"]["leave"][&room];
    assert_eq!(told["timeline"]["events"], json!([]), "{told}");
    assert_eq!(told["state"]["events"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["state"]["events"][0]["event_id"], kick, "{told}");
}
