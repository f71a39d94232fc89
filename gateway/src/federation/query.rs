//! What other servers ask of this one: its aliases, public rooms, users' profiles, software.
//!
//! Spec: server-server API, "Querying for information", "Published Room Directory", "Server implementation".

use axum::{Json, extract::State};
use ruma::{OwnedRoomAliasId, OwnedUserId, UInt, directory::Filter};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::authentication::Signed;
use crate::{
    app::App,
    client::{directory, profile::public_fields},
    error::{ApiError, ApiResult},
};

/// `GET /_matrix/federation/v1/version`
pub async fn version() -> Json<Value> {
    Json(json!({ "server": { "name": "Ganglion", "version": env!("CARGO_PKG_VERSION") } }))
}

/// `GET /_matrix/federation/v1/query/directory`
pub async fn directory(State(app): State<App>, signed: Signed) -> ApiResult<Json<Value>> {
    let alias: OwnedRoomAliasId = signed.required("room_alias")?;
    if alias.server_name() != app.homeserver().server_name() {
        return Err(ApiError::not_found("the alias is another server's"));
    }
    let found = app.homeserver().find_alias(&alias).await?;
    let (room_id, servers) = found.ok_or_else(|| ApiError::not_found("room alias not found"))?;
    Ok(Json(json!({ "room_id": room_id, "servers": servers })))
}

/// `GET /_matrix/federation/v1/query/profile`
pub async fn profile(State(app): State<App>, signed: Signed) -> ApiResult<Json<Map<String, Value>>> {
    let user: OwnedUserId = signed.required("user_id")?;
    if user.server_name() != app.homeserver().server_name() {
        return Err(ApiError::not_found("the user is another server's"));
    }
    let mut fields = public_fields(&app, &user).await?;
    if let Some(field) = signed.value::<String>("field")? {
        fields.retain(|name, _| *name == field);
        if fields.is_empty() {
            return Err(ApiError::not_found("the profile does not have that field"));
        }
    }
    Ok(Json(fields))
}

/// `GET /_matrix/federation/v1/publicRooms`
pub async fn public_rooms(State(app): State<App>, signed: Signed) -> ApiResult<Json<directory::PublicRooms>> {
    let since = signed.value::<String>("since")?;
    let limit = signed.value::<UInt>("limit")?;
    let network = signed.value::<String>("third_party_instance_id")?;
    if is_elsewhere(signed.value("include_all_networks")?, network.as_deref()) {
        return Ok(Json(directory::PublicRooms::none()));
    }
    directory::page(&app, &Filter::default(), since.as_deref(), limit).await.map(Json)
}

/// Whether rooms of a third-party network alone are wanted: there are none.
fn is_elsewhere(all_networks: Option<bool>, network: Option<&str>) -> bool {
    !all_networks.unwrap_or(false) && network.is_some_and(|network| !network.is_empty())
}

/// What is searched for.
#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    filter: Filter,
    limit: Option<UInt>,
    since: Option<String>,
    include_all_networks: Option<bool>,
    third_party_instance_id: Option<String>,
}

/// `POST /_matrix/federation/v1/publicRooms`
pub async fn search_public_rooms(
    State(app): State<App>,
    signed: Signed,
) -> ApiResult<Json<directory::PublicRooms>> {
    let search: Search = signed.json()?;
    if is_elsewhere(search.include_all_networks, search.third_party_instance_id.as_deref()) {
        return Ok(Json(directory::PublicRooms::none()));
    }
    directory::page(&app, &search.filter, search.since.as_deref(), search.limit).await.map(Json)
}
