//! A small TLS server whose answers a test decides.

use std::{convert::Infallible, net::Ipv4Addr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle, time::Sleep};
use tokio_rustls::TlsAcceptor;

use crate::federation::Authority;

/// How long a dripping body waits between two bytes.
const DRIP: Duration = Duration::from_millis(200);

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Heard {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The server that signed the request, as it says.
    pub fn origin(&self) -> Option<String> {
        let authorization = self.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let origin = authorization.split("origin=").nth(1)?;
        Some(origin.trim_start_matches('"').split(['"', ',']).next()?.to_owned())
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status and JSON.
    Json(u16, Value),
    /// A status and any text.
    Text(u16, String),
    /// Nothing, ever.
    Silence,
    /// The connection ends.
    HangUp,
    /// Good headers, and then a byte now and then without end.
    Drip,
    /// Good headers, and then bytes as fast as they are taken, without end.
    Flood,
}

/// The listener of a test's server; it ends with it.
pub(crate) struct TlsListener {
    accepting: JoinHandle<()>,
    pub(crate) port: u16,
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TlsListener {
    /// Listens on a free port (or the one given), and answers with what `answer` says.
    pub(crate) async fn start<F>(port: u16, answer: impl Fn(Heard) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let acceptor = acceptor();
        let answer = Arc::new(answer);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| respond(answer.clone(), request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { accepting, port }
    }
}

fn acceptor() -> TlsAcceptor {
    let authority = Authority::shared();
    let chain = CertificateDer::pem_file_iter(authority.path("certificate.pem")).expect("the file is there");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("it holds certificates");
    let key = PrivateKeyDer::from_pem_file(authority.path("key.pem")).expect("it holds a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions are supported")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("certificate and key fit");
    TlsAcceptor::from(Arc::new(config))
}

async fn respond<F>(
    answer: Arc<impl Fn(Heard) -> F>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error>
where
    F: Future<Output = Reply>,
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let uri = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let (status, body) = match answer(Heard { method: parts.method, uri, headers: parts.headers, body }).await
    {
        Reply::Json(status, json) => (status, Full::new(json.to_string().into()).boxed()),
        Reply::Text(status, text) => (status, Full::new(text.into()).boxed()),
        Reply::Silence => std::future::pending().await,
        Reply::HangUp => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Reply::Drip => (200, Endless::new(DRIP, 1).boxed()),
        Reply::Flood => (200, Endless::new(Duration::ZERO, 64 << 10).boxed()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a test answers with a valid status");
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A body that does not end.
struct Endless {
    pause: Duration,
    chunk: Bytes,
    sleep: Pin<Box<Sleep>>,
}

impl Endless {
    fn new(pause: Duration, size: usize) -> Self {
        Self { pause, chunk: vec![b' '; size].into(), sleep: Box::pin(tokio::time::sleep(pause)) }
    }
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.sleep.as_mut().poll(context));
        let pause = self.pause;
        self.sleep.as_mut().reset(tokio::time::Instant::now() + pause);
        std::task::Poll::Ready(Some(Ok(Frame::data(self.chunk.clone()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
