//! A small push gateway on loopback: it takes, rejects or fails, and tells the test what it was sent.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tests::{Call, Callee};
use tokio::sync::{Mutex, mpsc};

/// How long a notification may take to come, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What the gateway answers.
#[derive(Default)]
struct Behavior {
    fails: bool,
    rejects: BTreeSet<String>,
}

/// Where it tells what came in: what it took, and what it failed to take.
#[derive(Clone)]
struct Senders {
    taken: mpsc::UnboundedSender<Value>,
    failed: mpsc::UnboundedSender<Value>,
}

/// The gateway; it ends when it is dropped.
pub(crate) struct Gateway {
    callee: Callee,
    behavior: Arc<Mutex<Behavior>>,
    received: mpsc::UnboundedReceiver<Value>,
    failed: mpsc::UnboundedReceiver<Value>,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let behavior = Arc::<Mutex<Behavior>>::default();
        let (taken, received) = mpsc::unbounded_channel();
        let (failed, not_taken) = mpsc::unbounded_channel();
        let senders = Senders { taken, failed };
        let shared = behavior.clone();
        let callee = Callee::start(move |call| answer(call, shared.clone(), senders.clone())).await;
        Self { callee, behavior, received, failed: not_taken }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/_matrix/push/v1/notify", self.callee.url())
    }

    /// Answers with errors from now on, or with successes again.
    pub(crate) async fn fail(&self, fails: bool) {
        self.behavior.lock().await.fails = fails;
    }

    /// Rejects a pushkey from now on.
    pub(crate) async fn reject(&self, pushkey: &str) {
        self.behavior.lock().await.rejects.insert(pushkey.to_owned());
    }

    /// The next notification that came in.
    pub(crate) async fn next(&mut self) -> Value {
        let next = tokio::time::timeout(WAIT_MAX, self.received.recv()).await;
        next.expect("a notification comes in time").expect("the gateway runs")
    }

    /// The next notification of an event; those of nothing but counts are skipped.
    pub(crate) async fn next_event(&mut self) -> Value {
        loop {
            let next = self.next().await;
            if next["event_id"].is_string() {
                return next;
            }
        }
    }

    /// The next notification that it failed to take.
    pub(crate) async fn next_failed(&mut self) -> Value {
        let next = tokio::time::timeout(WAIT_MAX, self.failed.recv()).await;
        next.expect("a notification comes in time").expect("the gateway runs")
    }

    /// Takes notifications until one satisfies a condition.
    pub(crate) async fn next_that(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let next = self.next().await;
            if is_it(&next) {
                return next;
            }
        }
    }

    /// What has come in and not been looked at.
    pub(crate) fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn answer(call: Call, behavior: Arc<Mutex<Behavior>>, senders: Senders) -> (u16, Value) {
    assert_eq!((call.method.as_str(), &*call.path), ("POST", "/_matrix/push/v1/notify"));
    let notification = call.body["notification"].clone();
    let behavior = behavior.lock().await;
    let pushkey = notification["devices"][0]["pushkey"].as_str().unwrap().to_owned();
    let rejected: Vec<_> = behavior.rejects.iter().filter(|key| **key == pushkey).collect();
    let (status, sender) = if behavior.fails { (502, &senders.failed) } else { (200, &senders.taken) };
    let _ = sender.send(notification); // a test that has ended does not listen
    (status, json!({ "rejected": rejected }))
}
