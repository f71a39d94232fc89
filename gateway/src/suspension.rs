//! What suspended users may not do.
//!
//! Spec: client-server API, "Account suspension".

use http::Method;

/// The routes of `v3` that suspended users may not use: what others would notice.
///
/// Sending events is decided by what is sent; see `RoomHandle::check_suspended`.
const REFUSED: [(Method, &str); 16] = [
    (Method::POST, "/createRoom"),
    (Method::POST, "/join/{room}"),
    (Method::POST, "/knock/{room}"),
    (Method::POST, "/rooms/{room}/join"),
    (Method::POST, "/rooms/{room}/invite"),
    (Method::POST, "/rooms/{room}/kick"),
    (Method::POST, "/rooms/{room}/ban"),
    (Method::POST, "/rooms/{room}/unban"),
    (Method::POST, "/rooms/{room}/upgrade"),
    (Method::PUT, "/profile/{user}/{field}"),
    (Method::DELETE, "/profile/{user}/{field}"),
    (Method::PUT, "/presence/{user}/status"),
    (Method::PUT, "/directory/room/{alias}"),
    (Method::DELETE, "/directory/room/{alias}"),
    (Method::PUT, "/directory/list/room/{room}"),
    (Method::PUT, "/rooms/{room}/typing/{user}"),
];

/// Whether suspended users may use a route of the router's table.
pub fn may(method: &Method, route: &str) -> bool {
    let Some(route) = route.strip_prefix("/_matrix/client/v3") else { return true };
    !REFUSED.iter().any(|(known, path)| known == method && *path == route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suspended_may_read_and_leave_but_not_join() {
        for (method, route, expected) in [
            (Method::GET, "/sync", true),
            (Method::POST, "/rooms/{room}/leave", true),
            (Method::POST, "/rooms/{room}/join", false),
            (Method::GET, "/profile/{user}/{field}", true),
            (Method::PUT, "/profile/{user}/{field}", false),
            (Method::POST, "/account/deactivate", true),
        ] {
            assert_eq!(may(&method, &format!("/_matrix/client/v3{route}")), expected, "{method} {route}");
        }
    }
}
