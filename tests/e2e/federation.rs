//! Rooms that are shared with another server: another Ganglion, and Synapse.
//!
//! Spec: server-server API.

mod access;
mod canonical;
mod closed;
mod conversation;
mod entering;
mod ephemeral;
mod extremities;
mod forks;
mod history;
mod holes;
mod identity;
mod invites;
mod joining;
mod media;
mod numbers;
mod policy;
mod receiving;
mod rejoining;
mod sending;
mod silence;

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, segment};

/// How long something may take to get to the other server.
const ARRIVES_MAX: Duration = Duration::from_secs(30);

/// Repeats a question until the answer is good.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = tokio::time::timeout(ARRIVES_MAX, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// What a user of a federation test does, on whichever server.
pub(crate) struct User(pub(crate) Client);

impl User {
    pub(crate) fn id(&self) -> &str {
        &self.0.user_id
    }

    pub(crate) async fn create(&self, version: &str, more: Value) -> String {
        let mut request = json!({ "preset": "public_chat", "room_version": version });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.0.create_room(request).await
    }

    pub(crate) async fn join(&self, room: &str, via: &str) {
        let path = format!(
            "/_matrix/client/v3/join/{}?via={}&server_name={}",
            segment(room),
            segment(via),
            segment(via)
        );
        self.0.post(&path, &json!({})).await.ok();
    }

    pub(crate) async fn leave(&self, room: &str) {
        self.0.post(&path(room, "leave"), &json!({})).await.ok();
    }

    pub(crate) async fn invite(&self, room: &str, user: &User) {
        self.0.post(&path(room, "invite"), &json!({ "user_id": user.id() })).await.ok();
    }

    pub(crate) async fn say(&self, room: &str, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.send(room, "m.room.message", text, &content).await
    }

    pub(crate) async fn send(&self, room: &str, kind: &str, txn: &str, content: &Value) -> String {
        let answer = self.0.put(&path(room, &format!("send/{kind}/{}", segment(txn))), content).await.ok();
        answer["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn set(&self, room: &str, kind: &str, key: &str, content: &Value) {
        self.0.put(&path(room, &format!("state/{kind}/{}", segment(key))), content).await.ok();
    }

    pub(crate) async fn state(&self, room: &str, kind: &str, key: &str) -> Option<Value> {
        let answer = self.0.get(&path(room, &format!("state/{kind}/{}", segment(key)))).await;
        (answer.status == 200).then_some(answer.body)
    }

    pub(crate) async fn membership(&self, room: &str, user: &User) -> Option<String> {
        let member = self.state(room, "m.room.member", user.id()).await?;
        Some(member["membership"].as_str()?.to_owned())
    }

    /// The newest messages, newest first.
    pub(crate) async fn messages(&self, room: &str) -> Vec<Value> {
        let answer = self.0.get(&path(room, "messages?dir=b&limit=100")).await.ok();
        answer["chunk"].as_array().unwrap().clone()
    }

    /// Waits until a message is there, and returns it.
    pub(crate) async fn hears(&self, room: &str, text: &str) -> Value {
        eventually(&format!("{} hears {text:?}", self.id()), async || {
            let events = self.messages(room).await;
            events.into_iter().find(|event| event["content"]["body"] == text)
        })
        .await
    }

    /// Waits until a user has a membership.
    pub(crate) async fn sees(&self, room: &str, user: &User, membership: &str) {
        eventually(&format!("{} sees {} as {membership}", self.id(), user.id()), async || {
            (self.membership(room, user).await.as_deref() == Some(membership)).then_some(())
        })
        .await;
    }

    /// Where the user's sync is now.
    pub(crate) async fn sync_token(&self) -> String {
        let sync = self.0.get("/_matrix/client/v3/sync").await.ok();
        sync["next_batch"].as_str().unwrap().to_owned()
    }

    /// What is new of a room's receipts and typing notices; moves the token.
    pub(crate) async fn ephemeral(&self, room: &str, since: &mut String) -> Vec<Value> {
        let sync =
            self.0.get(&format!("/_matrix/client/v3/sync?since={}&timeout=500", segment(since))).await.ok();
        since.clone_from(&sync["next_batch"].as_str().unwrap().to_owned());
        sync["rooms"]["join"][room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default()
    }

    /// Waits for an invite.
    pub(crate) async fn is_invited(&self, room: &str) -> Value {
        let mut asked = 0;
        eventually(&format!("{} is invited", self.id()), async || {
            // Some servers remember the answer to a question that is asked again.
            let filter = format!("{{\"room\":{{\"timeline\":{{\"limit\":{}}}}}}}", 1 + asked);
            asked += 1;
            let sync = self.0.get(&format!("/_matrix/client/v3/sync?filter={}", segment(&filter))).await.ok();
            let invite = &sync["rooms"]["invite"][room];
            (!invite.is_null()).then(|| invite.clone())
        })
        .await
    }
}

/// The path of something in a room.
pub(crate) fn path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", segment(room))
}
