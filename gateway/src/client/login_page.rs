//! The page for clients that know no way to log in that the server offers.
//!
//! Spec: client-server API, "Login Fallback".

use axum::response::{IntoResponse, Response};
use http::{HeaderName, header};

/// Nothing but what comes from this server, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /_matrix/static/client/login/`
pub async fn page() -> Response {
    asset("text/html; charset=utf-8", include_str!("../../assets/login.html"))
}

/// `GET /_matrix/static/client/login/login.js`
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("../../assets/login.js"))
}

/// `GET /_matrix/static/client/login/style.css`
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("../../assets/style.css"))
}

fn asset(content_type: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}
