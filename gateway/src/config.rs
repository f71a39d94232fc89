//! The configuration: one TOML file, environment variables over it, flags over both.
//!
//! Every key is documented in `docs/configuration.md`; a test keeps the two in step. Unknown keys are
//! errors that name the nearest known one. Values carry their units.

mod keys;
mod load;
mod registration;
mod rtc;
mod units;

use std::{fmt, net::SocketAddr, path::PathBuf};

use ruma::{OwnedServerName, RoomVersionId};
use serde::Deserialize;
use serde_json::Value;

pub use self::{
    keys::KEYS,
    load::{ConfigError, Flags},
    registration::{RegistrationError, load as registrations},
    rtc::{MatrixRtc, RTC_FOCI},
    units::{Size, Span},
};

/// A table that is handed on to clients as it is.
pub type JsonObject = serde_json::Map<String, Value>;

/// A secret: never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// Declares a section: fields with their documentation, type and default.
macro_rules! section {
    ($(#[$docs:meta])+ $name:ident { $($(#[$field_docs:meta])+ $field:ident : $type:ty = $default:expr),+ $(,)? }) => {
        $(#[$docs])+
        #[derive(Clone, Debug, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_docs])+ pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }
    };
}

section! {
    /// The whole configuration.
    Config {
        /// The server's name, the part after the colon of its user IDs.
        server_name: OwnedServerName = ruma::owned_server_name!("localhost"),
        /// Where the server keeps its files.
        data_dir: PathBuf = PathBuf::from("./ganglion-data"),
        /// Where the server listens.
        listen: Listen = Listen::default(),
        /// TLS in process.
        tls: Option<Tls> = None,
        /// Who may register.
        registration: Registration = Registration::default(),
        /// New rooms.
        rooms: Rooms = Rooms::default(),
        /// Other servers.
        federation: Federation = Federation::default(),
        /// The store.
        storage: Storage = Storage::default(),
        /// Actors in memory.
        actors: Actors = Actors::default(),
        /// Limits for clients.
        rate_limits: RateLimits = RateLimits::default(),
        /// Password hashing.
        password: Password = Password::default(),
        /// The content repository.
        media: Media = Media::default(),
        /// Events that are sent later.
        delayed_events: DelayedEvents = DelayedEvents::default(),
        /// What the server says to its users.
        server_notices: ServerNotices = ServerNotices::default(),
        /// How long messages are kept.
        retention: Retention = Retention::default(),
        /// The TURN server for calls.
        turn: Turn = Turn::default(),
        /// Where group calls are carried.
        matrix_rtc: MatrixRtc = MatrixRtc::default(),
        /// Searching messages.
        search: Search = Search::default(),
        /// Push notifications.
        push: Push = Push::default(),
        /// How requests are let in.
        access: Access = Access::default(),
        /// What `.well-known` documents say.
        well_known: WellKnown = WellKnown::default(),
        /// Application services.
        appservices: Appservices = Appservices::default(),
        /// The log.
        logging: Logging = Logging::default(),
    }
}
section! {
    /// `[listen]`
    Listen {
        /// Plain HTTP, client and federation APIs.
        client: Vec<SocketAddr> = vec![SocketAddr::from(([127, 0, 0, 1], 8008))],
        /// TLS, client and federation APIs.
        tls: Vec<SocketAddr> = Vec::new(),
        /// Plain HTTP, metrics; nobody is asked who they are there.
        metrics: Vec<SocketAddr> = Vec::new(),
    }
}
section! {
    /// `[tls]`
    Tls {
        /// The certificate chain, PEM.
        certificate: Option<PathBuf> = None,
        /// The private key, PEM.
        private_key: Option<PathBuf> = None,
        /// Certificates from an ACME authority.
        acme: Option<Acme> = None,
    }
}
section! {
    /// `[tls.acme]`
    Acme {
        /// The authority's directory.
        directory: String = "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
        /// Additional trusted roots for requests to the authority, a PEM file.
        directory_ca: Option<PathBuf> = None,
        /// Whom the authority writes to, an e-mail address.
        contact: Option<String> = None,
        /// What the certificate is for; if it is not set, the host of `server_name`.
        domains: Vec<String> = Vec::new(),
    }
}
section! {
    /// `[registration]`
    Registration {
        /// Anybody may register.
        enabled: bool = false,
        /// Holders of one of these tokens may register.
        tokens: Vec<Secret> = Vec::new(),
        /// The secret of `/_synapse/admin/v1/register`.
        shared_secret: Option<Secret> = None,
        /// Guests may register.
        guests: bool = false,
    }
}
section! {
    /// `[rooms]`
    Rooms {
        /// The version of new rooms that name none.
        default_version: RoomVersionId = engine::room_version::DEFAULT,
        /// Whether users subscribe to threads, and hear of no others.
        thread_subscriptions: bool = false,
    }
}
section! {
    /// `[federation]`
    Federation {
        /// Whether to talk to other servers; if it is not set, a `[tls]` section decides.
        enabled: Option<bool> = None,
        /// Additional trusted roots, PEM files.
        extra_ca: Vec<PathBuf> = Vec::new(),
        /// Whether outbound requests may go to loopback and private addresses.
        allow_private_addresses: bool = false,
        /// Connections that may be set up at a time.
        max_concurrent_connects: u32 = 64,
        /// Servers that vouch for others' keys.
        trusted_key_servers: Vec<OwnedServerName> = Vec::new(),
        /// Whether other servers may know the names of users' devices.
        share_device_names: bool = true,
        /// Whether other servers are told of users' presence.
        send_presence: bool = true,
    }
}
section! {
    /// `[storage]`
    Storage {
        /// The back end.
        backend: Backend = Backend::Sled,
        /// Whether a reply waits for the disk.
        durability: Durability = Durability::Always,
        /// What the back end may cache.
        cache: Size = Size(64 << 20),
    }
}
section! {
    /// `[actors]`
    Actors {
        /// Rooms in memory, with the caches of events and state.
        room_memory: Size = Size(512 << 20),
        /// Sessions in memory.
        session_memory: Size = Size(128 << 20),
        /// Destinations in memory.
        destination_memory: Size = Size(64 << 20),
        /// An actor that nobody used for this long leaves memory.
        idle_after: Span = Span::from_secs(15 * 60),
        /// Calls that one actor may have under way before it refuses more.
        backlog_max: u32 = 4096,
    }
}
section! {
    /// `[rate_limits]`; each in requests per second of one user (or address, before the user is known).
    RateLimits {
        /// One switch for all limits.
        enabled: bool = true,
        /// Events sent.
        message: u32 = 50,
        /// Joins, invites and other membership changes.
        membership: u32 = 10,
        /// Attempts to log in.
        login: u32 = 3,
        /// Attempts to register.
        registration: u32 = 3,
        /// Previews of pages.
        url_preview: u32 = 2,
        /// Everything else.
        other: u32 = 200,
        /// Requests of one other server.
        federation: u32 = 100,
        /// How long its requests above that are delayed.
        federation_delay: Span = Span::from_millis(500),
        /// Requests of one other server that are worked on at a time.
        federation_concurrent: u32 = 20,
        /// Requests of one other server that may wait for that; more are refused.
        federation_waiting: u32 = 200,
    }
}
section! {
    /// `[password]`, the cost of argon2id.
    Password {
        /// Memory of one hash.
        argon2_memory: Size = Size(19 << 20),
        /// Passes over the memory.
        argon2_iterations: u32 = 2,
        /// Lanes.
        argon2_lanes: u32 = 1,
    }
}
section! {
    /// `[media]`
    Media {
        /// The largest upload, and the largest media of other servers that are fetched.
        max_upload_size: Size = Size(100 << 20),
        /// What one user may upload in all.
        user_quota: Option<Size> = None,
        /// How long a media ID waits for its content.
        unused_expires_after: Span = Span::from_secs(24 * 3600),
        /// Media IDs of one user that may wait for their content.
        max_pending_uploads: u32 = 32,
        /// Whether media that arrive from now on may be downloaded without authentication.
        legacy_endpoints: bool = false,
        /// How long other servers' media are kept that nobody asks for.
        remote_unused_max_age: Option<Span> = None,
        /// What other servers' media may take up.
        remote_max_size: Size = Size(20 << 30),
        /// Whether the server gets pages that clients ask for, to make previews of them.
        url_previews: bool = false,
        /// The only hosts of pages with previews, with their subdomains; all if there is none.
        url_preview_allow: Vec<String> = Vec::new(),
        /// Hosts of pages without previews, with their subdomains.
        url_preview_deny: Vec<String> = Vec::new(),
        /// Whether pages at loopback and private addresses have previews.
        url_preview_allow_private_addresses: bool = false,
        /// The languages that pages are asked for, as in `Accept-Language`.
        url_preview_languages: String = "en".to_owned(),
        /// How long a preview is believed.
        url_preview_max_age: Span = Span::from_secs(24 * 3600),
    }
}
section! {
    /// `[delayed_events]`
    DelayedEvents {
        /// The longest delay; zero delays none.
        max_delay: Span = Span::from_secs(24 * 3600),
    }
}
section! {
    /// `[server_notices]`
    ServerNotices {
        /// The name of the user who sends notices; none sends none.
        user: Option<String> = None,
        /// The display name of that user.
        display_name: String = "Server notices".to_owned(),
        /// The avatar of that user.
        avatar_url: Option<String> = None,
        /// The name of the rooms for notices.
        room_name: String = "Server notices".to_owned(),
    }
}
section! {
    /// `[retention]`
    Retention {
        /// Whether old messages are purged at all.
        enabled: bool = false,
        /// How long messages are kept in rooms that say nothing of it.
        default_lifetime: Option<Span> = None,
        /// Rooms cannot have messages kept for less.
        min_lifetime: Option<Span> = None,
        /// Rooms cannot have messages kept for longer.
        max_lifetime: Option<Span> = None,
        /// How often old messages are looked for.
        interval: Span = Span::from_secs(3600),
    }
}
section! {
    /// `[turn]`
    Turn {
        /// Where the TURN server is reached.
        uris: Vec<String> = Vec::new(),
        /// The secret that the TURN server shares with this one.
        secret: Option<Secret> = None,
        /// How long credentials work.
        ttl: Span = Span::from_secs(24 * 3600),
        /// Whether guests get credentials too.
        guests: bool = false,
    }
}
section! {
    /// `[search]`
    Search {
        /// Whether messages, room names and topics are indexed and can be searched.
        enabled: bool = true,
    }
}
section! {
    /// `[push]`
    Push {
        /// Whether push gateways may be at loopback and private addresses, and go without TLS.
        allow_private_addresses: bool = false,
    }
}
section! {
    /// `[access]`
    Access {
        /// Whether access tokens may come in the query string, as very old clients send them.
        query_tokens: bool = false,
        /// Proxies whose `X-Forwarded-For` is believed.
        trusted_proxies: Vec<std::net::IpAddr> = Vec::new(),
    }
}
section! {
    /// `[well_known]`
    WellKnown {
        /// The client-server API's base URL.
        client_base_url: Option<String> = None,
        /// Further settings for clients, by their names, as in `m.identity_server`.
        client_extra: JsonObject = JsonObject::new(),
        /// Where other servers find this one, `host:port`.
        server: Option<String> = None,
        /// A contact for support: a user ID.
        support_user: Option<String> = None,
        /// A contact for support: an e-mail address.
        support_email: Option<String> = None,
        /// A page for support.
        support_page: Option<String> = None,
    }
}
section! {
    /// `[appservices]`
    Appservices {
        /// Registration files.
        registrations: Vec<PathBuf> = Vec::new(),
    }
}
section! {
    /// `[logging]`
    Logging {
        /// How lines look.
        format: LogFormat = LogFormat::Pretty,
        /// What is logged, as in `info,actors=debug`.
        level: String = "info".to_owned(),
    }
}

/// The back ends of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// sled.
    Sled,
    /// fjall.
    Fjall,
    /// Nothing survives the process.
    Memory,
}

/// Whether a reply waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It does.
    Always,
    /// A crash of the machine may lose the last second; with sled one of the process does, too.
    Interval,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For programs.
    Json,
}

impl Config {
    /// Keys that are set and have no effect in this version.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        let mut note = |is_set: bool, key| keys.extend(is_set.then_some(key));
        note(!self.listen.tls.is_empty() && self.tls.is_none(), "listen.tls");
        let has_document = self.well_known.client_base_url.is_some();
        note(!has_document && !self.well_known.client_extra.is_empty(), "well_known.client_extra");
        keys
    }
}

#[cfg(test)]
mod tests;
