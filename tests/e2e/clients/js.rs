//! What matrix-js-sdk offers besides conversations.

use serde_json::{Value, json};
use tests::{PeerKind, Server};

use super::Participant;
use crate::federation::eventually;

#[tokio::test]
async fn matrix_js_sdk_searches_threads_spaces_people_and_media() {
    let server = Server::start().await;
    let [alice, account] = server.clients(["alice", "bob"]).await;
    let request =
        json!({ "preset": "public_chat", "name": "Garden", "creation_content": { "type": "m.space" } });
    let space = alice.create_room(request).await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "Tea" })).await;
    let via = json!({ "via": [server.name()] });
    alice.set_state(&space, "m.space.child", &room, &via).await.ok();
    account.join(&room).await.ok();
    let mut bob = Participant::peer(PeerKind::Js, &server);
    bob.call("login", json!({ "user": account.user_id, "password": account.password() })).await;

    let root = alice.say(&room, "1", "camellia sinensis").await;
    bob.wait(json!({ "what": "message", "event_id": root })).await;
    let reply = bob.event("reply", json!({ "room_id": room, "event_id": root, "body": "tea!" })).await;
    let threads = bob.call("threads", json!({ "room_id": room })).await;
    assert_eq!(threads["event_ids"], json!([root]));
    let replies = bob.call("relations", json!({ "room_id": room, "event_id": root })).await;
    assert_eq!(replies["event_ids"], json!([reply]));

    // Both are a little behind the rooms.
    let found = async || {
        let answer = bob.call("search", json!({ "term": "camellia" })).await;
        (answer["event_ids"] == json!([root])).then_some(())
    };
    eventually("the message is found", found).await;
    let found = async || {
        let answer = bob.call("find_users", json!({ "term": alice.localpart() })).await;
        (answer["user_ids"] == json!([alice.user_id])).then_some(())
    };
    eventually("the user is found", found).await;
    let mutual = bob.call("mutual_rooms", json!({ "user_id": alice.user_id })).await;
    assert_eq!(mutual["room_ids"], json!([room]));
    let rooms = bob.call("hierarchy", json!({ "room_id": space })).await;
    assert_eq!(rooms["room_ids"], json!([space, room]));
    for (asked, name, membership) in [(&space, "Garden", "leave"), (&room, "Tea", "join")] {
        let summary = bob.call("summary", json!({ "room_id": asked })).await;
        assert_eq!((&summary["name"], &summary["membership"]), (&json!(name), &json!(membership)));
    }

    let uri = bob.call("upload", json!({ "body": "leaves" })).await["uri"].take();
    let file = bob.call("download", json!({ "uri": uri })).await;
    assert_eq!(file["body"], "leaves");
    let profile = json!({ "user_id": account.user_id });
    assert_ne!(bob.call("profile", profile.clone()).await["name"], Value::from("Robert"));
    bob.call("set_name", json!({ "name": "Robert" })).await;
    assert_eq!(bob.call("profile", profile).await["name"], "Robert");
}
