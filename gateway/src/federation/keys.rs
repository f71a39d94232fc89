//! This server's keys, and those of others that it vouches for.
//!
//! Spec: server-server API, "Retrieving server keys".

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{RawQuery, State},
};
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{Anybody, OpenBody, Path, form_value},
};

/// Servers that one question may name: each may mean a request to it.
const SERVERS_MAX: usize = 100;

/// `GET /_matrix/key/v2/server`
pub async fn server(State(app): State<App>) -> Json<CanonicalJsonObject> {
    Json(app.homeserver().own_keys())
}

/// Keys as notaries return them.
#[derive(Serialize)]
pub struct Notarised {
    server_keys: Vec<CanonicalJsonObject>,
}

#[derive(Deserialize)]
struct Query {
    server_keys: BTreeMap<OwnedServerName, BTreeMap<String, Criteria>>,
}

#[derive(Deserialize)]
struct Criteria {
    minimum_valid_until_ts: Option<u64>,
}

/// `GET /_matrix/key/v2/query/{serverName}`
pub async fn query(
    State(app): State<App>,
    Path(server): Path<String>,
    RawQuery(query): RawQuery,
    _: Anybody,
) -> ApiResult<Json<Notarised>> {
    let server = ServerName::parse(server).map_err(|_| ApiError::invalid_param("invalid serverName"))?;
    let minimum = form_value(&query.unwrap_or_default(), "minimum_valid_until_ts");
    let minimum = minimum
        .map(|minimum| minimum.parse().map_err(|_| ApiError::invalid_param("invalid minimum_valid_until_ts")))
        .transpose()?;
    answer(&app, BTreeMap::from([(server, minimum)])).await
}

/// `POST /_matrix/key/v2/query`
pub async fn query_many(State(app): State<App>, OpenBody(body): OpenBody) -> ApiResult<Json<Notarised>> {
    let query: Query = serde_json::from_value(body.into())
        .map_err(|error| ApiError::bad_json(format!("not a query for keys: {error}")))?;
    // Keys come by server, all that it has.
    let latest = |keys: BTreeMap<String, Criteria>| {
        keys.into_values().filter_map(|criteria| criteria.minimum_valid_until_ts).max()
    };
    let wanted = query.server_keys.into_iter().map(|(server, keys)| (server, latest(keys))).collect();
    answer(&app, wanted).await
}

async fn answer(app: &App, wanted: BTreeMap<OwnedServerName, Option<u64>>) -> ApiResult<Json<Notarised>> {
    if wanted.len() > SERVERS_MAX {
        return Err(ApiError::invalid_param(format!("more than {SERVERS_MAX} servers")));
    }
    let homeserver = app.homeserver();
    let now_ms = homeserver.env().clock.now_ms();
    let wanted = wanted.into_iter().map(|(server, minimum)| (server, minimum.unwrap_or(now_ms))).collect();
    Ok(Json(Notarised { server_keys: homeserver.notarised_keys(wanted).await }))
}
