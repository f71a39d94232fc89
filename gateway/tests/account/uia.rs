//! User-interactive authentication: what a session is good for, and for how long.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, Client, Server, error};

const MINUTE_MS: u64 = 60_000;

/// Asks for the deletion of a device that does not exist, which needs authentication all the same.
async fn delete(client: &Client<'_>, auth: Option<Value>) -> Answer {
    let body = auth.map_or_else(|| json!({}), |auth| json!({ "auth": auth }));
    client.delete("/devices/OTHER", body).await
}

fn password(client: &Client<'_>, session: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password", "session": session, "password": password,
        "identifier": { "type": "m.id.user", "user": client.user_id },
    })
}

fn session(answer: &Answer) -> String {
    assert_eq!(answer.0, 401, "{}", answer.1);
    answer.1["session"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_survives_mistakes_and_is_used_up_by_success() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let id = session(&delete(&alice, None).await);
    let wrong = delete(&alice, Some(password(&alice, &id, "looking-glass"))).await;
    assert_eq!(session(&wrong), id, "the same session goes on");
    assert_eq!(wrong.1["errcode"], "M_FORBIDDEN");
    assert_eq!(wrong.1["completed"], json!([]));
    assert_eq!(delete(&alice, Some(password(&alice, &id, "wonderland"))).await.0, 200);
    let again = delete(&alice, Some(json!({ "session": id }))).await;
    assert_ne!(session(&again), id, "it is used up");
}

#[tokio::test]
async fn a_session_is_good_for_one_endpoint_and_one_user() {
    let server = Server::open().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let id = session(&delete(&alice, None).await);
    // Passed on the page, so that the session alone would do.
    let page = format!("/_matrix/client/v3/auth/m.login.password/fallback/web?session={id}");
    assert_eq!(server.page(&page, Some("answer=wonderland")).await.0, 200);
    let only_session = json!({ "auth": { "session": id } });
    let other = bob.delete("/devices/OTHER", only_session.clone()).await;
    assert_ne!(session(&other), id, "another user's session");
    let id = session(&delete(&alice, None).await);
    let page = format!("/_matrix/client/v3/auth/m.login.password/fallback/web?session={id}");
    assert_eq!(server.page(&page, Some("answer=wonderland")).await.0, 200);
    let other = alice.post("/account/deactivate", json!({ "auth": { "session": id } })).await;
    assert_ne!(session(&other), id, "another endpoint's session");
    assert!(alice.is_logged_in().await);
}

#[tokio::test]
async fn a_session_expires() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let id = session(&delete(&alice, None).await);
    let page = format!("/_matrix/client/v3/auth/m.login.password/fallback/web?session={id}");
    server.clock.advance(14 * MINUTE_MS);
    assert_eq!(server.page(&page, Some("answer=wonderland")).await.0, 200);
    server.clock.advance(2 * MINUTE_MS);
    assert_eq!(server.page(&page, None).await.0, StatusCode::NOT_FOUND);
    let late = delete(&alice, Some(json!({ "session": id }))).await;
    let new = session(&late);
    assert_ne!(new, id);
    assert_eq!(late.1["completed"], json!([]), "what was passed has expired, too");
    assert_eq!(delete(&alice, Some(password(&alice, &new, "wonderland"))).await.0, 200);
}

#[tokio::test]
async fn a_stage_is_passed_on_a_web_page() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let id = session(&delete(&alice, None).await);
    let page = format!("/_matrix/client/v3/auth/m.login.password/fallback/web?session={id}");
    let (status, html) = server.page(&page, None).await;
    assert!(status == 200 && html.contains("type=\"password\""), "{status}: {html}");
    let (status, html) = server.page(&page, Some("answer=looking-glass")).await;
    assert!(status == 403 && html.contains("not right") && !html.contains("authDone"), "{status}: {html}");
    assert_eq!(session(&delete(&alice, Some(json!({ "session": id }))).await), id, "it was not passed");
    let (status, html) = server.page(&page, Some("answer=wonderland")).await;
    assert!(status == 200 && html.contains("window.onAuthDone()") && html.contains("authDone"), "{html}");
    assert!(server.page(&page, None).await.1.contains("window.onAuthDone()"), "who comes back is told again");
    assert_eq!(delete(&alice, Some(json!({ "session": id }))).await.0, 200);
}

#[tokio::test]
async fn who_registers_may_use_the_page_too() {
    let server = Server::open().await;
    let register = async |auth: Value| {
        let body = json!({ "username": "carol", "password": "wonderland", "auth": auth });
        server.call(Method::POST, "/_matrix/client/v3/register", None, body).await
    };
    let id = session(&register(Value::Null).await);
    let page = |stage: &str, id: &str| format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={id}");
    for (stage, id) in [("m.login.dummy", "nonsense"), ("m.login.password", &id), ("m.login.sso", &id)] {
        let (status, text) = server.page(&page(stage, id), None).await;
        assert!(status == 404 && text.contains("M_NOT_FOUND"), "{stage}: {status} {text}");
    }
    let (status, text) = server.page("/_matrix/client/v3/auth/m.login.dummy/fallback/web", None).await;
    assert!(status == 400 && text.contains("M_MISSING_PARAM"), "{status} {text}");
    assert_eq!(server.page(&page("m.login.dummy", &id), Some("")).await.0, 200);
    let (status, body) = register(json!({ "session": id })).await;
    assert_eq!((status.as_u16(), &body["user_id"]), (200, &json!("@carol:a.example")), "{body}");
    let huge = format!("answer={}", "x".repeat(10_000));
    let id = session(
        &server.call(Method::POST, "/_matrix/client/v3/register", None, json!({ "username": "dora" })).await,
    );
    assert_eq!(server.page(&page("m.login.dummy", &id), Some(&huge)).await.0, 413);
    assert_eq!(
        error(&server.call(Method::DELETE, &page("m.login.dummy", &id), None, json!({})).await).0,
        405
    );
}
