//! Requests to other servers, by endpoint.
//!
//! Answers hold events as the JSON that was received; `verify` makes events of it.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName,
    UserId,
};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;

use super::{FederationClient, FederationError, FederationRequest};
use crate::room::PageDirection;

/// How long ordinary requests may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long a join or a state may take, whose answer can be large; and what needs others to answer.
const TIMEOUT_LONG: Duration = Duration::from_secs(180);

/// The largest answer to ordinary requests.
const RESPONSE_MAX: usize = 16 << 20;

/// The largest document of a server's keys.
const KEYS_MAX: usize = 256 << 10;

/// The largest state of a room. It is for those alone who give us a room's state because we asked: it is kept in memory.
const STATE_MAX: usize = 512 << 20;

/// Events as JSON text.
pub type RawEvents = Vec<Box<RawValue>>;

/// The answer to `make_join`, `make_leave` and `make_knock`.
#[derive(Debug, Deserialize)]
pub struct Template {
    /// The room's version; version 1 if it is missing.
    pub room_version: Option<RoomVersionId>,
    /// The event without hashes and signatures.
    pub event: Box<RawValue>,
}

/// The answer to `send_join`.
#[derive(Debug, Deserialize)]
pub struct JoinedRoom {
    /// The state before the join.
    #[serde(default)]
    pub state: RawEvents,
    /// What authorises the state.
    #[serde(default)]
    pub auth_chain: RawEvents,
    /// The join with the resident server's signature.
    pub event: Option<Box<RawValue>>,
    /// Whether the state lacks members.
    #[serde(default)]
    pub members_omitted: bool,
    /// The servers in the room.
    #[serde(default)]
    pub servers_in_room: Vec<OwnedServerName>,
}

/// The answer to `send_knock`.
#[derive(Debug, Deserialize)]
pub struct Knocked {
    /// Stripped state.
    #[serde(default)]
    pub knock_room_state: RawEvents,
}

/// The body of an invite.
#[derive(Debug, Serialize, Deserialize)]
pub struct Invite {
    /// The room's version.
    pub room_version: RoomVersionId,
    /// The invite.
    pub event: Box<RawValue>,
    /// Stripped state.
    #[serde(default)]
    pub invite_room_state: RawEvents,
    /// Servers to join through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Vec<String>>,
}

/// An answer that holds one event.
#[derive(Debug, Deserialize)]
pub struct OneEvent {
    /// The event.
    pub event: Box<RawValue>,
}

/// An answer that holds events of a transaction.
#[derive(Debug, Deserialize)]
pub struct Pdus {
    /// The events.
    #[serde(default)]
    pub pdus: RawEvents,
}

/// The answer to `get_missing_events`.
#[derive(Debug, Deserialize)]
pub struct MissingEvents {
    /// The events.
    #[serde(default)]
    pub events: RawEvents,
}

/// The answer to `event_auth`.
#[derive(Debug, Deserialize)]
pub struct AuthChain {
    /// The events.
    #[serde(default)]
    pub auth_chain: RawEvents,
}

/// The answer to `state_ids`.
#[derive(Debug, Deserialize)]
pub struct StateIds {
    /// The events of the state.
    #[serde(default)]
    pub pdu_ids: Vec<OwnedEventId>,
    /// What authorises them.
    #[serde(default)]
    pub auth_chain_ids: Vec<OwnedEventId>,
}

/// The answer to `state`.
#[derive(Debug, Deserialize)]
pub struct State {
    /// The events of the state.
    #[serde(default)]
    pub pdus: RawEvents,
    /// What authorises them.
    #[serde(default)]
    pub auth_chain: RawEvents,
}

/// The answer to `timestamp_to_event`.
#[derive(Debug, Deserialize)]
pub struct EventNear {
    /// The event.
    pub event_id: OwnedEventId,
    /// When its server says it was sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
}

/// The body of `get_missing_events`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MissingEventsQuery {
    /// Events that the asker has.
    pub earliest_events: Vec<OwnedEventId>,
    /// Events whose predecessors are wanted.
    pub latest_events: Vec<OwnedEventId>,
    /// Most events to return.
    #[serde(default = "MissingEventsQuery::default_limit")]
    pub limit: u64,
    /// The least depth of events to return.
    #[serde(default)]
    pub min_depth: u64,
}

impl MissingEventsQuery {
    const fn default_limit() -> u64 {
        10
    }
}

/// The body of a transaction without EDUs.
#[derive(Serialize)]
struct Transaction<'a> {
    origin: &'a ServerName,
    origin_server_ts: u64,
    pdus: &'a [Box<RawValue>],
}

/// Another server.
pub struct Remote<'a> {
    client: &'a dyn FederationClient,
    server: &'a ServerName,
}

impl<'a> Remote<'a> {
    /// Another server.
    pub fn new(client: &'a dyn FederationClient, server: &'a ServerName) -> Self {
        Self { client, server }
    }

    /// Asks for something; the path is percent-encoded.
    pub async fn get<T: DeserializeOwned>(&self, path_and_query: String) -> Result<T, FederationError> {
        self.ask(Method::GET, path_and_query, None, (TIMEOUT, RESPONSE_MAX)).await
    }

    /// `GET /_matrix/key/v2/server`
    pub async fn keys(&self) -> Result<Box<RawValue>, FederationError> {
        self.ask(Method::GET, "/_matrix/key/v2/server".to_owned(), None, (TIMEOUT, KEYS_MAX)).await
    }

    async fn get_large<T: DeserializeOwned>(&self, path_and_query: String) -> Result<T, FederationError> {
        self.ask(Method::GET, path_and_query, None, (TIMEOUT_LONG, STATE_MAX)).await
    }

    /// Sends something; the path is percent-encoded.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Bytes,
    ) -> Result<T, FederationError> {
        self.ask(method, path, Some(body), (TIMEOUT_LONG, RESPONSE_MAX)).await
    }

    /// Asks for something with a body; the path is percent-encoded.
    pub async fn post<T: DeserializeOwned>(&self, path: String, body: Bytes) -> Result<T, FederationError> {
        self.ask(Method::POST, path, Some(body), (TIMEOUT, RESPONSE_MAX)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: String,
        body: Option<Bytes>,
        (timeout, max_response): (Duration, usize),
    ) -> Result<T, FederationError> {
        let request = FederationRequest { method, path_and_query, body, timeout, max_response };
        let response = self.client.request(self.server, request).await?;
        serde_json::from_slice(&response.body).map_err(|error| FederationError::BadBody(error.to_string()))
    }

    /// `PUT /_matrix/federation/v1/send/{txnId}`, with events only.
    pub async fn send_pdus(
        &self,
        txn_id: &str,
        origin: &ServerName,
        now_ms: u64,
        pdus: &[Box<RawValue>],
    ) -> Result<(), FederationError> {
        let body = Transaction { origin, origin_server_ts: now_ms, pdus };
        let body = serde_json::to_vec(&body).map_err(|error| FederationError::BadBody(error.to_string()))?;
        let path = format!("/_matrix/federation/v1/send/{}", encode(txn_id));
        let request = Some(body.into());
        self.ask(Method::PUT, path, request, (TIMEOUT, RESPONSE_MAX)).await.map(|_: IgnoredAny| ())
    }

    /// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}` and its like for `leave` and `knock`.
    pub async fn make(
        &self,
        membership: &str,
        room_id: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, FederationError> {
        let versions: Vec<_> = versions.iter().map(|version| format!("ver={version}")).collect();
        let query = if versions.is_empty() { String::new() } else { format!("?{}", versions.join("&")) };
        let (room_id, user) = (encode(room_id.as_str()), encode(user.as_str()));
        self.get(format!("/_matrix/federation/v1/make_{membership}/{room_id}/{user}{query}")).await
    }

    /// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
    pub async fn send_join(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        event: Bytes,
    ) -> Result<JoinedRoom, FederationError> {
        let path = format!(
            "/_matrix/federation/v2/send_join/{}/{}?omit_members=true",
            encode(room_id.as_str()),
            encode(event_id.as_str())
        );
        self.ask(Method::PUT, path, Some(event), (TIMEOUT_LONG, STATE_MAX)).await
    }

    /// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
    pub async fn send_leave(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        event: Bytes,
    ) -> Result<IgnoredAny, FederationError> {
        let path = room_path("v2/send_leave", room_id, event_id);
        self.send(Method::PUT, path, event).await
    }

    /// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
    pub async fn send_knock(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        event: Bytes,
    ) -> Result<Knocked, FederationError> {
        self.send(Method::PUT, room_path("v1/send_knock", room_id, event_id), event).await
    }

    /// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
    pub async fn invite(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        invite: &Invite,
    ) -> Result<OneEvent, FederationError> {
        let body = serde_json::to_vec(invite).map_err(|error| FederationError::BadBody(error.to_string()))?;
        self.send(Method::PUT, room_path("v2/invite", room_id, event_id), body.into()).await
    }

    /// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`, for servers that do not know the second version.
    pub async fn invite_v1(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
        invite: &Invite,
    ) -> Result<Box<RawValue>, FederationError> {
        let bad = |error: serde_json::Error| FederationError::BadBody(error.to_string());
        let mut event: serde_json::Value = serde_json::from_str(invite.event.get()).map_err(bad)?;
        event["unsigned"] = serde_json::json!({ "invite_room_state": invite.invite_room_state });
        let body = serde_json::to_vec(&event).map_err(bad)?;
        let (_, answer): (u16, OneEvent) =
            self.send(Method::PUT, room_path("v1/invite", room_id, event_id), body.into()).await?;
        Ok(answer.event)
    }

    /// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
    pub async fn exchange_third_party_invite(
        &self,
        room_id: &RoomId,
        event: &serde_json::Value,
    ) -> Result<(), FederationError> {
        let body = serde_json::to_vec(event).map_err(|error| FederationError::BadBody(error.to_string()))?;
        let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", encode(room_id.as_str()));
        self.ask::<serde::de::IgnoredAny>(Method::PUT, path, Some(body.into()), (TIMEOUT, RESPONSE_MAX))
            .await?;
        Ok(())
    }

    /// `GET /_matrix/federation/v1/event/{eventId}`
    pub async fn event(&self, event_id: &EventId) -> Result<Option<Box<RawValue>>, FederationError> {
        let answer: Pdus =
            self.get(format!("/_matrix/federation/v1/event/{}", encode(event_id.as_str()))).await?;
        Ok(answer.pdus.into_iter().next())
    }

    /// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
    pub async fn event_auth(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<RawEvents, FederationError> {
        let answer: AuthChain = self.get_large(room_path("v1/event_auth", room_id, event_id)).await?;
        Ok(answer.auth_chain)
    }

    /// `GET /_matrix/federation/v1/state_ids/{roomId}`
    pub async fn state_ids(&self, room_id: &RoomId, at: &EventId) -> Result<StateIds, FederationError> {
        self.get_large(state_path("state_ids", room_id, at)).await
    }

    /// `GET /_matrix/federation/v1/state/{roomId}`
    pub async fn state(&self, room_id: &RoomId, at: &EventId) -> Result<State, FederationError> {
        self.get_large(state_path("state", room_id, at)).await
    }

    /// `GET /_matrix/federation/v1/backfill/{roomId}`
    pub async fn backfill(
        &self,
        room_id: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<RawEvents, FederationError> {
        let from: Vec<_> = from.iter().map(|id| format!("v={}", encode(id.as_str()))).collect();
        let room_id = encode(room_id.as_str());
        let path = format!("/_matrix/federation/v1/backfill/{room_id}?{}&limit={limit}", from.join("&"));
        let answer: Pdus = self.get_large(path).await?;
        Ok(answer.pdus)
    }

    /// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
    pub async fn event_near(
        &self,
        room_id: &RoomId,
        moment: MilliSecondsSinceUnixEpoch,
        direction: PageDirection,
    ) -> Result<EventNear, FederationError> {
        let dir = match direction {
            PageDirection::Forward => "f",
            PageDirection::Backward => "b",
        };
        let (room_id, ts) = (encode(room_id.as_str()), moment.get());
        self.get(format!("/_matrix/federation/v1/timestamp_to_event/{room_id}?ts={ts}&dir={dir}")).await
    }

    /// `POST /_matrix/federation/v1/get_missing_events/{roomId}`
    pub async fn missing_events(
        &self,
        room_id: &RoomId,
        query: &MissingEventsQuery,
    ) -> Result<RawEvents, FederationError> {
        let path = format!("/_matrix/federation/v1/get_missing_events/{}", encode(room_id.as_str()));
        let body = serde_json::to_vec(query).map_err(|error| FederationError::BadBody(error.to_string()))?;
        let answer: MissingEvents = self.post(path, body.into()).await?;
        Ok(answer.events)
    }
}

fn room_path(endpoint: &str, room_id: &RoomId, event_id: &EventId) -> String {
    format!("/_matrix/federation/{endpoint}/{}/{}", encode(room_id.as_str()), encode(event_id.as_str()))
}

fn state_path(endpoint: &str, room_id: &RoomId, at: &EventId) -> String {
    format!("/_matrix/federation/v1/{endpoint}/{}?event_id={}", encode(room_id.as_str()), encode(at.as_str()))
}

/// A path segment or query value, percent-encoded.
pub fn encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len() + 8), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use parking_lot::Mutex;
    use ruma::{event_id, room_id, server_name};

    use super::*;
    use crate::federation::FederationResponse;

    /// Notes how large the answers to each endpoint may be, and answers nothing of use.
    #[derive(Default)]
    struct Limits(Mutex<Vec<(String, usize)>>);

    impl FederationClient for Limits {
        fn request<'a>(
            &'a self,
            _destination: &'a ServerName,
            request: FederationRequest,
        ) -> BoxFuture<'a, Result<FederationResponse, FederationError>> {
            let endpoint = request.path_and_query.split('/').nth(4).unwrap_or_default().to_owned();
            self.0.lock().push((endpoint, request.max_response));
            Box::pin(std::future::ready(Err(FederationError::Disabled)))
        }
    }

    #[tokio::test]
    async fn only_states_may_be_as_large_as_a_state() {
        let client = Limits::default();
        let remote = Remote::new(&client, server_name!("b"));
        let (room_id, event_id) = (room_id!("!room:b"), event_id!("$event:b"));
        let invite = Invite {
            room_version: RoomVersionId::V11,
            event: RawValue::from_string("{}".to_owned()).unwrap(),
            invite_room_state: Vec::new(),
            via: None,
        };
        let _ = remote.send_join(room_id, event_id, Bytes::new()).await;
        let _ = remote.state(room_id, event_id).await;
        let _ = remote.send_leave(room_id, event_id, Bytes::new()).await;
        let _ = remote.send_knock(room_id, event_id, Bytes::new()).await;
        let _ = remote.invite(room_id, event_id, &invite).await;
        let _ = remote.invite_v1(room_id, event_id, &invite).await;
        let limits = client.0.lock();
        let large: Vec<_> =
            limits.iter().filter(|(_, max)| *max > RESPONSE_MAX).map(|(name, _)| name.as_str()).collect();
        assert_eq!((limits.len(), large), (6, vec!["send_join", "state"]));
    }
}
