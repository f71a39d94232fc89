//! E-mail addresses and phone numbers, of which this server has none: it sends neither mails nor messages.
//!
//! Requests are checked as if it did, so that clients learn of their own mistakes first.
//!
//! Spec: client-server API, "Adding Account Administrative Contact Information", "Account registration",
//! "Password management".

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::account::require_password;
use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::{JsonBody, OpenBody, Requester},
    uia::{self, Refusal},
};

/// The longest client secret, in characters.
const SECRET_MAX: usize = 255;

/// `GET /_matrix/client/v3/account/3pid`
pub async fn list(_requester: Requester) -> Json<Value> {
    Json(json!({ "threepids": [] }))
}

/// `POST /_matrix/client/v3/account/3pid`
pub async fn add_from_identity_server(
    _requester: Requester,
    JsonBody(body): JsonBody,
) -> ApiResult<Json<Value>> {
    let credentials = body.get("three_pid_creds").and_then(Value::as_object);
    let credentials = credentials.ok_or_else(|| ApiError::missing_param("three_pid_creds is missing"))?;
    for name in ["client_secret", "id_server", "id_access_token", "sid"] {
        text(credentials, name)?;
    }
    Err(unverified())
}

/// `POST /_matrix/client/v3/account/3pid/add`
pub async fn add(
    State(app): State<App>,
    requester: Requester,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, Refusal> {
    secret(&body)?;
    text(&body, "sid")?;
    let auth = uia::take_auth(&mut body)?;
    require_password(&app, &requester, auth.as_ref(), "3pid").await?;
    // No session has ever been begun, so none can have been validated.
    Err(unverified().into())
}

/// `POST /_matrix/client/v3/account/3pid/bind`
pub async fn bind(_requester: Requester, JsonBody(body): JsonBody) -> ApiResult<Json<Value>> {
    secret(&body)?;
    for name in ["id_server", "id_access_token", "sid"] {
        text(&body, name)?;
    }
    let message = "this server trusts no identity server";
    Err(ApiError::bad_request("M_SERVER_NOT_TRUSTED", message))
}

/// `POST /_matrix/client/v3/account/3pid/delete`, `POST …/unbind`
///
/// What nobody has is deleted already, and no identity server is told.
pub async fn remove(_requester: Requester, JsonBody(body): JsonBody) -> ApiResult<Json<Value>> {
    medium(&body)?;
    text(&body, "address")?;
    Ok(Json(json!({ "id_server_unbind_result": "no-support" })))
}

/// `POST /_matrix/client/v3/account/3pid/email/requestToken`
pub async fn add_email(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_email(&body)?;
    Err(unsupported("this server does not send e-mails"))
}

/// `POST /_matrix/client/v3/account/3pid/msisdn/requestToken`
pub async fn add_phone(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_phone(&body)?;
    Err(unsupported("this server does not send text messages"))
}

/// `POST /_matrix/client/v3/register/email/requestToken`
pub async fn register_email(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_email(&body)?;
    Err(denied("accounts here have no e-mail addresses"))
}

/// `POST /_matrix/client/v3/register/msisdn/requestToken`
pub async fn register_phone(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_phone(&body)?;
    Err(denied("accounts here have no phone numbers"))
}

/// `POST /_matrix/client/v3/account/password/email/requestToken`
pub async fn password_email(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_email(&body)?;
    Err(unknown("no account has this e-mail address"))
}

/// `POST /_matrix/client/v3/account/password/msisdn/requestToken`
pub async fn password_phone(OpenBody(body): OpenBody) -> ApiResult<Json<Value>> {
    check_phone(&body)?;
    Err(unknown("no account has this phone number"))
}

fn check_email(body: &Map<String, Value>) -> ApiResult<()> {
    check_request(body)?;
    let email = text(body, "email")?;
    let is_valid = email.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    if is_valid { Ok(()) } else { Err(ApiError::invalid_param("this is no e-mail address")) }
}

fn check_phone(body: &Map<String, Value>) -> ApiResult<()> {
    check_request(body)?;
    let country = text(body, "country")?;
    let number = text(body, "phone_number")?;
    let is_country = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_number = number.chars().any(|letter| letter.is_ascii_digit());
    if is_country && is_number { Ok(()) } else { Err(ApiError::invalid_param("this is no phone number")) }
}

fn check_request(body: &Map<String, Value>) -> ApiResult<()> {
    secret(body)?;
    match body.get("send_attempt") {
        Some(attempt) if attempt.as_i64().is_some() => Ok(()),
        Some(_) => Err(ApiError::bad_json("send_attempt is no number")),
        None => Err(ApiError::missing_param("send_attempt is missing")),
    }
}

/// Spec: identity service API, "Client secrets": `[0-9a-zA-Z.=_-]{1,255}`.
fn secret(body: &Map<String, Value>) -> ApiResult<()> {
    let secret = text(body, "client_secret")?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".=_-".contains(&byte);
    if (1..=SECRET_MAX).contains(&secret.len()) && secret.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err(ApiError::invalid_param("client_secret has letters that are not allowed, or too many"))
    }
}

fn medium(body: &Map<String, Value>) -> ApiResult<()> {
    match text(body, "medium")? {
        "email" | "msisdn" => Ok(()),
        _ => Err(ApiError::invalid_param("medium must be email or msisdn")),
    }
}

fn text<'a>(body: &'a Map<String, Value>, name: &str) -> ApiResult<&'a str> {
    let value = body.get(name).ok_or_else(|| ApiError::missing_param(format!("{name} is missing")))?;
    value.as_str().ok_or_else(|| ApiError::bad_json(format!("{name} is no string")))
}

fn unverified() -> ApiError {
    let message = "the identifier was not validated here";
    ApiError::new(StatusCode::FORBIDDEN, "M_THREEPID_AUTH_FAILED", message)
}

fn unsupported(message: &str) -> ApiError {
    ApiError::bad_request("M_THREEPID_MEDIUM_NOT_SUPPORTED", message)
}

fn denied(message: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "M_THREEPID_DENIED", message)
}

fn unknown(message: &str) -> ApiError {
    ApiError::bad_request("M_THREEPID_NOT_FOUND", message)
}
