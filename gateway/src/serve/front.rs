//! The listeners: they take connections from the beginning, and requests are answered as soon as that can be.
//!
//! A large store takes a moment to open. Nobody is refused meanwhile: what needs no store is answered at once, and all
//! else waits for it.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::Request, response::Response};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{SetOnce, watch},
    task::JoinSet,
};
use tower::ServiceExt;

use super::connection::{self, Origin};
use crate::{client::about::About, router, tls::Tls};

/// How long requests under way may take to finish once the server stops.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);

/// How long a request waits for the server to start.
const START_MAX: Duration = Duration::from_secs(30);

/// Connections that may wait to be taken, if the system allows as many (`net.core.somaxconn`): after a start or a loss of the network
/// all clients come back at once, and one that is turned away tries again a second later at the earliest.
const BACKLOG: u32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A start right after a stop finds connections that are not quite over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where a server listens.
pub(super) struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Listens on an address, with TLS or without it.
    pub(super) fn bind(address: SocketAddr, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let tcp = listen(address).with_context(|| format!("cannot listen on {address}"))?;
        Ok(Self { tcp, tls })
    }

    fn url(&self) -> std::io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.tcp.local_addr()?))
    }
}

/// What answers the requests of some listeners.
#[derive(Clone)]
pub(super) struct Answers {
    started: Arc<SetOnce<Router>>,
    meanwhile: Router,
}

impl Answers {
    /// Answers with what a server says of itself, if it says anything, until there is more.
    fn new(about: Option<About>) -> Self {
        let started = Arc::new(SetOnce::<Router>::new());
        let waits = started.clone();
        let wait = async move |request: Request| -> Response {
            let router = match tokio::time::timeout(START_MAX, waits.wait()).await {
                Ok(router) => router.clone(),
                Err(_) => router::still_starting(),
            };
            let Ok(response) = router.oneshot(request).await;
            response
        };
        let meanwhile = match about {
            Some(about) => router::starting(about, wait),
            None => Router::new().fallback(wait),
        };
        Self { started, meanwhile }
    }

    /// Answers a request.
    pub(super) async fn answer(self, request: Request) -> Result<Response, Infallible> {
        let router = self.started.get().unwrap_or(&self.meanwhile);
        router.clone().oneshot(request).await
    }
}

/// All listeners of a server, and the connections to them. When it is dropped, no more connections are taken.
pub(super) struct Front {
    /// Where the Matrix APIs are served, plain HTTP first.
    pub(super) urls: Vec<String>,
    matrix: Answers,
    metrics: Answers,
    closing: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl Front {
    /// Begins to take connections, those of `matrix` for the Matrix APIs and those of `metrics` for the metrics.
    pub(super) fn open(
        matrix: Vec<Listener>,
        metrics: Vec<Listener>,
        about: About,
        trusted_proxies: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let urls = matrix.iter().map(Listener::url).collect::<Result<_, _>>()?;
        let answers = (Answers::new(Some(about)), Answers::new(None));
        let mut front = Self {
            urls,
            matrix: answers.0.clone(),
            metrics: answers.1.clone(),
            closing: watch::Sender::new(false),
            accepting: JoinSet::new(),
        };
        let matrix = matrix.into_iter().map(|listener| (listener, answers.0.clone()));
        let metrics = metrics.into_iter().map(|listener| (listener, answers.1.clone()));
        let listeners = matrix.chain(metrics).collect();
        front.accepting.spawn(accept_all(listeners, trusted_proxies.into(), front.closing.subscribe()));
        Ok(front)
    }

    /// The server is up: from now on these answer.
    pub(super) fn start(&self, matrix: Router, metrics: Router) {
        for (answers, router) in [(&self.matrix, matrix), (&self.metrics, metrics)] {
            let _ = answers.started.set(router); // a server starts once
        }
    }

    /// Takes no more connections, and finishes the requests under way.
    pub(super) async fn close(mut self) {
        self.closing.send_replace(true);
        while self.accepting.join_next().await.is_some() {}
    }
}

/// Takes connections until the server closes, and then waits for the requests under way.
async fn accept_all(
    listeners: Vec<(Listener, Answers)>,
    trusted_proxies: Arc<[IpAddr]>,
    mut closing: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let closed = closing.clone();
    let accepting = listeners
        .iter()
        .map(|(listener, answers)| accept(listener, answers, &graceful, closed.clone(), &trusted_proxies));
    tokio::select! {
        biased;
        // Whoever would have closed it is gone, otherwise.
        _ = closing.wait_for(|closing| *closing) => {}
        _ = futures_util::future::join_all(accepting) => {}
    }
    drop(listeners);
    if tokio::time::timeout(SHUTDOWN_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not finish in time");
    }
}

async fn accept(
    Listener { tcp, tls }: &Listener,
    answers: &Answers,
    graceful: &GracefulShutdown,
    closed: watch::Receiver<bool>,
    trusted_proxies: &Arc<[IpAddr]>,
) {
    loop {
        let (stream, address) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: spinning would make it worse.
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let origin = Origin { address: address.ip(), trusted_proxies: trusted_proxies.clone() };
        let (answers, watcher) = (answers.clone(), graceful.watcher());
        tokio::spawn(connection::serve(stream, tls.clone(), origin, answers, watcher, closed.clone()));
    }
}

#[cfg(test)]
mod tests;
