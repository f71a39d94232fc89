//! The way to a server, which a test can cut for some other servers and heal again.

use std::{collections::BTreeSet, sync::Arc};

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
    target: u16,
}

impl Link {
    /// A way to the server that will listen, without TLS, on the port of [`Self::target`].
    pub async fn start() -> Self {
        let cut = Arc::new(Mutex::new(BTreeSet::<String>::new()));
        let target = free_port();
        let http = reqwest::Client::new();
        let is_cut = cut.clone();
        let listener = TlsListener::start(0, move |heard| {
            let (http, is_cut) = (http.clone(), is_cut.clone());
            async move {
                let is_cut = heard.origin().is_some_and(|origin| is_cut.lock().contains(&origin));
                if is_cut { Reply::HangUp } else { pass_on(&http, target, heard).await }
            }
        })
        .await;
        Self { listener, cut, target }
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

    /// Lets everybody through again.
    pub fn heal(&self) {
        self.cut.lock().clear();
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
