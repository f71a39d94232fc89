//! Rooms that the user has left, or never came into.
//!
//! Spec: MSC4186, "Lists", "Subscriptions", "Invite/knock/rejections".

use serde_json::{Value, json};
use tests::{Client, Server, segment};

use super::{Connection, bodies, ids, list};

#[tokio::test]
async fn a_room_that_was_left_can_be_looked_at_again() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "tea" })).await;
    bob.join(&room).await.ok();
    alice.say(&room, "1", "one").await;
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    connection.ask(&body).await;
    bob.leave(&room).await.ok();
    alice.say(&room, "2", "not for bob").await;
    assert_eq!(connection.ask(&body).await["rooms"][&room]["membership"], "leave");
    // The connection that was sent the room goes on listing it.
    let next = connection.ask(&body).await;
    assert_eq!((&next["lists"]["all"]["count"], &next["rooms"]), (&json!(1), &json!({})));

    let subscribe = |conn: &str| {
        let config = json!({ "timeline_limit": 20, "required_state": [["m.room.name", ""]] });
        json!({ "conn_id": conn, "room_subscriptions": { &room: config } })
    };
    let mut with_list = subscribe("");
    with_list["lists"] = body["lists"].clone();
    let more = connection.ask(&with_list).await;
    assert_eq!(bodies(&more["rooms"][&room]), ["one"], "{more}");
    // Another one lists it not, but knows it if asked for it.
    let mut other = Connection::new(&bob);
    let mut listing = body.clone();
    listing["conn_id"] = json!("other");
    assert_eq!(other.ask(&listing).await["lists"]["all"]["count"], 0);
    let told = other.ask(&subscribe("other")).await;
    let told = &told["rooms"][&room];
    assert_eq!((&told["membership"], &told["initial"]), (&json!("leave"), &json!(true)));
    assert_eq!((bodies(told), &told["name"]), (vec!["one"], &json!("tea")));
    assert!(other.ask(&subscribe("other")).await["rooms"].as_object().unwrap().is_empty());
    bob.post(&Client::room(&room, "forget"), &json!({})).await.ok();
    let mut third = Connection::new(&bob);
    assert_eq!(third.ask(&subscribe("third")).await["rooms"], json!({}));
    assert_eq!(connection.ask(&body).await["lists"]["all"]["count"], 0);
}

#[tokio::test]
async fn the_end_of_an_invite_or_a_knock_comes_with_stripped_state() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let request = json!({ "room_version": "11", "name": "tea", "initial_state": [rule] });
    let (declined, refused) = (alice.create_room(request.clone()).await, alice.create_room(request).await);
    alice.moderate("invite", &declined, &bob.user_id).await.ok();
    bob.post(&format!("/_matrix/client/v3/knock/{}", segment(&refused)), &json!({})).await.ok();
    let body = list([0, 9], &json!({}));
    let mut connection = Connection::new(&bob);
    assert_eq!(ids(&connection.ask(&body).await).len(), 2);
    bob.leave(&declined).await.ok();
    alice.moderate("kick", &refused, &bob.user_id).await.ok();
    let answer = connection.ask(&body).await;
    for room in [declined, refused] {
        let told = &answer["rooms"][&room];
        assert_eq!((&told["membership"], &told["name"]), (&json!("leave"), &Value::Null));
        let stripped = told["invite_state"].as_array().unwrap_or_else(|| panic!("{told}"));
        assert!(stripped.iter().any(|event| event["content"]["name"] == "tea"), "{told}");
        let own = stripped.iter().filter(|event| event["state_key"] == bob.user_id.as_str());
        let own: Vec<_> = own.map(|event| &event["content"]["membership"]).collect();
        assert_eq!(own, ["leave"]);
    }
    assert_eq!(connection.ask(&body).await["rooms"], json!({}));
}
