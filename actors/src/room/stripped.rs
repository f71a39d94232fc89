//! What those are told of a room who are not in it: stripped state.
//!
//! Spec: client-server API, "Stripped state".

use std::sync::Arc;

use engine::{pdu::client, state::StateRoot};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use storage::schema;

use super::{RoomError, RoomHandle, StoredEvent, membership_of};

/// The state that an invited or knocking user is shown.
const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// A stripped state event; servers may send whole events in its place.
#[derive(Deserialize, Serialize)]
struct Stripped {
    #[serde(rename = "type")]
    kind: String,
    state_key: String,
    sender: OwnedUserId,
    content: Box<RawValue>,
}

impl RoomHandle {
    /// What a server that is not in the room is told of it, with the member who tells it: whole events.
    ///
    /// Spec: server-server API, `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`, `invite_room_state`.
    pub async fn introduction(&self, teller: &UserId) -> Result<Vec<Box<RawValue>>, RoomError> {
        let events = self.shown(self.snapshot().head.root, teller).await?;
        Ok(events.iter().filter_map(|event| serde_json::from_slice(event.pdu.raw()).ok()).collect())
    }

    /// The stripped state that a local user is shown who is not in the room, their own membership event last.
    pub(crate) async fn stripped_state(
        &self,
        user: &UserId,
        own: &Arc<StoredEvent>,
    ) -> Result<Vec<Box<RawValue>>, RoomError> {
        if let Some(mut events) = self.foreign_stripped_state(user, own).await? {
            events.push(client::stripped(&own.pdu));
            return Ok(events);
        }
        let mut events = self.shown(self.root_shown(user, own), own.pdu.sender()).await?;
        // That, or what it took the place of, may be in the state, too.
        events.retain(|event| event.pdu.state_key() != Some(user.as_str()));
        events.push(own.clone());
        Ok(events.iter().map(|event| client::stripped(&event.pdu)).collect())
    }

    /// The stripped state that came with a local user's invite or knock to a room that this server was not in then.
    ///
    /// Others may have brought the server into the room since: the event has no place there all the same.
    pub(crate) async fn foreign_stripped_state(
        &self,
        user: &UserId,
        own: &StoredEvent,
    ) -> Result<Option<Vec<Box<RawValue>>>, RoomError> {
        if own.has_place() {
            return Ok(None);
        }
        let key = (user.to_owned(), self.snapshot().room_id.clone());
        let record = self.storage().get(&schema::STRIPPED_STATES, &key).await?;
        let events = record.map(|record| {
            let events =
                serde_json::from_slice::<Vec<Stripped>>(&record.events).unwrap_or_default().into_iter();
            // The user's own membership is known here, and may have changed since.
            events
                .filter(|event| event.kind != "m.room.member" || event.state_key != *user)
                .collect::<Vec<_>>()
        });
        Ok(events.map(|events| events.iter().filter_map(|event| to_raw_value(event).ok()).collect()))
    }

    /// The state that a local user is shown parts of who is not in the room: that after their own membership event.
    ///
    /// Without a place for the event it is the current one, as long as the user may be told more of the room.
    fn root_shown(&self, user: &UserId, own: &StoredEvent) -> StateRoot {
        let head = &self.snapshot().head;
        let is_awaited = ["invite", "knock"].contains(&membership_of(&own.pdu).as_str());
        if !own.has_place() && is_awaited && head.has_server(user.server_name()) {
            return head.root;
        }
        own.after
    }

    /// What of a state is shown to outsiders, with one member.
    async fn shown(&self, root: StateRoot, member: &UserId) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut events = Vec::new();
        for kind in STRIPPED {
            events.extend(self.state_event(root, kind, "").await?);
        }
        events.extend(self.state_event(root, "m.room.member", member.as_str()).await?);
        Ok(events)
    }
}
