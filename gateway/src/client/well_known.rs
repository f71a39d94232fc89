//! The documents under `/.well-known/matrix/`.
//!
//! Spec: client-server API, "Well-known URIs" and "Server administrator contact"; server-server API,
//! "Server discovery".

use std::sync::Arc;

use axum::{Json, extract::State};
use ruma::api::client::session::login::v3::{DiscoveryInfo, HomeserverInfo, IdentityServerInfo};
use serde_json::{Map, Value, json};

use super::about::About;
use crate::{
    config::RTC_FOCI,
    error::{ApiError, ApiResult},
};

/// What the well-known documents say.
#[derive(Clone, Debug, Default)]
pub struct WellKnown {
    /// The client-server API's base URL.
    pub client_base_url: Option<String>,
    /// Further settings for clients, `m.homeserver` not among them.
    pub client_extra: Map<String, Value>,
    /// Where other servers find this one.
    pub server: Option<String>,
    /// A user to turn to.
    pub support_user: Option<String>,
    /// An e-mail address to turn to.
    pub support_email: Option<String>,
    /// A page to turn to.
    pub support_page: Option<String>,
}

impl WellKnown {
    /// What a client that has logged in is told of the servers that it is to use.
    ///
    /// Spec: client-server API, `POST /_matrix/client/v3/login`, `well_known`.
    pub fn discovery(&self) -> Option<DiscoveryInfo> {
        let mut info = DiscoveryInfo::new(HomeserverInfo::new(self.client_base_url.clone()?));
        let identity_server = self.client_extra.get("m.identity_server");
        let identity_server = identity_server.and_then(|server| server["base_url"].as_str());
        info.identity_server = identity_server.map(|url| IdentityServerInfo::new(url.to_owned()));
        Some(info)
    }
}

/// `GET /.well-known/matrix/client`
pub async fn client(State(about): State<Arc<About>>) -> ApiResult<Json<Value>> {
    let settings = &about.well_known;
    let base_url = settings.client_base_url.as_ref().ok_or_else(absent)?;
    let mut document = settings.client_extra.clone();
    if !about.rtc_transports.is_empty() {
        document.insert(RTC_FOCI.to_owned(), json!(about.rtc_transports));
    }
    document.insert("m.homeserver".to_owned(), json!({ "base_url": base_url }));
    Ok(Json(document.into()))
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
