//! A user of the client-server API, as small as a load generator needs.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// A logged-in user with connections of its own.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
    /// The user's ID.
    pub user_id: String,
}

impl Client {
    /// Registers a new user; the server must allow open registration (`m.login.dummy`).
    pub async fn register(base: &str, name: &str) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Http::builder(TokioExecutor::new()).build(connector);
        let base = base.trim_end_matches('/').to_owned();
        let mut client = Self { http, base, token: String::new(), user_id: String::new() };
        let body = json!({ "username": name, "password": "correct horse battery staple", "auth": { "type": "m.login.dummy" } });
        let answer = client.call(Method::POST, "/_matrix/client/v3/register", Some(&body)).await?;
        client.token = text(&answer, "access_token")?;
        client.user_id = text(&answer, "user_id")?;
        Ok(client)
    }

    /// Makes one request; anything but a success is an error.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = self.call_raw(method, path, body).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path} did not answer with JSON"))
    }

    /// Makes one request and leaves the answer unparsed.
    pub async fn call_raw(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let payload = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(payload))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
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

    /// Joins a room.
    pub async fn join(&self, room_id: &str) -> Result<()> {
        let path = format!("/_matrix/client/v3/join/{}", escape(room_id));
        self.call(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Sends a text message.
    pub async fn send(&self, room_id: &str, txn_id: &str, text: &str) -> Result<()> {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn_id}", escape(room_id));
        let body = json!({ "msgtype": "m.text", "body": text });
        self.call_raw(Method::PUT, &path, Some(&body)).await.map(drop)
    }

    /// Syncs; the raw body, so that parsing is not part of what is measured.
    pub async fn sync(&self, query: &str) -> Result<Bytes> {
        self.call_raw(Method::GET, &format!("/_matrix/client/v3/sync?{query}"), None).await
    }
}

fn text(answer: &Value, field: &str) -> Result<String> {
    Ok(answer[field].as_str().with_context(|| format!("the answer lacks {field}"))?.to_owned())
}

fn escape(id: &str) -> String {
    id.replace('!', "%21").replace('#', "%23").replace(':', "%3A")
}
