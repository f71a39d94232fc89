//! Filters that clients upload once and name by ID.
//!
//! Spec: client-server API, "Filtering".

use axum::{Json, extract::State};
use ruma::{
    OwnedUserId,
    api::client::filter::{EventFormat, FilterDefinition, create_filter, get_filter},
};
use serde_json::{Value, value::RawValue};

use super::profile::own;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Authenticated, JsonBody, Matrix, Path, Requester},
};

/// `POST /_matrix/client/v3/user/{userId}/filter`
pub async fn create_filter(
    State(app): State<App>,
    requester: Requester,
    Path(user_id): Path<OwnedUserId>,
    JsonBody(filter): JsonBody,
) -> ApiResult<Matrix<create_filter::v3::Response>> {
    own(user_id.as_str(), &requester)?;
    let known: FilterDefinition = serde_json::from_value(Value::Object(filter.clone()))
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    check(&known).map_err(ApiError::bad_json)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let filter_id = session.add_filter(filter).await?;
    Ok(Matrix(create_filter::v3::Response::new(filter_id)))
}

/// Refuses a form of events that the specification does not know.
pub(super) fn check(filter: &FilterDefinition) -> Result<(), &'static str> {
    match filter.event_format {
        EventFormat::Client | EventFormat::Federation => Ok(()),
        _ => Err("event_format is client or federation"),
    }
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`
pub async fn get_filter(
    State(app): State<App>,
    Authenticated { requester, request }: Authenticated<get_filter::v3::Request>,
) -> ApiResult<Json<Box<RawValue>>> {
    own(request.user_id.as_str(), &requester)?;
    let session = app.homeserver().session(&requester.user_id).await?;
    let filter = session.filter_as_uploaded(&request.filter_id).await?;
    filter.map(Json).ok_or_else(|| ApiError::not_found("there is no such filter"))
}
