//! Rooms as others are told of them, with their join rules.

use actors::spaces::SpaceRoom;
use ruma::{
    directory::PublicRoomsChunk,
    room::{JoinRuleKind, JoinRuleSummary, RoomSummary},
};
use serde::Serialize;
use serde_json::value::RawValue;

/// What a room is, with its join rule whatever that is.
///
/// ruma leaves out `public`, since that is what a missing one means; but there are clients that look for it.
///
/// Spec: client-server API, `GET /_matrix/client/v3/publicRooms` and "Room Summaries", `join_rule`.
#[derive(Serialize)]
pub struct Told<T> {
    #[serde(flatten)]
    room: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_rule: Option<&'static str>,
}

impl<T> Told<T> {
    fn new(room: T, rule: &JoinRuleKind) -> Self {
        Self { room, join_rule: (*rule == JoinRuleKind::Public).then_some("public") }
    }
}

impl From<RoomSummary> for Told<RoomSummary> {
    fn from(mut room: RoomSummary) -> Self {
        use JoinRuleSummary::{Invite, Knock, KnockRestricted, Private, Public, Restricted};
        // Other servers' rooms may have others, which ruma does not write; what they mean is not known to clients either.
        if !matches!(room.join_rule, Invite | Knock | KnockRestricted(_) | Private | Public | Restricted(_)) {
            room.join_rule = Invite;
        }
        let rule = room.join_rule.kind();
        Self::new(room, &rule)
    }
}

impl From<PublicRoomsChunk> for Told<PublicRoomsChunk> {
    fn from(room: PublicRoomsChunk) -> Self {
        let rule = room.join_rule.clone();
        Self::new(room, &rule)
    }
}

/// A room of a space, with what it says of the rooms in it.
#[derive(Serialize)]
pub struct ToldSpace {
    #[serde(flatten)]
    summary: Told<RoomSummary>,
    children_state: Vec<Box<RawValue>>,
}

impl From<SpaceRoom> for ToldSpace {
    fn from(room: SpaceRoom) -> Self {
        let children_state = room.children.into_iter().map(|child| child.event).collect();
        Self { summary: room.summary.into(), children_state }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, owned_room_id};

    use super::*;

    #[test]
    fn a_join_rule_is_said_once_whatever_it_is() {
        for (rule, expected) in [(JoinRuleSummary::Public, "public"), (JoinRuleSummary::Knock, "knock")] {
            let summary = RoomSummary::new(owned_room_id!("!a:b.example"), rule, false, UInt::MIN, false);
            let json = serde_json::to_string(&Told::from(summary)).unwrap();
            assert_eq!(json.matches(&format!(r#""join_rule":"{expected}""#)).count(), 1, "{json}");
            assert_eq!(json.matches("join_rule").count(), 1, "{json}");
        }
    }

    #[test]
    fn a_rule_that_nobody_knows_asks_for_an_invite() {
        let json = r#"{"room_id":"!a:b.example","num_joined_members":1,"world_readable":false,
            "guest_can_join":false,"join_rule":"org.example.riddle"}"#;
        let summary: RoomSummary = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_value(Told::from(summary)).unwrap()["join_rule"], "invite");
    }
}
