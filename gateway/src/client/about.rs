//! What a server says of itself: the versions that it speaks, and its well-known documents.
//!
//! All of it comes from the configuration, so that it can be told before the store is open.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, routing::get};
use serde_json::{Value, json};

use super::well_known::{self, WellKnown};
use crate::{
    app::{App, Settings},
    config::JsonObject,
};

/// What a server says of itself.
pub struct About {
    pub(super) well_known: WellKnown,
    pub(super) rtc_transports: Vec<JsonObject>,
    delays_events: bool,
    has_thread_subscriptions: bool,
}

impl About {
    /// A server with these settings, which delays events by so much at most, and may have subscriptions to threads.
    pub fn new(settings: &Settings, delay_max: Duration, has_thread_subscriptions: bool) -> Self {
        Self {
            well_known: settings.well_known.clone(),
            rtc_transports: settings.rtc_transports.clone(),
            delays_events: !delay_max.is_zero(),
            has_thread_subscriptions,
        }
    }

    /// A server that is up.
    pub fn of(app: &App) -> Self {
        let homeserver = app.homeserver();
        Self::new(app.settings(), homeserver.delay_max(), homeserver.has_thread_subscriptions())
    }
}

/// The routes that need nothing else.
pub fn routes<S: Clone + Send + Sync + 'static>(about: About) -> Router<S> {
    Router::new()
        .route("/_matrix/client/versions", get(versions))
        .route("/.well-known/matrix/client", get(well_known::client))
        .route("/.well-known/matrix/server", get(well_known::server))
        .route("/.well-known/matrix/support", get(well_known::support))
        .with_state(Arc::new(about))
}

/// The versions of the specification whose client-server API this server speaks.
///
/// The first three are of the time before v1.1: their paths are answered (see `router::alias`), and there are clients
/// that ask for nothing else.
const VERSIONS: [&str; 22] = [
    "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9",
    "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// What is part of these versions, and what clients nevertheless ask for by the name that it had before.
const STABLE_FEATURES: [&str; 9] = [
    "org.matrix.e2e_cross_signing",
    // Private read receipts.
    "org.matrix.msc2285.stable",
    // Threads.
    "org.matrix.msc3440.stable",
    // Read receipts of threads.
    "org.matrix.msc3771",
    // Types of rooms in the directory.
    "org.matrix.msc3827.stable",
    // Relations of relations.
    "org.matrix.msc3981",
    "org.matrix.msc4380.stable",
    // Further fields of profiles.
    "uk.tcpip.msc4133.stable",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
];

/// `GET /_matrix/client/versions`
async fn versions(State(about): State<Arc<About>>) -> Json<Value> {
    let mut unstable_features = json!({
        "org.matrix.msc3814": true,
        "org.matrix.msc4140": about.delays_events,
        "org.matrix.simplified_msc3575": true,
        "uk.half-shot.msc2666.query_mutual_rooms": true,
    });
    for feature in STABLE_FEATURES {
        unstable_features[feature] = true.into();
    }
    if !about.rtc_transports.is_empty() {
        unstable_features["org.matrix.msc4143"] = true.into();
    }
    if about.has_thread_subscriptions {
        unstable_features["org.matrix.msc4306"] = true.into();
        unstable_features["org.matrix.msc4308"] = true.into();
    }
    Json(json!({ "versions": VERSIONS, "unstable_features": unstable_features }))
}
