//! A small push gateway on loopback: it takes, rejects or fails, and tells the test what it was sent.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

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
    port: u16,
    behavior: Arc<Mutex<Behavior>>,
    received: mpsc::UnboundedReceiver<Value>,
    failed: mpsc::UnboundedReceiver<Value>,
    task: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behavior = Arc::<Mutex<Behavior>>::default();
        let (taken, received) = mpsc::unbounded_channel();
        let (failed, not_taken) = mpsc::unbounded_channel();
        let senders = Senders { taken, failed };
        let shared = behavior.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone(), senders.clone()));
            }
        });
        Self { port, behavior, received, failed: not_taken, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/_matrix/push/v1/notify", self.port)
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

async fn serve(mut stream: TcpStream, behavior: Arc<Mutex<Behavior>>, senders: Senders) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let (head, body) = loop {
            if let Some(request) = split(&buffer) {
                break request;
            }
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        buffer.clear();
        assert!(head.starts_with("POST /_matrix/push/v1/notify "), "{head}");
        let notification = serde_json::from_slice::<Value>(&body).unwrap()["notification"].take();
        let behavior = behavior.lock().await;
        let pushkey = notification["devices"][0]["pushkey"].as_str().unwrap().to_owned();
        let rejected: Vec<_> = behavior.rejects.iter().filter(|key| **key == pushkey).collect();
        let status = if behavior.fails { "502 Bad Gateway" } else { "200 OK" };
        let answer = json!({ "rejected": rejected }).to_string();
        let sender = if behavior.fails { &senders.failed } else { &senders.taken };
        let _ = sender.send(notification); // a test that has ended does not listen
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        stream.write_all(response.as_bytes()).await.ok()?;
    }
}

/// Head and body of a request that is there as a whole.
fn split(buffer: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    let body = buffer.get(end + 4..end + 4 + length)?;
    Some((head, body.to_vec()))
}
