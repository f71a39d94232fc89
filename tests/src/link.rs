//! The way to a server, which a test can cut for some other servers and heal again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::header;
use parking_lot::Mutex;

use crate::{
    server::free_port,
    tls::{Heard, Reply, TlsListener},
};

/// What other servers reach a server through: it passes their requests on, but for those that are cut off.
pub struct Link {
    listener: TlsListener,
    cut: Arc<Mutex<BTreeSet<String>>>,
    held: Arc<Mutex<Option<String>>>,
    held_answers: Arc<Mutex<Option<String>>>,
    target: u16,
}

/// How often a request that is held looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Link {
    /// A way to the server that will listen, without TLS, on the port of [`Self::target`].
    pub async fn start() -> Self {
        let cut = Arc::new(Mutex::new(BTreeSet::<String>::new()));
        let target = free_port();
        let http = reqwest::Client::new();
        let held = Arc::new(Mutex::new(None::<String>));
        let held_answers = Arc::new(Mutex::new(None::<String>));
        let (is_cut, is_held, is_answer_held) = (cut.clone(), held.clone(), held_answers.clone());
        let listener = TlsListener::start(move |heard| {
            let (http, is_cut) = (http.clone(), is_cut.clone());
            let (is_held, is_answer_held) = (is_held.clone(), is_answer_held.clone());
            async move {
                pause(&is_held, &heard.uri).await;
                let is_cut = heard.origin().is_some_and(|origin| is_cut.lock().contains(&origin));
                if is_cut {
                    return Reply::HangUp;
                }
                let uri = heard.uri.clone();
                let answer = pass_on(&http, target, heard).await;
                pause(&is_answer_held, &uri).await;
                answer
            }
        })
        .await;
        Self { listener, cut, held, held_answers, target }
    }

    /// The name of the server behind it.
    pub fn server_name(&self) -> String {
        format!("localhost:{}", self.listener.port)
    }

    /// The port that the server behind it listens on, without TLS.
    pub(crate) fn target(&self) -> u16 {
        self.target
    }

    /// Cuts another server off.
    pub fn cut(&self, server: &str) {
        self.cut.lock().insert(server.to_owned());
    }

    /// Holds requests whose path contains something.
    pub fn hold(&self, part: &str) {
        *self.held.lock() = Some(part.to_owned());
    }

    /// Passes requests on whose path contains something, but holds their answers.
    pub fn hold_answers(&self, part: &str) {
        *self.held_answers.lock() = Some(part.to_owned());
    }

    /// Lets everybody and everything through again.
    pub fn heal(&self) {
        self.cut.lock().clear();
        *self.held.lock() = None;
        *self.held_answers.lock() = None;
    }
}

/// Waits for as long as a path is held.
async fn pause(held: &Mutex<Option<String>>, uri: &str) {
    while held.lock().as_ref().is_some_and(|part| uri.contains(part)) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn pass_on(http: &reqwest::Client, target: u16, heard: Heard) -> Reply {
    let mut headers = heard.headers;
    for hop in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    let request = http
        .request(heard.method, format!("http://127.0.0.1:{target}{}", heard.uri))
        .headers(headers)
        .body(heard.body);
    match request.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            answer.text().await.map_or(Reply::HangUp, |text| Reply::Text(status, text))
        }
        Err(_) => Reply::HangUp,
    }
}
