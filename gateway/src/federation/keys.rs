//! This server's keys, and those of others that it vouches for.
//!
//! Spec: server-server API, "Retrieving server keys".

use axum::{Json, extract::State};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, canonical_json, signatures::sign_json};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// How long others may believe this server's keys without asking again.
const VALID_FOR_MS: u64 = 24 * 3600 * 1000;

/// `GET /_matrix/key/v2/server`
pub async fn server(State(app): State<App>) -> ApiResult<Json<Value>> {
    own_keys(&app).map(Json)
}

fn own_keys(app: &App) -> ApiResult<Value> {
    let homeserver = app.homeserver();
    let key = homeserver.signing_key();
    let keys = json!({
        "server_name": homeserver.server_name(),
        "valid_until_ts": homeserver.env().clock.now_ms() + VALID_FOR_MS,
        "verify_keys": { key.id(): { "key": key.public_key() } },
        "old_verify_keys": {},
    });
    sign(app, keys)
}

fn sign(app: &App, document: Value) -> ApiResult<Value> {
    let homeserver = app.homeserver();
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(error);
    let mut object: CanonicalJsonObject = match canonical_json::try_from_json_map(match document {
        Value::Object(object) => object,
        _ => return Err(ApiError::bad_json("not an object")),
    }) {
        Ok(object) => object,
        Err(error) => return Err(internal(&error)),
    };
    sign_json(homeserver.server_name().as_str(), homeserver.signing_key(), &mut object)
        .map_err(|error| internal(&error))?;
    Ok(CanonicalJsonValue::Object(object).into())
}
