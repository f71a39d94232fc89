//! The client-server API as raw requests: a status and JSON come back.

use std::fmt::Write;

use reqwest::Method;
use serde_json::{Value, json};

/// A user, or nobody yet.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// The access token, if logged in.
    pub token: Option<String>,
    /// The user's ID.
    pub user_id: String,
    /// The device's ID.
    pub device_id: String,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// The body of a success; anything else fails the test.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Fails the test unless the answer is this error.
    #[track_caller]
    pub fn is(&self, status: u16, errcode: &str) {
        assert_eq!((self.status, self.body["errcode"].as_str()), (status, Some(errcode)), "{}", self.body);
    }
}

/// Escapes text for one segment of a path.
pub fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
        path
    })
}

/// The body of a log-in by password, which proves elsewhere, too, who asks.
pub fn by_password(user: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    })
}

impl Client {
    /// A client without a user.
    pub fn new(base: &str) -> Self {
        Self {
            http: reqwest::Client::new(),
            base: base.to_owned(),
            token: None,
            user_id: String::new(),
            device_id: String::new(),
        }
    }

    /// Takes on the user of a log-in's or registration's answer.
    pub fn log_in_as(&mut self, answer: &Value) {
        self.token = answer["access_token"].as_str().map(ToOwned::to_owned);
        let text = |field: &str| answer[field].as_str().map(ToOwned::to_owned);
        self.user_id = text("user_id").unwrap_or_default();
        self.device_id = text("device_id").unwrap_or_default();
    }

    /// The same user on a further device.
    pub async fn another_device(&self, password: &str) -> Self {
        let mut client = Self::new(&self.base);
        let answer =
            client.post("/_matrix/client/v3/login", &by_password(&self.user_id, password)).await.ok();
        client.log_in_as(&answer);
        client
    }

    /// The user ID without its sigil and server name.
    pub fn localpart(&self) -> &str {
        self.user_id.trim_start_matches('@').split(':').next().unwrap_or_default()
    }

    /// The name of the user's server.
    pub fn server_name(&self) -> &str {
        self.user_id.split_once(':').map_or("", |(_, name)| name)
    }

    /// The server's base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The password that the harness registered the user with.
    pub fn password(&self) -> String {
        format!("password of {}", self.localpart())
    }

    /// One request; the connection may fail.
    pub async fn attempt(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.attempt(method, path, body).await.expect("the server answers")
    }

    /// Sends bytes as they are, and returns the response as it is.
    ///
    /// On a connection of its own: after a body that is too large, a server closes it.
    pub async fn raw(&self, method: Method, path: &str, body: Vec<u8>) -> reqwest::Response {
        let http = reqwest::Client::new();
        let mut request = http.request(method, format!("{}{path}", self.base)).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request.send().await.expect("the server answers")
    }

    /// Uploads bytes and returns the `server/media ID` of their URI.
    pub async fn upload(&self, content_type: &str, filename: &str, body: Vec<u8>) -> String {
        let url = format!("{}/_matrix/media/v3/upload?filename={}", self.base, segment(filename));
        let mut request = self.http.post(url).header("Content-Type", content_type).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.expect("the server answers");
        assert_eq!(response.status(), 200, "an upload is refused");
        let body: Value = response.json().await.expect("the answer is JSON");
        let uri = body["content_uri"].as_str().expect("a URI");
        uri.strip_prefix("mxc://").expect("a URI of media").to_owned()
    }

    /// `GET` with another `Authorization` than the user's token.
    pub async fn get_as(&self, path: &str, authorization: Option<&str>) -> Answer {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let response = request.send().await.expect("the server answers");
        let status = response.status().as_u16();
        let text = response.text().await.expect("the answer can be read");
        Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    /// `POST`
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, Some(body)).await
    }

    /// `PUT`
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::PUT, path, Some(body)).await
    }

    /// `DELETE`
    pub async fn delete(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::DELETE, path, Some(body)).await
    }

    /// A request, with user-interactive authentication by password where it is asked for.
    pub async fn with_password(&self, method: Method, path: &str, mut body: Value) -> Answer {
        let first = self.request(method.clone(), path, Some(&body)).await;
        if first.status != 401 || !first.body["flows"].is_array() {
            return first;
        }
        body["auth"] = by_password(&self.user_id, &self.password());
        body["auth"]["session"] = first.body["session"].clone();
        self.request(method, path, Some(&body)).await
    }

    /// Creates a room and returns its ID.
    pub async fn create_room(&self, request: Value) -> String {
        let answer = self.post("/_matrix/client/v3/createRoom", &request).await.ok();
        answer["room_id"].as_str().expect("a room ID").to_owned()
    }

    /// The path of something in a room.
    pub fn room(room_id: &str, rest: &str) -> String {
        format!("/_matrix/client/v3/rooms/{}/{rest}", segment(room_id))
    }

    /// Joins a room.
    pub async fn join(&self, room_id: &str) -> Answer {
        self.post(&Self::room(room_id, "join"), &json!({})).await
    }

    /// Leaves a room.
    pub async fn leave(&self, room_id: &str) -> Answer {
        self.post(&Self::room(room_id, "leave"), &json!({})).await
    }

    /// Invites, kicks, bans or unbans a user.
    pub async fn moderate(&self, action: &str, room_id: &str, user_id: &str) -> Answer {
        self.post(&Self::room(room_id, action), &json!({ "user_id": user_id })).await
    }

    /// Sends an event.
    pub async fn send(&self, room_id: &str, kind: &str, txn_id: &str, content: &Value) -> Answer {
        let path = Self::room(room_id, &format!("send/{}/{}", segment(kind), segment(txn_id)));
        self.put(&path, content).await
    }

    /// Sends a text message and returns its event ID.
    pub async fn say(&self, room_id: &str, txn_id: &str, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        let answer = self.send(room_id, "m.room.message", txn_id, &content).await.ok();
        answer["event_id"].as_str().expect("an event ID").to_owned()
    }

    /// Sets a state event.
    pub async fn set_state(&self, room_id: &str, kind: &str, key: &str, content: &Value) -> Answer {
        self.put(&Self::room(room_id, &format!("state/{}/{}", segment(kind), segment(key))), content).await
    }

    /// Reads a state event's content.
    pub async fn state(&self, room_id: &str, kind: &str, key: &str) -> Answer {
        self.get(&Self::room(room_id, &format!("state/{}/{}", segment(kind), segment(key)))).await
    }

    /// Syncs, with a query such as `since=…&timeout=1000`.
    pub async fn sync(&self, query: &str) -> Value {
        self.get(&format!("/_matrix/client/v3/sync?{query}")).await.ok()
    }

    /// Syncs on from a token until a response satisfies a condition; 20 tries of a second at most.
    pub async fn sync_until(&self, since: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut since = since.to_owned();
        for _ in 0..20 {
            let response = self.sync(&format!("since={since}&timeout=1000")).await;
            if is_it(&response) {
                return response;
            }
            response["next_batch"].as_str().expect("a token").clone_into(&mut since);
        }
        panic!("what the test waits for does not come");
    }

    /// The token of an initial sync.
    pub async fn token_of_sync(&self) -> String {
        let response = self.sync("timeout=0").await;
        response["next_batch"].as_str().expect("a token").to_owned()
    }

    /// Syncs on from a token until the room's timeline has such an event.
    pub async fn event_of_sync(&self, since: &str, room: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let find = |response: &Value| {
            let events = response["rooms"]["join"][room]["timeline"]["events"].as_array();
            events.into_iter().flatten().find(|event| is_it(event)).cloned()
        };
        let response = self.sync_until(since, |response| find(response).is_some()).await;
        find(&response).expect("it was just found")
    }

    /// All messages of a room that the user can page back to, oldest first.
    pub async fn all_messages(&self, room_id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut from = String::new();
        loop {
            let path = Self::room(room_id, &format!("messages?dir=b&limit=100{from}"));
            let page = self.get(&path).await.ok();
            events.extend(page["chunk"].as_array().expect("a chunk").iter().cloned());
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => break,
            }
        }
        events.reverse();
        events
    }
}
