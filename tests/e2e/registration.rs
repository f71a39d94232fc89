//! Ways to an account, and out of it.

use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use sha1::Sha1;
use tests::{Client, Server, by_password};

const REGISTER: &str = "/_matrix/client/v3/register";

/// Registers through the stage of a registration token.
async fn with_token(client: &Client, name: &str, token: &str) -> tests::Answer {
    let mut body = json!({ "username": name, "password": "secret enough" });
    let challenge = client.post(REGISTER, &body).await;
    assert_eq!(challenge.status, 401, "{challenge:?}");
    assert_eq!(challenge.body["flows"], json!([{ "stages": ["m.login.registration_token"] }]));
    let session = &challenge.body["session"];
    body["auth"] = json!({ "type": "m.login.registration_token", "token": token, "session": session });
    client.post(REGISTER, &body).await
}

#[tokio::test]
async fn a_registration_token_lets_in_who_has_it() {
    let settings = [("registration.enabled", "false"), ("registration.tokens", r#"["let-me-in"]"#)];
    let server = Server::start_with_settings(&settings).await;
    let nobody = server.anonymous();
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    assert_eq!(nobody.get(&format!("{validity}let-me-in")).await.ok(), json!({ "valid": true }));
    assert_eq!(nobody.get(&format!("{validity}open-sesame")).await.ok(), json!({ "valid": false }));
    let account = with_token(&nobody, "alice", "let-me-in").await.ok();
    assert_eq!(account["user_id"], "@alice:localhost");
    let wrong = with_token(&nobody, "bob", "open-sesame").await;
    assert_eq!(wrong.status, 401, "{wrong:?}");
    let dummy = json!({ "username": "bob", "password": "secret", "auth": { "type": "m.login.dummy" } });
    assert_eq!(nobody.post(REGISTER, &dummy).await.status, 401);
}

#[tokio::test]
async fn an_account_may_be_made_without_logging_in() {
    let server = Server::start().await;
    let nobody = server.anonymous();
    let name = server.unique("alice");
    let body = json!({
        "username": name,
        "password": "secret enough",
        "inhibit_login": true,
        "auth": { "type": "m.login.dummy" },
    });
    let account = nobody.post(REGISTER, &body).await.ok();
    assert!(account.get("access_token").is_none() && account.get("device_id").is_none(), "{account}");
    let login = by_password(&name, "secret enough");
    assert_eq!(nobody.post("/_matrix/client/v3/login", &login).await.ok()["user_id"], account["user_id"]);
    // The former way to name the user.
    let login = json!({ "type": "m.login.password", "user": name, "password": "secret enough" });
    nobody.post("/_matrix/client/v3/login", &login).await.ok();
    let no_name = json!({ "password": "secret enough", "auth": { "type": "m.login.dummy" } });
    let generated = nobody.post(REGISTER, &no_name).await.ok();
    assert!(generated["user_id"].as_str().unwrap().starts_with('@'));
    for broken in [json!({ "type": "m.login.password" }), json!({ "type": "org.example.magic" }), json!({})] {
        let answer = nobody.post("/_matrix/client/v3/login", &broken).await;
        assert_eq!(answer.status, 400, "{broken}: {answer:?}");
    }
}

#[tokio::test]
async fn names_are_checked() {
    let server = Server::start().await;
    let nobody = server.anonymous();
    for name in ["Alice", "a b", "ålice", "a:b", "@a:b", "@alice", "", &"x".repeat(256)] {
        let body = json!({ "username": name, "password": "p", "auth": { "type": "m.login.dummy" } });
        let answer = nobody.post(REGISTER, &body).await;
        // Uppercase letters may be refused or mapped to lowercase.
        if name == "Alice" && answer.status == 200 {
            assert!(answer.body["user_id"].as_str().unwrap().starts_with("@alice"), "{answer:?}");
        } else {
            answer.is(400, "M_INVALID_USERNAME");
        }
    }
    let available = format!("{REGISTER}/available?username=");
    nobody.get(&format!("{available}a%20b")).await.is(400, "M_INVALID_USERNAME");
    nobody.get(&format!("{available}%40alice:example.org")).await.is(400, "M_INVALID_USERNAME");
}

/// The endpoint that existing tools of administrators use.
#[tokio::test]
async fn a_shared_secret_registers_users() {
    let server = Server::start_with_settings(&[
        ("registration.enabled", "false"),
        ("registration.shared_secret", r#""tell nobody""#),
    ])
    .await;
    let nobody = server.anonymous();
    let path = "/_synapse/admin/v1/register";
    let request = async |name: &str, secret: &str| {
        let nonce = nobody.get(path).await.ok()["nonce"].as_str().unwrap().to_owned();
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{nonce}\0{name}\0secret enough\0notadmin").as_bytes());
        let mac = mac.finalize().into_bytes();
        let mac = mac.iter().fold(String::new(), |text, byte| [text, format!("{byte:02x}")].concat());
        json!({ "nonce": nonce, "username": name, "password": "secret enough", "admin": false, "mac": mac })
    };
    let body = request("alice", "tell nobody").await;
    let account = nobody.post(path, &body).await.ok();
    assert_eq!(account["user_id"], "@alice:localhost");
    assert!(account["access_token"].is_string());
    assert_eq!(nobody.post(path, &body).await.status, 400, "a nonce is good for one try");
    let guessed = request("bob", "everybody knows").await;
    nobody.post(path, &guessed).await.is(403, "M_FORBIDDEN");
    let taken = request("alice", "tell nobody").await;
    nobody.post(path, &taken).await.is(400, "M_USER_IN_USE");
}

#[tokio::test]
async fn a_deactivated_account_is_gone_for_good() {
    let server = Server::start().await;
    let [alice, bob] = server.clients(["alice", "bob"]).await;
    let room = bob.create_room(json!({ "preset": "public_chat" })).await;
    alice.join(&room).await.ok();
    let path = "/_matrix/client/v3/account/deactivate";
    let challenge = alice.post(path, &json!({})).await;
    assert_eq!(challenge.status, 401);
    assert!(challenge.body["flows"].is_array());
    let done = alice.with_password(Method::POST, path, json!({ "erase": true })).await.ok();
    assert_eq!(done["id_server_unbind_result"], "success", "there are no identifiers to unbind");
    alice.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    let login = by_password(&alice.user_id, &alice.password());
    bob.post("/_matrix/client/v3/login", &login).await.is(403, "M_USER_DEACTIVATED");
    let profile = |user: &Client| format!("/_matrix/client/v3/profile/{}", tests::segment(&user.user_id));
    bob.get(&profile(&alice)).await.is(404, "M_NOT_FOUND");
    assert_eq!(bob.get(&profile(&bob)).await.ok(), json!({}), "who is there may have an empty profile");
    let name = json!({ "username": alice.localpart(), "password": "p", "auth": { "type": "m.login.dummy" } });
    bob.post(REGISTER, &name).await.is(400, "M_USER_IN_USE");
    let is_gone = |sync: &Value| {
        let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array();
        let mut events = events.into_iter().flatten();
        events.any(|event| {
            event["state_key"] == alice.user_id.as_str() && event["content"]["membership"] == "leave"
        })
    };
    let sync = bob.sync("timeout=0").await;
    if !is_gone(&sync) {
        bob.sync_until(sync["next_batch"].as_str().unwrap(), is_gone).await;
    }
}

#[tokio::test]
async fn a_new_password_logs_out_the_other_devices_if_asked() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let phone = alice.another_device(&alice.password()).await;
    let path = "/_matrix/client/v3/account/password";
    let keep = json!({ "new_password": alice.password(), "logout_devices": false });
    alice.with_password(Method::POST, path, keep).await.ok();
    phone.get("/_matrix/client/v3/account/whoami").await.ok();
    let end = json!({ "new_password": "another secret", "logout_devices": true });
    alice.with_password(Method::POST, path, end).await.ok();
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    phone.get("/_matrix/client/v3/account/whoami").await.is(401, "M_UNKNOWN_TOKEN");
    alice.another_device("another secret").await;
}

#[tokio::test]
async fn the_command_line_manages_accounts_of_a_running_and_a_stopped_server() {
    let mut server = Server::start_with("").await;
    let nobody = server.anonymous();
    let login = async |name: &str, password: &str| {
        nobody.post("/_matrix/client/v3/login", &by_password(name, password)).await
    };
    for (is_running, name) in [(true, "alice"), (false, "bob")] {
        if !is_running {
            server.stop().await;
        }
        let output = server.command(&["user", "create", name], "first password").await;
        assert!(output.status.success(), "{output:?}");
        let output = server.command(&["user", "create", name], "first password").await;
        assert!(!output.status.success(), "the name is taken: {output:?}");
        let output = server.command(&["user", "set-password", name], "second password").await;
        assert!(output.status.success(), "{output:?}");
        let output = server.command(&["user", "set-password", "nobody"], "password").await;
        assert!(!output.status.success(), "there is no such user: {output:?}");
        let output = server.command(&["user", "list"], "").await;
        let list = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && list.contains(&format!("@{name}:localhost")), "{list}");
        if !is_running {
            server.restart().await;
        }
        login(name, "first password").await.is(403, "M_FORBIDDEN");
        login(name, "second password").await.ok();
    }
    let output = server.command(&["user", "deactivate", "bob"], "").await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(login("bob", "second password").await.status, 403);
}
