//! What carries group calls: this server only says where it is.
//!
//! Spec: MSC4143.

use axum::{Json, extract::State};
use serde_json::{Value, json};

use crate::{app::App, extract::Requester};

/// `GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports`
pub async fn transports(State(app): State<App>, _: Requester) -> Json<Value> {
    Json(json!({ "rtc_transports": app.settings().rtc_transports }))
}
