//! What the server itself says to its users.

use serde_json::{Value, json};
use tests::{Client, Server};

const CONFIG: &str = "[server_notices]\nuser = \"notices\"\ndisplay_name = \"The operators\"\n";

async fn tell(server: &Server, to: &[&str], text: &str) -> (bool, String) {
    let arguments: Vec<&str> = ["notice", "send", text].iter().chain(to).copied().collect();
    let output = server.command(&arguments, "").await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The rooms with the tag for notices.
async fn tagged(client: &Client, section: &str) -> Vec<String> {
    let sync = client.sync("timeout=0").await;
    let rooms = sync["rooms"][section].as_object().cloned().unwrap_or_default();
    let mut tagged = Vec::new();
    for room in rooms.keys() {
        let path = format!(
            "/_matrix/client/v3/user/{}/rooms/{}/tags",
            tests::segment(&client.user_id),
            tests::segment(room)
        );
        if client.get(&path).await.ok()["tags"]["m.server_notice"].is_object() {
            tagged.push(room.clone());
        }
    }
    tagged
}

async fn notices(client: &Client, room: &str) -> Vec<Value> {
    let events = client.all_messages(room).await;
    events.into_iter().filter(|event| event["content"]["msgtype"] == "m.server_notice").collect()
}

#[tokio::test]
async fn notices_come_in_one_room_that_cannot_be_rejected() {
    let mut server = Server::start_with(CONFIG).await;
    let taken = json!({ "username": "notices", "password": "x", "auth": { "type": "m.login.dummy" } });
    server.anonymous().post("/_matrix/client/v3/register", &taken).await.is(400, "M_USER_IN_USE");
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let (done, output) = tell(&server, &["--to", "alice"], "Maintenance at noon.").await;
    assert!(done, "{output}");
    let invited = tagged(&alice, "invite").await;
    let [room] = invited.as_slice() else { panic!("one room: {invited:?}") };
    alice.leave(room).await.is(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM");
    let leave = json!({ "membership": "leave" });
    let rejected = alice.set_state(room, "m.room.member", &alice.user_id, &leave).await;
    rejected.is(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM");
    alice.join(room).await.ok();
    let told = notices(&alice, room).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["content"]["body"], "Maintenance at noon.");
    assert!(told[0]["content"]["server_notice_type"].is_string());
    let name = alice.state(room, "m.room.member", told[0]["sender"].as_str().unwrap()).await.ok();
    assert_eq!(name["displayname"], "The operators");
    let text = json!({ "msgtype": "m.text", "body": "no" });
    alice.send(room, "m.room.message", "1", &text).await.is(403, "M_FORBIDDEN");
    alice.moderate("invite", room, &bob.user_id).await.is(403, "M_FORBIDDEN");
    // The same room again, on a stopped server too, and after the user has left it.
    server.stop().await;
    let (done, output) = tell(&server, &["--to", "@alice:localhost"], "It is over.").await;
    assert!(done, "{output}");
    server.restart().await;
    assert_eq!(tagged(&alice, "join").await, std::slice::from_ref(room));
    assert_eq!(notices(&alice, room).await.len(), 2);
    alice.leave(room).await.ok();
    // A server that ended between the room and its tag leaves the same.
    let tag = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/tags/m.server_notice",
        tests::segment(&alice.user_id),
        tests::segment(room)
    );
    alice.delete(&tag, &json!({})).await.ok();
    tell(&server, &["--to", "alice"], "You left.").await;
    assert_eq!(tagged(&alice, "invite").await, std::slice::from_ref(room));
}

#[tokio::test]
async fn notices_reach_everyone_who_can_be_told() {
    let server = Server::start_with(CONFIG).await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.invite_permission_config",
        tests::segment(&bob.user_id)
    );
    bob.put(&path, &json!({ "default_action": "block" })).await.ok();
    let (done, output) = tell(&server, &["--all"], "Hello.").await;
    assert!(done && output.contains("told @alice:localhost"), "{output}");
    assert!(output.contains("could not tell @bob:localhost"), "{output}");
    assert!(!output.contains("@notices"), "{output}");
    assert_eq!(tagged(&alice, "invite").await.len(), 1);
    let (done, output) = tell(&server, &["--to", "nobody"], "Hello.").await;
    assert!(!done && output.contains("no such active user"), "{output}");
    let off = Server::start().await;
    off.client("alice").await;
    let (done, output) = tell(&off, &["--to", "alice"], "Hello.").await;
    assert!(!done && output.contains("server_notices.user"), "{output}");
}
