//! A small HTTP server on loopback, for what a homeserver calls without TLS: push gateways, application services.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

/// A request that came in.
pub struct Call {
    /// `POST` for most.
    pub method: Method,
    /// With the query.
    pub path: String,
    /// What proves where it comes from, among them.
    pub headers: HeaderMap,
    /// Null if it is no JSON.
    pub body: Value,
}

/// The server; it ends when it is dropped, and its connections with it.
pub struct Callee {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Callee {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Callee {
    /// One that answers each call with a status and JSON.
    pub async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Call) -> A + Clone + Send + 'static,
        A: Future<Output = (u16, Value)> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request| respond(answer.clone(), request));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { port, task }
    }

    /// Its address, without a path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

async fn respond<A: Future<Output = (u16, Value)>>(
    answer: impl Fn(Call) -> A,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (status, answer) = answer(Call {
        method: head.method,
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
    .await;
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    Ok(response.body(answer.to_string().into()).expect("the test gives a status"))
}
