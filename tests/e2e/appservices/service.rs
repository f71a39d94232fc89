//! A small application service on loopback: it takes transactions or fails, answers what it is told to, and tells the
//! test what it was sent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Call, Callee, Client, Server};
use tokio::sync::{Mutex, mpsc};

/// How long a request may take to come, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the service answers.
#[derive(Default)]
struct Behavior {
    fails: bool,
    answers: BTreeMap<String, (u16, Value)>,
    makes: BTreeMap<String, (Client, String, Value)>,
}

/// A request that came in.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// Method and path.
    pub(super) line: String,
    pub(super) body: Value,
    /// Whether it was taken.
    pub(super) is_taken: bool,
}

impl Received {
    /// The ID of a transaction.
    pub(super) fn txn_id(&self) -> &str {
        self.line.strip_prefix("PUT /_matrix/app/v1/transactions/").unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// The service; it ends when it is dropped.
pub(super) struct Service {
    pub(super) url: String,
    files: TempDir,
    behavior: Arc<Mutex<Behavior>>,
    received: mpsc::UnboundedReceiver<Received>,
    _callee: Callee,
}

/// The registration of the service of these tests.
pub(super) fn registration(url: &str) -> Value {
    json!({
        "id": "irc",
        "url": url,
        "as_token": "token of the service",
        "hs_token": "token of the server",
        "sender_localpart": "irc_bot",
        "rate_limited": false,
        "receive_ephemeral": true,
        "protocols": ["irc"],
        "namespaces": {
            "users": [{ "exclusive": true, "regex": "@_irc_.*" }],
            "aliases": [{ "exclusive": true, "regex": "#_irc_.*" }],
            "rooms": [],
        },
    })
}

impl Service {
    pub(super) async fn start() -> Self {
        let behavior = Arc::<Mutex<Behavior>>::default();
        let (sender, received) = mpsc::unbounded_channel();
        let shared = behavior.clone();
        let callee = Callee::start(move |call| answer(call, shared.clone(), sender.clone())).await;
        Self { url: callee.url(), files: tempfile::tempdir().unwrap(), behavior, received, _callee: callee }
    }

    /// Writes a registration; the value of the setting that names it.
    pub(super) fn register(&self, registration: &Value) -> String {
        let name = registration["id"].as_str().unwrap_or("nameless");
        let path = self.files.path().join(format!("{name}.yaml"));
        // JSON is YAML.
        std::fs::write(&path, registration.to_string()).unwrap();
        format!("['{}']", path.display())
    }

    /// A server with this service, and the service's client of it.
    pub(super) async fn server(&self) -> (Server, Client) {
        let registrations = self.register(&registration(&self.url));
        let server = Server::start_with_settings(&[("appservices.registrations", &registrations)]).await;
        let mut client = server.anonymous();
        client.token = Some("token of the service".to_owned());
        (server, client)
    }

    /// Fails from now on, or takes what it is sent again.
    pub(super) async fn fail(&self, fails: bool) {
        self.behavior.lock().await.fails = fails;
    }

    /// Answers this to this method and path.
    pub(super) async fn answer(&self, line: &str, status: u16, body: Value) {
        self.behavior.lock().await.answers.insert(line.to_owned(), (status, body));
    }

    /// Makes what it is asked for with a request to the server, and then answers that it is there.
    pub(super) async fn make(&self, line: &str, client: &Client, path: &str, body: Value) {
        self.behavior.lock().await.makes.insert(line.to_owned(), (client.clone(), path.to_owned(), body));
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Received {
        let next = tokio::time::timeout(WAIT_MAX, self.received.recv()).await;
        next.expect("a request comes in time").expect("the service runs")
    }

    /// The next events of a type that it took, with what came before left out.
    pub(super) async fn events(&mut self, kind: &str, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            let next = self.next().await;
            if next.is_taken && next.line.contains("/transactions/") {
                let new = next.body["events"].as_array().unwrap().iter();
                events.extend(new.filter(|event| event["type"] == kind).cloned());
            }
        }
        events
    }

    /// The next ephemeral event of a type.
    pub(super) async fn ephemeral(&mut self, kind: &str) -> Value {
        loop {
            let next = self.next().await;
            let mut events = next.body["ephemeral"].as_array().into_iter().flatten();
            if let Some(event) = events.rfind(|event| event["type"] == kind) {
                return event.clone();
            }
        }
    }

    /// The next message to a device, in a transaction that was taken.
    pub(super) async fn message(&mut self) -> Value {
        loop {
            let next = self.next().await;
            if let Some(message) = next.body["to_device"].get(0).filter(|_| next.is_taken) {
                return message.clone();
            }
        }
    }

    /// What has come in and not been looked at.
    pub(super) fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn answer(
    call: Call,
    behavior: Arc<Mutex<Behavior>>,
    sender: mpsc::UnboundedSender<Received>,
) -> (u16, Value) {
    let authorization = call.headers.get("authorization").and_then(|value| value.to_str().ok());
    assert_eq!(authorization, Some("Bearer token of the server"), "{} {}", call.method, call.path);
    let line = format!("{} {}", call.method, call.path);
    let (status, answer) = decide(&line, &behavior).await;
    let _ = sender.send(Received { line, body: call.body, is_taken: status == 200 }); // a test that has ended does not listen
    (status, answer)
}

async fn decide(line: &str, behavior: &Mutex<Behavior>) -> (u16, Value) {
    let made = {
        let behavior = behavior.lock().await;
        if behavior.fails {
            return (503, json!({}));
        }
        if let Some(answer) = behavior.answers.get(line) {
            return answer.clone();
        }
        behavior.makes.get(line).cloned()
    };
    if let Some((client, path, body)) = made {
        let method = if path.contains("/directory/") { "PUT" } else { "POST" };
        let answer = client.attempt(method.parse().unwrap(), &path, Some(&body)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        return (200, json!({}));
    }
    if line.starts_with("PUT /_matrix/app/v1/transactions/") || line == "POST /_matrix/app/v1/ping" {
        return (200, json!({}));
    }
    (404, json!({ "errcode": "M_NOT_FOUND" }))
}
