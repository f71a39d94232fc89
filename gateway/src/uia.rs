//! User-interactive authentication.
//!
//! Spec: client-server API, "User-Interactive Authentication API".

use std::{collections::BTreeMap, time::Duration};

use actors::env::Env;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use parking_lot::Mutex;
use ruma::{
    OwnedUserId,
    api::client::uiaa::{AuthData, UserIdentifier},
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::{app::App, error::ApiError};

/// Sessions that are kept at a time; the oldest make room.
const SESSIONS_MAX: usize = 10_000;

/// How long a session may take.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// A step that a client can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// `m.login.password`
    Password,
    /// `m.login.dummy`
    Dummy,
    /// `m.login.registration_token`
    RegistrationToken,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Password => "m.login.password",
            Self::Dummy => "m.login.dummy",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }
}

/// What is to be authenticated.
pub struct Challenge<'a> {
    /// The endpoint; a session is good for one.
    pub endpoint: &'static str,
    /// The ways to pass, each a list of stages.
    pub flows: &'a [&'a [Stage]],
    /// Whose password counts, where one does.
    pub user_id: Option<&'a OwnedUserId>,
}

/// Either more is needed, or something went wrong.
pub enum Refusal {
    /// 401 with the flows.
    More(Value),
    /// Another error.
    Error(ApiError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::More(body) => (StatusCode::UNAUTHORIZED, Json(body)).into_response(),
            Self::Error(error) => error.into_response(),
        }
    }
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

struct Session {
    endpoint: &'static str,
    user_id: Option<OwnedUserId>,
    completed: Vec<Stage>,
    started_ms: u64,
}

/// The sessions under way.
#[derive(Default)]
pub struct Sessions(Mutex<BTreeMap<String, Session>>);

impl Sessions {
    /// Takes the session of this ID if it belongs to the challenge, or a new one.
    fn take(&self, id: Option<&str>, challenge: &Challenge<'_>, env: &Env) -> (String, Session) {
        let now_ms = env.clock.now_ms();
        let mut sessions = self.0.lock();
        let lifetime_ms = u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX);
        if let Some(id) = id
            && let Some(session) = sessions.remove(id)
            && session.endpoint == challenge.endpoint
            && session.user_id.as_ref() == challenge.user_id
            && now_ms.saturating_sub(session.started_ms) < lifetime_ms
        {
            return (id.to_owned(), session);
        }
        sessions.retain(|_, session| now_ms.saturating_sub(session.started_ms) < lifetime_ms);
        if sessions.len() >= SESSIONS_MAX {
            sessions.pop_first();
        }
        let session = Session {
            endpoint: challenge.endpoint,
            user_id: challenge.user_id.cloned(),
            completed: Vec::new(),
            started_ms: now_ms,
        };
        (env.entropy.token(24), session)
    }

    fn put(&self, id: String, session: Session) {
        self.0.lock().insert(id, session);
    }
}

/// Lets a request through whose sender has passed one of the challenge's flows.
pub async fn pass(app: &App, auth: Option<&AuthData>, challenge: &Challenge<'_>) -> Result<(), Refusal> {
    let id = auth.and_then(AuthData::session);
    let (id, mut session) = app.uia().take(id, challenge, app.homeserver().env());
    let failure = match auth {
        Some(auth) => match attempt(app, auth, challenge).await? {
            Attempt::Passed(stage) => {
                if !session.completed.contains(&stage) {
                    session.completed.push(stage);
                }
                None
            }
            Attempt::Nothing => None,
            Attempt::Failed(errcode, message) => Some((errcode, message)),
        },
        None => None,
    };
    let is_done = |flow: &&[Stage]| flow.iter().all(|stage| session.completed.contains(stage));
    if failure.is_none() && challenge.flows.iter().any(is_done) {
        return Ok(());
    }
    let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name()).collect::<Vec<_>>();
    let flows: Vec<_> = challenge.flows.iter().map(|flow| json!({ "stages": names(flow) })).collect();
    let mut body =
        json!({ "flows": flows, "params": {}, "session": id, "completed": names(&session.completed) });
    if let Some((errcode, message)) = failure {
        body["errcode"] = errcode.into();
        body["error"] = message.into();
    }
    app.uia().put(id, session);
    Err(Refusal::More(body))
}

enum Attempt {
    Passed(Stage),
    Nothing,
    Failed(&'static str, &'static str),
}

async fn attempt(app: &App, auth: &AuthData, challenge: &Challenge<'_>) -> Result<Attempt, Refusal> {
    let offers = |stage| challenge.flows.iter().any(|flow| flow.contains(&stage));
    match auth {
        AuthData::Dummy(_) if offers(Stage::Dummy) => Ok(Attempt::Passed(Stage::Dummy)),
        AuthData::RegistrationToken(given) if offers(Stage::RegistrationToken) => {
            let is_valid = is_registration_token(app, &given.token);
            let refused = Attempt::Failed("M_FORBIDDEN", "the registration token is not valid");
            Ok(if is_valid { Attempt::Passed(Stage::RegistrationToken) } else { refused })
        }
        AuthData::Password(given) if offers(Stage::Password) => {
            let Some(user_id) = challenge.user_id else { return Ok(Attempt::Nothing) };
            let names_user = match &given.identifier {
                UserIdentifier::Matrix(identifier) => {
                    let name = identifier.user.as_str();
                    name == user_id.as_str() || name == user_id.localpart()
                }
                _ => false,
            };
            let hash = app.homeserver().session(user_id).await?.data().account().password_hash.clone();
            let matches = app.passwords().verify(given.password.clone(), hash).await?;
            let refused = Attempt::Failed("M_FORBIDDEN", "the user or password is wrong");
            Ok(if names_user && matches { Attempt::Passed(Stage::Password) } else { refused })
        }
        AuthData::FallbackAcknowledgement(_) => Ok(Attempt::Nothing),
        _ => Ok(Attempt::Failed("M_UNRECOGNIZED", "this stage is not part of any flow")),
    }
}

/// Whether a registration token is one of the configured ones; compared in constant time.
pub fn is_registration_token(app: &App, given: &str) -> bool {
    let tokens = &app.settings().registration.tokens;
    tokens.iter().fold(false, |found, token| found | bool::from(token.as_bytes().ct_eq(given.as_bytes())))
}
