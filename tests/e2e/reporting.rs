//! Reporting rooms, events and users.

use serde_json::json;
use tests::{Client, Server, segment};

#[tokio::test]
async fn reports_are_kept_for_the_administrators() {
    let mut server = Server::start().await;
    let [alice, bob, carol] = server.clients(["alice", "bob", "carol"]).await;
    let room = alice.create_room(json!({ "preset": "private_chat", "invite": [bob.user_id] })).await;
    bob.join(&room).await.ok();
    let event = alice.say(&room, "1", "rude").await;
    let reason = |text: &str| json!({ "reason": text });
    let of_event = Client::room(&room, &format!("report/{}", segment(&event)));
    assert_eq!(bob.post(&of_event, &reason("rude")).await.ok(), json!({}));
    bob.post(&of_event, &json!({})).await.ok();
    carol.post(&of_event, &reason("not there")).await.is(404, "M_NOT_FOUND");
    let unknown = Client::room(&room, &format!("report/{}", segment("$nothing")));
    bob.post(&unknown, &reason("x")).await.is(404, "M_NOT_FOUND");
    let of_room = Client::room(&room, "report");
    carol.post(&of_room, &reason("a room\nof villains")).await.ok();
    carol.post(&Client::room("!nowhere:localhost", "report"), &reason("x")).await.is(404, "M_NOT_FOUND");
    carol.post(&of_room, &json!({})).await.is(400, "M_MISSING_PARAM");
    carol.post(&of_room, &json!({ "reason": 3 })).await.is(400, "M_BAD_JSON");
    carol.post(&Client::room("nonsense", "report"), &reason("x")).await.is(400, "M_INVALID_PARAM");
    let of_user = |user: &str| format!("/_matrix/client/v3/users/{}/report", segment(user));
    carol.post(&of_user(&alice.user_id), &reason("rude")).await.ok();
    carol.post(&of_user("@mallory:example.org"), &reason("far away")).await.ok();
    carol.post(&of_user("@nobody:localhost"), &reason("x")).await.is(404, "M_NOT_FOUND");
    carol.post(&of_user(&alice.user_id), &reason(&"x".repeat(5000))).await.is(400, "M_INVALID_PARAM");
    server.anonymous().post(&of_room, &reason("x")).await.is(401, "M_MISSING_TOKEN");
    let running = server.command(&["reports"], "").await;
    server.stop().await;
    let stopped = server.command(&["reports"], "").await;
    for output in [running, stopped] {
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        let expected = [
            format!("{} reports {room} {event}: \"rude\"", bob.user_id),
            format!("{} reports {room} {event}: \"\"", bob.user_id),
            format!("{} reports {room}: \"a room\\nof villains\"", carol.user_id),
            format!("{} reports {}: \"rude\"", carol.user_id, alice.user_id),
            format!("{} reports @mallory:example.org: \"far away\"", carol.user_id),
        ];
        assert_eq!(lines, expected);
    }
}
