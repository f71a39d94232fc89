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
use tokio::{net::TcpSocket, task::JoinHandle, time::Sleep};
use tokio_rustls::TlsAcceptor;

use crate::federation::Authority;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

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
    /// None while the port refuses.
    accepting: Option<JoinHandle<()>>,
    /// Holds the port while it refuses.
    _held: Option<TcpSocket>,
    pub(crate) port: u16,
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

/// Whether those who trust the tests' authority trust a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    Trusted,
    Untrusted,
}

/// A port that is nobody else's, and that nobody listens on.
pub(crate) struct TlsPort {
    socket: TcpSocket,
    pub(crate) number: u16,
}

impl TlsPort {
    /// Takes a port; 0 stands for any that is free.
    #[expect(
        clippy::unused_async,
        reason = "who starts a server waits for it, as for other kinds of servers"
    )]
    pub(crate) async fn hold(port: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("there is IPv4");
        socket.set_reuseaddr(true).expect("the option is known");
        socket.bind((Ipv4Addr::LOCALHOST, port).into()).expect("the port is free");
        let number = socket.local_addr().expect("it is bound").port();
        Self { socket, number }
    }

    /// Refuses all connections: nobody listens on a port that is only held.
    pub(crate) fn refuse(self) -> TlsListener {
        TlsListener { accepting: None, port: self.number, _held: Some(self.socket) }
    }

    /// Listens, and answers with what `answer` says.
    pub(crate) fn listen<F>(
        self,
        trust: Trust,
        answer: impl Fn(Heard) -> F + Send + Sync + 'static,
    ) -> TlsListener
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let listener = self.socket.listen(BACKLOG).expect("it is bound");
        let acceptor = acceptor(trust);
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
        TlsListener { accepting: Some(accepting), port: self.number, _held: None }
    }
}

impl TlsListener {
    /// Listens on a free port, and answers with what `answer` says.
    pub(crate) async fn start<F>(answer: impl Fn(Heard) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        TlsPort::hold(0).await.listen(Trust::Trusted, answer)
    }

    /// Ends all connections and keeps the port.
    pub(crate) async fn stop(mut self) -> TlsPort {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // It has let go of the port once it has ended.
            let _ = accepting.await;
        }
        let port = self.port;
        drop(self);
        TlsPort::hold(port).await
    }
}

fn acceptor(trust: Trust) -> TlsAcceptor {
    let (chain, key) = match trust {
        Trust::Trusted => {
            let authority = Authority::shared();
            let certificate = authority.path("certificate.pem");
            let chain = CertificateDer::pem_file_iter(certificate).expect("the file is there");
            let chain: Result<Vec<_>, _> = chain.collect();
            let key = PrivateKeyDer::from_pem_file(authority.path("key.pem")).expect("it holds a key");
            (chain.expect("it holds certificates"), key)
        }
        Trust::Untrusted => {
            let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("it can be made");
            let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("it is a key");
            (vec![own.cert.der().clone()], key)
        }
    };
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
