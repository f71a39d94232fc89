//! User-interactive authentication.
//!
//! Spec: client-server API, "User-Interactive Authentication API".

use std::{collections::BTreeMap, time::Duration};

use actors::env::Env;
use axum::{
    Json,
    body::Bytes,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use parking_lot::Mutex;
use ruma::{
    OwnedUserId, ServerName, UserId,
    api::client::uiaa::{AuthData, UserIdentifier},
};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;

use crate::{
    app::App,
    error::{ApiError, ApiResult},
};

/// Sessions that are kept at a time; the oldest make room.
const SESSIONS_MAX: usize = 10_000;

/// How long a session may take.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The endpoints whose requests ruma reads, `auth` and all.
pub const ROUTES: [&str; 6] = [
    "/_matrix/client/v3/register",
    "/_matrix/client/v3/account/password",
    "/_matrix/client/v3/account/deactivate",
    "/_matrix/client/v3/devices/{device}",
    "/_matrix/client/v3/delete_devices",
    "/_matrix/client/v1/login/get_token",
];

/// A request's body with its `auth` as ruma reads it.
pub fn with_readable_auth(body: Bytes) -> Bytes {
    let Ok(mut request) = serde_json::from_slice::<Map<String, Value>>(&body) else { return body };
    let Some(auth) = request.remove("auth") else { return body };
    if let Some(auth) = readable(auth) {
        request.insert("auth".to_owned(), auth);
    }
    Value::Object(request).to_string().into()
}

/// Takes the `auth` out of a request that ruma does not read.
pub fn take_auth(request: &mut Map<String, Value>) -> ApiResult<Option<AuthData>> {
    let auth = request.remove("auth").and_then(readable).map(serde_json::from_value).transpose();
    auth.map_err(|error| ApiError::bad_json(error.to_string()))
}

/// An `auth` as ruma reads it: none where it names neither a stage nor a session, as some clients begin, and with an
/// identifier where the user is named as before r0.4.0, as `/login` still allows.
fn readable(mut auth: Value) -> Option<Value> {
    if auth.is_null() {
        return None;
    }
    if let Some(fields) = auth.as_object_mut() {
        if !fields.contains_key("type") && !fields.contains_key("session") {
            return None;
        }
        let is_password = fields.get("type").is_some_and(|kind| kind == Stage::Password.name());
        if is_password
            && !fields.contains_key("identifier")
            && let Some(user) = fields.get("user").and_then(Value::as_str)
        {
            let identifier = json!({ "type": "m.id.user", "user": user });
            fields.insert("identifier".to_owned(), identifier);
        }
    }
    Some(auth)
}

/// The user whom a client names by a user ID or a local part of one, if it can exist.
///
/// Those of this server have no capitals, whatever people type.
///
/// Spec: client-server API, "Matrix User ID"; appendices, "User Identifiers".
pub fn named_user(name: &str, own: &ServerName) -> Option<OwnedUserId> {
    let localpart = match name.strip_prefix('@').map(|id| id.split_once(':')) {
        None => name,
        Some(Some((localpart, server))) if server == own.as_str() => localpart,
        Some(_) => return UserId::parse(name).ok(),
    };
    UserId::parse_with_server_name(localpart.to_lowercase(), own).ok()
}

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

    /// The stage of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Password, Self::Dummy, Self::RegistrationToken].into_iter().find(|stage| stage.name() == name)
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
    /// The stages of all its flows.
    offered: Vec<Stage>,
    completed: Vec<Stage>,
    started_ms: u64,
    /// The account that was registered with it.
    registered: Option<OwnedUserId>,
}

impl Session {
    fn is_alive(&self, now_ms: u64) -> bool {
        let lifetime_ms = u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_sub(self.started_ms) < lifetime_ms
    }
}

/// A stage of a session, for the page on which it is passed.
pub struct Pending {
    /// Whose password counts, where one does.
    pub user_id: Option<OwnedUserId>,
    /// Whether it has been passed already.
    pub is_passed: bool,
}

/// A session that was passed; it is good for nothing further, unless what it was for is noted.
pub struct Passed {
    id: String,
    session: Session,
    /// Whether the client knows it.
    is_known: bool,
}

/// The sessions under way, and those with which accounts were registered lately.
#[derive(Default)]
pub struct Sessions(Mutex<BTreeMap<String, Session>>);

impl Sessions {
    /// Takes the session of this ID if it belongs to the challenge, or a new one.
    fn take(&self, id: Option<&str>, challenge: &Challenge<'_>, env: &Env) -> (String, Session) {
        let now_ms = env.clock.now_ms();
        let mut sessions = self.0.lock();
        if let Some(id) = id
            && let Some(session) = sessions.remove(id)
            && session.endpoint == challenge.endpoint
            && session.user_id.as_ref() == challenge.user_id
            && session.is_alive(now_ms)
        {
            return (id.to_owned(), session);
        }
        sessions.retain(|_, session| session.is_alive(now_ms));
        if sessions.len() >= SESSIONS_MAX
            && let Some((oldest, _)) = sessions.iter().min_by_key(|(_, session)| session.started_ms)
        {
            let oldest = oldest.clone();
            sessions.remove(&oldest);
        }
        let session = Session {
            endpoint: challenge.endpoint,
            user_id: challenge.user_id.cloned(),
            offered: challenge.flows.concat(),
            completed: Vec::new(),
            started_ms: now_ms,
            registered: None,
        };
        (env.entropy.token(24), session)
    }

    /// Notes what account was registered with a session, whose client may not get to know it.
    pub fn note_registered(&self, passed: Passed, user_id: &UserId) {
        let Passed { id, mut session, is_known } = passed;
        if is_known {
            session.completed.clear();
            session.registered = Some(user_id.to_owned());
            self.put(id, session);
        }
    }

    /// The account that was registered with the session of this ID, until that expires.
    pub fn registered(&self, id: &str, env: &Env) -> Option<OwnedUserId> {
        let sessions = self.0.lock();
        let session = sessions.get(id).filter(|session| session.is_alive(env.clock.now_ms()))?;
        session.registered.clone()
    }

    /// A stage of the session of this ID, if the session has it and has not expired.
    pub fn pending(&self, id: &str, stage: Stage, env: &Env) -> Option<Pending> {
        let sessions = self.0.lock();
        let session = sessions.get(id).filter(|session| session.offered.contains(&stage))?;
        let is_passed = session.completed.contains(&stage);
        let pending = Pending { user_id: session.user_id.clone(), is_passed };
        session.is_alive(env.clock.now_ms()).then_some(pending)
    }

    /// Notes that a stage was passed elsewhere than in a request.
    pub fn note_passed(&self, id: &str, stage: Stage) {
        if let Some(session) = self.0.lock().get_mut(id)
            && !session.completed.contains(&stage)
        {
            session.completed.push(stage);
        }
    }

    fn put(&self, id: String, session: Session) {
        self.0.lock().insert(id, session);
    }
}

/// Lets a request through whose sender has passed one of the challenge's flows.
pub async fn pass(app: &App, auth: Option<&AuthData>, challenge: &Challenge<'_>) -> Result<Passed, Refusal> {
    let given = auth.and_then(AuthData::session);
    let (id, mut session) = app.uia().take(given, challenge, app.homeserver().env());
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
        let is_known = given == Some(id.as_str());
        return Ok(Passed { id, session, is_known });
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
                    named_user(&identifier.user, app.homeserver().server_name()).as_ref() == Some(user_id)
                }
                _ => false,
            };
            let matches = is_password_of(app, user_id, given.password.clone()).await?;
            let refused = Attempt::Failed("M_FORBIDDEN", "the user or password is wrong");
            Ok(if names_user && matches { Attempt::Passed(Stage::Password) } else { refused })
        }
        AuthData::FallbackAcknowledgement(_) => Ok(Attempt::Nothing),
        _ => Ok(Attempt::Failed("M_UNRECOGNIZED", "this stage is not part of any flow")),
    }
}

/// Whether a password is a user's.
pub async fn is_password_of(app: &App, user_id: &UserId, password: String) -> ApiResult<bool> {
    app.rate_limits().check_password(user_id)?;
    let hash = app.homeserver().session(user_id).await?.data().account().password_hash.clone();
    Ok(app.passwords().verify(password, hash).await?)
}

/// Whether a registration token is one of the configured ones; compared in constant time. An empty one never is, whatever the
/// configuration says.
pub fn is_registration_token(app: &App, given: &str) -> bool {
    let tokens = &app.settings().registration.tokens;
    let is_equal = |token: &str| bool::from(token.as_bytes().ct_eq(given.as_bytes()));
    !given.is_empty() && tokens.iter().fold(false, |found, token| found | is_equal(token))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::{Value, json};

    use super::{named_user, readable};

    #[test]
    fn a_proof_reads_as_it_was_meant() {
        let old = json!({ "type": "m.login.password", "user": "alice", "password": "p", "session": "s" });
        let identifier = json!({ "type": "m.id.user", "user": "alice" });
        assert_eq!(readable(old).unwrap()["identifier"], identifier);
        for kept in [
            json!({ "type": "m.login.password", "user": "bob", "identifier": identifier }),
            json!({ "type": "m.login.password", "user": 1 }),
            json!({ "type": "m.login.dummy", "user": "alice" }),
            json!({ "session": "s" }),
            json!("nonsense"),
        ] {
            assert_eq!(readable(kept.clone()), Some(kept));
        }
        for nothing in [json!({}), json!({ "user": "alice" }), Value::Null] {
            assert_eq!(readable(nothing), None);
        }
    }

    #[test]
    fn capitals_name_the_same_local_user() {
        for (name, expected) in [
            ("alice", Some("@alice:example.org")),
            ("Alice", Some("@alice:example.org")),
            ("@Alice:example.org", Some("@alice:example.org")),
            ("@Alice:other.org", Some("@Alice:other.org")),
            ("@alice", None),
            ("a b:c:d", None),
        ] {
            let named = named_user(name, server_name!("example.org"));
            assert_eq!(named.as_deref().map(ruma::UserId::as_str), expected, "{name}");
        }
    }
}
