//! Creating and upgrading rooms.
//!
//! Spec: client-server API, "Creation" and "Room upgrades".

use actors::{
    homeserver::Homeserver,
    room::{MembershipChange, RoomError},
};
use axum::extract::State;
use engine::room::create::{InitialState, NewRoom, Preset};
use ruma::{
    OwnedRoomAliasId, OwnedUserId, RoomAliasId, UserId,
    api::client::room::{
        create_room::{self, v3::RoomPreset},
        upgrade_room,
    },
    serde::Raw,
};
use serde_json::{Map, Value};

use super::{
    directory::{check_namespace, is_public},
    events::{aliases_of, bad_alias},
};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix, NamesVersion, Versioned},
};

/// Users that one request may invite; more would hold up the room's creation.
const INVITES_MAX: usize = 200;

impl NamesVersion for create_room::v3::Request {
    const FIELD: &'static str = "room_version";
}

impl NamesVersion for upgrade_room::v3::Request {
    const FIELD: &'static str = "new_version";
}

/// `POST /_matrix/client/v3/createRoom`
pub async fn create_room(
    State(app): State<App>,
    Versioned(Authenticated { requester, request }): Versioned<create_room::v3::Request>,
) -> ApiResult<Matrix<create_room::v3::Response>> {
    if !request.invite_3pid.is_empty() {
        return Err(ApiError::bad_request(
            "M_UNKNOWN",
            "this server has no identity server to invite third-party identifiers with",
        ));
    }
    if request.invite.len() > INVITES_MAX {
        return Err(ApiError::invalid_param(format!("a new room may have at most {INVITES_MAX} invites")));
    }
    let homeserver = app.homeserver();
    if let Some(name) = &request.room_alias_name {
        check_namespace(&app, &requester, &local_alias(homeserver, name)?)?;
    }
    let is_direct = request.is_direct;
    let is_public = is_public(&request.visibility)?;
    let new = new_room(homeserver, &requester.user_id, request, is_public).await?;
    let invites = invites(homeserver, &new, is_direct).await?;
    let room_id = homeserver.create_room(new, invites, is_public).await.map_err(|error| match error {
        // The request asks for events that the rules do not allow in a new room.
        RoomError::Forbidden(failure) => ApiError::bad_request("M_INVALID_ROOM_STATE", failure.to_string()),
        error => error.into(),
    })?;
    Ok(Matrix(create_room::v3::Response::new(room_id)))
}

async fn new_room(
    homeserver: &Homeserver,
    creator: &UserId,
    request: create_room::v3::Request,
    is_public: bool,
) -> ApiResult<NewRoom> {
    let preset = match request.preset {
        None if is_public => Preset::PublicChat,
        None | Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(_) => return Err(ApiError::bad_json("there is no such preset")),
    };
    let alias = request.room_alias_name.map(|name| local_alias(homeserver, &name)).transpose()?;
    let initial_state = request
        .initial_state
        .iter()
        .map(|event| initial_state(event.json().get()))
        .collect::<ApiResult<Vec<_>>>()?;
    for event in initial_state.iter().filter(|event| event.kind == "m.room.canonical_alias") {
        // No alias leads to a room that is yet to be, but for the one that is made with it.
        let stray = aliases_of(&event.content)?.into_iter().find(|named| Some(named) != alias.as_ref());
        if let Some(stray) = stray {
            return Err(bad_alias(&stray));
        }
    }
    Ok(NewRoom {
        version: request.room_version.unwrap_or_else(|| homeserver.default_room_version().clone()),
        creator: creator.to_owned(),
        creator_profile: homeserver.member_content(creator).await?,
        preset,
        creation_content: object(request.creation_content.as_ref())?,
        power_levels: object(request.power_level_content_override.as_ref())?,
        alias,
        initial_state,
        name: request.name.filter(|name| !name.is_empty()),
        topic: request.topic,
        invite: request.invite,
    })
}

fn local_alias(homeserver: &Homeserver, name: &str) -> ApiResult<OwnedRoomAliasId> {
    let invalid = || ApiError::invalid_param("room_alias_name is not the local part of an alias");
    if name.is_empty() || name.contains([':', '#', '\0']) {
        return Err(invalid());
    }
    RoomAliasId::parse(format!("#{name}:{}", homeserver.server_name())).map_err(|_| invalid())
}

fn object<T>(raw: Option<&Raw<T>>) -> ApiResult<Map<String, Value>> {
    let parse = |raw: &Raw<T>| serde_json::from_str(raw.json().get());
    raw.map_or(Ok(Map::new()), parse).map_err(|error| ApiError::bad_json(error.to_string()))
}

fn initial_state(json: &str) -> ApiResult<InitialState> {
    #[derive(serde::Deserialize)]
    struct Wire {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        state_key: String,
        content: Box<serde_json::value::RawValue>,
    }
    let Wire { kind, state_key, content } =
        serde_json::from_str(json).map_err(|error| ApiError::bad_json(error.to_string()))?;
    Ok(InitialState { kind, state_key, content })
}

async fn invites(
    homeserver: &Homeserver,
    new: &NewRoom,
    is_direct: bool,
) -> ApiResult<Vec<MembershipChange>> {
    let mut invites = Vec::with_capacity(new.invite.len());
    for target in &new.invite {
        let mut content = homeserver.member_content(target).await?;
        if is_direct {
            content.insert("is_direct".to_owned(), true.into());
        }
        invites.push(Homeserver::invite(new.creator.clone(), target.clone(), content));
    }
    Ok(invites)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`
pub async fn upgrade_room(
    State(app): State<App>,
    Versioned(Authenticated { requester, request }): Versioned<upgrade_room::v3::Request>,
) -> ApiResult<Matrix<upgrade_room::v3::Response>> {
    let creators: Vec<OwnedUserId> = request.additional_creators;
    let room_id = app
        .homeserver()
        .upgrade_room(&requester.user_id, &request.room_id, request.new_version, creators)
        .await?;
    Ok(Matrix(upgrade_room::v3::Response::new(room_id)))
}
