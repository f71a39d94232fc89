use http::Method;
use serde_json::json;

use crate::server::{Server, error};

#[tokio::test]
async fn devices_are_listed_named_and_deleted() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let (_, body) = server.log_in("alice", json!({ "initial_device_display_name": "phone" })).await;
    let phone = server.client(&body);
    let (_, list) = alice.get("/devices").await;
    assert_eq!(list["devices"].as_array().unwrap().len(), 2);
    let path = format!("/devices/{}", phone.device_id);
    assert_eq!(alice.get(&path).await.1["display_name"], "phone");
    assert_eq!(alice.put(&path, json!({ "display_name": "old phone" })).await.0, 200);
    assert_eq!(alice.put(&path, json!({})).await.0, 200);
    assert_eq!(alice.get(&path).await.1["display_name"], "old phone");
    assert_eq!(error(&alice.get("/devices/NONE").await), (404, "M_NOT_FOUND"));
    assert_eq!(
        error(&alice.put("/devices/NONE", json!({ "display_name": "x" })).await),
        (404, "M_NOT_FOUND")
    );
    assert_eq!(error(&alice.put("/devices/NONE", json!({})).await), (404, "M_NOT_FOUND"));

    let refused = alice.with_password(Method::DELETE, &path, json!({}), "wrong").await;
    assert_eq!(error(&refused), (401, "M_FORBIDDEN"));
    assert!(phone.is_logged_in().await);
    let deleted = alice.with_password(Method::DELETE, &path, json!({}), "wonderland").await;
    assert_eq!(deleted.0, 200, "{}", deleted.1);
    assert!(!phone.is_logged_in().await);
    assert_eq!(error(&alice.get(&path).await), (404, "M_NOT_FOUND"));
}

#[tokio::test]
async fn several_devices_are_deleted_at_once() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(server.client(&server.log_in("alice", json!({})).await.1));
    }
    let ids: Vec<_> = others.iter().map(|other| &other.device_id).collect();
    let body = json!({ "devices": ids });
    assert_eq!(alice.with_password(Method::POST, "/delete_devices", body, "wonderland").await.0, 200);
    for other in &others {
        assert!(!other.is_logged_in().await);
    }
    assert!(alice.is_logged_in().await);
}

#[tokio::test]
async fn logging_out_ends_the_token_and_the_device() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let other = server.client(&server.log_in("alice", json!({})).await.1);
    let third = server.client(&server.log_in("alice", json!({})).await.1);
    assert_eq!(other.post("/logout", json!({})).await.0, 200);
    assert!(!other.is_logged_in().await);
    let (_, list) = alice.get("/devices").await;
    assert_eq!(list["devices"].as_array().unwrap().len(), 2);
    assert_eq!(alice.post("/logout/all", json!({})).await.0, 200);
    assert!(!alice.is_logged_in().await && !third.is_logged_in().await);
}

#[tokio::test]
async fn a_new_password_logs_out_the_others_if_asked() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let other = server.client(&server.log_in("alice", json!({})).await.1);
    let kept = json!({ "new_password": "looking-glass", "logout_devices": false });
    let changed = alice.with_password(Method::POST, "/account/password", kept, "wonderland").await;
    assert_eq!(changed.0, 200, "{}", changed.1);
    assert!(other.is_logged_in().await);
    assert_eq!(error(&server.log_in("alice", json!({})).await), (403, "M_FORBIDDEN"));
    assert_eq!(server.log_in("alice", json!({ "password": "looking-glass" })).await.0, 200);
    let body = json!({ "new_password": "wonderland" });
    assert_eq!(alice.with_password(Method::POST, "/account/password", body, "looking-glass").await.0, 200);
    assert!(!other.is_logged_in().await);
    assert!(alice.is_logged_in().await);
}

#[tokio::test]
async fn a_deactivated_user_is_gone_for_good() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    alice.put(&format!("/profile/{}/displayname", alice.user_id), json!({ "displayname": "Alice" })).await;
    let (status, body) =
        alice.with_password(Method::POST, "/account/deactivate", json!({}), "wonderland").await;
    assert_eq!((status.as_u16(), &body["id_server_unbind_result"]), (200, &json!("success")));
    assert!(!alice.is_logged_in().await);
    assert_eq!(error(&server.log_in("alice", json!({})).await), (403, "M_USER_DEACTIVATED"));
    let profile = bob.get(&format!("/profile/{}/displayname", alice.user_id)).await;
    assert_eq!(error(&profile), (404, "M_NOT_FOUND"));
}

#[tokio::test]
async fn capabilities_name_the_room_versions() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let (_, body) = alice.get("/capabilities").await;
    let versions = &body["capabilities"]["m.room_versions"];
    assert_eq!((&versions["default"], &versions["available"]["1"]), (&json!("12"), &json!("stable")));
    assert_eq!(body["capabilities"]["m.change_password"]["enabled"], true);
}
