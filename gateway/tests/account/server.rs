//! A server without a network: requests go straight into its router.

use std::sync::Arc;

use actors::{
    directory::ClassConfig,
    env::{Env, ManualClock, SeededEntropy},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
};
use axum::{Router, body::Body};
use engine::{pdu::SigningKey, room_version};
use gateway::{
    app::{App, Registration, Settings},
    password::{PasswordCost, Passwords},
    router,
};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use storage::{Durability, MemoryStore, Storage};
use tower::ServiceExt;

pub(crate) struct Server {
    pub(crate) app: App,
    pub(crate) clock: Arc<ManualClock>,
    router: Router,
}

/// A logged-in device.
pub(crate) struct Client<'a> {
    server: &'a Server,
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) token: String,
}

pub(crate) type Answer = (StatusCode, Value);

impl Server {
    /// A server with open registration.
    pub(crate) async fn open() -> Self {
        Self::with(Registration { enabled: true, ..Registration::default() }).await
    }

    pub(crate) async fn with(registration: Registration) -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let env = Env { clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(1)) };
        let storage = Storage::open(Arc::new(MemoryStore::new()), Durability::Always).await.unwrap();
        let config = HomeserverConfig {
            server_name: "a.example".try_into().unwrap(),
            signing_key: SigningKey::new(&[7; 32], "1").unwrap().into(),
            old_keys: Vec::new(),
            federation: None,
            default_room_version: room_version::DEFAULT,
            room_memory: 16 << 20,
            rooms: ClassConfig::default(),
            sessions: ClassConfig::default(),
            media: MediaConfig::default(),
            conversation: ConversationConfig::default(),
            push: std::sync::Arc::new(actors::push::NoPushGateways),
            search: None,
            services: actors::appservice::Services::default(),
        };
        let cost = PasswordCost { memory_kib: 64, iterations: 1, lanes: 1 };
        let passwords = Passwords::new(cost, env.entropy.clone()).unwrap();
        let homeserver = Homeserver::start(config, env, storage).await;
        let app = App::new(homeserver, passwords, Settings { registration, ..Settings::default() });
        Self { router: router::router(app.clone()), app, clock }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, token: Option<&str>, body: Value) -> Answer {
        let mut request = Request::builder().method(&method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = if method == Method::GET { Body::empty() } else { Body::from(body.to_string()) };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// A web page, or a form that is sent from one.
    pub(crate) async fn page(&self, path: &str, form: Option<&str>) -> (StatusCode, String) {
        let method = if form.is_some() { Method::POST } else { Method::GET };
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = request.body(Body::from(form.unwrap_or_default().to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// A user of this name, registered and logged in, with the password `wonderland`.
    pub(crate) async fn register(&self, name: &str) -> Client<'_> {
        let body = json!({ "username": name, "password": "wonderland", "auth": { "type": "m.login.dummy" } });
        let (status, body) = self.call(Method::POST, "/_matrix/client/v3/register", None, body).await;
        assert_eq!(status, 200, "{body}");
        self.client(&body)
    }

    /// The device of a login's or registration's answer.
    pub(crate) fn client(&self, body: &Value) -> Client<'_> {
        let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        Client {
            server: self,
            user_id: field("user_id"),
            device_id: field("device_id"),
            token: field("access_token"),
        }
    }

    pub(crate) async fn log_in(&self, name: &str, more: Value) -> Answer {
        let mut body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": "wonderland",
        });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        self.call(Method::POST, "/_matrix/client/v3/login", None, body).await
    }
}

impl Client<'_> {
    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let path = format!("/_matrix/client/v3{path}");
        self.server.call(method, &path, Some(&self.token), body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str, body: Value) -> Answer {
        self.call(Method::DELETE, path, body).await
    }

    /// Asks with the password, after the server has asked for it.
    pub(crate) async fn with_password(
        &self,
        method: Method,
        path: &str,
        mut body: Value,
        password: &str,
    ) -> Answer {
        let (status, challenge) = self.call(method.clone(), path, body.clone()).await;
        assert_eq!(status, 401, "{challenge}");
        assert_eq!(challenge["flows"], json!([{ "stages": ["m.login.password"] }]));
        assert!(challenge.get("errcode").is_none());
        body["auth"] = json!({
            "type": "m.login.password",
            "session": challenge["session"],
            "identifier": { "type": "m.id.user", "user": self.user_id },
            "password": password,
        });
        self.call(method, path, body).await
    }

    pub(crate) async fn room(&self) -> String {
        let (status, body) = self.post("/createRoom", json!({ "preset": "public_chat" })).await;
        assert_eq!(status, 200, "{body}");
        body["room_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn is_logged_in(&self) -> bool {
        let (status, body) = self.get("/account/whoami").await;
        assert!(status == 200 || body["errcode"] == "M_UNKNOWN_TOKEN", "{body}");
        status == 200
    }
}

/// Status and errcode of an error.
pub(crate) fn error(answer: &Answer) -> (u16, &str) {
    (answer.0.as_u16(), answer.1["errcode"].as_str().unwrap_or_default())
}
