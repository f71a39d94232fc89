//! Third-party networks, of which there are none without application services.
//!
//! Spec: client-server API, "Third-party Networks"; application service API, "Application service room directories".

use axum::{Json, extract::RawQuery};
use serde_json::{Value, json};

use crate::{
    error::{ApiError, ApiResult},
    extract::{Path, Requester, form_value},
};

/// `GET /_matrix/client/v3/thirdparty/protocols`
pub async fn protocols(_requester: Requester) -> Json<Value> {
    Json(json!({}))
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`
pub async fn protocol(_requester: Requester, Path(_): Path<String>) -> ApiError {
    ApiError::not_found("no network of this server speaks this protocol")
}

/// `GET /_matrix/client/v3/thirdparty/location/{protocol}`
pub async fn locations(_requester: Requester, Path(_): Path<String>) -> ApiError {
    ApiError::not_found("no portal rooms were found")
}

/// `GET /_matrix/client/v3/thirdparty/user/{protocol}`
pub async fn users(_requester: Requester, Path(_): Path<String>) -> ApiError {
    ApiError::not_found("no users were found")
}

/// `GET /_matrix/client/v3/thirdparty/location`
pub async fn locations_of_alias(_requester: Requester, RawQuery(query): RawQuery) -> ApiResult<()> {
    require(query, "alias")?;
    Err(ApiError::not_found("no third-party location has this alias"))
}

/// `GET /_matrix/client/v3/thirdparty/user`
pub async fn users_of_id(_requester: Requester, RawQuery(query): RawQuery) -> ApiResult<()> {
    require(query, "userid")?;
    Err(ApiError::not_found("no third-party user has this user ID"))
}

fn require(query: Option<String>, name: &str) -> ApiResult<String> {
    let value = form_value(&query.unwrap_or_default(), name);
    value.ok_or_else(|| ApiError::missing_param(format!("{name} is missing")))
}

/// `PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}`
///
/// Only application services may do this.
pub async fn list_for_network(_requester: Requester, Path(_): Path<(String, String)>) -> ApiError {
    ApiError::forbidden("only application services may list rooms of their networks")
}
