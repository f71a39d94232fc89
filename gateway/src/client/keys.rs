//! Keys of devices and users.
//!
//! Spec: client-server API, "Key management", "Cross-signing".

use std::{collections::BTreeMap, time::Duration};

use actors::{
    encryption::Viewpoint,
    session::{SessionChange, Upload, Wanted},
};
use axum::{Json, extract::State};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{account::require_password, sync::parse_since};
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Query, Requester, device_of},
    uia::{self, Refusal},
};

/// Users and devices in one request, at most.
const WANTED_MAX: usize = 10_000;

type Object = Map<String, Value>;

/// Reads a body as what the endpoint takes.
pub(super) fn parse<T: DeserializeOwned>(body: Object) -> ApiResult<T> {
    serde_json::from_value(Value::Object(body)).map_err(|error| ApiError::bad_json(error.to_string()))
}

/// Keys of a device, as clients upload them.
#[derive(Deserialize)]
pub(super) struct KeysBody {
    #[serde(rename = "device_keys")]
    device: Option<Value>,
    #[serde(rename = "one_time_keys")]
    one_time: Option<Object>,
    #[serde(rename = "fallback_keys", alias = "org.matrix.msc2732.fallback_keys")]
    fallback: Option<Object>,
}

impl KeysBody {
    pub(super) fn of(self, device_id: OwnedDeviceId) -> Upload {
        Upload {
            device_id: Some(device_id),
            device_keys: self.device,
            one_time_keys: self.one_time.unwrap_or_default(),
            fallback_keys: self.fallback.unwrap_or_default(),
        }
    }
}

/// `POST /_matrix/client/v3/keys/upload`
pub async fn upload(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let device_id = device_of(&requester)?;
    let upload = parse::<KeysBody>(body)?.of(device_id.clone());
    let session = app.homeserver().session(&requester.user_id).await?;
    session.change(SessionChange::UploadKeys(Box::new(upload))).await?;
    let counts = session.data().keys().one_time_counts(&device_id);
    Ok(Json(json!({ "one_time_key_counts": counts })))
}

/// How long other servers may take to give keys, unless the client says something else.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What clients may say, at most: a request of theirs would not wait longer either.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

fn wait_for(timeout_ms: Option<u64>) -> Duration {
    timeout_ms.map_or(TIMEOUT, |timeout_ms| Duration::from_millis(timeout_ms).min(TIMEOUT_MAX))
}

#[derive(Deserialize)]
struct QueryBody {
    device_keys: WantedDevices,
    timeout: Option<u64>,
}

/// Devices by user; all of them where none is named.
pub(crate) type WantedDevices = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// `POST /_matrix/client/v3/keys/query`
pub async fn query(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let QueryBody { device_keys, timeout } = parse(body)?;
    check_number(device_keys.len())?;
    let viewpoint = Viewpoint::User(&requester.user_id);
    let mut found = app.homeserver().query_keys(viewpoint, device_keys, wait_for(timeout)).await?;
    let mut crossing = |kind| found.cross_signing.remove(kind).unwrap_or_default();
    Ok(Json(json!({
        "master_keys": crossing("master"),
        "self_signing_keys": crossing("self_signing"),
        "user_signing_keys": crossing("user_signing"),
        "device_keys": found.device_keys,
        "failures": found.failures,
    })))
}

#[derive(Deserialize)]
struct ClaimBody {
    one_time_keys: BTreeMap<OwnedUserId, Wanted>,
    timeout: Option<u64>,
}

/// `POST /_matrix/client/v3/keys/claim`
pub async fn claim(State(app): State<App>, _: Requester, JsonBody(body): JsonBody) -> ApiResult<Json<Value>> {
    let ClaimBody { one_time_keys, timeout } = parse(body)?;
    check_number(one_time_keys.values().map(|devices| devices.len().max(1)).sum())?;
    let (claimed, failures) = app.homeserver().claim_keys(one_time_keys, wait_for(timeout)).await?;
    Ok(Json(json!({ "one_time_keys": claimed, "failures": failures })))
}

/// Checks how many keys one request asks for.
pub(crate) fn check_number(wanted: usize) -> ApiResult<()> {
    if wanted <= WANTED_MAX { Ok(()) } else { Err(ApiError::invalid_param("too many keys for one request")) }
}

/// What `/keys/changes` is asked.
#[derive(Deserialize)]
pub struct ChangesQuery {
    from: Option<String>,
    to: Option<String>,
}

/// `GET /_matrix/client/v3/keys/changes`
pub async fn changes(
    State(app): State<App>,
    requester: Requester,
    Query(query): Query<ChangesQuery>,
) -> ApiResult<Json<Value>> {
    let missing = |name: &str| ApiError::missing_param(format!("{name} is missing"));
    let (from, _) = parse_since(&query.from.ok_or_else(|| missing("from"))?)?;
    let (to, _) = parse_since(&query.to.ok_or_else(|| missing("to"))?)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let lists = app.homeserver().device_list_changes(&session, from, to).await?;
    Ok(Json(json!(lists)))
}

#[derive(Deserialize)]
struct DeviceSigningBody {
    #[serde(rename = "master_key")]
    master: Option<Value>,
    #[serde(rename = "self_signing_key")]
    self_signing: Option<Value>,
    #[serde(rename = "user_signing_key")]
    user_signing: Option<Value>,
}

/// `POST /_matrix/client/v3/keys/device_signing/upload`
pub async fn device_signing_upload(
    State(app): State<App>,
    requester: Requester,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, Refusal> {
    let auth = uia::take_auth(&mut body)?;
    let body: DeviceSigningBody = parse(body)?;
    let keys =
        [("master", body.master), ("self_signing", body.self_signing), ("user_signing", body.user_signing)];
    let keys: BTreeMap<_, _> =
        keys.into_iter().filter_map(|(kind, key)| Some((kind.to_owned(), key?))).collect();
    let session = app.homeserver().session(&requester.user_id).await?;
    if session.check_cross_signing(&keys)? {
        require_password(&app, &requester, auth.as_ref(), "device_signing").await?;
    }
    session.set_cross_signing(keys).await?;
    Ok(Json(json!({})))
}

/// `POST /_matrix/client/v3/keys/signatures/upload`
pub async fn signatures_upload(
    State(app): State<App>,
    requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let failures = app.homeserver().upload_signatures(&requester.user_id, parse(body)?).await?;
    Ok(Json(json!({ "failures": failures })))
}
