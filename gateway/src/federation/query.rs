//! What other servers ask of this one: its aliases, public rooms, users' profiles, software.
//!
//! Spec: server-server API, "Querying for information", "Published Room Directory", "Server implementation".

use actors::aliases::PublicRoom;
use axum::{Json, extract::State};
use ruma::{
    OwnedRoomAliasId, OwnedUserId, UInt,
    directory::{Filter, RoomNetwork},
};
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
    let network = signed.value("third_party_instance_id")?.filter(|network: &String| !network.is_empty());
    let network = match (signed.value("include_all_networks")?, network) {
        (Some(true), None) => RoomNetwork::All,
        (Some(true), Some(_)) => {
            return Err(ApiError::invalid_param(
                "include_all_networks and third_party_instance_id exclude each other",
            ));
        }
        (_, Some(network)) => RoomNetwork::ThirdParty(network),
        (_, None) => RoomNetwork::Matrix,
    };
    let search = Search { filter: Filter::default(), limit, since, network };
    search.answer(&app).await.map(Json)
}

/// What is searched for.
#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    filter: Filter,
    limit: Option<UInt>,
    since: Option<String>,
    #[serde(flatten)]
    network: RoomNetwork,
}

impl Search {
    async fn answer(&self, app: &App) -> ApiResult<directory::PublicRooms> {
        let network = directory::network(&self.network)?;
        // What is closed to the asking server's users is of no use to them, and none of their business.
        let wanted = |room: &PublicRoom| room.federates() && directory::passes(&self.filter, room);
        directory::page(app, &network, wanted, self.since.as_deref(), self.limit).await
    }
}

/// `POST /_matrix/federation/v1/publicRooms`
pub async fn search_public_rooms(
    State(app): State<App>,
    signed: Signed,
) -> ApiResult<Json<directory::PublicRooms>> {
    signed.json::<Search>()?.answer(&app).await.map(Json)
}
