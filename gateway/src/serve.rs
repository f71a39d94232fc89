//! The production wiring: from a configuration to a server that answers.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actors::{
    directory::ClassConfig,
    env::{Clock, Entropy, Env},
    federation::FederationConfig,
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::{Contents, MediaConfig, Pages},
    notices::NoticeConfig,
    retention::RetentionConfig,
    search::TextIndex,
};
use anyhow::Context;
use axum::{Router, body::Body};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use ruma::{OwnedServerName, RoomVersionId};
use storage::{
    Durability, Storage, Store,
    backend::{Backend, Files},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tower::ServiceExt;

use crate::{
    app::{self, App, Settings},
    client::{voip::Turn, well_known::WellKnown},
    config::{self, Config, Secret, Size},
    control,
    extract::ClientIp,
    federation::origins::OriginRates,
    metrics,
    outbound::{
        Outbound, OutboundOptions,
        guard::Guard,
        pages::{PagePolicy, Web},
        push::PushClient,
    },
    password::{PasswordCost, Passwords},
    rate_limit::Rates,
    router, signing,
    tls::{Tls, TlsFiles},
};

/// How long requests under way may take to finish once the server stops.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);

/// The system's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "the production clock")]
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The operating system's randomness.
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }
}

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
    /// What handlers need to know.
    pub settings: Settings,
    /// Where it listens with TLS, and with which certificate.
    pub tls: Option<(Vec<SocketAddr>, TlsFiles)>,
    /// How it talks to other servers, if it does.
    pub federation: Option<FederationOptions>,
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
            let files =
                TlsFiles { certificate: tls.certificate.clone()?, private_key: tls.private_key.clone()? };
            let listen = &config.listen.tls;
            let anywhere = SocketAddr::from(([0, 0, 0, 0], 8448));
            Some((if listen.is_empty() { vec![anywhere] } else { listen.clone() }, files))
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
        delay_max: config.delayed_events.max_delay.0,
        notices: notices.user.clone().map(|user| NoticeConfig {
            user,
            display_name: notices.display_name.clone(),
            avatar_url: notices.avatar_url.clone(),
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

fn media(settings: &config::Media, folder: &Path) -> anyhow::Result<MediaConfig> {
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

/// Where a server listens.
struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    serves: Serves,
}

/// What is served on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serves {
    /// The Matrix APIs.
    Matrix,
    /// The metrics.
    Metrics,
}

/// A server that is up.
pub struct Running {
    /// What handlers share.
    pub app: App,
    /// The addresses that it serves the Matrix APIs on.
    pub addresses: Vec<SocketAddr>,
    listeners: Vec<Listener>,
    control: Option<UnixListener>,
}

/// Replaces the signing key of a stopped server; returns the new one's ID.
pub async fn rotate_signing_key(options: &Options) -> anyhow::Result<String> {
    // Whoever holds the store is the only one that may sign.
    let store = open_store(options).await.context("the server must be stopped first")?;
    let keys = signing::rotate(&options.data_dir, &OsEntropy, SystemClock.now_ms());
    store.close().await?;
    Ok(keys?.signing.id())
}

/// Opens the store, starts the actors and binds the listeners.
pub async fn start(mut options: Options) -> anyhow::Result<Running> {
    // Password hashes and keys are in there.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.data_dir)
        .with_context(|| format!("cannot create the data directory {}", options.data_dir.display()))?;
    let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) };
    let storage = Storage::open(open_store(&options).await?, options.durability).await?;
    let registration = &mut options.settings.registration;
    if !registration.enabled && registration.tokens.is_empty() {
        let token = secret_file(&options.data_dir.join("registration-token"), || env.entropy.token(32))?;
        registration.tokens.push(token);
    }
    let keys = signing::load(&options.data_dir, &*env.entropy)?;
    let signing_key = Arc::new(keys.signing);
    let federation = match options.federation {
        Some(federation) => Some(FederationConfig {
            client: Arc::new(Outbound::new(
                options.server_name.clone(),
                signing_key.clone(),
                &federation.outbound,
                env.clock.clone(),
            )?),
            trusted_key_servers: federation.trusted_key_servers,
            destinations: federation.destinations,
            shares_device_names: federation.share_device_names,
            sends_presence: federation.send_presence,
        }),
        None => None,
    };
    // A server that answers nobody, as the commands start it, leaves the index as it is.
    let search = if options.search && !options.listen.is_empty() {
        let index = TextIndex::open(&options.data_dir.join("search"));
        Some(Arc::new(index.context("cannot open the full-text index")?))
    } else {
        None
    };
    let config = HomeserverConfig {
        federation,
        server_name: options.server_name.clone(),
        signing_key,
        old_keys: keys.old,
        default_room_version: options.default_room_version,
        room_memory: options.room_memory,
        rooms: options.rooms,
        sessions: options.sessions,
        media: media(&options.media, &options.data_dir.join("media"))?,
        conversation: options.conversation,
        push: Arc::new(PushClient::new(options.push.allow_private_addresses)?),
        search,
    };
    let passwords = Passwords::new(options.password_cost, env.entropy.clone())?;
    let homeserver = Homeserver::start(config, env, storage).await;
    let app = App::new(homeserver, passwords, options.settings);
    let mut listeners = Vec::new();
    for address in &options.listen {
        listeners.push(Listener { tcp: bind(*address).await?, tls: None, serves: Serves::Matrix });
    }
    if let Some((addresses, files)) = options.tls {
        let tls = Arc::new(Tls::load(files)?);
        for address in addresses {
            let tls = Some(tls.clone());
            listeners.push(Listener { tcp: bind(address).await?, tls, serves: Serves::Matrix });
        }
    }
    let addresses = listeners.iter().map(|listener| listener.tcp.local_addr()).collect::<Result<_, _>>()?;
    for address in &options.listen_metrics {
        listeners.push(Listener { tcp: bind(*address).await?, tls: None, serves: Serves::Metrics });
    }
    // One that answers nobody else, as the commands start it, needs no commands either.
    let control = if listeners.is_empty() { None } else { bind_control(&options.data_dir) };
    Ok(Running { app, addresses, listeners, control })
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// The control socket; a server without it works, but not for commands beside it.
fn bind_control(data_dir: &Path) -> Option<UnixListener> {
    let bound = control::bind(data_dir);
    bound
        .inspect_err(|error| tracing::warn!(%error, "no control socket: commands need a stopped server"))
        .ok()
}

pub(crate) async fn open_store(options: &Options) -> anyhow::Result<Arc<dyn Store>> {
    let files = Files { path: options.data_dir.join("store"), cache_bytes: options.store_cache_bytes };
    let backend = match options.store {
        StoreKind::Sled => Backend::Sled(files),
        StoreKind::Fjall => Backend::Fjall(files),
        StoreKind::Memory => Backend::Memory,
    };
    backend.open().await.context("cannot open the store")
}

/// The content of a file that only its user can read, made on first use.
pub(crate) fn secret_file(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = make();
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            Ok(text)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Running {
    /// Answers requests until `stop` resolves, then finishes those under way and closes the store.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let graceful = GracefulShutdown::new();
        let (closing, closed) = watch::channel(false);
        let (matrix, metrics) = (router::router(self.app.clone()), metrics::router(self.app.clone()));
        let router = |serves| if serves == Serves::Metrics { &metrics } else { &matrix };
        let trusted: Arc<[IpAddr]> = self.app.settings().trusted_proxies.clone().into();
        let accepting = futures_util::future::join_all(self.listeners.iter().map(|listener| {
            accept(listener, router(listener.serves), &graceful, closed.clone(), trusted.clone())
        }));
        let commands = async {
            match &self.control {
                Some(listener) => control::serve(listener, &self.app).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop => {}
            _ = accepting => {}
            () = commands => {}
        }
        tracing::info!("stopping: finishing requests under way");
        self.app.homeserver().stop_waiting();
        closing.send_replace(true);
        drop(self.listeners);
        if tokio::time::timeout(SHUTDOWN_MAX, graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        self.app.homeserver().shutdown().await;
        tracing::info!("stopped");
    }
}

async fn accept(
    Listener { tcp, tls, .. }: &Listener,
    router: &Router,
    graceful: &GracefulShutdown,
    closed: watch::Receiver<bool>,
    trusted_proxies: Arc<[IpAddr]>,
) {
    loop {
        let (stream, address) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: spinning would make it worse.
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if *closed.borrow() {
            return;
        }
        let _ = stream.set_nodelay(true);
        let (router, trusted) = (router.clone(), trusted_proxies.clone());
        let service = tower::service_fn(move |request: http::Request<Incoming>| {
            let mut request = router::alias(request.map(Body::new));
            let client = client_ip(address.ip(), request.headers(), &trusted);
            request.extensions_mut().insert(ClientIp(client));
            router.clone().oneshot(request)
        });
        let (tls, watcher) = (tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let builder = connection_builder();
            let ended = match tls {
                None => {
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    watcher.watch(connection.into_owned()).await
                }
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => {
                        let connection = builder.serve_connection(TokioIo::new(stream), service);
                        watcher.watch(connection.into_owned()).await
                    }
                    Err(error) => Err(error.into()),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            }
        });
    }
}

/// The client behind a trusted proxy: the last address of `X-Forwarded-For` that is not a proxy's own.
fn client_ip(peer: IpAddr, headers: &http::HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    if !trusted.contains(&peer) {
        return peer;
    }
    let forwarded = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let hops = forwarded.rsplit(',').map_while(|hop| hop.trim().parse().ok());
    hops.into_iter().find(|hop| !trusted.contains(hop)).unwrap_or(peer)
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60));
    builder
}
