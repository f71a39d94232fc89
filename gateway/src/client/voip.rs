//! Credentials for the TURN server that helps calls through firewalls.
//!
//! Spec: client-server API, "Voice over IP"; the secret is shared with the TURN server as in the expired draft
//! "A REST API For Access To TURN Services", which coturn calls `use-auth-secret`.

use std::time::Duration;

use axum::{Json, extract::State};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use ruma::UserId;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
    extract::Requester,
};

/// The TURN server, if there is one.
#[derive(Clone, Default)]
pub struct Turn {
    /// Where it is reached, as in `turn:turn.example.org?transport=udp`.
    pub uris: Vec<String>,
    /// What this server shares with it.
    pub secret: Option<String>,
    /// How long credentials work.
    pub lifetime: Duration,
    /// Whether guests get credentials too.
    pub guests: bool,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("uris", &self.uris).finish_non_exhaustive()
    }
}

/// `GET /_matrix/client/v3/voip/turnServer`
pub async fn turn_server(State(app): State<App>, requester: Requester) -> ApiResult<Json<Value>> {
    let turn = &app.settings().turn;
    if requester.is_guest && !turn.guests {
        return Err(ApiError::guests_may_not());
    }
    let secret = turn.secret.as_ref().filter(|_| !turn.uris.is_empty());
    let secret = secret.ok_or_else(|| ApiError::not_found("this server has no TURN server"))?;
    let expires = app.homeserver().env().clock.now_ms() / 1000 + turn.lifetime.as_secs();
    let (username, password) = credentials(secret, expires, &requester.user_id)?;
    Ok(Json(json!({
        "username": username,
        "password": password,
        "uris": turn.uris,
        "ttl": turn.lifetime.as_secs(),
    })))
}

/// A user name that says when it expires, in seconds since the epoch, and its password.
fn credentials(secret: &str, expires: u64, user: &UserId) -> ApiResult<(String, String)> {
    let username = format!("{expires}:{user}");
    let mut mac =
        Hmac::<Sha1>::new_from_slice(secret.as_bytes()).map_err(|error| ApiError::internal(&error))?;
    mac.update(username.as_bytes());
    Ok((username, BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::credentials;

    /// The password was made with `openssl dgst -sha1 -hmac`.
    #[test]
    fn credentials_are_what_coturn_expects() {
        let (username, password) =
            credentials("north", 1_443_779_631, user_id!("@alice:example.org")).unwrap();
        assert_eq!(username, "1443779631:@alice:example.org");
        assert_eq!(password, "8UEQexfdhsgCaPlmAo/GVjLRbV4=");
    }
}
