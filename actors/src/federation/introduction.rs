//! What a server tells of a room to those who are not in it: with an invite, or in answer to a knock.
//!
//! Spec: client-server API, "Stripped state"; server-server API, "Inviting to a room", "Knocking upon a room".

use engine::{pdu::Pdu, room_version::RoomVersion};
use ruma::RoomId;
use serde_json::value::RawValue;

use crate::{homeserver::Homeserver, room::RoomError};

/// Events that introduce a room, at most; the specification recommends about eight.
const EVENTS_MAX: usize = 50;

/// Bytes of them, at most: they are in each of the user's syncs that tells of the room. A few events of the largest size fit.
const BYTES_MAX: usize = 256 << 10;

/// Whether what introduces a room is more than anybody needs.
pub(super) fn is_too_much(state: &[Box<RawValue>]) -> bool {
    state.len() > EVENTS_MAX || state.iter().map(|event| event.get().len()).sum::<usize>() > BYTES_MAX
}

impl Homeserver {
    /// Checks what came with an invite: a few events of that room with its create event among them.
    ///
    /// Rooms of version 12 are known by their create events; before that, what is wrong is only noted, since many
    /// servers still send less than they should.
    ///
    /// Spec: server-server API, `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}` (MSC4311).
    pub(super) async fn check_introduction(
        &self,
        room_id: &RoomId,
        state: &[Box<RawValue>],
        rules: &'static RoomVersion,
    ) -> Result<(), RoomError> {
        if is_too_much(state) {
            return Err(RoomError::Invalid("invite_room_state is too large".to_owned()));
        }
        let Some(wrong) = self.introduction_fault(room_id, state, rules).await else { return Ok(()) };
        if rules.authorization.room_create_event_id_as_room_id {
            return Err(RoomError::Invalid(format!("invite_room_state {wrong}")));
        }
        tracing::debug!(%room_id, wrong, "an invite's invite_room_state is not as it should be");
        Ok(())
    }

    async fn introduction_fault(
        &self,
        room_id: &RoomId,
        state: &[Box<RawValue>],
        rules: &'static RoomVersion,
    ) -> Option<&'static str> {
        let checked = self.verify(state, rules).await;
        if checked.len() < state.len() {
            return Some("has something that is no event of the room's version");
        }
        let Ok(events) = checked.into_iter().map(|(_, checked)| checked).collect::<Result<Vec<_>, _>>()
        else {
            return Some("has an event that is not properly signed");
        };
        if events.iter().any(|pdu| *pdu.room_id() != *room_id) {
            return Some("has an event of another room");
        }
        let is_create = |pdu: &Pdu| pdu.kind() == "m.room.create" && pdu.state_key() == Some("");
        (!events.iter().any(is_create)).then_some("lacks the create event")
    }
}
