//! What becomes of a transaction that a server did not take.

use std::time::Duration;

use http::StatusCode;

use crate::federation::FederationError;

/// What to do about a transaction that a server did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Something in it is not to the server's liking: it is found by sending less at a time.
    SendLess,
    /// It is all that was in it: sending it again and again would lead nowhere.
    Drop,
    /// The server, or the way to it, is in trouble; it is left alone for a while, and at least for so long.
    BackOff(Duration),
}

impl Reaction {
    /// The reaction to an error, for a transaction of so many events and EDUs.
    ///
    /// Servers that know canonical JSON alone cannot check the signature of anything else, and say so.
    pub(super) fn to(error: &FederationError, items: usize, is_canonical: impl FnOnce() -> bool) -> Self {
        const CONTENT: [StatusCode; 3] =
            [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
        const SIGNATURE: [StatusCode; 2] = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        let is_content = match error {
            FederationError::Status { status, .. } => {
                CONTENT.contains(status) || SIGNATURE.contains(status) && !is_canonical()
            }
            FederationError::Unsignable(_) => true,
            FederationError::Dns(_)
            | FederationError::Connect(_)
            | FederationError::Tls(_)
            | FederationError::Timeout
            | FederationError::TooLarge { .. }
            | FederationError::NoKeys(_)
            | FederationError::PrivateAddress
            | FederationError::BadBody(_)
            | FederationError::Disabled => false,
        };
        match error {
            _ if is_content && items > 1 => Self::SendLess,
            _ if is_content => Self::Drop,
            FederationError::Status { retry_after: Some(wait), .. } => Self::BackOff(*wait),
            _ => Self::BackOff(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> FederationError {
        FederationError::Status {
            status: StatusCode::from_u16(status).unwrap(),
            errcode: "M_UNKNOWN".to_owned(),
            error: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
            body: serde_json::Map::new(),
        }
    }

    #[test]
    fn what_a_server_says_decides_what_is_done() {
        let wait = |seconds| Reaction::BackOff(Duration::from_secs(seconds));
        for (error, items, expected) in [
            (status(400, None), 50, Reaction::SendLess),
            (status(413, None), 2, Reaction::SendLess),
            (status(400, None), 1, Reaction::Drop),
            (status(401, None), 1, wait(0)),
            (status(404, None), 50, wait(0)),
            (status(429, Some(30)), 50, wait(30)),
            (status(502, None), 50, wait(0)),
            (FederationError::Timeout, 50, wait(0)),
            (FederationError::BadBody("HTML".to_owned()), 1, wait(0)),
        ] {
            assert_eq!(Reaction::to(&error, items, || true), expected, "{error}, {items} items");
        }
    }

    #[test]
    fn what_cannot_be_signed_or_checked_is_found_and_dropped() {
        let unsignable = FederationError::Unsignable("no JSON".to_owned());
        for (error, items, expected) in [
            (status(401, None), 50, Reaction::SendLess),
            (status(403, None), 1, Reaction::Drop),
            (status(404, None), 1, Reaction::BackOff(Duration::ZERO)),
            (unsignable.clone(), 2, Reaction::SendLess),
            (unsignable, 1, Reaction::Drop),
        ] {
            assert_eq!(Reaction::to(&error, items, || false), expected, "{error}, {items} items");
        }
    }
}
