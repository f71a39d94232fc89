//! What a client was told that does not hold any more, though nothing that it requires says so.
//!
//! Spec: MSC4186, "Room results", "Lazy loaded memberships".

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use super::{Connection, list};

/// The members among the required state, with their display names.
fn names(room: &Value) -> Vec<(&str, &str)> {
    let events = room["required_state"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members = events.iter().filter(|event| event["type"] == "m.room.member");
    let mut names: Vec<_> = members
        .filter_map(|event| Some((event["state_key"].as_str()?, event["content"]["displayname"].as_str()?)))
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn members_who_changed_in_a_gap_are_told_anew_once_they_are_needed() {
    let server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    bob.say(&room, "1", "one").await;
    carol.say(&room, "2", "two").await;
    let mut body = list([0, 9], &json!({}));
    body["lists"]["all"]["timeline_limit"] = json!(2);
    let mut connection = Connection::new(&alice);
    connection.ask(&body).await;
    for (user, name) in [(&bob, "Robert"), (&carol, "Caroline")] {
        let path = format!("/_matrix/client/v3/profile/{}/displayname", user.user_id);
        user.put(&path, &json!({ "displayname": name })).await.ok();
        // Rooms learn of it by and by.
        let member = Client::room(&room, &format!("state/m.room.member/{}", segment(&user.user_id)));
        while user.get(&member).await.ok()["displayname"] != json!(name) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    bob.say(&room, "3", "three").await;
    let answer = connection.ask(&body).await;
    let told = &answer["rooms"][&room];
    assert_eq!(told["limited"], json!(true));
    // Bob changed before the timeline and speaks in it; Carol's change is itself in the timeline.
    let told = names(told);
    assert_eq!(told, [(bob.user_id.as_str(), "Robert"), (carol.user_id.as_str(), "Caroline")], "{answer}");
    // Once is enough.
    carol.say(&room, "4", "four").await;
    let answer = connection.ask(&body).await;
    assert!(names(&answer["rooms"][&room]).is_empty(), "{answer}");
}

#[tokio::test]
async fn a_name_that_is_redacted_is_gone() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await.ok();
    let set = async |kind: &str, content| {
        let answer = alice.set_state(&room, kind, "", &content).await.ok();
        answer["event_id"].as_str().unwrap().to_owned()
    };
    let name = set("m.room.name", json!({ "name": "a slip" })).await;
    let avatar = set("m.room.avatar", json!({ "url": "mxc://localhost/slip" })).await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    let first = connection.ask(&body).await;
    assert_eq!(first["rooms"][&room]["name"], json!("a slip"));
    let since = bob.token_of_sync().await;
    for (event, txn_id) in [(&name, "1"), (&avatar, "2")] {
        alice.put(&Client::room(&room, &format!("redact/{event}/{txn_id}")), &json!({})).await.ok();
    }
    let answer = connection.ask(&body).await;
    let told = answer["rooms"][&room].as_object().unwrap();
    assert_eq!((told.get("name"), told.get("avatar")), (Some(&json!(null)), Some(&json!(null))), "{answer}");
    assert_eq!(told["heroes"][0]["user_id"], json!(alice.user_id));
    // Not again, unless there may have been more.
    alice.say(&room, "3", "sorry").await;
    let answer = connection.ask(&body).await;
    assert!(!answer["rooms"][&room].as_object().unwrap().contains_key("name"), "{answer}");
    // Who syncs otherwise has to name the room after its members, too.
    let synced = bob.sync(&format!("since={since}")).await;
    assert_eq!(synced["rooms"]["join"][&room]["summary"]["m.heroes"], json!([alice.user_id]));
}
