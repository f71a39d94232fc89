//! The keys of the configuration.

/// Every key, with its section.
pub const KEYS: &[&str] = &[
    "server_name",
    "data_dir",
    "listen.client",
    "listen.tls",
    "listen.metrics",
    "tls.certificate",
    "tls.private_key",
    "tls.acme.directory",
    "tls.acme.directory_ca",
    "tls.acme.contact",
    "tls.acme.domains",
    "registration.enabled",
    "registration.tokens",
    "registration.shared_secret",
    "registration.guests",
    "rooms.default_version",
    "rooms.thread_subscriptions",
    "federation.enabled",
    "federation.extra_ca",
    "federation.allow_private_addresses",
    "federation.max_concurrent_connects",
    "federation.trusted_key_servers",
    "federation.share_device_names",
    "federation.send_presence",
    "storage.backend",
    "storage.durability",
    "storage.cache",
    "actors.room_memory",
    "actors.session_memory",
    "actors.destination_memory",
    "actors.idle_after",
    "actors.backlog_max",
    "rate_limits.enabled",
    "rate_limits.message",
    "rate_limits.membership",
    "rate_limits.login",
    "rate_limits.registration",
    "rate_limits.url_preview",
    "rate_limits.other",
    "rate_limits.federation",
    "rate_limits.federation_delay",
    "rate_limits.federation_concurrent",
    "rate_limits.federation_waiting",
    "password.argon2_memory",
    "password.argon2_iterations",
    "password.argon2_lanes",
    "media.max_upload_size",
    "media.user_quota",
    "media.unused_expires_after",
    "media.max_pending_uploads",
    "media.legacy_endpoints",
    "media.remote_unused_max_age",
    "media.remote_max_size",
    "media.url_previews",
    "media.url_preview_allow",
    "media.url_preview_deny",
    "media.url_preview_allow_private_addresses",
    "media.url_preview_languages",
    "media.url_preview_max_age",
    "delayed_events.max_delay",
    "server_notices.user",
    "server_notices.display_name",
    "server_notices.avatar_url",
    "server_notices.room_name",
    "retention.enabled",
    "retention.default_lifetime",
    "retention.min_lifetime",
    "retention.max_lifetime",
    "retention.interval",
    "turn.uris",
    "turn.secret",
    "turn.ttl",
    "turn.guests",
    "matrix_rtc.transports",
    "push.allow_private_addresses",
    "search.enabled",
    "access.query_tokens",
    "access.trusted_proxies",
    "well_known.client_base_url",
    "well_known.client_extra",
    "well_known.server",
    "well_known.support_user",
    "well_known.support_email",
    "well_known.support_page",
    "appservices.registrations",
    "logging.format",
    "logging.level",
];

/// The keys whose values are tables of the operator's own making.
pub(super) const FREE: &[&str] = &["well_known.client_extra"];

/// The key that is spelled most like this one.
pub(super) fn nearest(key: &str) -> &'static str {
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    let cost = |known: &'static str| distance(key, known).min(distance(key, last(known)) + 1);
    KEYS.iter().copied().min_by_key(|known| cost(known)).unwrap_or("server_name")
}

/// The number of edits between two texts (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, opposite) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *opposite);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
