//! Who may see which event.
//!
//! Spec: client-server API, "Room history visibility", "Server behaviour".

use crate::pdu::Pdu;

/// The history visibility of a room at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HistoryVisibility {
    /// Seen by those who are joined when it is sent.
    Joined,
    /// Seen from the moment of one's invitation on.
    Invited,
    /// Seen by whoever is joined now or was since.
    Shared,
    /// Seen by everyone.
    WorldReadable,
}

impl HistoryVisibility {
    /// What an `m.room.history_visibility` event says; `shared` without one or if it says something else.
    pub fn of(event: Option<&Pdu>) -> Self {
        let Some(event) = event else { return Self::Shared };
        let content: serde_json::Value = serde_json::from_str(event.content().get()).unwrap_or_default();
        match content["history_visibility"].as_str() {
            Some("joined") => Self::Joined,
            Some("invited") => Self::Invited,
            Some("world_readable") => Self::WorldReadable,
            _ => Self::Shared,
        }
    }
}

/// A membership as far as it matters for visibility.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Joined.
    Joined,
    /// Invited.
    Invited,
    /// Neither: left, banned, knocking, or never heard of.
    #[default]
    Outside,
}

impl Presence {
    /// The presence that a `membership` means.
    pub fn of(membership: &str) -> Self {
        match membership {
            "join" => Self::Joined,
            "invite" => Self::Invited,
            _ => Self::Outside,
        }
    }
}

/// Whether a user may see an event.
///
/// `at_event` is the user's presence when it was sent, `joined_since` whether the user has been joined at or
/// after it.
pub fn may_see(visibility: HistoryVisibility, at_event: Presence, joined_since: bool) -> bool {
    match visibility {
        // 1. World readable.
        HistoryVisibility::WorldReadable => true,
        // 2. The user was joined. 3. Shared, and the user joined at any time after the event.
        HistoryVisibility::Shared => at_event == Presence::Joined || joined_since,
        // 4. Invited, and the user was invited.
        HistoryVisibility::Invited => at_event != Presence::Outside,
        // 5. Otherwise.
        HistoryVisibility::Joined => at_event == Presence::Joined,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        HistoryVisibility::{self, Shared, WorldReadable},
        Presence::{self, Outside},
        may_see,
    };

    #[test]
    fn every_row_of_the_table() {
        for (visibility, at_event, joined_since, expected) in [
            (WorldReadable, Outside, false, true),
            (Shared, Outside, false, false),
            (Shared, Outside, true, true),
            (Shared, Presence::Invited, false, false),
            (Shared, Presence::Joined, false, true),
            (HistoryVisibility::Invited, Outside, true, false),
            (HistoryVisibility::Invited, Presence::Invited, false, true),
            (HistoryVisibility::Invited, Presence::Joined, false, true),
            (HistoryVisibility::Joined, Presence::Invited, true, false),
            (HistoryVisibility::Joined, Presence::Joined, false, true),
            (HistoryVisibility::Joined, Outside, true, false),
        ] {
            let seen = may_see(visibility, at_event, joined_since);
            assert_eq!(seen, expected, "{visibility:?}, {at_event:?}, joined since: {joined_since}");
        }
    }
}
