//! Devices.

use reqwest::Method;
use serde_json::json;
use tests::{Client, Server, by_password, segment};

const DEVICES: &str = "/_matrix/client/v3/devices";

/// The user on a device of this ID and name.
async fn log_in(server: &Server, user: &Client, device_id: &str, name: &str) -> Client {
    let mut login = by_password(&user.user_id, &user.password());
    login["device_id"] = device_id.into();
    login["initial_device_display_name"] = name.into();
    let mut client = server.anonymous();
    client.log_in_as(&client.post("/_matrix/client/v3/login", &login).await.ok());
    client
}

#[tokio::test]
async fn a_user_lists_names_and_deletes_devices() {
    let server = Server::start().await;
    let [alice, mallory] = server.clients(["alice", "mallory"]).await;
    let phone = alice.another_device(&alice.password()).await;
    let device = format!("{DEVICES}/{}", segment(&phone.device_id));
    let listed = alice.get(DEVICES).await.ok();
    let mut ids: Vec<_> =
        listed["devices"].as_array().unwrap().iter().map(|d| d["device_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let mut expected = [alice.device_id.as_str(), phone.device_id.as_str()];
    expected.sort_unstable();
    assert_eq!(ids, expected);

    for listed in listed["devices"].as_array().unwrap() {
        assert!(listed.as_object().unwrap().values().all(|known| !known.is_null()), "{listed}");
    }

    alice.put(&device, &json!({ "display_name": "phone" })).await.ok();
    assert_eq!(phone.get(&device).await.ok()["display_name"], "phone");
    mallory.get(&device).await.is(404, "M_NOT_FOUND");
    mallory.put(&device, &json!({ "display_name": "mine" })).await.is(404, "M_NOT_FOUND");
    alice.get(&format!("{DEVICES}/UNKNOWN")).await.is(404, "M_NOT_FOUND");

    let challenge = alice.delete(&device, &json!({})).await;
    assert_eq!(challenge.status, 401);
    assert!(challenge.body["session"].is_string() && challenge.body["flows"].is_array());
    alice.with_password(Method::DELETE, &device, json!({})).await.ok();
    alice.get(&device).await.is(404, "M_NOT_FOUND");
    phone.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
}

#[tokio::test]
async fn several_devices_are_deleted_at_once_by_who_knows_the_password() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let (phone, tablet) =
        (alice.another_device(&alice.password()).await, alice.another_device(&alice.password()).await);
    let path = "/_matrix/client/v3/delete_devices";
    let body = json!({ "devices": [phone.device_id, tablet.device_id] });
    let challenge = alice.post(path, &body).await;
    assert_eq!(challenge.status, 401);
    let mut wrong = body.clone();
    wrong["auth"] = by_password(&alice.user_id, "wrong");
    wrong["auth"]["session"] = challenge.body["session"].clone();
    let refused = alice.post(path, &wrong).await;
    refused.is(401, "M_FORBIDDEN");
    assert!(refused.body["flows"].is_array(), "one may try again: {}", refused.body);
    phone.get(DEVICES).await.ok();
    alice.with_password(Method::POST, path, body).await.ok();
    for gone in [&phone, &tablet] {
        gone.get(DEVICES).await.is(401, "M_UNKNOWN_TOKEN");
    }
    assert_eq!(alice.get(DEVICES).await.ok()["devices"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_login_names_its_device_and_replaces_one_of_the_same_id() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let first = log_in(&server, &alice, "KITCHEN", "kitchen").await;
    assert_eq!(first.device_id, "KITCHEN");
    let second = log_in(&server, &alice, "KITCHEN", "kitchen").await;
    first.get(DEVICES).await.is(401, "M_UNKNOWN_TOKEN");
    let device = second.get(&format!("{DEVICES}/KITCHEN")).await.ok();
    assert_eq!(device["display_name"], "kitchen");
    assert_eq!(second.get(DEVICES).await.ok()["devices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_name_that_is_too_long_is_cut() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    log_in(&server, &alice, "LONG", &"x".repeat(3000)).await;
    let device = alice.get(&format!("{DEVICES}/LONG")).await.ok();
    assert_eq!(device["display_name"], "x".repeat(1024));
}
