//! Places where two devices of one user meet to sign one of them in with a QR code.
//!
//! What they leave there is encrypted by them. It is kept in memory, for a short time: after a restart they start over.
//!
//! Spec: MSC4108, the version of 2024, "Rendezvous session API".

use std::{collections::BTreeMap, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;

use crate::{
    app::App,
    bodies,
    error::{ApiError, ApiResult},
    extract::{ClientIp, Path},
};

/// The largest content: the MSC's.
const CONTENT_MAX: usize = 4096;

/// Sessions at a time, for all users: they take 4 MiB then.
const SESSIONS_MAX: usize = 1000;

/// How long a session lasts after its last change: between the MSC's 60 seconds and what scanning a code takes.
const LIFETIME: Duration = Duration::from_secs(120);

/// The sessions under way.
#[derive(Default)]
pub struct Rendezvous(Mutex<BTreeMap<String, Session>>);

#[derive(Clone)]
struct Session {
    content: Bytes,
    etag: String,
    modified_ms: u64,
    expires_ms: u64,
}

impl Session {
    fn new(app: &App, content: Bytes) -> Self {
        let env = app.homeserver().env();
        let now_ms = env.clock.now_ms();
        let lifetime_ms = LIFETIME.as_secs() * 1000;
        let etag = format!("\"{}\"", env.entropy.token(16));
        Self { content, etag, modified_ms: now_ms, expires_ms: now_ms + lifetime_ms }
    }

    /// The headers that every answer about the session has.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(header::ETAG, &self.etag);
        set(header::EXPIRES, &http_date(self.expires_ms));
        set(header::LAST_MODIFIED, &http_date(self.modified_ms));
        set(header::CACHE_CONTROL, "no-store");
        set(header::PRAGMA, "no-cache");
        headers
    }
}

/// `POST /_matrix/client/unstable/org.matrix.msc4108/rendezvous`
pub async fn create(State(app): State<App>, request: Request) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    if let Some(ClientIp(address)) = parts.extensions.get() {
        app.rate_limits().check_address(*address, "/login")?;
    }
    let base = base_url(&app, &parts)?;
    let content = content(&parts.headers, body).await?;
    let session = Session::new(&app, content);
    let id = app.homeserver().env().entropy.token(32);
    let url = format!("{base}/_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}");
    let headers = session.headers();
    {
        let mut sessions = app.rendezvous().0.lock();
        sessions.retain(|_, known| known.expires_ms > session.modified_ms);
        if sessions.len() >= SESSIONS_MAX {
            return Err(ApiError::limit_exceeded(LIFETIME));
        }
        sessions.insert(id, session);
    }
    Ok((StatusCode::CREATED, headers, axum::Json(serde_json::json!({ "url": url }))).into_response())
}

/// `GET /_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}`
pub async fn read(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> ApiResult<Response> {
    let now_ms = app.homeserver().env().clock.now_ms();
    let session = app.rendezvous().0.lock().get(&id).filter(|known| known.expires_ms > now_ms).cloned();
    let session = session.ok_or_else(unknown)?;
    if headers.get(header::IF_NONE_MATCH).is_some_and(|etag| *etag == *session.etag) {
        return Ok((StatusCode::NOT_MODIFIED, session.headers()).into_response());
    }
    let mut headers = session.headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok((headers, session.content).into_response())
}

/// `PUT /_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}`
pub async fn update(State(app): State<App>, Path(id): Path<String>, request: Request) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let condition = parts.headers.get(header::IF_MATCH).cloned();
    let condition = condition.ok_or_else(|| ApiError::missing_param("the header If-Match is missing"))?;
    let content = content(&parts.headers, body).await?;
    let session = Session::new(&app, content);
    let mut sessions = app.rendezvous().0.lock();
    let known = sessions.get_mut(&id).filter(|known| known.expires_ms > session.modified_ms);
    let known = known.ok_or_else(unknown)?;
    if condition != known.etag.as_str() {
        let message = "the session has changed since";
        let error = ApiError::new(StatusCode::PRECONDITION_FAILED, "M_UNKNOWN", message)
            .with("org.matrix.msc4108.errcode", "M_CONCURRENT_WRITE");
        return Ok((known.headers(), error).into_response());
    }
    *known = session;
    Ok((StatusCode::ACCEPTED, known.headers()).into_response())
}

/// `DELETE /_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}`
pub async fn delete(State(app): State<App>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let now_ms = app.homeserver().env().clock.now_ms();
    let removed = app.rendezvous().0.lock().remove(&id);
    removed.filter(|known| known.expires_ms > now_ms).ok_or_else(unknown)?;
    Ok(StatusCode::NO_CONTENT)
}

fn unknown() -> ApiError {
    ApiError::not_found("there is no such session, or it has expired")
}

/// The content of a session, plain text.
async fn content(headers: &HeaderMap, body: Body) -> ApiResult<Bytes> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("text/plain") {
        return Err(ApiError::invalid_param("the header Content-Type must be text/plain"));
    }
    bodies::read(body, CONTENT_MAX).await
}

/// Where the client reaches this server: as configured, or as the request says.
fn base_url(app: &App, parts: &http::request::Parts) -> ApiResult<String> {
    if let Some(url) = &app.settings().well_known.client_base_url {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let host = parts.uri.authority().map(http::uri::Authority::as_str).or_else(|| text("host"));
    let host = host.ok_or_else(|| ApiError::invalid_param("the header Host is missing"))?;
    let scheme = parts.uri.scheme_str().or_else(|| text("x-forwarded-proto"));
    let scheme = if scheme == Some("https") { "https" } else { "http" };
    Ok(format!("{scheme}://{host}"))
}

/// A time as HTTP writes it. Spec: RFC 9110, section 5.6.7.
fn http_date(ms: u64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = ms / 1000;
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let weekday = WEEKDAYS[usize::try_from(days % 7).unwrap_or_default()];
    let month = MONTHS[month - 1];
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Year, month and day of a day since the epoch: years begin in March, so that the leap day ends them.
fn civil(days: u64) -> (u64, usize, u64) {
    let since_0000_03 = days + 719_468;
    let (era, day_of_era) = (since_0000_03 / 146_097, since_0000_03 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, usize::try_from(month).unwrap_or(1), day)
}

#[cfg(test)]
mod tests {
    use super::http_date;

    #[test]
    fn dates_are_those_of_http() {
        for (ms, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400_000, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_700_000_000_999, "Tue, 14 Nov 2023 22:13:20 GMT"),
        ] {
            assert_eq!(http_date(ms), expected);
        }
    }
}
