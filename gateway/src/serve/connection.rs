//! One client's connection.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::Watcher},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
};

use super::front::Answers;
use crate::{extract::ClientIp, router, tls::Tls};

/// How long a connection may last without a request: TLS and the first head have to come in this time.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(30);

/// How long the head of a later request, or the wait for it, may last with HTTP/1.1.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// How often HTTP/2 asks a silent client whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Where a connection comes from.
pub(super) struct Origin {
    pub(super) address: IpAddr,
    /// Proxies that are believed when they name the client.
    pub(super) trusted_proxies: Arc<[IpAddr]>,
}

/// Serves a connection until it ends, or no request comes, or none came before the server stops.
pub(super) async fn serve(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    origin: Origin,
    answers: Answers,
    watcher: Watcher,
    closed: watch::Receiver<bool>,
) {
    let has_asked = Arc::new(AtomicBool::new(false));
    let asks = has_asked.clone();
    let serving = async {
        match tls {
            None => answer(stream, origin, answers, watcher, asks).await,
            Some(tls) => answer(tls.accept(stream).await?, origin, answers, watcher, asks).await,
        }
    };
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            }
        }
        () = unused(&has_asked, closed) => tracing::debug!("connection closed: no request came in time"),
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    Origin { address, trusted_proxies }: Origin,
    answers: Answers,
    watcher: Watcher,
    asks: Arc<AtomicBool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service = tower::service_fn(move |request: http::Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let mut request = router::alias(request.map(Body::new));
        let client = client_ip(address, request.headers(), &trusted_proxies);
        request.extensions_mut().insert(ClientIp(client));
        answers.clone().answer(request)
    });
    let builder = connection_builder();
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    watcher.watch(connection.into_owned()).await
}

/// Ends if there was no request when there was time enough, or the server stops; what comes later is hyper's to bound.
async fn unused(has_asked: &AtomicBool, mut closed: watch::Receiver<bool>) {
    // The result says whether the server, which is stopping then, is there to tell.
    let stops = async { drop(closed.wait_for(|closed| *closed).await) };
    tokio::select! {
        () = tokio::time::sleep(FIRST_REQUEST_MAX) => {}
        () = stops => {}
    }
    if has_asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL);
    builder
}

/// The client behind a trusted proxy: the last address of `X-Forwarded-For` that is not a proxy's own.
///
/// Some proxies add a line of their own instead of to the client's: all lines count, as if they were one.
fn client_ip(peer: IpAddr, headers: &http::HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    if !trusted.contains(&peer) {
        return peer;
    }
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    let hops = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    let mut hops = hops.map_while(|hop| hop.trim().parse().ok());
    hops.find(|hop| !trusted.contains(hop)).unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn the_client_is_whom_the_last_trusted_proxy_names() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let proxy = address("10.0.0.1");
        for (lines, expected) in [
            (vec!["203.0.113.7"], "203.0.113.7"),
            (vec!["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
            (vec!["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
            (vec!["198.51.100.1, 203.0.113.7", "10.0.0.1"], "203.0.113.7"),
            (vec!["198.51.100.1", "nonsense"], "10.0.0.1"),
            (vec![], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            assert_eq!(client_ip(proxy, &headers, &[proxy]), address(expected), "{lines:?}");
            assert_eq!(client_ip(address("192.0.2.9"), &headers, &[proxy]), address("192.0.2.9"));
        }
    }
}
