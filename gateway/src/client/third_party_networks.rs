//! Third-party networks, as far as application services know them.
//!
//! Spec: client-server API, "Third-party Networks"; application service API, "Published room directories".

use std::collections::BTreeMap;

use actors::appservice::{ThirdParty, instance_id};
use axum::{
    Json,
    extract::{RawQuery, State},
};
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use super::directory::is_public;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Requester, form_value},
};

/// Parameters of a query that are this server's business.
const OWN_PARAMETERS: [&str; 4] = ["access_token", "user_id", "device_id", "org.matrix.msc3202.device_id"];

/// `GET /_matrix/client/v3/thirdparty/protocols`
pub async fn protocols(State(app): State<App>, _requester: Requester) -> Json<BTreeMap<String, Value>> {
    Json(app.homeserver().third_party_protocols(None).await)
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`
pub async fn protocol(
    State(app): State<App>,
    _requester: Requester,
    Path(name): Path<String>,
) -> ApiResult<Json<Value>> {
    let found = app.homeserver().third_party_protocols(Some(&name)).await.remove(&name);
    let missing = || ApiError::not_found("no network of this server speaks this protocol");
    found.map(Json).ok_or_else(missing)
}

/// `GET /_matrix/client/v3/thirdparty/location/{protocol}`
pub async fn locations(
    State(app): State<App>,
    _requester: Requester,
    Path(protocol): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<Vec<Value>>> {
    find(&app, ThirdParty::Location, Some(&protocol), query).await
}

/// `GET /_matrix/client/v3/thirdparty/user/{protocol}`
pub async fn users(
    State(app): State<App>,
    _requester: Requester,
    Path(protocol): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<Vec<Value>>> {
    find(&app, ThirdParty::User, Some(&protocol), query).await
}

/// `GET /_matrix/client/v3/thirdparty/location`
pub async fn locations_of_alias(
    State(app): State<App>,
    _requester: Requester,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<Vec<Value>>> {
    require(query.as_deref(), "alias")?;
    find(&app, ThirdParty::Location, None, query).await
}

/// `GET /_matrix/client/v3/thirdparty/user`
pub async fn users_of_id(
    State(app): State<App>,
    _requester: Requester,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<Vec<Value>>> {
    require(query.as_deref(), "userid")?;
    find(&app, ThirdParty::User, None, query).await
}

async fn find(
    app: &App,
    what: ThirdParty,
    protocol: Option<&str>,
    query: Option<String>,
) -> ApiResult<Json<Vec<Value>>> {
    let found = app.homeserver().third_party(what, protocol, &passed_on(query.as_deref())?).await;
    match (found.is_empty(), what) {
        (false, _) => Ok(Json(found)),
        (true, ThirdParty::Location) => Err(ApiError::not_found("no portal rooms were found")),
        (true, ThirdParty::User) => Err(ApiError::not_found("no users were found")),
    }
}

/// What of a query is for the services: the token above all is not.
fn passed_on(query: Option<&str>) -> ApiResult<String> {
    let invalid = |_| ApiError::invalid_param("the query cannot be read");
    let mut pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query.unwrap_or_default()).map_err(invalid)?;
    pairs.retain(|(name, _)| !OWN_PARAMETERS.contains(&name.as_str()));
    serde_urlencoded::to_string(&pairs).map_err(|error| ApiError::internal(&error))
}

fn require(query: Option<&str>, name: &str) -> ApiResult<String> {
    let value = form_value(query.unwrap_or_default(), name);
    value.ok_or_else(|| ApiError::missing_param(format!("{name} is missing")))
}

/// `PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}`
///
/// Only application services may do this.
pub async fn list_for_network(
    State(app): State<App>,
    requester: Requester,
    Path((network, room_id)): Path<(String, OwnedRoomId)>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let Some(service) = &requester.service else {
        return Err(ApiError::forbidden("only application services may list rooms of their networks"));
    };
    let visibility = body.get("visibility").and_then(Value::as_str);
    let visibility = visibility.ok_or_else(|| ApiError::bad_json("visibility is public or private"))?;
    let is_public = is_public(&visibility.into())?;
    app.homeserver().list_for_network(&instance_id(service, &network), &room_id, is_public).await?;
    Ok(Json(json!({})))
}
