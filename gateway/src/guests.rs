//! What guests may do.
//!
//! Spec: client-server API, "Guest Access", client behaviour.

use http::Method;

use crate::router::STABLE_SLIDING_SYNC;

/// The routes that guests may use: those of the specification, and what a client cannot do without.
const ROUTES: [(Method, &str); 30] = [
    (Method::GET, "/account/whoami"),
    (Method::GET, "/capabilities"),
    (Method::GET, "/devices"),
    (Method::GET, "/devices/{device}"),
    (Method::PUT, "/devices/{device}"),
    (Method::GET, "/joined_rooms"),
    // The search in what `GET` shows to anybody.
    (Method::POST, "/publicRooms"),
    (Method::POST, "/join/{room}"),
    (Method::POST, "/keys/claim"),
    (Method::POST, "/keys/query"),
    (Method::POST, "/keys/upload"),
    (Method::POST, "/logout"),
    (Method::POST, "/logout/all"),
    (Method::PUT, "/profile/{user}/{field}"),
    (Method::DELETE, "/profile/{user}/{field}"),
    (Method::GET, "/rooms/{room}/context/{event}"),
    (Method::GET, "/rooms/{room}/event/{event}"),
    (Method::GET, "/rooms/{room}/initialSync"),
    (Method::POST, "/rooms/{room}/join"),
    (Method::POST, "/rooms/{room}/leave"),
    (Method::GET, "/rooms/{room}/members"),
    (Method::GET, "/rooms/{room}/messages"),
    (Method::PUT, "/rooms/{room}/send/{kind}/{txn}"),
    (Method::GET, "/rooms/{room}/state"),
    (Method::GET, "/events"),
    (Method::PUT, "/sendToDevice/{kind}/{txn}"),
    (Method::GET, "/sync"),
    (Method::POST, "/org.matrix.simplified_msc3575/sync"),
    (Method::GET, "/rooms/{room}/joined_members"),
    // If the operator says so.
    (Method::GET, "/voip/turnServer"),
];

/// The routes of `v1` that guests may use.
const ROUTES_V1: [&str; 8] = [
    "/room_summary/{room}",
    "/rooms/{room}/hierarchy",
    "/rooms/{room}/relations/{event}",
    "/rooms/{room}/relations/{event}/{rel_type}",
    "/rooms/{room}/relations/{event}/{rel_type}/{kind}",
    "/media/download/{server}/{media}",
    "/media/download/{server}/{media}/{name}",
    "/media/thumbnail/{server}/{media}",
];

/// Whether guests may use a route of the router's table.
pub fn may(method: &Method, route: &str) -> bool {
    if let Some(route) = route.strip_prefix("/_matrix/client/v1") {
        return *method == Method::GET && ROUTES_V1.contains(&route);
    }
    if route == STABLE_SLIDING_SYNC {
        return *method == Method::POST;
    }
    let Some(route) = route.strip_prefix("/_matrix/client/v3") else { return false };
    let is_state = route.starts_with("/rooms/{room}/state/") && [Method::GET, Method::PUT].contains(method);
    is_state || ROUTES.iter().any(|(known, path)| known == method && *path == route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_may_read_and_send_but_not_manage() {
        for (method, route, expected) in [
            (Method::GET, "/sync", true),
            (Method::PUT, "/rooms/{room}/state/{kind}/{key}", true),
            (Method::DELETE, "/rooms/{room}/state/{kind}/{key}", false),
            (Method::POST, "/createRoom", false),
            (Method::DELETE, "/devices/{device}", false),
            (Method::POST, "/account/password", false),
        ] {
            assert_eq!(may(&method, &format!("/_matrix/client/v3{route}")), expected, "{method} {route}");
        }
        assert!(!may(&Method::GET, "/sync"));
        assert!(may(&Method::GET, "/_matrix/client/v1/media/download/{server}/{media}"));
        assert!(!may(&Method::POST, "/_matrix/media/v3/upload"));
    }
}
