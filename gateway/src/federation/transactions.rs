//! Transactions of other servers.
//!
//! Spec: server-server API, "Transactions".

use actors::federation::remote::RawEvents;
use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::authentication::Signed;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Path,
};

/// PDUs in one transaction, at most.
const PDUS_MAX: usize = 50;

/// EDUs in one transaction, at most.
const EDUS_MAX: usize = 100;

#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    pdus: RawEvents,
    #[serde(default)]
    edus: Vec<Box<RawValue>>,
}

/// `PUT /_matrix/federation/v1/send/{txnId}`
pub async fn send(
    State(app): State<App>,
    Path(txn_id): Path<String>,
    signed: Signed,
) -> ApiResult<Json<Value>> {
    let transaction: Transaction = signed.json()?;
    if transaction.pdus.len() > PDUS_MAX || transaction.edus.len() > EDUS_MAX {
        return Err(ApiError::bad_json("a transaction has at most 50 PDUs and 100 EDUs"));
    }
    let homeserver = app.homeserver();
    let results = homeserver.receive_transaction(&signed.origin, &txn_id, transaction.pdus).await?;
    homeserver.receive_edus(&signed.origin, transaction.edus).await?;
    let pdus: Map<String, Value> = results
        .into_iter()
        .map(|(event_id, result)| match result {
            Ok(()) => (event_id.to_string(), json!({})),
            Err(error) => (event_id.to_string(), json!({ "error": error })),
        })
        .collect();
    Ok(Json(json!({ "pdus": pdus })))
}
