//! Authorization rules: which state an event needs, and whether it is allowed.
//!
//! The rules themselves are ruma's; this module gives them our types and decides verdicts.
//! Spec: server-server API, "Authorization rules", and those of each room version.

use std::sync::Arc;

use ruma::{
    EventId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
    state_res::{
        self,
        events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{pdu::Pdu, room_version::RoomVersion};

/// The authorization rules refuse an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthFailure(pub String);

/// The keys of the state that authorise an event, which are its `auth_events`.
///
/// Spec: server-server API, "Auth events selection".
pub fn auth_keys(
    kind: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
    version: &RoomVersion,
) -> Result<Vec<(StateEventType, String)>, AuthFailure> {
    state_res::auth_types_for_event(kind, sender, state_key, content, &version.authorization)
        .map_err(AuthFailure)
}

/// Checks an event against the rules, with its auth events by ID and a state by key.
pub fn check(
    pdu: &Pdu,
    auth_event: impl Fn(&EventId) -> Option<Arc<Pdu>>,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    version: &RoomVersion,
) -> Result<(), AuthFailure> {
    check_room_version(pdu, version)?;
    state_res::check_state_independent_auth_rules(&version.authorization, pdu, auth_event)
        .map_err(AuthFailure)?;
    check_against(pdu, state, version)
}

/// Rule 1.3, which ruma leaves to its caller: a create event's version is recognised, and is the one that it is
/// read by.
fn check_room_version(pdu: &Pdu, version: &RoomVersion) -> Result<(), AuthFailure> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default = "first")]
        room_version: String,
    }
    /// The version of rooms that name none.
    fn first() -> String {
        RoomVersionId::V1.to_string()
    }
    if *pdu.event_type() != TimelineEventType::RoomCreate {
        return Ok(());
    }
    let content: Content = serde_json::from_str(pdu.content().get())
        .map_err(|error| AuthFailure(format!("content of the create event: {error}")))?;
    if content.room_version == version.id.as_str() {
        return Ok(());
    }
    Err(AuthFailure(format!("the create event is not one of room version {}", version.id)))
}

/// Checks an event against one state.
pub fn check_against(
    pdu: &Pdu,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    version: &RoomVersion,
) -> Result<(), AuthFailure> {
    state_res::check_state_dependent_auth_rules(&version.authorization, pdu, state).map_err(AuthFailure)
}

/// A power level; creators' is above all numbers from version 12 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A number.
    Int(i64),
    /// More than any number.
    Infinite,
}

/// What users may do, by a room's create event and power levels.
#[derive(Clone, Debug)]
pub struct Powers {
    create: Arc<Pdu>,
    power_levels: Option<Arc<Pdu>>,
    version: &'static RoomVersion,
}

impl Powers {
    /// The powers that these events grant.
    pub fn new(create: Arc<Pdu>, power_levels: Option<Arc<Pdu>>, version: &'static RoomVersion) -> Self {
        Self { create, power_levels, version }
    }

    /// Whether a user may redact the events of others.
    pub fn may_redact(&self, user: &UserId) -> bool {
        self.level(user) >= Some(self.needed(RoomPowerLevelsIntField::Redact))
    }

    /// Whether a user may invite.
    pub fn may_invite(&self, user: &UserId) -> bool {
        self.level(user) >= Some(self.needed(RoomPowerLevelsIntField::Invite))
    }

    /// Whether users without a level of their own may invite.
    pub fn everyone_may_invite(&self) -> bool {
        let default = self.needed(RoomPowerLevelsIntField::UsersDefault);
        default >= self.needed(RoomPowerLevelsIntField::Invite)
    }

    /// Whether a user may send a state event of this type.
    pub fn may_send_state(&self, user: &UserId, kind: &str) -> bool {
        let needed = match self.power_levels.clone().map(RoomPowerLevelsEvent::new) {
            None => Some(RoomPowerLevelsIntField::StateDefault.default_value()),
            Some(levels) => {
                levels.event_power_level(&kind.into(), Some(""), &self.version.authorization).ok()
            }
        };
        needed.is_some_and(|needed| self.level(user) >= Some(Level::Int(needed.into())))
    }

    /// A user's level; none if the events cannot be read.
    pub fn level(&self, user: &UserId) -> Option<Level> {
        Self::level_of(user, &self.create, self.power_levels.clone(), self.version)
    }

    /// A user's level by a create event and power levels; none if they cannot be read.
    pub(crate) fn level_of(
        user: &UserId,
        create: &Arc<Pdu>,
        power_levels: Option<Arc<Pdu>>,
        version: &RoomVersion,
    ) -> Option<Level> {
        let rules = &version.authorization;
        let creators = RoomCreateEvent::new(create.clone()).creators(rules).ok()?;
        let is_creator = creators.contains(user);
        if rules.explicitly_privilege_room_creators && is_creator {
            return Some(Level::Infinite);
        }
        let level = match power_levels.map(RoomPowerLevelsEvent::new) {
            Some(levels) => levels.user_power_level(user, rules).ok()?.into(),
            None if is_creator => 100,
            None => 0,
        };
        Some(Level::Int(level))
    }

    /// The level that an action needs; above all if the events cannot be read.
    fn needed(&self, field: RoomPowerLevelsIntField) -> Level {
        let needed = match self.power_levels.clone().map(RoomPowerLevelsEvent::new) {
            None => Some(field.default_value()),
            Some(levels) => levels.get_as_int_or_default(field, &self.version.authorization).ok(),
        };
        needed.map_or(Level::Infinite, |needed| Level::Int(needed.into()))
    }
}

/// Whether a redaction that is in the room strips its target.
///
/// The room's create event is never stripped: up to version 10 not even the room's version would be left of it, so that
/// nobody could join any more.
///
/// Spec: room version 3, "Handling redactions".
pub fn redaction_applies(redaction: &Pdu, target: &Pdu, powers: &Powers) -> bool {
    if target.kind() == "m.room.create" && target.state_key() == Some("") {
        return false;
    }
    let same_server = redaction.sender().server_name() == target.sender().server_name();
    same_server || powers.may_redact(redaction.sender())
}

#[cfg(test)]
mod tests;
