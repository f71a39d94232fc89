//! Malformed requests, unknown paths, headers.

use reqwest::Method;
use serde_json::json;
use tests::{Client, Server};

#[tokio::test]
async fn malformed_requests_get_the_specified_errors() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let errcode = async |method: Method, path: &str, body: &str| {
        let response = alice.raw(method, path, body.as_bytes().to_vec()).await;
        let status = response.status().as_u16();
        let body: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        (status, body["errcode"].as_str().unwrap().to_owned())
    };
    let send = Client::room(&room, "send/m.room.message/1");
    let is = |status: u16, errcode: &str| (status, errcode.to_owned());
    assert_eq!(errcode(Method::PUT, &send, "{").await, is(400, "M_NOT_JSON"));
    assert_eq!(errcode(Method::PUT, &send, "[]").await, is(400, "M_BAD_JSON"));
    assert_eq!(errcode(Method::PUT, &send, &"[".repeat(5000)).await, is(400, "M_BAD_JSON"));
    assert_eq!(errcode(Method::POST, &send, "{}").await, is(405, "M_UNRECOGNIZED"));
    assert_eq!(errcode(Method::GET, "/_matrix/client/v3/nothing", "").await, is(404, "M_UNRECOGNIZED"));
    assert_eq!(errcode(Method::GET, "/elsewhere", "").await, is(404, "M_UNRECOGNIZED"));
    let large = format!(r#"{{"body":"{}"}}"#, "x".repeat(70_000));
    assert_eq!(errcode(Method::PUT, &send, &large).await, is(413, "M_TOO_LARGE"));
    let huge = format!(r#"{{"body":"{}"}}"#, "x".repeat(2_000_000));
    assert_eq!(errcode(Method::PUT, &send, &huge).await, is(413, "M_TOO_LARGE"));
    assert_eq!(errcode(Method::PUT, &send, r#"{"a":1.5}"#).await, is(400, "M_BAD_JSON"));
    let invite = Client::room(&room, "invite");
    assert_eq!(errcode(Method::POST, &invite, "{}").await.0, 400);
    alice.get("/_matrix/client/v3/sync?since=garbage").await.is(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn browsers_and_old_clients_are_let_in() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let response = alice.raw(Method::OPTIONS, "/_matrix/client/v3/sync", Vec::new()).await;
    assert!(response.status().is_success());
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let response = alice.raw(Method::GET, "/_matrix/client/v3/nothing", Vec::new()).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let whoami = alice.get("/_matrix/client/r0/account/whoami").await.ok();
    assert_eq!(whoami["user_id"], alice.user_id);
    let query = format!("/_matrix/client/v3/account/whoami?access_token={}", alice.token.clone().unwrap());
    server.anonymous().get(&query).await.is(401, "M_MISSING_TOKEN");
    let lenient = Server::start_with("[access]\nquery_tokens = true").await;
    let bob = lenient.client("bob").await;
    let query = format!("/_matrix/client/v3/account/whoami?access_token={}", bob.token.clone().unwrap());
    assert_eq!(lenient.anonymous().get(&query).await.ok()["user_id"], bob.user_id);
}
