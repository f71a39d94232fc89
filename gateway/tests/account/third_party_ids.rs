//! E-mail addresses and phone numbers, which this server does not have.

use http::Method;
use serde_json::{Value, json};

use crate::server::{Server, error};

fn with(mut body: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn tokens_are_refused_as_each_endpoint_specifies() {
    let server = Server::open().await;
    let request = json!({ "client_secret": "secret", "send_attempt": 1 });
    let email = with(request.clone(), &json!({ "email": "alice@example.org" }));
    let phone = with(request, &json!({ "country": "GB", "phone_number": "07700900001" }));
    for (path, body, status, errcode) in [
        ("account/3pid/email", &email, 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"),
        ("account/3pid/msisdn", &phone, 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"),
        ("register/email", &email, 403, "M_THREEPID_DENIED"),
        ("register/msisdn", &phone, 403, "M_THREEPID_DENIED"),
        ("account/password/email", &email, 400, "M_THREEPID_NOT_FOUND"),
        ("account/password/msisdn", &phone, 400, "M_THREEPID_NOT_FOUND"),
    ] {
        let path = format!("/_matrix/client/v3/{path}/requestToken");
        let call = async |body: Value| server.call(Method::POST, &path, None, body).await;
        assert_eq!(error(&call(body.clone()).await), (status, errcode), "{path}");
        for name in body.as_object().unwrap().keys() {
            let mut lacking = body.clone();
            lacking.as_object_mut().unwrap().remove(name);
            assert_eq!(error(&call(lacking).await), (400, "M_MISSING_PARAM"), "{path} without {name}");
            let wrong = with(body.clone(), &json!({ name: [] }));
            assert_eq!(error(&call(wrong).await), (400, "M_BAD_JSON"), "{path} with a list as {name}");
        }
        let bad = with(
            body.clone(),
            &json!({ "client_secret": "no spaces", "email": "alice", "phone_number": "x" }),
        );
        assert_eq!(error(&call(bad).await), (400, "M_INVALID_PARAM"), "{path}");
    }
}

#[tokio::test]
async fn nothing_can_be_added_and_what_is_not_there_is_removed() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let credentials =
        json!({ "client_secret": "secret", "id_server": "id.example", "id_access_token": "t", "sid": "1" });
    assert_eq!(alice.get("/account/3pid").await.1, json!({ "threepids": [] }));
    let old = alice.post("/account/3pid", json!({ "three_pid_creds": credentials })).await;
    assert_eq!(error(&old), (403, "M_THREEPID_AUTH_FAILED"));
    assert_eq!(error(&alice.post("/account/3pid", json!({})).await), (400, "M_MISSING_PARAM"));
    let bound = alice.post("/account/3pid/bind", credentials).await;
    assert_eq!(error(&bound), (400, "M_SERVER_NOT_TRUSTED"));
    let added = json!({ "client_secret": "secret", "sid": "1" });
    let refused = alice.with_password(Method::POST, "/account/3pid/add", added, "wonderland").await;
    assert_eq!(error(&refused), (403, "M_THREEPID_AUTH_FAILED"));
    let address = json!({ "medium": "email", "address": "alice@example.org" });
    for end in ["delete", "unbind"] {
        let (status, body) = alice.post(&format!("/account/3pid/{end}"), address.clone()).await;
        assert_eq!(
            (status.as_u16(), body),
            (200, json!({ "id_server_unbind_result": "no-support" })),
            "{end}"
        );
        let unknown =
            alice.post(&format!("/account/3pid/{end}"), json!({ "medium": "pigeon", "address": "x" })).await;
        assert_eq!(error(&unknown), (400, "M_INVALID_PARAM"));
    }
    for path in ["3pid", "3pid/add", "3pid/bind", "3pid/delete", "3pid/unbind"] {
        let path = format!("/_matrix/client/v3/account/{path}");
        let nobody = server.call(Method::POST, &path, None, json!({})).await;
        assert_eq!(error(&nobody), (401, "M_MISSING_TOKEN"), "{path}");
    }
}
