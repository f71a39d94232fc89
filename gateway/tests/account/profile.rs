use http::Method;
use serde_json::{Value, json};

use crate::server::{Server, error};

#[tokio::test]
async fn a_profile_is_set_read_and_cleared() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let path = format!("/profile/{}", alice.user_id);
    let set =
        async |name: &str, value: Value| alice.put(&format!("{path}/{name}"), json!({ name: value })).await;
    assert_eq!(set("displayname", json!("Alice")).await.0, 200);
    assert_eq!(set("org.example.hobby", json!(["croquet"])).await.0, 200);
    assert_eq!(bob.get(&path).await.1, json!({ "displayname": "Alice", "org.example.hobby": ["croquet"] }));
    let field = bob.get(&format!("{path}/org.example.hobby")).await;
    assert_eq!(field.1, json!({ "org.example.hobby": ["croquet"] }));

    let refused = bob.put(&format!("{path}/displayname"), json!({ "displayname": "x" })).await;
    assert_eq!(error(&refused), (403, "M_FORBIDDEN"));
    let missing = alice.put(&format!("{path}/displayname"), json!({})).await;
    assert_eq!(error(&missing), (400, "M_MISSING_PARAM"));
    assert_eq!(error(&set("Nickname", json!("x")).await), (400, "M_INVALID_PARAM"));
    let long = format!("org.{}", "x".repeat(256));
    assert_eq!(error(&set(&long, json!("x")).await), (400, "M_KEY_TOO_LARGE"));
    let large = set("org.example.large", json!("x".repeat(64 * 1024))).await;
    assert_eq!(error(&large), (400, "M_PROFILE_TOO_LARGE"));

    assert_eq!(alice.delete(&format!("{path}/org.example.hobby"), Value::Null).await.0, 200);
    assert_eq!(set("displayname", json!("")).await.0, 200);
    assert_eq!(bob.get(&path).await.1, json!({}));
    assert_eq!(error(&bob.get(&format!("{path}/displayname")).await), (404, "M_NOT_FOUND"));
    assert_eq!(error(&bob.get("/profile/@carol:a.example").await), (404, "M_NOT_FOUND"));
    // Profiles are public.
    let public = format!("/_matrix/client/v3{path}");
    assert_eq!(server.call(Method::GET, &public, None, Value::Null).await.0, 200);
}

#[tokio::test]
async fn presence_is_shown_to_those_who_share_a_room() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let path = format!("/presence/{}/status", alice.user_id);
    let status = json!({ "presence": "unavailable", "status_msg": "tea" });
    assert_eq!(error(&bob.put(&path, status.clone()).await), (403, "M_FORBIDDEN"));
    assert_eq!(alice.put(&path, status).await.0, 200);
    assert_eq!(error(&alice.put(&path, json!({ "presence": "asleep" })).await), (400, "M_INVALID_PARAM"));
    assert_eq!(error(&bob.get(&path).await), (403, "M_FORBIDDEN"));
    let room = alice.room().await;
    assert_eq!(bob.post(&format!("/join/{room}"), json!({})).await.0, 200);
    let (_, seen) = bob.get(&path).await;
    assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!("unavailable"), &json!("tea")));
}
