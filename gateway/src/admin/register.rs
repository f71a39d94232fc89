//! `/_synapse/admin/v1/register`: making accounts with a shared secret, as existing tools do it.
//!
//! The tool asks for a nonce, and proves with a MAC over nonce, user name, password and kind that it knows
//! the secret. A nonce is good for one try within a minute.

use std::{collections::BTreeMap, time::Duration};

use actors::{
    env::Env,
    session::{Login, NewAccount},
};
use axum::{Json, extract::State};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use ruma::UserId;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::{
    app::App,
    client::register::{check_reserved, hash},
    error::{ApiError, ApiResult},
    extract::JsonBody,
};

/// How long a nonce is good.
const LIFETIME: Duration = Duration::from_secs(60);

/// Nonces that are out at a time; the oldest make room.
const NONCES_MAX: usize = 1000;

/// The nonces that were handed out.
#[derive(Default)]
pub struct Nonces(Mutex<BTreeMap<String, u64>>);

impl Nonces {
    fn issue(&self, env: &Env) -> String {
        let (nonce, now_ms) = (env.entropy.hex(32), env.clock.now_ms());
        let mut nonces = self.0.lock();
        nonces.retain(|_, issued_ms| is_fresh(*issued_ms, now_ms));
        if nonces.len() >= NONCES_MAX {
            nonces.pop_first();
        }
        nonces.insert(nonce.clone(), now_ms);
        nonce
    }

    fn redeem(&self, nonce: &str, now_ms: u64) -> bool {
        self.0.lock().remove(nonce).is_some_and(|issued_ms| is_fresh(issued_ms, now_ms))
    }
}

fn is_fresh(issued_ms: u64, now_ms: u64) -> bool {
    Duration::from_millis(now_ms.saturating_sub(issued_ms)) < LIFETIME
}

/// `GET /_synapse/admin/v1/register`
pub async fn nonce(State(app): State<App>) -> ApiResult<Json<Value>> {
    secret(&app)?;
    Ok(Json(json!({ "nonce": app.nonces().issue(app.homeserver().env()) })))
}

#[derive(Deserialize)]
struct Body {
    nonce: String,
    username: String,
    password: String,
    mac: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    displayname: Option<String>,
}

/// `POST /_synapse/admin/v1/register`
pub async fn register(State(app): State<App>, JsonBody(body): JsonBody) -> ApiResult<Json<Value>> {
    let secret = secret(&app)?;
    let body: Body = serde_json::from_value(Value::Object(body))
        .map_err(|error| ApiError::bad_json(format!("the body is incomplete: {error}")))?;
    let homeserver = app.homeserver();
    if !app.nonces().redeem(&body.nonce, homeserver.env().clock.now_ms()) {
        return Err(ApiError::bad_request("M_UNKNOWN", "unrecognised nonce"));
    }
    if !is_authentic(secret, &body) {
        return Err(ApiError::forbidden("HMAC incorrect"));
    }
    let user_id = UserId::parse_with_server_name(body.username.to_lowercase(), homeserver.server_name())
        .map_err(|_| ApiError::bad_request("M_INVALID_USERNAME", "not a user name"))?;
    check_reserved(&app, &user_id, None)?;
    homeserver.check_free(&user_id).await?;
    let password_hash = Some(hash(&app, body.password).await?);
    let new = NewAccount { user_id: user_id.clone(), password_hash, is_guest: false, is_admin: body.admin };
    let session = homeserver.register(new).await?;
    if let Some(name) = body.displayname {
        let name = serde_json::value::to_raw_value(&name).map_err(|error| ApiError::internal(&error))?;
        homeserver.set_profile_field(&user_id, "displayname", Some(name)).await?;
    }
    let logged_in = session.log_in(Login::default()).await?;
    Ok(Json(json!({
        "user_id": user_id,
        "home_server": homeserver.server_name(),
        "access_token": logged_in.access_token,
        "device_id": logged_in.device_id,
    })))
}

fn secret(app: &App) -> ApiResult<&str> {
    let secret = app.settings().registration.shared_secret.as_deref();
    secret.ok_or_else(|| ApiError::bad_request("M_UNKNOWN", "shared secret registration is not enabled"))
}

/// Whether the MAC is that of the body; compared in constant time.
fn is_authentic(secret: &str, body: &Body) -> bool {
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else { return false };
    let kind = if body.admin { "admin" } else { "notadmin" };
    let user_type = body.user_type.as_deref();
    for (at, part) in
        [&*body.nonce, &body.username, &body.password, kind].into_iter().chain(user_type).enumerate()
    {
        if at > 0 {
            mac.update(&[0]);
        }
        mac.update(part.as_bytes());
    }
    unhex(&body.mac).is_some_and(|given| mac.verify_slice(&given).is_ok())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The MAC was made with Python's `hmac` module, as the usual tools do.
    #[test]
    fn a_mac_is_checked_like_the_usual_tools_make_it() {
        let mut body = Body {
            nonce: "nonce".to_owned(),
            username: "alice".to_owned(),
            password: "wonderland".to_owned(),
            mac: MAC.to_owned(),
            admin: false,
            user_type: None,
            displayname: None,
        };
        assert!(is_authentic("secret", &body));
        assert!(!is_authentic("other", &body));
        body.admin = true;
        assert!(!is_authentic("secret", &body));
    }

    const MAC: &str = "be9d385e6cad8ace187f9c51fb8915767c7f7895";
}
