//! A user's devices.
//!
//! Spec: client-server API, "Device Management".

use axum::extract::State;
use ruma::{
    DeviceId,
    api::client::device::{Device, delete_device, delete_devices, get_device, get_devices, update_device},
};

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
) -> ApiResult<Matrix<get_devices::v3::Response>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let devices = data.devices().map(|(id, record)| device(id, record)).collect();
    Ok(Matrix(get_devices::v3::Response::new(devices)))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
pub async fn get_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_device::v3::Request>,
) -> ApiResult<Matrix<get_device::v3::Response>> {
    let data = app.homeserver().session(&requester.user_id).await?.data();
    let record = data.device(&request.device_id).ok_or_else(|| ApiError::not_found("device not found"))?;
    Ok(Matrix(get_device::v3::Response::new(device(&request.device_id, record))))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
pub async fn update_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<update_device::v3::Request>,
) -> ApiResult<Matrix<update_device::v3::Response>> {
    let session = app.homeserver().session(&requester.user_id).await?;
    match request.display_name {
        Some(name) => session.rename_device(request.device_id, Some(name)).await?,
        // Without a name the request changes nothing, but the device has to exist.
        None if session.data().device(&request.device_id).is_some() => {}
        None => return Err(ApiError::not_found("device not found")),
    }
    Ok(Matrix(update_device::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
pub async fn delete_device(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_device::v3::Request>,
) -> Result<Matrix<delete_device::v3::Response>, Refusal> {
    require_password(&app, &requester.user_id, request.auth.as_ref(), "delete_device").await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_devices(vec![request.device_id]).await?;
    Ok(Matrix(delete_device::v3::Response::new()))
}

/// `POST /_matrix/client/v3/delete_devices`
pub async fn delete_devices(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<delete_devices::v3::Request>,
) -> Result<Matrix<delete_devices::v3::Response>, Refusal> {
    require_password(&app, &requester.user_id, request.auth.as_ref(), "delete_devices").await?;
    let session = app.homeserver().session(&requester.user_id).await?;
    session.delete_devices(request.devices).await?;
    Ok(Matrix(delete_devices::v3::Response::new()))
}

fn device(id: &DeviceId, record: &actors::session::DeviceRecord) -> Device {
    let mut device = Device::new(id.to_owned());
    device.display_name.clone_from(&record.display_name);
    device.last_seen_ip.clone_from(&record.last_seen_ip);
    device.last_seen_ts = record.last_seen;
    device
}
