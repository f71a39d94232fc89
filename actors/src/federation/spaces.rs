//! Spaces that other servers know.
//!
//! Spec: server-server API, "Spaces".

use std::sync::Arc;

use dashmap::DashMap;
use futures_util::future::BoxFuture;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, room::RoomSummary};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FederationError, remote::encode};
use crate::{
    homeserver::Homeserver,
    spaces::{RemoteSpaces, ServerHierarchy, SpaceRoom, told_children},
};

/// Servers that are asked about a space, one after the other.
const SERVERS_MAX: usize = 3;

/// How long an answer is good.
const FRESH_MS: u64 = 5 * 60 * 1000;

/// Answers that are kept.
const KEPT_MAX: usize = 1000;

/// What other servers said of spaces lately.
#[derive(Default)]
pub(crate) struct KnownSpaces(DashMap<(OwnedRoomId, bool), (u64, Arc<ServerHierarchy>)>);

impl KnownSpaces {
    fn get(&self, key: &(OwnedRoomId, bool), now_ms: u64) -> Option<Arc<ServerHierarchy>> {
        self.0.get(key).filter(|kept| kept.0 > now_ms).map(|kept| kept.1.clone())
    }

    fn keep(&self, key: (OwnedRoomId, bool), now_ms: u64, space: &Arc<ServerHierarchy>) {
        if self.0.len() >= KEPT_MAX {
            self.0.retain(|_, kept| kept.0 > now_ms);
        }
        if self.0.len() < KEPT_MAX {
            self.0.insert(key, (now_ms + FRESH_MS, space.clone()));
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    room: Box<RawValue>,
    #[serde(default)]
    children: Vec<Box<RawValue>>,
    #[serde(default)]
    inaccessible_children: Vec<OwnedRoomId>,
}

#[derive(Deserialize)]
struct Children {
    #[serde(default)]
    children_state: Vec<Box<RawValue>>,
}

impl Homeserver {
    async fn ask_for_space(
        &self,
        server: &OwnedServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<ServerHierarchy, FederationError> {
        let path = format!(
            "/_matrix/federation/v1/hierarchy/{}?suggested_only={suggested_only}",
            encode(room_id.as_str())
        );
        let answer: Answer = self.remote(server)?.get(path).await?;
        let bad = |error: serde_json::Error| FederationError::BadBody(error.to_string());
        let summary: RoomSummary = serde_json::from_str(answer.room.get()).map_err(bad)?;
        if summary.room_id != room_id {
            return Err(FederationError::BadBody("the answer is about another room".to_owned()));
        }
        let children: Children = serde_json::from_str(answer.room.get()).map_err(bad)?;
        // A room whose summary cannot be read is as good as not mentioned.
        let told = answer.children.iter().filter_map(|room| serde_json::from_str(room.get()).ok());
        Ok(ServerHierarchy {
            room: SpaceRoom { summary, children: told_children(&children.children_state, suggested_only) },
            children: told.collect(),
            inaccessible_children: answer.inaccessible_children,
        })
    }
}

impl RemoteSpaces for Homeserver {
    fn hierarchy<'a>(
        &'a self,
        room_id: &'a RoomId,
        via: &'a [OwnedServerName],
        suggested_only: bool,
    ) -> BoxFuture<'a, Option<Arc<ServerHierarchy>>> {
        Box::pin(async move {
            let federation = self.federation()?;
            let now_ms = self.env().clock.now_ms();
            let key = (room_id.to_owned(), suggested_only);
            if let Some(kept) = federation.spaces.get(&key, now_ms) {
                return Some(kept);
            }
            let others = via.iter().filter(|server| **server != *self.server_name());
            for server in others.take(SERVERS_MAX) {
                match self.ask_for_space(server, room_id, suggested_only).await {
                    Ok(space) => {
                        let space = Arc::new(space);
                        federation.spaces.keep(key, now_ms, &space);
                        return Some(space);
                    }
                    Err(error) => {
                        tracing::debug!(%room_id, %server, %error, "a server does not tell of a space");
                    }
                }
            }
            None
        })
    }
}
