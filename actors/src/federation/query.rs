//! Questions to other servers that have nothing to do with a room's events: aliases, profiles, public rooms.
//!
//! Spec: server-server API, "Querying for information", "Published Room Directory".

use std::sync::Arc;

use http::StatusCode;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomAliasId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FederationError, remote::encode};
use crate::{homeserver::Homeserver, room::RoomError, session::is_text_field};

/// Servers of a room that an alias is answered with, at most.
const SERVERS_MAX: usize = 20;

#[derive(Deserialize)]
struct Directory {
    room_id: OwnedRoomId,
    #[serde(default)]
    servers: Vec<OwnedServerName>,
}

/// A page of another server's public rooms.
#[derive(Debug, Serialize, Deserialize)]
pub struct PublicRoomsPage {
    /// The rooms, as that server describes them.
    pub chunk: Vec<Map<String, Value>>,
    /// The token of the page after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
    /// The token of the page before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
    /// How many rooms there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_room_count_estimate: Option<u64>,
}

/// How long another server's user is believed to have the same profile.
const PROFILE_FOR_MS: u64 = 60 * 1000;

/// Bytes of profiles that are kept.
const PROFILES_SIZE: u64 = 4 << 20;

/// Profiles of other servers' users that were asked for lately.
pub(super) type Profiles = Cache<OwnedUserId, KnownProfile, ProfileWeight>;

/// A profile as it was a short while ago.
#[derive(Clone)]
pub(super) struct KnownProfile {
    /// None if there is no such user.
    fields: Option<Arc<Map<String, Value>>>,
    fetched_ms: u64,
}

#[derive(Clone)]
pub(super) struct ProfileWeight;

impl Weighter<OwnedUserId, KnownProfile> for ProfileWeight {
    fn weight(&self, _user: &OwnedUserId, known: &KnownProfile) -> u64 {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string().len(), str::len);
        let size = |fields: &Map<String, Value>| -> usize {
            fields.iter().map(|(name, value)| 64 + name.len() + text(value)).sum()
        };
        256 + known.fields.as_ref().map_or(0, |fields| size(fields) as u64)
    }
}

/// A profile without the fields that it does not have, which another server may say with null, and without texts that are
/// none.
///
/// Spec: server-server API, `GET /_matrix/federation/v1/query/profile`.
fn only_set(mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.retain(|name, value| !value.is_null() && (value.is_string() || !is_text_field(name)));
    fields
}

/// An empty cache of profiles.
pub(super) fn profiles() -> Profiles {
    Cache::with_weighter(1000, PROFILES_SIZE, ProfileWeight)
}

impl Homeserver {
    /// The room that an alias of any server names, and servers that are in it.
    pub async fn find_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, RoomError> {
        let server = alias.server_name();
        if server == self.server_name() {
            let record = match self.resolve_alias(alias).await? {
                None if self.summon_alias(alias).await => self.resolve_alias(alias).await?,
                record => record,
            };
            let Some(record) = record else { return Ok(None) };
            let servers = self.servers_of(&record.room_id).await?;
            return Ok(Some((record.room_id, servers)));
        }
        if !self.federates() {
            return Ok(None);
        }
        let path = format!("/_matrix/federation/v1/query/directory?room_alias={}", encode(alias.as_str()));
        match self.remote(server)?.get::<Directory>(path).await {
            Ok(mut found) => {
                if !found.servers.iter().any(|known| known == server) {
                    found.servers.push(server.to_owned());
                }
                Ok(Some((found.room_id, found.servers)))
            }
            Err(FederationError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Servers that are in a room, this one first.
    pub async fn servers_of(&self, room_id: &ruma::RoomId) -> Result<Vec<OwnedServerName>, RoomError> {
        let room = match self.room(room_id).await {
            Ok(room) => room,
            Err(RoomError::NotFound) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let snapshot = room.snapshot();
        let own = self.server_name().to_owned();
        let others = snapshot.head.census.servers.keys().filter(|server| **server != own).cloned();
        Ok(std::iter::once(own.clone()).chain(others).take(SERVERS_MAX).collect())
    }

    /// The profile of another server's user; none if there is no such user.
    ///
    /// It may be a minute old: clients ask for the same profiles again and again.
    pub async fn remote_profile(&self, user: &UserId) -> Result<Option<Arc<Map<String, Value>>>, RoomError> {
        let federation = self.federation().ok_or(FederationError::Disabled)?;
        let now_ms = self.env().clock.now_ms();
        if let Some(known) = federation.profiles.get(user)
            && now_ms.saturating_sub(known.fetched_ms) < PROFILE_FOR_MS
        {
            return Ok(known.fields);
        }
        let path = format!("/_matrix/federation/v1/query/profile?user_id={}", encode(user.as_str()));
        let fields = match self.remote(user.server_name())?.get::<Map<String, Value>>(path).await {
            Ok(fields) => Some(Arc::new(only_set(fields))),
            Err(FederationError::Status { status: StatusCode::NOT_FOUND, .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let profile = KnownProfile { fields: fields.clone(), fetched_ms: now_ms };
        federation.profiles.insert(user.to_owned(), profile);
        Ok(fields)
    }

    /// A page of another server's public rooms.
    pub async fn remote_public_rooms(
        &self,
        server: &ServerName,
        query: Map<String, Value>,
    ) -> Result<PublicRoomsPage, RoomError> {
        let body = serde_json::to_vec(&query).map_err(|error| RoomError::Invalid(error.to_string()))?;
        let path = "/_matrix/federation/v1/publicRooms".to_owned();
        Ok(self.remote(server)?.post(path, body.into()).await?)
    }
}
