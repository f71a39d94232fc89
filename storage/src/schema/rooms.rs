//! Records of rooms and their events.

use std::sync::Arc;

use bytes::Bytes;
pub use engine::room::event::{SentBy, Standing};
use engine::{
    id::{Position, ShortEventId, ShortRoomId, TimelineIndex},
    pdu::{Pdu, PduError},
    room::StoredEvent,
    state::{Salt, StateRoot},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId,
    RoomVersionId,
};
use serde::{Deserialize, Serialize};

use crate::Record;

/// The head of a room: everything that its actor needs to go on after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The version that the create event states.
    pub version: RoomVersionId,
    /// Decides the shape of the room's state tree.
    pub salt: Salt,
    /// The room's current state.
    pub root: StateRoot,
    /// Forward extremities, in ascending order.
    pub tips: Vec<ShortEventId>,
    /// The newest place in the timeline.
    pub latest: TimelineIndex,
    /// The last durable change of any kind: an event or a receipt.
    pub touched: Position,
    /// Number of joined members.
    pub joined: u64,
    /// Number of invited members.
    pub invited: u64,
}

/// An event and its place in the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The room.
    pub room: ShortRoomId,
    /// The event's ID.
    pub event_id: OwnedEventId,
    /// Canonical JSON as received or created, redacted once a redaction applied.
    pub json: Bytes,
    /// The place in the timeline, if it is in there.
    pub index: Option<TimelineIndex>,
    /// How it fared.
    pub standing: Standing,
    /// State before the event.
    pub before: StateRoot,
    /// The room's current state once the event was in.
    pub after: StateRoot,
    /// The state event that it replaced in the current state.
    pub replaces: Option<ShortEventId>,
    /// The event that redacted it.
    pub redacted_by: Option<ShortEventId>,
    /// The local client's transaction, if one sent it.
    pub sent_by: Option<SentBy>,
    /// One more than the highest rank of its auth events; 0 without any. State resolution walks by it.
    #[serde(default)]
    pub rank: u64,
    /// Whether `RELATIONS` may have rows with this event as their target.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_relations: bool,
    /// Whether the states at it lack members for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_members: bool,
}

impl EventRecord {
    /// The row of an event.
    pub fn of(event: &StoredEvent) -> Self {
        Self {
            room: event.room,
            event_id: event.pdu.event_id().clone(),
            json: event.pdu.raw().clone(),
            index: event.index,
            standing: event.standing,
            before: event.before,
            after: event.after,
            replaces: event.replaces,
            redacted_by: event.redacted_by,
            sent_by: event.sent_by.clone(),
            rank: event.rank,
            has_relations: event.has_relations,
            lacks_members: event.lacks_members,
        }
    }

    /// The event of a row; fails if its JSON is damaged.
    pub fn into_event(self, short: ShortEventId) -> Result<StoredEvent, PduError> {
        let pdu = Pdu::from_stored(self.event_id, self.json)?;
        let pdu = if self.standing == Standing::Rejected { pdu.rejected() } else { pdu };
        Ok(StoredEvent {
            short,
            room: self.room,
            pdu: Arc::new(pdu),
            index: self.index,
            standing: self.standing,
            before: self.before,
            after: self.after,
            replaces: self.replaces,
            redacted_by: self.redacted_by,
            sent_by: self.sent_by,
            rank: self.rank,
            has_relations: self.has_relations,
            lacks_members: self.lacks_members,
        })
    }
}

/// An event that relates to another one.
///
/// Spec: client-server API, "Forming relationships between events".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationRecord {
    /// The relating event.
    pub event: ShortEventId,
    /// Its ID.
    pub event_id: OwnedEventId,
    /// Its type.
    pub kind: String,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// When its server says it was sent, in milliseconds since the epoch.
    pub sent_ms: u64,
    /// Whether by itself it could replace a message: it has no state key, and brings a new content.
    pub can_replace: bool,
}

/// What everyone may know of a room, by one of its states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicFaceRecord {
    /// The state.
    pub root: StateRoot,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Its main alias.
    pub canonical_alias: Option<OwnedRoomAliasId>,
    /// Its avatar.
    pub avatar_url: Option<String>,
    /// How to join it.
    pub join_rule: String,
    /// The type of its create event.
    pub room_type: Option<String>,
    /// Whether it can be read without joining.
    pub world_readable: bool,
    /// Whether guests may join.
    pub guest_can_join: bool,
    /// Whether users of other servers may join; rows of older builds do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federates: Option<bool>,
}

impl Record for PublicFaceRecord {
    const VERSION: u8 = 1;
}

/// What the filters of sliding sync ask of a room, by one of its states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomFactsRecord {
    /// The state.
    pub root: StateRoot,
    /// The type of its create event.
    pub room_type: Option<String>,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
}

impl Record for RoomFactsRecord {
    const VERSION: u8 = 1;
}

/// How far a room's members are known to the user directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRoomRecord {
    /// The state whose members are known.
    pub root: StateRoot,
    /// Whether everyone may join the room or read it.
    pub is_open: bool,
}

/// Where the known timeline of a room has a hole: events before this place are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRecord {
    /// Events that are missing and lead on into the hole.
    pub missing: Vec<OwnedEventId>,
    /// Places above this one, and below the gap's, are free for what is fetched.
    pub floor: TimelineIndex,
    /// Who is likely to have them: where the event after the hole came from.
    pub origin: OwnedServerName,
    /// The room's state at the gap's place, if no event has that place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<StateRoot>,
}

/// A room that was joined with a state that lacked members.
///
/// Spec: server-server API, `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, `omit_members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialRoomRecord {
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The join.
    pub join: OwnedEventId,
    /// Servers to get the members from, the one that was joined through first.
    pub servers: Vec<OwnedServerName>,
    /// When all members were there, if they are.
    pub completed: Option<Position>,
    /// Whether events that came before that were judged otherwise then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub corrected: bool,
}

/// What is known of an event that a state lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLackRecord {
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The server without whose keys it could not be checked.
    pub server: OwnedServerName,
}

/// What a server sent along with an invite to a room that this server is not in, or with the answer to a knock.
///
/// Spec: client-server API, "Stripped state".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrippedStateRecord {
    /// The stripped state events, a JSON array.
    pub events: Bytes,
}

/// A local user's relation to a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRecord {
    /// The room.
    pub room: ShortRoomId,
    /// `join`, `invite`, `knock`, `leave` or `ban`.
    pub membership: String,
    /// The membership event.
    pub event: ShortEventId,
    /// Where the current membership began in the timeline (profile changes do not move it).
    pub since: TimelineIndex,
    /// The last time the user stopped being joined, if ever.
    pub left: Option<TimelineIndex>,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
}

/// A receipt in a room.
///
/// Spec: client-server API, "Receipts".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRecord {
    /// The event that is read.
    pub event_id: OwnedEventId,
    /// Its place in the timeline.
    pub index: TimelineIndex,
    /// When it was read.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// When the server learned of it.
    pub position: Position,
}

/// A room alias of this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRecord {
    /// The room that it names.
    pub room_id: OwnedRoomId,
    /// Who made it.
    pub creator: OwnedUserId,
}

impl Record for RoomRecord {
    const VERSION: u8 = 1;
}

impl Record for EventRecord {
    const VERSION: u8 = 1;
}

impl Record for RelationRecord {
    const VERSION: u8 = 1;
}

impl Record for DirectoryRoomRecord {
    const VERSION: u8 = 1;
}

impl Record for MembershipRecord {
    const VERSION: u8 = 1;
}

impl Record for ReceiptRecord {
    const VERSION: u8 = 1;
}

impl Record for PartialRoomRecord {
    const VERSION: u8 = 1;
}

impl Record for StateLackRecord {
    const VERSION: u8 = 1;
}

impl Record for GapRecord {
    const VERSION: u8 = 1;
}

impl Record for StrippedStateRecord {
    const VERSION: u8 = 1;
}

impl Record for AliasRecord {
    const VERSION: u8 = 1;
}
