//! What a server needs to run, as a configuration asks for it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actors::{
    directory::ClassConfig,
    homeserver::ConversationConfig,
    media::{Contents, MediaConfig, Pages},
    notices::NoticeConfig,
    retention::RetentionConfig,
};
use anyhow::Context;
use ruma::{OwnedServerName, RoomVersionId};
use storage::Durability;

use crate::{
    app::{self, Settings},
    client::{voip::Turn, well_known::WellKnown},
    config::{self, Config, Secret, Size},
    federation::origins::OriginRates,
    outbound::{
        OutboundOptions,
        guard::Guard,
        pages::{PagePolicy, Web},
    },
    password::PasswordCost,
    rate_limit::Rates,
    tls::{AcmeSettings, TlsFiles},
};

/// What a server needs to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server's name.
    pub server_name: OwnedServerName,
    /// Where its files are.
    pub data_dir: PathBuf,
    /// Where it listens, plain HTTP.
    pub listen: Vec<SocketAddr>,
    /// Where it serves its metrics, plain HTTP.
    pub listen_metrics: Vec<SocketAddr>,
    /// The kind of store.
    pub store: StoreKind,
    /// Whether a commit waits for the disk.
    pub durability: Durability,
    /// Bytes that the store may cache.
    pub store_cache_bytes: u64,
    /// The version of new rooms that name none.
    pub default_room_version: RoomVersionId,
    /// Bytes for rooms in memory.
    pub room_memory: u64,
    /// Limits of the room actors.
    pub rooms: ClassConfig,
    /// Limits of the session actors.
    pub sessions: ClassConfig,
    /// Limits of the content repository; its files are in the data directory.
    pub media: config::Media,
    /// What goes on in rooms besides.
    pub conversation: ConversationConfig,
    /// Whether messages are indexed and can be searched.
    pub search: bool,
    /// How push gateways are called.
    pub push: config::Push,
    /// How hard password hashes are.
    pub password_cost: PasswordCost,
    /// The registration files of application services.
    pub registrations: Vec<PathBuf>,
    /// What handlers need to know.
    pub settings: Settings,
    /// Where it listens with TLS, and with which certificate.
    pub tls: Option<(Vec<SocketAddr>, Certificate)>,
    /// How it talks to other servers, if it does.
    pub federation: Option<FederationOptions>,
}

/// Where a server has its certificate from.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// Somebody puts it there.
    Files(TlsFiles),
    /// The server obtains it itself.
    Acme(AcmeSettings),
}

/// How a server talks to others.
#[derive(Clone, Debug)]
pub struct FederationOptions {
    /// The outbound client.
    pub outbound: OutboundOptions,
    /// Servers that vouch for others' keys.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// Whether other servers may know the names of users' devices.
    pub share_device_names: bool,
    /// Whether other servers are told of users' presence.
    pub send_presence: bool,
    /// Limits of the destination actors.
    pub destinations: ClassConfig,
}

impl Options {
    /// Whether the server answers nobody: a command starts it so, on a store that no server uses.
    pub(super) fn is_silent(&self) -> bool {
        self.listen.is_empty() && self.listen_metrics.is_empty() && self.tls.is_none()
    }

    /// What a configuration asks for.
    pub fn new(config: &Config) -> Self {
        let actors = &config.actors;
        let class = |budget: Size| ClassConfig {
            budget_bytes: budget.0,
            idle_after: actors.idle_after.0,
            backlog_max: actors.backlog_max,
            ..ClassConfig::default()
        };
        let secret = |secret: &Secret| secret.0.clone();
        let tls = config.tls.as_ref().and_then(|tls| {
            let (certificate, ports) = certificate(config, tls)?;
            let anywhere = ports.iter().map(|port| SocketAddr::from(([0, 0, 0, 0], *port)));
            let listen = &config.listen.tls;
            Some((if listen.is_empty() { anywhere.collect() } else { listen.clone() }, certificate))
        });
        let federates = config.federation.enabled.unwrap_or(tls.is_some());
        let federation = federates.then(|| FederationOptions {
            outbound: OutboundOptions {
                extra_ca: config.federation.extra_ca.clone(),
                allow_private_addresses: config.federation.allow_private_addresses,
                max_concurrent_connects: config.federation.max_concurrent_connects as usize,
            },
            trusted_key_servers: config.federation.trusted_key_servers.clone(),
            share_device_names: config.federation.share_device_names,
            send_presence: config.federation.send_presence,
            destinations: class(actors.destination_memory),
        });
        Self {
            tls,
            federation,
            server_name: config.server_name.clone(),
            data_dir: config.data_dir.clone(),
            listen: config.listen.client.clone(),
            listen_metrics: config.listen.metrics.clone(),
            store: match config.storage.backend {
                config::Backend::Sled => StoreKind::Sled,
                config::Backend::Fjall => StoreKind::Fjall,
                config::Backend::Memory => StoreKind::Memory,
            },
            durability: match config.storage.durability {
                config::Durability::Always => Durability::Always,
                config::Durability::Interval => Durability::Interval(SYNC_EVERY),
            },
            store_cache_bytes: config.storage.cache.0,
            default_room_version: config.rooms.default_version.clone(),
            room_memory: actors.room_memory.0,
            rooms: class(actors.room_memory),
            sessions: class(actors.session_memory),
            media: config.media.clone(),
            push: config.push.clone(),
            registrations: config.appservices.registrations.clone(),
            conversation: conversation(config),
            search: config.search.enabled,
            password_cost: PasswordCost {
                memory_kib: u32::try_from(config.password.argon2_memory.0 >> 10).unwrap_or(u32::MAX),
                iterations: config.password.argon2_iterations,
                lanes: config.password.argon2_lanes,
            },
            settings: Settings {
                query_tokens: config.access.query_tokens,
                trusted_proxies: config.access.trusted_proxies.clone(),
                rates: config.rate_limits.enabled.then(|| rates(&config.rate_limits)),
                origin_rates: config.rate_limits.enabled.then(|| origin_rates(&config.rate_limits)),
                well_known: well_known(&config.well_known),
                turn: Turn {
                    uris: config.turn.uris.clone(),
                    secret: config.turn.secret.as_ref().map(secret),
                    lifetime: config.turn.ttl.0,
                    guests: config.turn.guests,
                },
                rtc_transports: config.matrix_rtc.transports.clone(),
                registration: app::Registration {
                    enabled: config.registration.enabled,
                    tokens: config.registration.tokens.iter().map(secret).collect(),
                    shared_secret: config.registration.shared_secret.as_ref().map(secret),
                    guests: config.registration.guests,
                },
            },
        }
    }
}

/// The certificate, and the ports that are listened on if none are named.
fn certificate(config: &Config, tls: &config::Tls) -> Option<(Certificate, &'static [u16])> {
    if let Some(acme) = &tls.acme {
        let own = || vec![config.server_name.host().to_owned()];
        let settings = AcmeSettings {
            directory: acme.directory.clone(),
            directory_ca: acme.directory_ca.clone(),
            contact: acme.contact.as_ref().map(|contact| match contact.split_once(':') {
                Some(_) => contact.clone(),
                None => format!("mailto:{contact}"),
            }),
            domains: if acme.domains.is_empty() { own() } else { acme.domains.clone() },
        };
        // That is where the authority looks.
        return Some((Certificate::Acme(settings), &[8448, 443]));
    }
    let files = TlsFiles { certificate: tls.certificate.clone()?, private_key: tls.private_key.clone()? };
    Some((Certificate::Files(files), &[8448]))
}

fn rates(limits: &config::RateLimits) -> Rates {
    Rates {
        message: limits.message,
        membership: limits.membership,
        login: limits.login,
        registration: limits.registration,
        url_preview: limits.url_preview,
        other: limits.other,
    }
}

fn origin_rates(limits: &config::RateLimits) -> OriginRates {
    OriginRates {
        concurrent: limits.federation_concurrent,
        waiting: limits.federation_waiting,
        per_second: limits.federation,
        delay: limits.federation_delay.0,
    }
}

fn conversation(config: &Config) -> ConversationConfig {
    let (notices, retention) = (&config.server_notices, &config.retention);
    let span = |span: &Option<config::Span>| span.map(|span| span.0);
    ConversationConfig {
        thread_subscriptions: config.rooms.thread_subscriptions,
        delay_max: config.delayed_events.max_delay.0,
        notices: notices.user.clone().map(|user| NoticeConfig {
            user,
            display_name: notices.display_name.clone(),
            avatar_url: notices.avatar_url.clone().filter(|url| !url.is_empty()),
            room_name: notices.room_name.clone(),
        }),
        retention: RetentionConfig {
            every: retention.enabled.then_some(retention.interval.0),
            default: span(&retention.default_lifetime),
            min: span(&retention.min_lifetime),
            max: span(&retention.max_lifetime),
        },
    }
}

pub(super) fn media(settings: &config::Media, folder: &Path) -> anyhow::Result<MediaConfig> {
    Ok(MediaConfig {
        objects: Contents::in_folder(folder).context("cannot open the media")?,
        upload_size_max: settings.max_upload_size.0,
        user_quota: settings.user_quota.map(|size| size.0),
        pending_expiry: settings.unused_expires_after.0,
        pending_max: usize::try_from(settings.max_pending_uploads).unwrap_or(usize::MAX),
        is_open: settings.legacy_endpoints,
        remote_age_max: settings.remote_unused_max_age.map(|age| age.0),
        remote_size_max: Some(settings.remote_max_size.0),
        pages: if settings.url_previews { Some(pages(settings)?) } else { None },
        preview_expiry: settings.url_preview_max_age.0,
    })
}

fn pages(settings: &config::Media) -> anyhow::Result<Pages> {
    let policy = PagePolicy {
        guard: Guard { allow_private: settings.url_preview_allow_private_addresses },
        allow: settings.url_preview_allow.clone(),
        deny: settings.url_preview_deny.clone(),
    };
    Ok(Arc::new(Web::new(policy, &settings.url_preview_languages).context("cannot make previews of pages")?))
}

fn well_known(settings: &config::WellKnown) -> WellKnown {
    WellKnown {
        client_base_url: settings.client_base_url.clone(),
        client_extra: settings.client_extra.clone(),
        server: settings.server.clone(),
        support_user: settings.support_user.clone(),
        support_email: settings.support_email.clone(),
        support_page: settings.support_page.clone(),
    }
}

/// How often commits reach the disk with durability `interval`.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The kinds of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// sled, the default.
    Sled,
    /// fjall.
    Fjall,
    /// Nothing survives the process; for tests.
    Memory,
}
