//! The map from every error to a status and an errcode.
//!
//! Spec: client-server API, "Standard error response".

use std::{borrow::Cow, time::Duration};

use actors::{
    appservice::AssertionError,
    delayed::DelayedError,
    directory::{ActivateError, CallError},
    federation::FederationError,
    media::{MediaError, PageError, PreviewError, RemoteError, ThumbnailError},
    reports::ReportError,
    room::RoomError,
    search::SearchError,
    session::SessionError,
    sync::SyncError,
    users::FindError,
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use engine::{pdu::PduError, room::create::NewRoomError};
use http::{HeaderValue, StatusCode, header};
use ruma::push::InsertPushRuleError;
use serde_json::{Map, Value};

use crate::password::PasswordError;

/// An error as the client gets it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    errcode: Cow<'static, str>,
    message: String,
    /// Further members of the body.
    fields: Map<String, Value>,
}

/// What a handler returns.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of this status and errcode.
    pub fn new(status: StatusCode, errcode: &'static str, message: impl Into<String>) -> Self {
        Self { status, errcode: errcode.into(), message: message.into(), fields: Map::new() }
    }

    /// 400 with an errcode.
    pub fn bad_request(errcode: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, errcode, message)
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    /// 403 `M_GUEST_ACCESS_FORBIDDEN`.
    pub fn guests_may_not() -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", "guests may not do this")
    }

    /// 401 `M_USER_LOCKED`; the device stays as it is.
    ///
    /// Spec: client-server API, "Account locking".
    pub fn locked() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "M_USER_LOCKED", "this account has been locked")
            .with("soft_logout", true)
    }

    /// 403 `M_USER_SUSPENDED`.
    ///
    /// Spec: client-server API, "Account suspension".
    pub fn suspended() -> Self {
        let message = "you cannot do this while you are suspended";
        Self::new(StatusCode::FORBIDDEN, "M_USER_SUSPENDED", message)
    }

    /// 400 `M_EXCLUSIVE`.
    ///
    /// Spec: application service API, "Server admin style permissions".
    pub fn exclusive(message: impl Into<String>) -> Self {
        Self::bad_request("M_EXCLUSIVE", message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::bad_request("M_INVALID_PARAM", message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<String>) -> Self {
        Self::bad_request("M_MISSING_PARAM", message)
    }

    /// 400 `M_BAD_JSON`.
    pub fn bad_json(message: impl Into<String>) -> Self {
        Self::bad_request("M_BAD_JSON", message)
    }

    /// 429 `M_LIMIT_EXCEEDED`, with the time to wait in body and header.
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let retry_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", "too many requests")
            .with("retry_after_ms", retry_ms)
    }

    /// 503 `M_UNKNOWN`: the server takes long to start.
    pub fn starting() -> Self {
        let message = "the server is starting; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message).with("retry_after_ms", 2000)
    }

    /// 503 `M_UNKNOWN`: the store does not keep up, or takes nothing any more.
    pub fn late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message).with("retry_after_ms", 5000)
    }

    /// 500 `M_UNKNOWN`: the cause is logged with a reference, and only the reference is returned.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        let reference = next_reference();
        tracing::error!(reference, %cause, "request failed");
        let message = format!("internal error; the server's log has it as reference {reference}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", message)
    }

    /// The same error with a further member in its body.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// The same text as 403 `M_FORBIDDEN`.
    #[must_use]
    pub fn into_forbidden(self) -> Self {
        Self { status: StatusCode::FORBIDDEN, errcode: "M_FORBIDDEN".into(), ..self }
    }

    /// The errcode.
    pub fn errcode(&self) -> &str {
        &self.errcode
    }
}

fn next_reference() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.fields.get("retry_after_ms").and_then(Value::as_u64);
        let mut body = self.fields;
        body.insert("errcode".to_owned(), self.errcode.into_owned().into());
        body.insert("error".to_owned(), self.message.into());
        let mut response = (self.status, Json(Value::Object(body))).into_response();
        if let Some(retry_ms) = retry_after {
            let seconds = HeaderValue::from(retry_ms.div_ceil(1000));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read, so nothing can follow on this connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<AssertionError> for ApiError {
    fn from(error: AssertionError) -> Self {
        match error {
            AssertionError::Foreign | AssertionError::NotRegistered => Self::forbidden(error.to_string()),
            AssertionError::UnknownDevice => Self::bad_request("M_UNKNOWN_DEVICE", error.to_string()),
            AssertionError::Store(error) => Self::internal(&error),
        }
    }
}

impl From<RoomError> for ApiError {
    fn from(error: RoomError) -> Self {
        let message = error.to_string();
        match error {
            RoomError::Busy { retry_after } => Self::limit_exceeded(retry_after),
            RoomError::NotFound | RoomError::EventNotFound => Self::not_found(message),
            RoomError::NotJoined | RoomError::NotAllowed(_) | RoomError::Forbidden(_) => {
                Self::forbidden(message)
            }
            RoomError::NotBanned => Self::new(StatusCode::FORBIDDEN, "M_BAD_STATE", message),
            RoomError::InviteBlocked => Self::new(StatusCode::FORBIDDEN, "M_INVITE_BLOCKED", message),
            RoomError::NoticeRoom => {
                Self::new(StatusCode::FORBIDDEN, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", message)
            }
            RoomError::Suspended => Self::suspended(),
            RoomError::Invalid(_) => Self::invalid_param(message),
            RoomError::Pdu(PduError::TooLarge(_)) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
            }
            RoomError::Pdu(PduError::Json(_) | PduError::Malformed(_) | PduError::Signature(_))
            | RoomError::NewRoom(NewRoomError::Invalid(_)) => Self::bad_json(message),
            RoomError::NoGuests => Self::new(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", message),
            RoomError::NewRoom(NewRoomError::UnsupportedVersion(_)) | RoomError::UnsupportedThere(_) => {
                Self::bad_request("M_UNSUPPORTED_ROOM_VERSION", message)
            }
            RoomError::AliasInUse => Self::bad_request("M_ROOM_IN_USE", message),
            RoomError::BadRelation(_) => Self::bad_request("M_UNKNOWN", message),
            RoomError::DuplicateAnnotation => Self::bad_request("M_DUPLICATE_ANNOTATION", message),
            RoomError::UnableToAuthoriseJoin => Self::bad_request("M_UNABLE_TO_AUTHORISE_JOIN", message),
            RoomError::Incomplete => Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message),
            RoomError::UnableToGrantJoin => Self::bad_request("M_UNABLE_TO_GRANT_JOIN", message),
            RoomError::IncompatibleVersion(version) => {
                Self::bad_request("M_INCOMPATIBLE_ROOM_VERSION", message)
                    .with("room_version", version.as_str())
            }
            RoomError::Activate(error) => error.into(),
            RoomError::Remote(error) => remote(error),
            RoomError::Policy(error) => policy(error),
            RoomError::Read(_) | RoomError::Commit(_) | RoomError::Crashed | RoomError::TimedOut => {
                Self::internal(&message)
            }
        }
    }
}

/// Error codes by which clients take themselves for logged out: only their own server has a say in that.
const ABOUT_SESSION: [&str; 3] = ["M_MISSING_TOKEN", "M_UNKNOWN_TOKEN", "M_USER_LOCKED"];

/// What a policy server said against an event, as it said it.
///
/// Spec: server-server API, "Validating Policy Server signatures".
fn policy(error: FederationError) -> ApiError {
    match error {
        FederationError::Status { status, errcode, error, body, .. }
            if body.contains_key("errcode")
                && (status.is_client_error() || status.is_server_error())
                && !ABOUT_SESSION.contains(&errcode.as_str()) =>
        {
            ApiError { status, errcode: errcode.into(), message: error, fields: body }
        }
        error => remote(error),
    }
}

/// What another server said, as far as a client can make use of it.
fn remote(error: FederationError) -> ApiError {
    match error {
        // What was wrong with our request is none of the client's doing.
        FederationError::Status { errcode, error, .. }
            if ["M_MISSING_PARAM", "M_INVALID_PARAM", "M_UNRECOGNIZED"].contains(&errcode.as_str())
                || ABOUT_SESSION.contains(&errcode.as_str()) =>
        {
            let message = format!("the other server does not understand our request: {error}");
            ApiError::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
        }
        FederationError::Status { status, errcode, error, .. } if status.is_client_error() => {
            let status = if status == StatusCode::UNAUTHORIZED { StatusCode::FORBIDDEN } else { status };
            ApiError { errcode: errcode.into(), ..ApiError::new(status, "M_UNKNOWN", error) }
        }
        error => ApiError::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", error.to_string()),
    }
}

impl From<ActivateError> for ApiError {
    fn from(error: ActivateError) -> Self {
        match error {
            ActivateError::Failed(_) | ActivateError::Damaged(_) => Self::internal(&error),
            ActivateError::Late | ActivateError::BackingOff { .. } | ActivateError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", error.to_string())
            }
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        RoomError::from(error).into()
    }
}

impl From<SyncError> for ApiError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Session(error) => error.into(),
            SyncError::Room(error) => error.into(),
            SyncError::Late => Self::late(error.to_string()),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        match error {
            SessionError::Busy { retry_after } => Self::limit_exceeded(retry_after),
            SessionError::NotFound | SessionError::DeviceNotFound | SessionError::PushRuleNotFound => {
                Self::not_found(message)
            }
            SessionError::KeyNotFound | SessionError::BackupNotFound => Self::not_found(message),
            SessionError::NoMasterKey => Self::missing_param(message),
            SessionError::InvalidSignature(_) => Self::bad_request("M_INVALID_SIGNATURE", message),
            SessionError::WrongBackup(current) => {
                Self::new(StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION", message)
                    .with("current_version", current.to_string())
            }
            SessionError::Overtaken => Self::limit_exceeded(Duration::from_secs(1)),
            SessionError::UserInUse => Self::bad_request("M_USER_IN_USE", message),
            SessionError::InvalidUsername(_) => Self::bad_request("M_INVALID_USERNAME", message),
            SessionError::Deactivated => Self::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", message),
            SessionError::Locked => Self::locked(),
            SessionError::TooMany(_) | SessionError::NotAllowed(_) | SessionError::KeyInUse => {
                Self::forbidden(message)
            }
            SessionError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message),
            SessionError::UnknownRefreshToken => {
                Self::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", message)
            }
            // Spec: client-server API, `PUT …/account_data/{type}`.
            SessionError::ServerManaged(_) => {
                Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message)
            }
            SessionError::PushRule(InsertPushRuleError::UnknownRuleId) => {
                Self::bad_request("M_UNKNOWN", message)
            }
            SessionError::UnsubscribedSince => {
                Self::new(StatusCode::CONFLICT, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", message)
            }
            SessionError::ProfileKeyTooLarge => Self::bad_request("M_KEY_TOO_LARGE", message),
            SessionError::ProfileTooLarge => Self::bad_request("M_PROFILE_TOO_LARGE", message),
            SessionError::InvalidDeviceId
            | SessionError::InvalidProfileKey
            | SessionError::Invalid(_)
            | SessionError::PushRule(_)
            | SessionError::PredefinedPushRule => Self::invalid_param(message),
            SessionError::Activate(error) => error.into(),
            SessionError::Store(_)
            | SessionError::Damaged(_)
            | SessionError::Commit(_)
            | SessionError::Crashed
            | SessionError::TimedOut => Self::internal(&message),
        }
    }
}

impl From<DelayedError> for ApiError {
    fn from(error: DelayedError) -> Self {
        let message = error.to_string();
        match error {
            DelayedError::TooLong { max } => Self::bad_request("M_UNKNOWN", message)
                .with("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
                .with("org.matrix.msc4140.max_delay", u64::try_from(max.as_millis()).unwrap_or(u64::MAX)),
            DelayedError::TooMany => Self::bad_request("M_UNKNOWN", message)
                .with("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED"),
            DelayedError::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message),
            DelayedError::NotFound => Self::not_found(message),
            DelayedError::Overtaken => Self::limit_exceeded(Duration::from_secs(1)),
            DelayedError::Room(error) => error.into(),
            DelayedError::Store(_) | DelayedError::Commit(_) => Self::internal(&message),
        }
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        let message = error.to_string();
        match error {
            ReportError::NotFound(_) => Self::not_found(message),
            ReportError::ReasonTooLong => Self::invalid_param(message),
            ReportError::TooMany => Self::forbidden(message),
            ReportError::Room(error) => error.into(),
            ReportError::Store(_) | ReportError::Commit(_) => Self::internal(&message),
        }
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Disabled => Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", error.to_string()),
            SearchError::Room(error) => error.into(),
            SearchError::Session(error) => error.into(),
            SearchError::Text(_) | SearchError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<FindError> for ApiError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Room(error) => error.into(),
            FindError::Profile(error) => error.into(),
        }
    }
}

impl From<MediaError> for ApiError {
    fn from(error: MediaError) -> Self {
        let message = error.to_string();
        match error {
            MediaError::NotFound | MediaError::Remote(RemoteError::NotFound) => Self::not_found(message),
            MediaError::NotYetUploaded | MediaError::Remote(RemoteError::NotYetUploaded) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", message)
            }
            MediaError::AlreadyUploaded => {
                Self::new(StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA", message)
            }
            MediaError::NotOwner | MediaError::QuotaReached { .. } => Self::forbidden(message),
            MediaError::TooManyPending { retry_after } => Self::limit_exceeded(retry_after),
            MediaError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message),
            MediaError::Interrupted(_) => Self::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", message),
            MediaError::Remote(RemoteError::TooLarge) => {
                Self::new(StatusCode::BAD_GATEWAY, "M_TOO_LARGE", message)
            }
            MediaError::Remote(
                RemoteError::Refused(_) | RemoteError::BadAnswer(_) | RemoteError::Unreachable(_),
            ) => Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message),
            MediaError::Thumbnail { error, is_remote } => match error {
                ThumbnailError::Undecodable(_) => Self::bad_request("M_UNKNOWN", message),
                ThumbnailError::TooLarge if is_remote => {
                    Self::new(StatusCode::BAD_GATEWAY, "M_TOO_LARGE", message)
                }
                ThumbnailError::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message),
                ThumbnailError::Busy => Self::limit_exceeded(Duration::from_secs(1)),
            },
            MediaError::Preview(error) => match error {
                PreviewError::Off => Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", message),
                PreviewError::Invalid(_) => Self::invalid_param(message),
                PreviewError::Page(PageError::Refused(_)) => Self::forbidden(message),
                PreviewError::Page(PageError::Failed(_)) => {
                    Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
                }
            },
            MediaError::NoSpace => {
                tracing::error!("there is no room for media left on the disk");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "M_UNKNOWN", message)
            }
            MediaError::Files(_) | MediaError::Store(_) | MediaError::Commit(_) => Self::internal(&message),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Hash(_) => Self::internal(&error),
            PasswordError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", error.to_string())
            }
        }
    }
}
