use gateway::app::Registration;
use http::Method;
use serde_json::{Value, json};

use crate::server::{Server, error};

#[tokio::test]
async fn a_user_registers_and_logs_in() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    assert_eq!(alice.user_id, "@alice:a.example");
    let (_, who) = alice.get("/account/whoami").await;
    assert_eq!(who["user_id"], "@alice:a.example");
    assert_eq!(who["device_id"], alice.device_id.as_str());
    assert_eq!(alice.get("/account/3pid").await.1, json!({ "threepids": [] }));

    for name in ["alice", "@alice:a.example", "ALICE"] {
        let (status, body) = server.log_in(name, json!({ "device_id": "PHONE" })).await;
        assert_eq!((status.as_u16(), &body["device_id"]), (200, &json!("PHONE")), "{name}: {body}");
    }
    assert_eq!(error(&server.log_in("alice", json!({ "password": "wrong" })).await), (403, "M_FORBIDDEN"));
    assert_eq!(error(&server.log_in("bob", json!({})).await), (403, "M_FORBIDDEN"));
    let taken = json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    let taken = server.call(Method::POST, "/_matrix/client/v3/register", None, taken).await;
    assert_eq!(error(&taken), (400, "M_USER_IN_USE"));
    let available = "/_matrix/client/v3/register/available?username=";
    let ask =
        async |name: &str| server.call(Method::GET, &format!("{available}{name}"), None, Value::Null).await;
    assert_eq!(error(&ask("alice").await), (400, "M_USER_IN_USE"));
    assert_eq!(error(&ask("al%20ice").await), (400, "M_INVALID_USERNAME"));
    assert_eq!(ask("bob").await.1, json!({ "available": true }));
}

#[tokio::test]
async fn a_request_without_a_good_token_is_refused() {
    let server = Server::open().await;
    let path = "/_matrix/client/v3/account/whoami";
    assert_eq!(error(&server.call(Method::GET, path, None, Value::Null).await), (401, "M_MISSING_TOKEN"));
    let unknown = server.call(Method::GET, path, Some("nonsense"), Value::Null).await;
    assert_eq!(error(&unknown), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(unknown.1.get("soft_logout"), None);
}

#[tokio::test]
async fn a_token_expires_and_is_refreshed() {
    let server = Server::open().await;
    server.register("alice").await;
    let (_, body) = server.log_in("alice", json!({ "refresh_token": true })).await;
    let alice = server.client(&body);
    server.clock.advance(body["expires_in_ms"].as_u64().unwrap());
    let expired = alice.get("/account/whoami").await;
    assert_eq!((error(&expired), &expired.1["soft_logout"]), ((401, "M_UNKNOWN_TOKEN"), &json!(true)));
    let refresh = async |token: &Value| {
        let body = json!({ "refresh_token": token });
        server.call(Method::POST, "/_matrix/client/v3/refresh", None, body).await
    };
    let (status, fresh) = refresh(&body["refresh_token"]).await;
    assert_eq!(status, 200, "{fresh}");
    let token = fresh["access_token"].as_str();
    let who = server.call(Method::GET, "/_matrix/client/v3/account/whoami", token, Value::Null).await;
    assert_eq!(who.1["user_id"], "@alice:a.example");
    assert_eq!(error(&refresh(&json!("nonsense")).await), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(refresh(&fresh["refresh_token"]).await.0, 200);
}

#[tokio::test]
async fn a_registration_token_opens_the_door() {
    // An empty one, as a damaged file may bring, opens nothing.
    let tokens = vec!["sesame".to_owned(), String::new()];
    let server = Server::with(Registration { tokens, ..Registration::default() }).await;
    let register = async |auth: Value| {
        let mut body = json!({ "username": "alice", "password": "wonderland" });
        if !auth.is_null() {
            body["auth"] = auth;
        }
        server.call(Method::POST, "/_matrix/client/v3/register", None, body).await
    };
    let (status, challenge) = register(Value::Null).await;
    assert_eq!(status, 401);
    assert_eq!(challenge["flows"], json!([{ "stages": ["m.login.registration_token"] }]));
    let auth = |token: &str| json!({ "type": "m.login.registration_token", "token": token, "session": challenge["session"] });
    for wrong in ["open", ""] {
        let refused = register(auth(wrong)).await;
        assert_eq!((error(&refused), &refused.1["session"]), ((401, "M_FORBIDDEN"), &challenge["session"]));
    }
    assert_eq!(register(auth("sesame")).await.0, 200);
    let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    for (token, valid) in [("sesame", true), ("open", false), ("", false)] {
        let (_, body) = server.call(Method::GET, &format!("{path}{token}"), None, Value::Null).await;
        assert_eq!(body["valid"], valid, "{token}");
    }
}

#[tokio::test]
async fn closed_registration_lets_nobody_in() {
    let server = Server::with(Registration::default()).await;
    let body = json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    let refused = server.call(Method::POST, "/_matrix/client/v3/register", None, body).await;
    assert_eq!(error(&refused), (403, "M_FORBIDDEN"));
    let guest = server.call(Method::POST, "/_matrix/client/v3/register?kind=guest", None, json!({})).await;
    assert_eq!(error(&guest), (403, "M_GUEST_ACCESS_FORBIDDEN"));
    let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=sesame";
    let token = server.call(Method::GET, path, None, Value::Null).await;
    assert_eq!(error(&token), (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn a_shared_secret_makes_accounts() {
    let secret = Some("secret".to_owned());
    let server = Server::with(Registration { shared_secret: secret, ..Registration::default() }).await;
    let path = "/_synapse/admin/v1/register";
    let nonce = async || {
        let (_, body) = server.call(Method::GET, path, None, Value::Null).await;
        body["nonce"].as_str().unwrap().to_owned()
    };
    let sign = |nonce: &str, name: &str| {
        use hmac::{KeyInit, Mac};
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(b"secret").unwrap();
        mac.update(format!("{nonce}\0{name}\0wonderland\0admin").as_bytes());
        let mac = mac.finalize().into_bytes();
        mac.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    };
    let body = |nonce: &str, name: &str, mac: String| json!({ "nonce": nonce, "username": name, "password": "wonderland", "admin": true, "mac": mac });
    let once = nonce().await;
    let forged = server.call(Method::POST, path, None, body(&once, "alice", sign(&once, "bob"))).await;
    assert_eq!(error(&forged), (403, "M_FORBIDDEN"));
    let again = server.call(Method::POST, path, None, body(&once, "alice", sign(&once, "alice"))).await;
    assert_eq!(error(&again), (400, "M_UNKNOWN"), "a nonce is good for one try");
    let late = nonce().await;
    server.clock.advance(60_000);
    let expired = server.call(Method::POST, path, None, body(&late, "alice", sign(&late, "alice"))).await;
    assert_eq!(error(&expired), (400, "M_UNKNOWN"));
    let once = nonce().await;
    let (status, answer) =
        server.call(Method::POST, path, None, body(&once, "alice", sign(&once, "alice"))).await;
    assert_eq!(status, 200, "{answer}");
    let alice = server.client(&answer);
    assert!(alice.is_logged_in().await);
    let session = server.app.homeserver().session(alice.user_id.as_str().try_into().unwrap()).await.unwrap();
    assert!(session.data().account().is_admin);
    assert_eq!(server.log_in("alice", json!({})).await.0, 200);
}

#[tokio::test]
async fn a_guest_may_do_little_until_upgraded() {
    let server = Server::with(Registration { enabled: true, guests: true, ..Registration::default() }).await;
    let (status, body) =
        server.call(Method::POST, "/_matrix/client/v3/register?kind=guest", None, json!({})).await;
    assert_eq!(status, 200, "{body}");
    let guest = server.client(&body);
    assert_eq!(guest.get("/account/whoami").await.1["is_guest"], true);
    let profile = format!("/profile/{}", guest.user_id);
    let name = json!({ "displayname": "Guest" });
    assert_eq!(guest.put(&format!("{profile}/displayname"), name).await.0, 200);
    let forbidden = (403, "M_GUEST_ACCESS_FORBIDDEN");
    let avatar = guest.put(&format!("{profile}/avatar_url"), json!({ "avatar_url": "mxc://a/b" })).await;
    assert_eq!(error(&avatar), forbidden);
    assert_eq!(error(&guest.post("/createRoom", json!({})).await), forbidden);
    assert_eq!(
        error(&guest.put(&format!("/user/{}/account_data/x", guest.user_id), json!({})).await),
        forbidden
    );

    let localpart = guest.user_id[1..].split(':').next().unwrap();
    let upgrade = async |name: &str, token: &str| {
        let body = json!({
            "username": name,
            "password": "wonderland",
            "guest_access_token": token,
            "auth": { "type": "m.login.dummy" },
        });
        server.call(Method::POST, "/_matrix/client/v3/register", None, body).await
    };
    assert_eq!(error(&upgrade("alice", &guest.token).await), (403, "M_FORBIDDEN"));
    let bob = server.register("bob").await;
    assert_eq!(error(&upgrade("bob", &bob.token).await), (403, "M_FORBIDDEN"));
    let (status, body) = upgrade(localpart, &guest.token).await;
    assert_eq!(status, 200, "{body}");
    let member = server.client(&body);
    assert_eq!(member.user_id, guest.user_id);
    assert_eq!(member.post("/createRoom", json!({})).await.0, 200);
    assert_eq!(member.get(&profile).await.1, json!({ "displayname": "Guest" }));
    assert!(!guest.is_logged_in().await);
    assert_eq!(server.log_in(localpart, json!({})).await.0, 200);
}

#[tokio::test]
async fn a_deactivated_account_and_an_empty_password_are_refused() {
    let server = Server::open().await;
    let alice = server.register("alice").await;
    let deactivated = alice.with_password(Method::POST, "/account/deactivate", json!({}), "wonderland").await;
    assert_eq!(deactivated.0, 200, "{}", deactivated.1);
    assert_eq!(error(&server.log_in("alice", json!({})).await), (403, "M_USER_DEACTIVATED"));
    let taken = json!({ "username": "alice", "password": "wonderland", "auth": { "type": "m.login.dummy" } });
    let again = server.call(Method::POST, "/_matrix/client/v3/register", None, taken).await;
    assert_eq!(error(&again), (400, "M_USER_IN_USE"), "its name is not given away");
    let empty = json!({ "username": "bob", "password": "", "auth": { "type": "m.login.dummy" } });
    let weak = server.call(Method::POST, "/_matrix/client/v3/register", None, empty).await;
    assert_eq!(error(&weak), (400, "M_WEAK_PASSWORD"));
}
