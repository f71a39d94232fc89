//! Ways to log in besides a password, and what helps clients to get there.

use reqwest::{Method, header};
use serde_json::{Value, json};
use tests::{Client, Server, segment};

async fn token(client: &Client) -> String {
    let path = "/_matrix/client/v1/login/get_token";
    let answer = client.with_password(Method::POST, path, json!({})).await.ok();
    assert_eq!(answer["expires_in_ms"], 120_000);
    answer["login_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_login_token_lets_one_client_in_once() {
    let mut server = Server::start().await;
    let alice = server.client("alice").await;
    let flows = alice.get("/_matrix/client/v3/login").await.ok();
    let offered = flows["flows"].as_array().unwrap();
    assert!(offered.contains(&json!({ "type": "m.login.token", "get_login_token": true })), "{flows}");
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok();
    assert_eq!(capabilities["capabilities"]["m.get_login_token"], json!({ "enabled": true }));
    let asked = alice.post("/_matrix/client/v1/login/get_token", &json!({})).await;
    assert_eq!(asked.status, 401);
    assert!(asked.body["flows"].is_array(), "{asked:?}");
    let first = token(&alice).await;
    let second = token(&alice).await;
    let log_in = |token: &str| json!({ "type": "m.login.token", "token": token, "device_id": "TABLET" });
    let mut tablet = server.anonymous();
    let answer = tablet.post("/_matrix/client/v3/login", &log_in(&first)).await.ok();
    tablet.log_in_as(&answer);
    assert_eq!((&tablet.user_id, tablet.device_id.as_str()), (&alice.user_id, "TABLET"));
    tablet.get("/_matrix/client/v3/account/whoami").await.ok();
    let anonymous = server.anonymous();
    for used in [first.as_str(), "nonsense", "glt_99999999999999_x"] {
        anonymous.post("/_matrix/client/v3/login", &log_in(used)).await.is(403, "M_FORBIDDEN");
    }
    server.kill();
    server.restart().await;
    anonymous.post("/_matrix/client/v3/login", &log_in(&second)).await.ok();
    anonymous.post("/_matrix/client/v3/login", &log_in(&second)).await.is(403, "M_FORBIDDEN");
    let bridge = json!({
        "type": "m.login.application_service",
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    anonymous.post("/_matrix/client/v3/login", &bridge).await.is(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn the_login_page_comes_with_its_script_and_a_strict_policy() {
    let server = Server::start().await;
    let client = server.anonymous();
    for (file, kind, part) in [
        ("?device_id=X", "text/html; charset=utf-8", "login.js"),
        ("login.js", "text/javascript; charset=utf-8", "matrixLogin.onLogin"),
        ("style.css", "text/css; charset=utf-8", "body"),
    ] {
        let path = format!("/_matrix/static/client/login/{file}");
        let response = client.raw(Method::GET, &path, Vec::new()).await;
        assert_eq!(response.status(), 200, "{file}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(response.text().await.unwrap().contains(part), "{file}");
    }
}

#[tokio::test]
async fn there_are_no_third_party_networks() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let get = async |path: &str| alice.get(&format!("/_matrix/client/v3/thirdparty/{path}")).await;
    assert_eq!(get("protocols").await.ok(), json!({}));
    for path in
        ["protocol/irc", "location/irc?channel=x", "user/irc", "location?alias=%23a:b", "user?userid=x"]
    {
        get(path).await.is(404, "M_NOT_FOUND");
    }
    get("location").await.is(400, "M_MISSING_PARAM");
    get("user").await.is(400, "M_MISSING_PARAM");
    server.anonymous().get("/_matrix/client/v3/thirdparty/protocols").await.is(401, "M_MISSING_TOKEN");
    let room = alice.create_room(json!({})).await;
    let list = format!("/_matrix/client/v3/directory/list/appservice/irc/{}", segment(&room));
    alice.put(&list, &json!({ "visibility": "public" })).await.is(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn callers_get_credentials_for_the_turn_server() {
    let turn =
        "[turn]\nuris = [\"turn:turn.example.org?transport=udp\"]\nsecret = \"north\"\nttl = \"1 h\"\n";
    let server = Server::start_with(&format!("{turn}guests = false")).await;
    let alice = server.client("alice").await;
    let path = "/_matrix/client/v3/voip/turnServer";
    let answer = alice.get(path).await.ok();
    assert_eq!(answer["uris"], json!(["turn:turn.example.org?transport=udp"]));
    assert_eq!(answer["ttl"], 3600);
    let username = answer["username"].as_str().unwrap();
    assert!(username.ends_with(&format!(":{}", alice.user_id)), "{username}");
    assert_eq!(answer["password"].as_str().unwrap().len(), 28);
    server.anonymous().get(path).await.is(401, "M_MISSING_TOKEN");
    let without = Server::start().await;
    without.client("alice").await.get(path).await.is(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn guests_get_turn_credentials_only_where_they_may() {
    for (guests, status) in [("false", 403), ("true", 200)] {
        let server = Server::start_with_settings(&[
            ("registration.guests", "true"),
            ("turn.uris", "[\"turn:turn.example.org\"]"),
            ("turn.secret", "north"),
            ("turn.guests", guests),
        ])
        .await;
        let mut guest = server.anonymous();
        let answer = guest.post("/_matrix/client/v3/register?kind=guest", &json!({})).await.ok();
        guest.log_in_as(&answer);
        assert_eq!(guest.get("/_matrix/client/v3/voip/turnServer").await.status, status);
    }
}

const RENDEZVOUS: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";

async fn request(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (reqwest::StatusCode, header::HeaderMap, String) {
    let mut request = reqwest::Client::new().request(method, url).body(body.to_owned());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.headers().clone(), response.text().await.unwrap())
}

#[tokio::test]
async fn two_devices_meet_at_a_rendezvous() {
    let server = Server::start().await;
    let create = format!("{}{RENDEZVOUS}", server.url());
    let text = ("Content-Type", "text/plain");
    let (status, headers, body) = request(Method::POST, &create, &[text], "hello").await;
    assert_eq!(status, 201, "{body}");
    for name in ["etag", "expires", "last-modified"] {
        assert!(headers.contains_key(name), "{name}: {headers:?}");
    }
    assert_eq!(headers["access-control-expose-headers"], "ETag");
    let url = serde_json::from_str::<Value>(&body).unwrap()["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with(&create), "{url}");
    let (status, headers, body) = request(Method::GET, &url, &[], "").await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "hello"));
    assert_eq!(headers["content-type"], "text/plain");
    let etag = headers["etag"].to_str().unwrap().to_owned();
    let (status, ..) = request(Method::GET, &url, &[("If-None-Match", &etag)], "").await;
    assert_eq!(status, 304);
    let (status, _, body) = request(Method::PUT, &url, &[text], "no condition").await;
    assert_eq!((status.as_u16(), body.contains("M_MISSING_PARAM")), (400, true));
    let (status, headers, _) = request(Method::PUT, &url, &[text, ("If-Match", &etag)], "answer").await;
    assert_eq!(status, 202);
    assert_ne!(headers["etag"], etag.as_str());
    let (status, _, body) = request(Method::PUT, &url, &[text, ("If-Match", &etag)], "late").await;
    assert_eq!((status.as_u16(), body.contains("M_CONCURRENT_WRITE")), (412, true));
    let (_, _, body) = request(Method::GET, &url, &[("If-None-Match", &etag)], "").await;
    assert_eq!(body, "answer");
    let (status, headers, _) = request(Method::OPTIONS, &url, &[], "").await;
    assert!(status.is_success());
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("If-Match") && allowed.contains("If-None-Match"), "{allowed}");
    let (status, ..) = request(Method::DELETE, &url, &[], "").await;
    assert_eq!(status, 204);
    for method in [Method::GET, Method::DELETE] {
        let (status, _, body) = request(method, &url, &[], "").await;
        assert_eq!((status.as_u16(), body.contains("M_NOT_FOUND")), (404, true));
    }
    let (status, _, body) = request(Method::POST, &create, &[("Content-Type", "text/html")], "x").await;
    assert_eq!((status.as_u16(), body.contains("M_INVALID_PARAM")), (400, true));
    let (status, _, body) = request(Method::POST, &create, &[text], &"x".repeat(4097)).await;
    assert_eq!((status.as_u16(), body.contains("M_TOO_LARGE")), (413, true));
}
