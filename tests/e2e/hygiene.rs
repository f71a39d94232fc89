//! Malformed requests, unknown paths, headers.

use reqwest::Method;
use serde_json::json;
use tests::{Client, Server, by_password};

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
    assert_eq!(errcode(Method::PUT, &send, "").await, is(400, "M_NOT_JSON"));
    assert_eq!(errcode(Method::PUT, &send, "[]").await, is(400, "M_BAD_JSON"));
    assert_eq!(errcode(Method::PUT, &send, &"[".repeat(5000)).await, is(400, "M_BAD_JSON"));
    assert_eq!(errcode(Method::POST, &send, "{}").await, is(405, "M_UNRECOGNIZED"));
    assert_eq!(errcode(Method::GET, "/_matrix/client/v3/nothing", "").await, is(404, "M_UNRECOGNIZED"));
    assert_eq!(errcode(Method::GET, "/elsewhere", "").await, is(404, "M_UNRECOGNIZED"));
    let large = format!(r#"{{"msgtype":"m.text","body":"{}"}}"#, "x".repeat(70_000));
    assert_eq!(errcode(Method::PUT, &send, &large).await, is(413, "M_TOO_LARGE"));
    let huge = format!(r#"{{"body":"{}"}}"#, "x".repeat(2_000_000));
    assert_eq!(errcode(Method::PUT, &send, &huge).await, is(413, "M_TOO_LARGE"));
    assert_eq!(errcode(Method::PUT, &send, r#"{"a":1.5}"#).await, is(400, "M_BAD_JSON"));
    // Although nothing of it is read.
    let create = "/_matrix/client/v3/createRoom";
    let response = alice.raw(Method::POST, create, b"{\"org.example\":\"\xff\"}".to_vec()).await;
    assert_eq!(response.status().as_u16(), 400);
    assert!(response.text().await.unwrap().contains("M_NOT_JSON"));
    let invite = Client::room(&room, "invite");
    assert_eq!(errcode(Method::POST, &invite, "{}").await.0, 400);
    alice.get("/_matrix/client/v3/sync?since=garbage").await.is(400, "M_INVALID_PARAM");
}

/// A value outside of what the specification lists is refused, not taken for one of those inside.
#[tokio::test]
async fn unknown_values_of_enumerations_are_refused() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let create = "/_matrix/client/v3/createRoom";
    alice.post(create, &json!({ "preset": "cosy_chat" })).await.is(400, "M_BAD_JSON");
    alice.post(create, &json!({ "visibility": "hazy" })).await.is(400, "M_BAD_JSON");
    let listed = format!("/_matrix/client/v3/directory/list/room/{}", tests::segment(&room));
    alice.put(&listed, &json!({ "visibility": "hazy" })).await.is(400, "M_BAD_JSON");
    alice.get("/_matrix/client/v3/sync?set_presence=dizzy").await.is(400, "M_INVALID_PARAM");
    alice.get("/_matrix/client/v3/sync?filter=%7B%22room").await.is(400, "M_INVALID_PARAM");
    let filter = json!({ "event_format": "verbose" });
    let path = format!("/_matrix/client/v3/user/{}/filter", tests::segment(&alice.user_id));
    alice.post(&path, &filter).await.is(400, "M_BAD_JSON");
    let path = format!("/_matrix/client/v3/sync?filter={}", tests::segment(&filter.to_string()));
    alice.get(&path).await.is(400, "M_INVALID_PARAM");
    alice.get(&Client::room(&room, "state/m.room.create?format=short")).await.is(400, "M_INVALID_PARAM");
    alice.post("/_matrix/client/v3/register?kind=robot", &json!({})).await.is(400, "M_INVALID_PARAM");
    let rule = "/_matrix/client/v3/pushrules/global/content/cake";
    let with = |action: &str| json!({ "pattern": "cake", "actions": [action] });
    alice.put(rule, &with("shout")).await.is(400, "M_INVALID_PARAM");
    alice.put(rule, &with("dont_notify")).await.ok();
    let actions = format!("{rule}/actions");
    alice.put(&actions, &json!({ "actions": [{ "shout": true }] })).await.is(400, "M_INVALID_PARAM");
    alice.put(&actions, &json!({ "actions": ["notify", { "set_tweak": "sound", "value": "a" }] })).await.ok();
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

#[tokio::test]
async fn a_client_finds_out_what_the_server_can_do() {
    let server = Server::start().await;
    let alice = server.client("alice").await;
    let told = server.anonymous().get("/_matrix/client/versions").await.ok();
    let versions = told["versions"].as_array().unwrap();
    for version in ["r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.11"] {
        assert!(versions.contains(&json!(version)), "{version}: {versions:?}");
    }
    // Clients look for these, whatever the versions are.
    for feature in [
        "org.matrix.e2e_cross_signing",
        "org.matrix.msc2285.stable",
        "org.matrix.msc3440.stable",
        "org.matrix.msc3771",
        "org.matrix.msc3827.stable",
        "org.matrix.msc3981",
        "uk.tcpip.msc4133.stable",
        "uk.half-shot.msc2666.query_mutual_rooms.stable",
    ] {
        assert_eq!(told["unstable_features"][feature], true, "{feature}");
    }
    // They would offer to sign in with a QR code, and find no authorization server.
    assert_eq!(told["unstable_features"]["org.matrix.msc4108"], serde_json::Value::Null);
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok()["capabilities"].clone();
    let rooms = &capabilities["m.room_versions"];
    assert_eq!(rooms["default"], "12");
    for version in 1..=12 {
        assert_eq!(rooms["available"][version.to_string()], "stable", "version {version}");
    }
    assert_eq!(capabilities["m.change_password"]["enabled"], true);
    let room = alice.create_room(json!({})).await;
    let create = alice.state(&room, "m.room.create", "").await.ok();
    assert_eq!(create["room_version"], rooms["default"]);
}

#[tokio::test]
async fn well_known_documents_say_what_was_configured() {
    let nothing = Server::start_with("").await;
    for name in ["client", "server", "support"] {
        assert_eq!(
            nothing.anonymous().get(&format!("/.well-known/matrix/{name}")).await.status,
            404,
            "{name}"
        );
    }
    let server = Server::start_with(
        "[well_known]\nclient_base_url = \"https://chat.example.org\"\nserver = \"chat.example.org:443\"\n\
         support_user = \"@alice:localhost\"\nsupport_page = \"https://example.org/help\"\n\
         [well_known.client_extra]\n\"m.identity_server\" = { base_url = \"https://id.example.org\" }",
    )
    .await;
    let nobody = server.anonymous();
    let client = nobody.get("/.well-known/matrix/client").await.ok();
    assert_eq!(client["m.homeserver"]["base_url"], "https://chat.example.org");
    assert_eq!(client["m.identity_server"]["base_url"], "https://id.example.org");
    let alice = server.client("alice").await;
    let login = by_password(&alice.user_id, &alice.password());
    let logged_in = nobody.post("/_matrix/client/v3/login", &login).await.ok();
    assert_eq!(logged_in["well_known"], client);
    let delegated = nobody.get("/.well-known/matrix/server").await.ok();
    assert_eq!(delegated, json!({ "m.server": "chat.example.org:443" }));
    let support = nobody.get("/.well-known/matrix/support").await.ok();
    assert_eq!(support["contacts"][0]["matrix_id"], "@alice:localhost");
    assert_eq!(support["support_page"], "https://example.org/help");
}

/// Spec: MSC4143.
#[tokio::test]
async fn clients_find_what_carries_group_calls() {
    const PATH: &str = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
    let feature = async |client: &Client| {
        let told = client.get("/_matrix/client/versions").await.ok();
        told["unstable_features"]["org.matrix.msc4143"].clone()
    };
    let nothing = Server::start_with("").await;
    let alice = nothing.client("alice").await;
    assert_eq!(alice.get(PATH).await.ok(), json!({ "rtc_transports": [] }));
    assert_eq!(feature(&alice).await, serde_json::Value::Null);
    let server = Server::start_with(
        "[well_known]\nclient_base_url = \"https://chat.example.org\"\n\
         client_extra = { \"io.element.e2ee\" = { default = false } }\n[matrix_rtc]\n\
         transports = [{ type = \"livekit\", livekit_service_url = \"https://rtc.example.org\" }]",
    )
    .await;
    let bob = server.client("bob").await;
    server.anonymous().get(PATH).await.is(401, "M_MISSING_TOKEN");
    let transports = json!([{ "type": "livekit", "livekit_service_url": "https://rtc.example.org" }]);
    assert_eq!(bob.get(PATH).await.ok()["rtc_transports"], transports);
    assert_eq!(feature(&bob).await, true);
    let expected = json!({
        "m.homeserver": { "base_url": "https://chat.example.org" },
        "org.matrix.msc4143.rtc_foci": transports,
        "io.element.e2ee": { "default": false },
    });
    assert_eq!(server.anonymous().get("/.well-known/matrix/client").await.ok(), expected);
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let settings = [("rate_limits.enabled", "true"), ("rate_limits.message", "1")];
    let server = Server::start_with_settings(&settings).await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let content = json!({ "msgtype": "m.text", "body": "spam" });
    for number in 0..100 {
        let path = Client::room(&room, &format!("send/m.room.message/{number}"));
        let body = content.to_string().into_bytes();
        let response = alice.raw(Method::PUT, &path, body).await;
        if response.status().as_u16() == 200 {
            continue;
        }
        assert_eq!(response.status().as_u16(), 429);
        let seconds = response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
        let body: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
        let wait_ms = body["retry_after_ms"].as_u64().unwrap();
        assert!(seconds * 1000 >= wait_ms && wait_ms > 0, "{seconds} s, {wait_ms} ms");
        let whoami = alice.get("/_matrix/client/v3/account/whoami").await;
        whoami.ok();
        return;
    }
    panic!("a hundred messages at once are too many");
}

/// A request that is under way when the server is told to end gets its answer.
#[tokio::test]
async fn the_server_ends_in_order() {
    let mut server = Server::start_with("").await;
    let alice = server.client("alice").await;
    let room = alice.create_room(json!({})).await;
    let since = alice.token_of_sync().await;
    let waiting = {
        let alice = alice.clone();
        let path = format!("/_matrix/client/v3/sync?since={since}&timeout=30000");
        tokio::spawn(async move { alice.attempt(Method::GET, &path, None).await })
    };
    // Once this has its answer, the waiting one is with the server too, or will be refused a connection.
    let said = alice.say(&room, "1", "the last word").await;
    server.stop().await;
    if let Ok(answer) = waiting.await.unwrap() {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    server.restart().await;
    let messages = alice.all_messages(&room).await;
    assert_eq!(messages.last().unwrap()["event_id"], said);
}

/// The address at which a device was last seen, after a request with this `X-Forwarded-For`.
async fn seen_at(alice: &Client, forwarded: &str) -> String {
    let devices = format!("{}/_matrix/client/v3/devices", alice.base());
    let token = alice.token.clone().unwrap();
    // The first use of an access token is noted; later ones only now and then.
    let mut login = by_password(&alice.user_id, &alice.password());
    login["device_id"] = "SEEN".into();
    let http = reqwest::Client::new();
    let url = format!("{}/_matrix/client/v3/login", alice.base());
    let answer = http.post(url).header("X-Forwarded-For", forwarded).json(&login).send().await.unwrap();
    let new: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let new = new["access_token"].as_str().unwrap();
    http.get(&devices).bearer_auth(new).header("X-Forwarded-For", forwarded).send().await.unwrap();
    for _ in 0..100 {
        let listed = http.get(&devices).bearer_auth(&token).send().await.unwrap().text().await.unwrap();
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let device =
            listed["devices"].as_array().unwrap().iter().find(|device| device["device_id"] == "SEEN");
        if let Some(ip) = device.and_then(|device| device["last_seen_ip"].as_str()) {
            return ip.to_owned();
        }
    }
    panic!("the device was not seen");
}

#[tokio::test]
async fn only_a_trusted_proxy_tells_where_clients_are() {
    let direct = Server::start_with("").await;
    let alice = direct.client("alice").await;
    assert_eq!(seen_at(&alice, "203.0.113.7").await, "127.0.0.1", "anybody may write a header");
    let proxied = Server::start_with("[access]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.1\"]").await;
    for (number, (forwarded, expected)) in [
        ("203.0.113.7", "203.0.113.7"),
        // What a client wrote itself comes first, and is not believed.
        ("198.51.100.1, 203.0.113.8", "203.0.113.8"),
        ("203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("nonsense", "127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let alice = proxied.client(&format!("alice{number}")).await;
        assert_eq!(seen_at(&alice, forwarded).await, expected, "{forwarded}");
    }
}

/// Behind a trusted proxy, one client that tries too often does not lock out the others.
#[tokio::test]
async fn limits_count_by_the_forwarded_address() {
    let settings = [
        ("rate_limits.enabled", "true"),
        ("rate_limits.login", "1"),
        ("access.trusted_proxies", "['127.0.0.1']"),
    ];
    let server = Server::start_with_settings(&settings).await;
    let alice = server.client("alice").await;
    let http = reqwest::Client::new();
    let attempt = async |forwarded: &str, user: &str| {
        let body = by_password(user, "wrong");
        let url = format!("{}/_matrix/client/v3/login", alice.base());
        http.post(url)
            .header("X-Forwarded-For", forwarded)
            .json(&body)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let mut last = 0;
    for _ in 0..50 {
        last = attempt("203.0.113.7", "alice").await;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    assert_eq!(attempt("203.0.113.8", "bob").await, 403);
    // Nobody guesses one account's password from many addresses.
    let mut last = 0;
    for number in 0..50 {
        last = attempt(&format!("198.51.100.{number}"), "alice").await;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
}

/// Who holds an access token may not guess the password with it, and strangers may not try out names and tokens.
#[tokio::test]
async fn guessing_is_limited() {
    let settings =
        [("rate_limits.enabled", "true"), ("rate_limits.login", "1"), ("rate_limits.registration", "1")];
    let server = Server::start_with_settings(&settings).await;
    let alice = server.client("alice").await;
    let devices = "/_matrix/client/v3/devices/OTHER";
    let guess = json!({ "auth": by_password(&alice.user_id, "guess") });
    let mut last = alice.delete(devices, &guess).await;
    last.is(401, "M_FORBIDDEN");
    for _ in 0..100 {
        if last.status == 429 {
            break;
        }
        last = alice.delete(devices, &guess).await;
    }
    last.is(429, "M_LIMIT_EXCEEDED");
    assert!(last.body["retry_after_ms"].as_u64().unwrap() > 0);
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
    let nobody = server.anonymous();
    let mut last = nobody.get("/_matrix/client/v3/register/available?username=bob").await;
    for _ in 0..100 {
        if last.status == 429 {
            break;
        }
        last = nobody.get("/_matrix/client/v3/register/available?username=bob").await;
    }
    last.is(429, "M_LIMIT_EXCEEDED");
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=guess";
    nobody.get(validity).await.is(429, "M_LIMIT_EXCEEDED");
}
