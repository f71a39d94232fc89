//! The documents under `/.well-known/matrix/`.
//!
//! Spec: client-server API, "Well-known URIs" and "Server administrator contact"; server-server API,
//! "Server discovery".

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::about::About;
use crate::error::{ApiError, ApiResult};

/// What the well-known documents say.
#[derive(Clone, Debug, Default)]
pub struct WellKnown {
    /// The client-server API's base URL.
    pub client_base_url: Option<String>,
    /// Where other servers find this one.
    pub server: Option<String>,
    /// A user to turn to.
    pub support_user: Option<String>,
    /// An e-mail address to turn to.
    pub support_email: Option<String>,
    /// A page to turn to.
    pub support_page: Option<String>,
}

/// `GET /.well-known/matrix/client`
pub async fn client(State(about): State<Arc<About>>) -> ApiResult<Json<Value>> {
    let base_url = about.well_known.client_base_url.as_ref().ok_or_else(absent)?;
    Ok(Json(json!({ "m.homeserver": { "base_url": base_url } })))
}

/// `GET /.well-known/matrix/server`
pub async fn server(State(about): State<Arc<About>>) -> ApiResult<Json<Value>> {
    let server = about.well_known.server.as_ref().ok_or_else(absent)?;
    Ok(Json(json!({ "m.server": server })))
}

/// `GET /.well-known/matrix/support`
pub async fn support(State(about): State<Arc<About>>) -> ApiResult<Json<Value>> {
    let settings = &about.well_known;
    let mut contact = json!({ "role": "m.role.admin" });
    for (name, value) in [("matrix_id", &settings.support_user), ("email_address", &settings.support_email)] {
        if let Some(value) = value {
            contact[name] = value.as_str().into();
        }
    }
    let mut support = json!({});
    if settings.support_user.is_some() || settings.support_email.is_some() {
        support["contacts"] = json!([contact]);
    }
    if let Some(page) = &settings.support_page {
        support["support_page"] = page.as_str().into();
    }
    if support.as_object().is_some_and(serde_json::Map::is_empty) { Err(absent()) } else { Ok(Json(support)) }
}

fn absent() -> ApiError {
    ApiError::not_found("this server has no such document")
}
