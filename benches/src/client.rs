//! A user of the client-server API, as small as a load generator needs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a request may take beyond what it asks the server to wait: then it counts as failed.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The longest wait that a request asks for.
pub const POLL: Duration = Duration::from_secs(20);

/// A user with connections of its own.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    token: Option<String>,
    /// The user's ID; empty for somebody without an account.
    pub user_id: String,
}

/// What every `/sync` response has.
#[derive(Deserialize)]
struct NextBatch {
    next_batch: String,
}

impl Client {
    /// Somebody without an account.
    pub fn anonymous(base: &str) -> Self {
        let http = connections();
        Self { http, base: base.trim_end_matches('/').to_owned(), token: None, user_id: String::new() }
    }

    /// The user that a registration or log-in answered with, on the same connections.
    pub fn logged_in(&self, answer: &Value) -> Result<Self> {
        let token = Some(text(answer, "access_token")?);
        Ok(Self { token, user_id: text(answer, "user_id")?, ..self.clone() })
    }

    /// The same user on connections that are not made yet, and belong to the runtime that uses them first.
    #[must_use]
    pub fn on_own_connections(&self) -> Self {
        Self { http: connections(), ..self.clone() }
    }

    /// The name of the user's server.
    pub fn server_name(&self) -> &str {
        self.user_id.split_once(':').map_or("", |(_, name)| name)
    }

    /// Makes one request; anything but a success is an error.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = self.call_raw(method, path, body).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path} did not answer with JSON"))
    }

    /// Makes one request and leaves the answer unparsed.
    pub async fn call_raw(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let payload = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(payload))?;
        let answered = async {
            let response = self.http.request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let answered = tokio::time::timeout(POLL + ANSWER_MAX, answered).await;
        let (status, bytes) = answered.with_context(|| format!("{path}: no answer"))??;
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    /// Creates a room and returns its ID.
    pub async fn create_room(&self, preset: &str) -> Result<String> {
        let body = json!({ "preset": preset });
        text(&self.call(Method::POST, "/_matrix/client/v3/createRoom", Some(&body)).await?, "room_id")
    }

    /// Joins a room, through `via` if the user's own server is not in it.
    pub async fn join(&self, room_id: &str, via: Option<&str>) -> Result<()> {
        let via = via.map_or_else(String::new, |via| format!("?server_name={0}&via={0}", escape(via)));
        let path = format!("/_matrix/client/v3/join/{}{via}", escape(room_id));
        self.call_raw(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Sends a text message.
    pub async fn send(&self, room_id: &str, txn_id: &str, text: &str) -> Result<()> {
        let path = format!("{}/send/m.room.message/{txn_id}", room(room_id));
        let body = json!({ "msgtype": "m.text", "body": text });
        self.call_raw(Method::PUT, &path, Some(&body)).await.map(drop)
    }

    /// Syncs; the raw body, so that parsing is not part of what is measured.
    pub async fn sync(&self, query: &str) -> Result<Bytes> {
        self.call_raw(Method::GET, &format!("/_matrix/client/v3/sync?{query}"), None).await
    }

    /// The token of an initial sync.
    pub async fn sync_token(&self) -> Result<String> {
        next_batch(&self.sync("timeout=0").await?)
    }

    /// Logs the user in once more, with the password that [`crate::Accounts`] gave.
    pub async fn log_in(&self) -> Result<()> {
        let name = self.user_id.trim_start_matches('@').split(':').next().unwrap_or_default();
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": crate::account::PASSWORD,
        });
        self.call_raw(Method::POST, "/_matrix/client/v3/login", Some(&body)).await.map(drop)
    }
}

fn connections() -> Http<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Http::builder(TokioExecutor::new()).build(connector)
}

/// The token of a `/sync` response.
pub fn next_batch(response: &[u8]) -> Result<String> {
    let parsed: NextBatch = serde_json::from_slice(response).context("the response lacks next_batch")?;
    Ok(parsed.next_batch)
}

/// The path of a room.
pub fn room(room_id: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}", escape(room_id))
}

/// A text field of an answer.
pub fn text(answer: &Value, field: &str) -> Result<String> {
    Ok(answer[field].as_str().with_context(|| format!("the answer lacks {field}"))?.to_owned())
}

/// An ID as a path's segment.
pub fn escape(id: &str) -> String {
    id.replace('!', "%21").replace('#', "%23").replace('$', "%24").replace('@', "%40").replace(':', "%3A")
}
