//! Backups of room keys.
//!
//! Spec: client-server API, "Server-side key backups".

use std::collections::BTreeMap;

use actors::session::{BackupKeys, BackupPlace, SessionChange, room_keys};
use axum::{Json, extract::State};
use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage::schema::BackupRecord;

use super::keys::parse;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Query, Requester},
};

#[derive(Deserialize)]
struct VersionBody {
    algorithm: String,
    auth_data: Map<String, Value>,
    version: Option<String>,
}

/// The number of a version; what is no number is no version.
fn number(version: &str) -> ApiResult<u64> {
    version.parse().map_err(|_| ApiError::not_found("there is no such key backup"))
}

fn bytes(auth_data: &Map<String, Value>) -> ApiResult<Vec<u8>> {
    serde_json::to_vec(auth_data).map_err(|error| ApiError::internal(&error))
}

/// `POST /_matrix/client/v3/room_keys/version`
pub async fn create_version(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let VersionBody { algorithm, auth_data, .. } = parse(body)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let version = session.create_backup(algorithm, bytes(&auth_data)?.into()).await?;
    Ok(Json(json!({ "version": version.to_string() })))
}

/// `GET /_matrix/client/v3/room_keys/version`
pub async fn latest_version(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    info(&app, &requester, None).await
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`
pub async fn get_version(
    State(app): State<App>,
    Path(version): Path<String>,
    requester: Requester,
) -> ApiResult<Json<Value>> {
    info(&app, &requester, Some(number(&version)?)).await
}

async fn info(app: &App, requester: &Requester, version: Option<u64>) -> ApiResult<Json<Value>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let (version, record) = session.backup(version)?;
    let auth_data: Value =
        serde_json::from_slice(&record.auth_data).map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({
        "algorithm": record.algorithm,
        "auth_data": auth_data,
        "count": record.count,
        "etag": record.etag.to_string(),
        "version": version.to_string(),
    })))
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`
pub async fn update_version(
    State(app): State<App>,
    Path(version): Path<String>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let body: VersionBody = parse(body)?;
    if body.version.is_some_and(|named| named != version) {
        return Err(ApiError::invalid_param("the versions in path and body differ"));
    }
    let session = app.homeserver().session(&requester.user_id).await?;
    let auth_data = bytes(&body.auth_data)?.into();
    session.change(SessionChange::UpdateBackup(number(&version)?, body.algorithm, auth_data)).await?;
    Ok(Json(json!({})))
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`
pub async fn delete_version(
    State(app): State<App>,
    Path(version): Path<String>,
    requester: Requester,
) -> ApiResult<Json<Value>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_backup(number(&version)?).await?;
    Ok(Json(json!({})))
}

/// Which version a request for keys is about.
#[derive(Deserialize)]
pub struct VersionQuery {
    version: Option<String>,
}

impl VersionQuery {
    fn number(&self) -> ApiResult<u64> {
        number(self.version.as_deref().ok_or_else(|| ApiError::missing_param("version is missing"))?)
    }
}

/// The rest of the path of a request for keys: nothing, a room, or a room and a session.
type Place = Path<BTreeMap<String, String>>;

fn place(parts: &BTreeMap<String, String>) -> ApiResult<BackupPlace> {
    let Some(room_id) = parts.get("room") else { return Ok(None) };
    let room_id =
        OwnedRoomId::try_from(room_id.as_str()).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    Ok(Some((room_id, parts.get("session").cloned())))
}

#[derive(Deserialize)]
struct Sessions {
    sessions: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Rooms {
    rooms: BTreeMap<OwnedRoomId, Sessions>,
}

/// Keys as the body of a request for this place holds them.
fn keys_of(place: BackupPlace, body: Map<String, Value>) -> ApiResult<BackupKeys> {
    let keys: BackupKeys = match place {
        None => parse::<Rooms>(body)?.rooms.into_iter().map(|(id, room)| (id, room.sessions)).collect(),
        Some((room_id, None)) => BackupKeys::from([(room_id, parse::<Sessions>(body)?.sessions)]),
        Some((room_id, Some(session))) => {
            BackupKeys::from([(room_id, BTreeMap::from([(session, Value::Object(body))]))])
        }
    };
    let is_key = |key: &Value| {
        key["first_message_index"].is_u64()
            && key["forwarded_count"].is_u64()
            && key["is_verified"].is_boolean()
            && key["session_data"].is_object()
    };
    if keys.values().flat_map(BTreeMap::values).all(is_key) {
        Ok(keys)
    } else {
        Err(ApiError::bad_json("not the keys of a backup"))
    }
}

fn changed(record: &BackupRecord) -> Json<Value> {
    Json(json!({ "count": record.count, "etag": record.etag.to_string() }))
}

/// `PUT /_matrix/client/v3/room_keys/keys`, `…/{roomId}`, `…/{roomId}/{sessionId}`
pub async fn put_keys(
    State(app): State<App>,
    Path(parts): Place,
    Query(query): Query<VersionQuery>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let keys = keys_of(place(&parts)?, body)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    Ok(changed(&session.put_backup_keys(query.number()?, keys).await?))
}

/// `GET /_matrix/client/v3/room_keys/keys`, `…/{roomId}`, `…/{roomId}/{sessionId}`
pub async fn get_keys(
    State(app): State<App>,
    Path(parts): Place,
    Query(query): Query<VersionQuery>,
    requester: Requester,
) -> ApiResult<Json<Value>> {
    let place = place(&parts)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let keys = session.backup_keys(query.number()?, &place).await?;
    match place {
        None => {
            let rooms: Map<_, _> = keys
                .into_iter()
                .map(|(room_id, sessions)| (room_id.to_string(), json!({ "sessions": sessions })))
                .collect();
            Ok(Json(json!({ "rooms": rooms })))
        }
        Some((room_id, None)) => Ok(Json(json!({ "sessions": room_keys(&keys, &room_id) }))),
        Some((room_id, Some(session_id))) => {
            let key = room_keys(&keys, &room_id).remove(&session_id);
            key.map(Json).ok_or_else(|| ApiError::not_found("there is no such key in the backup"))
        }
    }
}

/// `DELETE /_matrix/client/v3/room_keys/keys`, `…/{roomId}`, `…/{roomId}/{sessionId}`
pub async fn delete_keys(
    State(app): State<App>,
    Path(parts): Place,
    Query(query): Query<VersionQuery>,
    requester: Requester,
) -> ApiResult<Json<Value>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    Ok(changed(&session.delete_backup_keys(query.number()?, place(&parts)?).await?))
}
