//! Web pages on which a stage of user-interactive authentication is passed, for clients that do not know it.
//!
//! Spec: client-server API, "User-Interactive Authentication API", "Fallback".

use axum::{
    body::Body,
    extract::{Request, State},
    response::{Html, IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;

use crate::{
    app::App,
    bodies,
    error::{ApiError, ApiResult},
    extract::{ClientIp, Path, Query},
    uia::{self, Pending, Stage},
};

/// The largest form: one password or token.
const FORM_MAX: usize = 8 << 10;

/// The route whose limits apply: guessing here is guessing there.
const LIMITED_AS: &str = "/_matrix/client/v3/login";

/// The session that a page belongs to.
#[derive(Deserialize)]
pub struct FallbackQuery {
    session: String,
}

/// What a page sends back.
#[derive(Deserialize)]
struct Form {
    #[serde(default)]
    answer: String,
}

/// `GET /_matrix/client/v3/auth/{authType}/fallback/web`
pub async fn page(
    State(app): State<App>,
    Path(kind): Path<String>,
    Query(query): Query<FallbackQuery>,
) -> ApiResult<Response> {
    let (stage, pending) = find(&app, &kind, &query.session)?;
    Ok(if pending.is_passed { done() } else { form(stage, StatusCode::OK, "") })
}

/// `POST /_matrix/client/v3/auth/{authType}/fallback/web`
pub async fn submit(
    State(app): State<App>,
    Path(kind): Path<String>,
    Query(query): Query<FallbackQuery>,
    request: Request,
) -> ApiResult<Response> {
    if let Some(ClientIp(address)) = request.extensions().get() {
        app.rate_limits().check_address(*address, LIMITED_AS)?;
    }
    let (stage, pending) = find(&app, &kind, &query.session)?;
    let answer = read(request.into_body()).await?.answer;
    let is_right = match stage {
        Stage::Dummy => true,
        Stage::RegistrationToken => uia::is_registration_token(&app, &answer),
        Stage::Password => match &pending.user_id {
            Some(user_id) => uia::is_password_of(&app, user_id, answer).await?,
            None => false,
        },
    };
    if !is_right {
        return Ok(form(stage, StatusCode::FORBIDDEN, "That is not right. Please try again."));
    }
    app.uia().note_passed(&query.session, stage);
    Ok(done())
}

fn find(app: &App, kind: &str, session: &str) -> ApiResult<(Stage, Pending)> {
    let stage = Stage::named(kind).ok_or_else(|| ApiError::not_found("there is no such stage"))?;
    let pending = app.uia().pending(session, stage, app.homeserver().env());
    let pending =
        pending.ok_or_else(|| ApiError::not_found("there is no such session, or it has expired"))?;
    Ok((stage, pending))
}

async fn read(body: Body) -> ApiResult<Form> {
    let body = bodies::read(body, FORM_MAX).await?;
    serde_urlencoded::from_bytes(&body).map_err(|error| ApiError::invalid_param(error.to_string()))
}

/// The page that asks; it sends its form to its own address.
fn form(stage: Stage, status: StatusCode, complaint: &str) -> Response {
    let input = match stage {
        Stage::Dummy => "<p>Please confirm that you want to go on.</p>",
        Stage::RegistrationToken => {
            "<label>Registration token<br><input name=\"answer\" autocomplete=\"off\" autofocus required></label>"
        }
        Stage::Password => {
            "<label>Password<br><input name=\"answer\" type=\"password\" autocomplete=\"current-password\" autofocus \
             required></label>"
        }
    };
    let body = format!(
        "<form method=\"post\"><p role=\"alert\">{complaint}</p>{input}<p><button>Continue</button></p></form>"
    );
    document(status, &body)
}

/// The page that tells the client to go on.
fn done() -> Response {
    let body = "<p>Thank you. You can close this window.</p>\
                <script>\
                if (window.onAuthDone) { window.onAuthDone(); } \
                else if (window.opener && window.opener.postMessage) { window.opener.postMessage(\"authDone\", \"*\"); }\
                </script>";
    document(StatusCode::OK, body)
}

fn document(status: StatusCode, body: &str) -> Response {
    let html = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Authentication</title></head><body>{body}</body></html>"
    );
    let headers: [(HeaderName, HeaderValue); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; script-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
            ),
        ),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, Html(html)).into_response()
}
