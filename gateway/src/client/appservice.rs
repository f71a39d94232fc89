//! What only application services ask for.
//!
//! Spec: application service API, "Client-Server API Extensions".

use actors::appservice::ServiceError;
use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, Path, Requester},
};

/// Bytes of a service's answer that it is told again, at most.
const BODY_MAX: usize = 4096;

/// `POST /_matrix/client/v1/appservice/{appserviceId}/ping`
pub async fn ping(
    State(app): State<App>,
    requester: Requester,
    Path(id): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let Some(service) = requester.service.filter(|service| service.id == id) else {
        return Err(ApiError::forbidden("the access token is not that of this application service"));
    };
    let transaction_id = body.get("transaction_id").and_then(Value::as_str);
    let (answer, took) =
        app.homeserver().ping_service(&service, transaction_id).await.map_err(|error| unanswered(&error))?;
    if !answer.status.is_success() {
        let message = format!("the application service answered {}", answer.status);
        let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(BODY_MAX)]).into_owned();
        return Err(ApiError::new(StatusCode::BAD_GATEWAY, "M_BAD_STATUS", message)
            .with("status", answer.status.as_u16())
            .with("body", text));
    }
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(json!({ "duration_ms": duration_ms })))
}

fn unanswered(error: &ServiceError) -> ApiError {
    let message = error.to_string();
    match error {
        ServiceError::NoUrl => ApiError::bad_request("M_URL_NOT_SET", message),
        ServiceError::Timeout => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "M_CONNECTION_TIMEOUT", message),
        ServiceError::Status(_) | ServiceError::TooLarge => {
            ApiError::new(StatusCode::BAD_GATEWAY, "M_BAD_STATUS", message)
        }
        ServiceError::Unreachable(_) => {
            ApiError::new(StatusCode::BAD_GATEWAY, "M_CONNECTION_FAILED", message)
        }
    }
}
