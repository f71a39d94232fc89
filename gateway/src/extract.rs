//! Requests as handlers take them: limits, JSON, ruma's request types, authentication.

mod versioned;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actors::appservice::Service;
pub use actors::session::{Requester, Restriction};
use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::{
        IncomingRequest, IncomingRequestExt, OutgoingResponse, OutgoingResponseExt,
        error::{DeserializationError, FromHttpRequestError},
    },
};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

pub use self::versioned::{NamesVersion, Versioned};
use crate::{
    app::App,
    bodies,
    client::push_rules,
    error::{ApiError, ApiResult},
    guests, suspension, uia,
};

/// The largest body of a request that is not an upload.
///
/// Events have at most 64 KiB; key uploads and account data are the large ones.
pub const BODY_MAX: usize = 1 << 20;

/// The largest of a request that needs no account: strangers have little to say, and may be many.
const OPEN_BODY_MAX: usize = 128 << 10;

/// How deep JSON may be nested.
const DEPTH_MAX: usize = 100;

/// What the owner of a locked account may still do.
///
/// Spec: client-server API, "Account locking".
const LEFT_TO_LOCKED: [&str; 2] = ["/_matrix/client/v3/logout", "/_matrix/client/v3/logout/all"];

/// The address that a request comes from; put into its extensions by the server.
#[derive(Clone, Copy, Debug)]
pub struct ClientIp(pub std::net::IpAddr);

/// A request that needs no authentication.
pub struct Open<R>(pub R);

/// A request that needs no authentication, whose body must have a `type`: ruma takes that for granted.
pub struct Typed<R>(pub R);

/// A request with its authenticated sender.
pub struct Authenticated<R> {
    /// Who asks.
    pub requester: Requester,
    /// What is asked.
    pub request: R,
}

/// A ruma response.
pub struct Matrix<T>(pub T);

impl<T: OutgoingResponse> IntoResponse for Matrix<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<Vec<u8>>() {
            Ok(response) => response.map(Body::from).into_response(),
            Err(error) => ApiError::internal(&error).into_response(),
        }
    }
}

impl<R: IncomingRequest + Send> FromRequest<App> for Open<R> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let (mut parts, body) = request.into_parts();
        check_address(&parts, app)?;
        parse(&mut parts, body, OPEN_BODY_MAX, app).await.map(Self)
    }
}

fn check_address(parts: &Parts, app: &App) -> ApiResult<()> {
    // A bridge registers its users one after the other.
    if service(parts, app).is_ok() {
        return Ok(());
    }
    match parts.extensions.get() {
        Some(ClientIp(address)) => app.rate_limits().check_address(*address, route(parts)),
        None => Ok(()),
    }
}

impl<R: IncomingRequest + Send> FromRequest<App> for Typed<R> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            _kind: String,
        }
        let (mut parts, body) = request.into_parts();
        check_address(&parts, app)?;
        let body = read_json(&parts.method, body, OPEN_BODY_MAX).await?;
        serde_json::from_slice::<Kind>(&body).map_err(|error| ApiError::bad_json(error.to_string()))?;
        parse_read(&mut parts, body, app).await.map(Self)
    }
}

impl<R: IncomingRequest + Send> FromRequest<App> for Authenticated<R> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let (mut parts, body) = request.into_parts();
        // Before the body is read: strangers cost nothing.
        let requester = authenticate(&parts, app).await?;
        let request = parse(&mut parts, body, BODY_MAX, app).await?;
        Ok(Self { requester, request })
    }
}

impl FromRequestParts<App> for Requester {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        authenticate(parts, app).await
    }
}

/// The parameters of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = ApiError;

    #[expect(clippy::disallowed_types, reason = "this is the wrapper that answers with JSON")]
    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let path = axum::extract::Path::from_request_parts(parts, app).await;
        path.map(|path| Self(path.0)).map_err(|error| ApiError::invalid_param(error.body_text()))
    }
}

/// The parameters of the query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = ApiError;

    #[expect(clippy::disallowed_types, reason = "this is the wrapper that answers with JSON")]
    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let query = axum::extract::Query::from_request_parts(parts, app).await;
        query.map(|query| Self(query.0)).map_err(|error| match error.body_text() {
            message if message.contains("missing field") => ApiError::missing_param(message),
            message => ApiError::invalid_param(message),
        })
    }
}

/// The body of a request, within the limits, as a JSON object of any kind; see [`read_json`] for empty ones.
pub struct JsonBody(pub serde_json::Map<String, serde_json::Value>);

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _app: &App) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        object(read_json(&parts.method, body, BODY_MAX).await?.as_ref()).map(Self)
    }
}

/// As [`JsonBody`], for requests that need no account: smaller, and counted by address.
pub struct OpenBody(pub serde_json::Map<String, serde_json::Value>);

impl FromRequest<App> for OpenBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        check_address(&parts, app)?;
        object(read_json(&parts.method, body, OPEN_BODY_MAX).await?.as_ref()).map(Self)
    }
}

/// Anybody, with or without an account: counted by address.
pub struct Anybody;

impl FromRequestParts<App> for Anybody {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        check_address(parts, app).map(|()| Self)
    }
}

/// The device that a request comes from, for what only a device can do.
pub fn device_of(requester: &Requester) -> ApiResult<OwnedDeviceId> {
    let missing =
        || ApiError::missing_param("device_id is missing: an application service names one for this");
    requester.device_id.clone().ok_or_else(missing)
}

fn object(body: &[u8]) -> ApiResult<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_slice(body).map_err(|_| not_an_object())
}

/// The application service that a request comes from, for requests that need no account; an error if it comes from none.
pub struct OfService(pub ApiResult<Arc<Service>>);

impl FromRequestParts<App> for OfService {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        Ok(Self(service(parts, app)))
    }
}

/// The application service whose token a request has.
fn service(parts: &Parts, app: &App) -> ApiResult<Arc<Service>> {
    let unknown = || ApiError::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", "unknown access token");
    let services = app.homeserver().services();
    let token = token(&parts.headers, parts.uri.query(), app.settings().query_tokens)?;
    services.of_token(&token).cloned().ok_or_else(unknown)
}

/// Whom a service's request is of, by its query.
///
/// Spec: application service API, "Identity assertion"; MSC4326 for the former name of the device's parameter.
async fn asserted(service: &Arc<Service>, query: Option<&str>, app: &App) -> ApiResult<Requester> {
    let query = query.unwrap_or_default();
    let user_id = match form_value(query, "user_id") {
        Some(text) => {
            let invalid = |_| ApiError::invalid_param("user_id is not a user ID");
            Some(OwnedUserId::try_from(text).map_err(invalid)?)
        }
        None => None,
    };
    let device_id =
        form_value(query, "device_id").or_else(|| form_value(query, "org.matrix.msc3202.device_id"));
    Ok(app.homeserver().assert_identity(service, user_id, device_id.map(Into::into)).await?)
}

async fn authenticate(parts: &Parts, app: &App) -> ApiResult<Requester> {
    let token = token(&parts.headers, parts.uri.query(), app.settings().query_tokens)?;
    let ip = parts.extensions.get::<ClientIp>().map(|ip| ip.0.to_string());
    let requester = match app.homeserver().services().of_token(&token) {
        Some(service) => asserted(service, parts.uri.query(), app).await?,
        None => app.authenticate(&token, ip.as_deref()).await?,
    };
    let route = route(parts);
    match requester.restriction {
        Some(Restriction::Lock) if !LEFT_TO_LOCKED.contains(&route) => return Err(ApiError::locked()),
        Some(Restriction::Suspension) if !suspension::may(&parts.method, route) => {
            return Err(ApiError::suspended());
        }
        _ => {}
    }
    if requester.is_guest && !guests::may(&parts.method, route) {
        return Err(ApiError::guests_may_not());
    }
    let is_unlimited =
        |service: &Arc<Service>| !service.is_rate_limited || service.sender == requester.user_id;
    if !requester.service.as_ref().is_some_and(is_unlimited) {
        app.rate_limits().check_user(&requester.user_id, &parts.method, route)?;
    }
    Ok(requester)
}

/// The request's route, as the router's table spells it.
fn route(parts: &Parts) -> &str {
    parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str)
}

/// The access token of a request.
///
/// Spec: client-server API, "Using access tokens".
fn token(headers: &HeaderMap, query: Option<&str>, query_tokens: bool) -> ApiResult<String> {
    let missing = || ApiError::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "missing access token");
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| missing())?;
        let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
        return if scheme.eq_ignore_ascii_case("bearer") {
            Ok(token.trim().to_owned())
        } else {
            Err(missing())
        };
    }
    let query = query.filter(|_| query_tokens).unwrap_or_default();
    form_value(query, "access_token").ok_or_else(missing)
}

/// The value of a key of a query string.
pub fn form_value(query: &str, key: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    pairs.into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

async fn parse<R: IncomingRequest>(
    parts: &mut Parts,
    body: Body,
    body_max: usize,
    app: &App,
) -> ApiResult<R> {
    let has_body = parts.method != Method::GET && parts.method != Method::HEAD;
    let body = if has_body { read_object(&parts.method, body, body_max).await? } else { Bytes::new() };
    parse_read(parts, body, app).await
}

/// Parses a request whose body was read.
async fn parse_read<R: IncomingRequest>(parts: &mut Parts, mut body: Bytes, app: &App) -> ApiResult<R> {
    let params = RawPathParams::from_request_parts(parts, app)
        .await
        .map_err(|error| ApiError::invalid_param(error.to_string()))?;
    let arguments: Vec<&str> = params.iter().map(|(_, value)| value).collect();
    if uia::ROUTES.contains(&route(parts)) {
        body = uia::with_readable_auth(body);
    }
    if route(parts).trim_end_matches('/') == push_rules::ROUTE {
        body = push_rules::with_conditions(body);
    }
    let mut request = http::Request::builder().method(parts.method.clone()).uri(parts.uri.clone());
    if let Some(headers) = request.headers_mut() {
        *headers = parts.headers.clone();
    }
    let request = request.body(&*body).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    // ruma indexes into some bodies, which panics where a key is missing; see `Typed`.
    catch_unwind(AssertUnwindSafe(|| R::try_from_http_request(request, &arguments)))
        .map_err(|_| ApiError::bad_json("the body lacks a required key"))?
        .map_err(|error| refusal(&error))
}

/// Reads a body within its limits and makes sure that it is JSON.
///
/// An empty one counts as `{}`, since clients leave out bodies in which everything is optional; but what is put
/// somewhere is said.
async fn read_json(method: &Method, body: Body, max: usize) -> ApiResult<Bytes> {
    let body = bodies::read(body, max).await?;
    if body.is_empty() && *method != Method::PUT {
        return Ok(Bytes::from_static(b"{}"));
    }
    if depth(&body) > DEPTH_MAX {
        return Err(ApiError::bad_json("the body is nested too deeply"));
    }
    // What is skipped is not looked at by the parser.
    let text = std::str::from_utf8(&body)
        .map_err(|_| ApiError::bad_request("M_NOT_JSON", "the body is not UTF-8, as JSON has to be"))?;
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| ApiError::bad_request("M_NOT_JSON", format!("the body is not JSON: {error}")))?;
    Ok(body)
}

/// As [`read_json`], for what may be no array: serde would take one for an object, value by value.
async fn read_object(method: &Method, body: Body, max: usize) -> ApiResult<Bytes> {
    let body = read_json(method, body, max).await?;
    if body.trim_ascii_start().starts_with(b"[") { Err(not_an_object()) } else { Ok(body) }
}

fn not_an_object() -> ApiError {
    ApiError::bad_json("the body must be a JSON object")
}

/// How deep the brackets of JSON text are nested, in one pass without recursion.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn refusal(error: &FromHttpRequestError) -> ApiError {
    let message = error.to_string();
    match error {
        FromHttpRequestError::Deserialization(DeserializationError::Json(_)) => ApiError::bad_json(message),
        FromHttpRequestError::Deserialization(DeserializationError::Query(_))
            if message.contains("missing field") =>
        {
            ApiError::missing_param(message)
        }
        FromHttpRequestError::MethodMismatch { .. } => {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", message)
        }
        _ => ApiError::invalid_param(message),
    }
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (json, expected) in [("1", 0), ("[[]]", 2), (r#"{"a":"[[\"{"}"#, 1), ("[[],[[]]]", 3), ("]]]", 0)]
        {
            assert_eq!(depth(json.as_bytes()), expected, "{json}");
        }
    }
}
