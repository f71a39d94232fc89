//! Devices and keys of local users, for other servers.
//!
//! Spec: server-server API, "Device Management", "End-to-End Encryption".

use std::{collections::BTreeMap, time::Duration};

use actors::{
    encryption::Viewpoint,
    federation::OwnDevices,
    session::{Claimed, Wanted},
};
use axum::{Json, extract::State};
use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::authentication::Signed;
use crate::{
    app::App,
    client::keys::{WantedDevices, check_number},
    error::ApiResult,
    extract::Path,
};

/// `GET /_matrix/federation/v1/user/devices/{userId}`
pub async fn devices(
    State(app): State<App>,
    Path(user_id): Path<OwnedUserId>,
    signed: Signed,
) -> ApiResult<Json<OwnDevices>> {
    app.homeserver().asked_for_devices(&signed.origin, [&user_id]).await?;
    Ok(Json(app.homeserver().own_devices(&user_id).await?))
}

#[derive(Deserialize)]
struct Query {
    device_keys: WantedDevices,
}

/// `POST /_matrix/federation/v1/user/keys/query`
pub async fn query(State(app): State<App>, signed: Signed) -> ApiResult<Json<Value>> {
    let Query { device_keys } = signed.json()?;
    check_number(device_keys.len())?;
    app.homeserver().asked_for_devices(&signed.origin, device_keys.keys()).await?;
    let mut found = app.homeserver().query_keys(Viewpoint::Server, device_keys, Duration::ZERO).await?;
    Ok(Json(json!({
        "device_keys": found.device_keys,
        "master_keys": found.cross_signing.remove("master").unwrap_or_default(),
        "self_signing_keys": found.cross_signing.remove("self_signing").unwrap_or_default(),
    })))
}

/// Which keys are claimed.
#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<OwnedUserId, Wanted>,
}

/// Claimed keys.
#[derive(Serialize)]
pub struct ClaimedKeys {
    one_time_keys: BTreeMap<OwnedUserId, Claimed>,
}

/// `POST /_matrix/federation/v1/user/keys/claim`
pub async fn claim(State(app): State<App>, signed: Signed) -> ApiResult<Json<ClaimedKeys>> {
    let Claim { one_time_keys } = signed.json()?;
    check_number(one_time_keys.values().map(|devices| devices.len().max(1)).sum())?;
    let one_time_keys = app.homeserver().claim_own_keys(one_time_keys).await?;
    Ok(Json(ClaimedKeys { one_time_keys }))
}
