//! The events of a new room, in the order that the specification demands.
//!
//! Spec: client-server API, "Room creation", `POST /_matrix/client/v3/createRoom`.

use ruma::{OwnedRoomAliasId, OwnedUserId, RoomVersionId, UserId};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    pdu::Draft,
    room_version::{self, RoomVersion},
};

/// The defaults that a new room starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Invite only.
    PrivateChat,
    /// Invite only; those invited are as powerful as the creator.
    TrustedPrivateChat,
    /// Anyone may join.
    PublicChat,
    /// Nothing but what the request names, as when a room is upgraded.
    Bare,
}

/// A state event of the request's `initial_state`.
#[derive(Clone, Debug)]
pub struct InitialState {
    /// The event's type.
    pub kind: String,
    /// The event's state key.
    pub state_key: String,
    /// The event's content.
    pub content: Box<RawValue>,
}

/// What a user asks a new room to be.
#[derive(Clone, Debug)]
pub struct NewRoom {
    /// The version of the room.
    pub version: RoomVersionId,
    /// Who creates it.
    pub creator: OwnedUserId,
    /// The creator's `m.room.member` content without `membership`.
    pub creator_profile: Map<String, Value>,
    /// The defaults that it starts from.
    pub preset: Preset,
    /// Extra keys of the create event's content.
    pub creation_content: Map<String, Value>,
    /// Overrides of the power levels.
    pub power_levels: Map<String, Value>,
    /// The room's main alias.
    pub alias: Option<OwnedRoomAliasId>,
    /// State that takes precedence over the preset's.
    pub initial_state: Vec<InitialState>,
    /// The room's name.
    pub name: Option<String>,
    /// The room's topic.
    pub topic: Option<String>,
    /// Whom to invite.
    pub invite: Vec<OwnedUserId>,
}

impl NewRoom {
    /// A room with nothing but what its preset gives it.
    pub fn new(version: RoomVersionId, creator: OwnedUserId, preset: Preset) -> Self {
        Self {
            version,
            creator,
            creator_profile: Map::new(),
            preset,
            creation_content: Map::new(),
            power_levels: Map::new(),
            alias: None,
            initial_state: Vec::new(),
            name: None,
            topic: None,
            invite: Vec::new(),
        }
    }
}

/// Why a room cannot be created as asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NewRoomError {
    /// The version is none of 1 to 12.
    #[error("room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    /// A part of the request has the wrong shape.
    #[error("{0}")]
    Invalid(String),
}

/// The drafts of a new room: the create event, and all that follow it.
#[derive(Debug)]
pub struct Plan {
    /// The `m.room.create` event.
    pub create: Draft,
    /// The creator's events after it, in order; the invites are the actor's to add.
    pub rest: Vec<Draft>,
}

/// Decides which events make up a new room.
pub fn plan(room: &NewRoom) -> Result<Plan, NewRoomError> {
    let version = room_version::rules(&room.version)
        .ok_or_else(|| NewRoomError::UnsupportedVersion(room.version.clone()))?;
    let create = state("m.room.create", "", &Value::Object(create_content(room, version)?))?;

    let mut member = room.creator_profile.clone();
    member.insert("membership".to_owned(), "join".into());
    let mut rest = vec![state("m.room.member", room.creator.as_str(), &Value::Object(member))?];
    rest.push(state("m.room.power_levels", "", &Value::Object(power_levels(room, version)))?);
    if let Some(alias) = &room.alias {
        rest.push(state("m.room.canonical_alias", "", &json!({ "alias": alias }))?);
    }
    rest.extend(preset_state(room)?);
    rest.extend(initial_state(room));
    if let Some(name) = &room.name {
        rest.push(state("m.room.name", "", &json!({ "name": name }))?);
    }
    if let Some(topic) = &room.topic {
        rest.push(state("m.room.topic", "", &topic_content(topic))?);
    }
    Ok(Plan { create, rest })
}

fn create_content(room: &NewRoom, version: &RoomVersion) -> Result<Map<String, Value>, NewRoomError> {
    let mut content = room.creation_content.clone();
    content.insert("room_version".to_owned(), room.version.as_str().into());
    if version.authorization.use_room_create_sender {
        content.remove("creator");
    } else {
        content.insert("creator".to_owned(), room.creator.as_str().into());
    }
    if version.authorization.additional_room_creators {
        let creators = additional_creators(room, content.get("additional_creators"))?;
        if creators.is_empty() {
            content.remove("additional_creators");
        } else {
            content.insert("additional_creators".to_owned(), creators.into());
        }
    }
    Ok(content)
}

fn additional_creators(room: &NewRoom, asked: Option<&Value>) -> Result<Vec<String>, NewRoomError> {
    let invalid = || NewRoomError::Invalid("additional_creators must be a list of user IDs".to_owned());
    let mut creators = Vec::new();
    for value in asked.map_or(Ok(&[][..]), |asked| asked.as_array().map(Vec::as_slice).ok_or_else(invalid))? {
        let user = value.as_str().and_then(|user| UserId::parse(user).ok()).ok_or_else(invalid)?;
        creators.push(user.to_string());
    }
    if room.preset == Preset::TrustedPrivateChat {
        creators.extend(room.invite.iter().map(ToString::to_string));
    }
    let mut seen = std::collections::BTreeSet::from([room.creator.to_string()]);
    creators.retain(|creator| seen.insert(creator.clone()));
    Ok(creators)
}

fn power_levels(room: &NewRoom, version: &RoomVersion) -> Map<String, Value> {
    let privileged_creators = version.authorization.explicitly_privilege_room_creators;
    let mut users = Map::new();
    if !privileged_creators {
        users.insert(room.creator.to_string(), 100.into());
        if room.preset == Preset::TrustedPrivateChat {
            users.extend(room.invite.iter().map(|user| (user.to_string(), 100.into())));
        }
    }
    // Creators outrank everyone from version 12 on; 150 keeps the upgrade theirs alone.
    let tombstone = if privileged_creators { 150 } else { 100 };
    let content = json!({
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": tombstone,
        },
        "events_default": 0,
        "invite": if room.preset == Preset::PublicChat { 50 } else { 0 },
        "kick": 50,
        "notifications": { "room": 50 },
        "redact": 50,
        "state_default": 50,
        "users": users,
        "users_default": 0,
    });
    let Value::Object(mut content) = content else { unreachable!("the literal above is an object") };
    content.extend(room.power_levels.clone());
    if privileged_creators {
        keep_upgrades_to_creators(&mut content);
    }
    content
}

/// Has the power to replace the room lie above the default for state, unless the creator decided on it, whose list of
/// events takes the place of the predefined one.
///
/// Spec: client-server API, `POST /_matrix/client/v3/createRoom`, "Room creation", step 3.
fn keep_upgrades_to_creators(power_levels: &mut Map<String, Value>) {
    let state_default = power_levels.get("state_default").and_then(Value::as_i64).unwrap_or(50);
    let events = power_levels.entry("events").or_insert_with(|| json!({}));
    if let Some(events) = events.as_object_mut() {
        let level = state_default.saturating_add(1).clamp(150, i64::from(js_int::Int::MAX));
        events.entry("m.room.tombstone").or_insert_with(|| level.into());
    }
}

fn preset_state(room: &NewRoom) -> Result<Vec<Draft>, NewRoomError> {
    let (join_rule, guest_access) = match room.preset {
        Preset::PublicChat => ("public", "forbidden"),
        Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
        Preset::Bare => return Ok(Vec::new()),
    };
    let defaults = [
        ("m.room.join_rules", json!({ "join_rule": join_rule })),
        ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
        ("m.room.guest_access", json!({ "guest_access": guest_access })),
    ];
    let is_overridden =
        |kind: &str| room.initial_state.iter().any(|event| event.kind == kind && event.state_key.is_empty());
    defaults
        .into_iter()
        .filter(|(kind, _)| !is_overridden(kind))
        .map(|(kind, content)| state(kind, "", &content))
        .collect()
}

fn initial_state(room: &NewRoom) -> impl Iterator<Item = Draft> + '_ {
    let replaced = |event: &InitialState| match event.kind.as_str() {
        // Overwritten by the request's own keys.
        "m.room.name" => room.name.is_some(),
        "m.room.topic" => room.topic.is_some(),
        _ => false,
    };
    room.initial_state.iter().filter(move |event| !(event.state_key.is_empty() && replaced(event))).map(
        |event| Draft {
            kind: event.kind.as_str().into(),
            state_key: Some(event.state_key.clone()),
            content: event.content.clone(),
            redacts: None,
            dated: None,
        },
    )
}

/// The content of an `m.room.topic` event, with its plain-text representation.
///
/// Spec: client-server API, "`m.room.topic`".
fn topic_content(topic: &str) -> Value {
    json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic, "mimetype": "text/plain" }] } })
}

fn state(kind: &str, state_key: &str, content: &Value) -> Result<Draft, NewRoomError> {
    let content =
        serde_json::value::to_raw_value(content).map_err(|error| NewRoomError::Invalid(error.to_string()))?;
    Ok(Draft {
        kind: kind.into(),
        state_key: Some(state_key.to_owned()),
        content,
        redacts: None,
        dated: None,
    })
}
