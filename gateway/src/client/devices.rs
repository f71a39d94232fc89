//! A user's devices.
//!
//! Spec: client-server API, "Device Management".

use actors::session::SessionChange;
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use ruma::{
    DeviceId,
    api::client::device::{delete_device, delete_devices, get_device, get_devices, update_device},
};
use serde_json::{Map, Value, json};

use super::account::require_password;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, Matrix},
    uia::Refusal,
};

/// `GET /_matrix/client/v3/devices`
pub async fn get_devices(
    State(app): State<App>,
    Authenticated { requester, .. }: Authenticated<get_devices::v3::Request>,
) -> ApiResult<Json<Value>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let devices: Vec<_> = data.devices().map(|(id, record)| device(id, record)).collect();
    Ok(Json(json!({ "devices": devices })))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
pub async fn get_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_device::v3::Request>,
) -> ApiResult<Json<Map<String, Value>>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let record = data.device(&request.device_id).ok_or_else(|| ApiError::not_found("device not found"))?;
    Ok(Json(device(&request.device_id, record)))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
///
/// An application service makes devices so: application service API, "Creating devices".
pub async fn update_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<update_device::v3::Request>,
) -> ApiResult<Response> {
    let session = app.homeserver().session(&requester.user_id).await?;
    let is_known = session.data().device(&request.device_id).is_some();
    if requester.service.is_some() && !is_known {
        session.change(SessionChange::PutDevice(request.device_id, request.display_name)).await?;
        return Ok((StatusCode::CREATED, Json(json!({}))).into_response());
    }
    match request.display_name {
        Some(name) => session.rename_device(request.device_id, Some(name)).await?,
        // Without a name the request changes nothing, but the device has to exist.
        None if is_known => {}
        None => return Err(ApiError::not_found("device not found")),
    }
    Ok(Matrix(update_device::v3::Response::new()).into_response())
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
pub async fn delete_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_device::v3::Request>,
) -> Result<Matrix<delete_device::v3::Response>, Refusal> {
    require_password(&app, &requester, request.auth.as_ref(), "delete_device").await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_devices(vec![request.device_id]).await?;
    Ok(Matrix(delete_device::v3::Response::new()))
}

/// `POST /_matrix/client/v3/delete_devices`
pub async fn delete_devices(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_devices::v3::Request>,
) -> Result<Matrix<delete_devices::v3::Response>, Refusal> {
    require_password(&app, &requester, request.auth.as_ref(), "delete_devices").await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_devices(request.devices).await?;
    Ok(Matrix(delete_devices::v3::Response::new()))
}

/// What is known of a device; what is not is left out, where ruma's type has `null`.
fn device(id: &DeviceId, record: &actors::session::DeviceRecord) -> Map<String, Value> {
    let known = [
        ("device_id", Some(json!(id))),
        ("display_name", record.display_name.as_ref().map(|name| json!(name))),
        ("last_seen_ip", record.last_seen_ip.as_ref().map(|ip| json!(ip))),
        ("last_seen_ts", record.last_seen.map(|at| json!(at))),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
