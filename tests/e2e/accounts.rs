//! Registration, logging in and out, passwords.

use serde_json::json;
use tests::{Server, by_password};

#[tokio::test]
async fn registration_needs_authentication_and_a_free_name() {
    let server = Server::start().await;
    let nobody = server.anonymous();
    let body = json!({ "username": "alice", "password": "secret" });
    let challenge = nobody.post("/_matrix/client/v3/register", &body).await;
    assert_eq!(challenge.status, 401);
    assert_eq!(challenge.body["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    // So matrix-js-sdk begins.
    let empty = json!({ "username": "alice", "password": "secret", "auth": {} });
    let challenged = nobody.post("/_matrix/client/v3/register", &empty).await;
    assert_eq!((challenged.status, &challenged.body["flows"]), (401, &challenge.body["flows"]));
    let auth = json!({ "type": "m.login.dummy", "session": challenge.body["session"] });
    let body = json!({ "username": "alice", "password": "secret", "auth": auth });
    let answer = nobody.post("/_matrix/client/v3/register", &body).await.ok();
    assert_eq!(answer["user_id"], "@alice:localhost");
    let unknown = json!({ "username": "alice", "password": "secret", "auth": { "type": "m.login.dummy" } });
    nobody.post("/_matrix/client/v3/register", &unknown).await.is(400, "M_USER_IN_USE");
    let body = json!({ "username": "not valid", "auth": { "type": "m.login.dummy" } });
    nobody.post("/_matrix/client/v3/register", &body).await.is(400, "M_INVALID_USERNAME");
    nobody.get("/_matrix/client/v3/register/available?username=alice").await.is(400, "M_USER_IN_USE");
    let free = nobody.get("/_matrix/client/v3/register/available?username=bob").await.ok();
    assert_eq!(free["available"], true);
}

/// Spec: "User-interactive API in the REST API": who retries the last stage gets the result.
#[tokio::test]
async fn a_registration_whose_answer_was_lost_is_answered_again() {
    let server = Server::start().await;
    let nobody = server.anonymous();
    let register = "/_matrix/client/v3/register";
    for name in [Some("alice"), None] {
        let mut body = json!({ "username": name, "password": "secret" });
        let challenge = nobody.post(register, &body).await;
        body["auth"] = json!({ "type": "m.login.dummy", "session": challenge.body["session"] });
        let lost = nobody.post(register, &body).await.ok();
        let again = nobody.post(register, &body).await.ok();
        assert_eq!(lost["user_id"], again["user_id"]);
        let mut client = server.anonymous();
        client.log_in_as(&again);
        client.get("/_matrix/client/v3/account/whoami").await.ok();
        body["username"] = client.localpart().into();
        body["password"] = "another".into();
        nobody.post(register, &body).await.is(400, "M_USER_IN_USE");
    }
}

/// Local user IDs have no capitals, so that they are no other user's.
#[tokio::test]
async fn capitals_in_a_user_name_make_no_difference() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let [localpart, user_id] = ["Alice".to_owned(), alice.user_id.replace("alice", "ALICE")];
    for user in [localpart, user_id] {
        let mut proof = by_password(&user, &alice.password());
        let login = alice.post("/_matrix/client/v3/login", &proof).await.ok();
        assert_eq!(login["user_id"], alice.user_id);
        let mut body = json!({ "devices": [login["device_id"]] });
        let challenge = alice.post("/_matrix/client/v3/delete_devices", &body).await;
        proof["session"] = challenge.body["session"].clone();
        body["auth"] = proof;
        alice.post("/_matrix/client/v3/delete_devices", &body).await.ok();
    }
}

/// Clients of before r0.4.0 say `user` where there is an `identifier` now.
#[tokio::test]
async fn a_proof_may_name_the_user_in_the_former_way() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let third_party = json!({ "client_secret": "secret", "sid": "1" });
    for (path, mut body, status) in [
        ("account/password", json!({ "new_password": alice.password() }), 200),
        // It goes as far as there is something to add.
        ("account/3pid/add", third_party, 403),
    ] {
        let path = format!("/_matrix/client/v3/{path}");
        let challenge = alice.post(&path, &body).await;
        let auth = |user: &str| {
            let session = &challenge.body["session"];
            json!({ "type": "m.login.password", "user": user, "password": alice.password(), "session": session })
        };
        body["auth"] = auth("mallory");
        assert_eq!(alice.post(&path, &body).await.status, 401, "{path}");
        body["auth"] = auth(&alice.user_id);
        assert_eq!(alice.post(&path, &body).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn tokens_work_until_they_are_logged_out() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let whoami = alice.get("/_matrix/client/v3/account/whoami").await.ok();
    assert_eq!((&whoami["user_id"], &whoami["device_id"]), (&json!(alice.user_id), &json!(alice.device_id)));
    let phone = alice.another_device("password of alice").await;
    alice.post("/_matrix/client/v3/logout", &json!({})).await.ok();
    alice.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    phone.get("/_matrix/client/v3/account/whoami").await.ok();
    phone.post("/_matrix/client/v3/logout/all", &json!({})).await.ok();
    phone.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    server.anonymous().get("/_matrix/client/v3/account/whoami").await.is(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_answered_alike() {
    let server = Server::start().await;
    server.client("alice").await;
    for user in ["alice", "bob", "@alice:localhost", "not a name"] {
        let body = by_password(user, "wrong");
        server.anonymous().post("/_matrix/client/v3/login", &body).await.is(403, "M_FORBIDDEN");
    }
    for identifier in [
        json!({ "type": "m.id.thirdparty", "medium": "email", "address": "alice@example.org" }),
        json!({ "type": "m.id.phone", "country": "GB", "phone": "07700900001" }),
    ] {
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": "wrong" });
        server.anonymous().post("/_matrix/client/v3/login", &body).await.is(403, "M_FORBIDDEN");
    }
    let flows = server.anonymous().get("/_matrix/client/v3/login").await.ok();
    assert_eq!(flows["flows"][0]["type"], "m.login.password");
}

#[tokio::test]
async fn a_refresh_token_replaces_the_access_token() {
    let server = Server::start().await;
    let mut alice = server.client("alice").await;
    let mut body = by_password("alice", &alice.password());
    body["refresh_token"] = true.into();
    let login = alice.post("/_matrix/client/v3/login", &body).await.ok();
    assert!(login["expires_in_ms"].as_u64().unwrap() > 0);
    alice.log_in_as(&login);
    let old = alice.clone();
    let body = json!({ "refresh_token": login["refresh_token"] });
    let refreshed = alice.post("/_matrix/client/v3/refresh", &body).await.ok();
    alice.token = refreshed["access_token"].as_str().map(ToOwned::to_owned);
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    old.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    alice.post("/_matrix/client/v3/refresh", &body).await.is(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn an_empty_proof_counts_as_none() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    for path in ["account/password", "account/deactivate", "delete_devices"] {
        let body = json!({ "new_password": "other", "devices": [alice.device_id], "auth": {} });
        let challenge = alice.post(&format!("/_matrix/client/v3/{path}"), &body).await;
        assert_eq!(challenge.status, 401, "{path}: {challenge:?}");
        assert!(challenge.body["session"].is_string(), "{path}: {challenge:?}");
    }
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
}

#[tokio::test]
async fn a_password_change_needs_the_old_one() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let path = "/_matrix/client/v3/account/password";
    let challenge = alice.post(path, &json!({ "new_password": "new" })).await;
    assert_eq!(challenge.status, 401);
    let auth = |password: &str| {
        let mut auth = by_password("alice", password);
        auth["session"] = challenge.body["session"].clone();
        auth
    };
    let wrong = alice.post(path, &json!({ "new_password": "new", "auth": auth("wrong") })).await;
    assert_eq!((wrong.status, wrong.body["errcode"].as_str()), (401, Some("M_FORBIDDEN")));
    alice.post(path, &json!({ "new_password": "new", "auth": auth("password of alice") })).await.ok();
    alice.another_device("new").await;
}
