//! Rooms that are closed to users of other servers (`m.federate`), and what those are told of them.

use http::Method;
use serde_json::json;
use tests::{Server, Stranger, segment};

use super::User;

const PUBLIC_ROOMS: &str = "/_matrix/federation/v1/publicRooms";

#[tokio::test]
async fn other_servers_are_told_nothing_of_rooms_that_are_closed_to_them() {
    let (server, stranger) = (Server::start_federating("").await, Stranger::start().await);
    let alice = User(server.client("alice").await);
    let create = async |name: &str, federates: bool, kind: &str| {
        let content = json!({ "m.federate": federates, "type": kind });
        let more = json!({ "name": name, "visibility": "public", "creation_content": content });
        alice.create("11", more).await
    };
    let (open, closed) =
        (create("open", true, "org.example.tea").await, create("closed", false, "org.example.tea").await);
    let (space, closed_space) =
        (create("space", true, "m.space").await, create("closed space", false, "m.space").await);
    for room in [&open, &closed] {
        alice.set(&space, "m.space.child", room, &json!({ "via": [server.name()] })).await;
    }

    // Spec: server-server API, "Published Room Directory". Twice, since what is said of a room is kept.
    let own = alice.0.get("/_matrix/client/v3/publicRooms").await.ok();
    assert_eq!(own["total_room_count_estimate"], 4, "{own}");
    for _ in 0..2 {
        for (method, body) in [(Method::GET, None), (Method::POST, Some(json!({ "limit": 10 })))] {
            let told = stranger.request(&server, method, PUBLIC_ROOMS, body).await.ok();
            let mut names: Vec<_> = told["chunk"]
                .as_array()
                .unwrap()
                .iter()
                .map(|room| room["name"].as_str().unwrap().to_owned())
                .collect();
            names.sort_unstable();
            assert_eq!(names, ["open", "space"], "{told}");
            assert_eq!(told["total_room_count_estimate"], 2, "{told}");
        }
    }

    // Spec: server-server API, "Spaces": rooms that the requesting server cannot join are not described.
    let uri = |room: &str| format!("/_matrix/federation/v1/hierarchy/{}", segment(room));
    let told = stranger.get(&server, &uri(&space)).await.ok();
    assert_eq!(told["children"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(told["children"][0]["room_id"], open);
    assert_eq!(told["inaccessible_children"], json!([closed]));
    for room in [&closed, &closed_space] {
        stranger.get(&server, &uri(room)).await.is(404, "M_NOT_FOUND");
    }
    // One that everybody may read is no secret.
    let readable = json!({ "history_visibility": "world_readable" });
    alice.set(&closed, "m.room.history_visibility", "", &readable).await;
    stranger.get(&server, &uri(&closed)).await.ok();
}
