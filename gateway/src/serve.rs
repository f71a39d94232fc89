//! The production wiring: from a configuration to a server that answers.

mod connection;
mod options;

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use actors::{
    env::{Clock, Entropy, Env},
    federation::FederationConfig,
    homeserver::{Homeserver, HomeserverConfig},
    search::TextIndex,
};
use anyhow::Context;
use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use storage::{
    Storage, Store,
    backend::{Backend, Files},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use self::connection::Origin;
pub use self::options::{Certificate, FederationOptions, Options, StoreKind};
use crate::{
    app::App,
    control, metrics,
    outbound::{Outbound, push::PushClient},
    password::Passwords,
    router, signing,
    tls::{Acme, Tls},
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

/// Where a server listens.
struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    serves: Serves,
}

impl Listener {
    fn url(&self) -> std::io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.tcp.local_addr()?))
    }
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
    /// The URLs at which it serves the Matrix APIs, those without TLS first.
    pub urls: Vec<String>,
    listeners: Vec<Listener>,
    control: Option<UnixListener>,
    acme: Option<Acme>,
}

/// Replaces the signing key of a stopped server; returns the new one's ID.
pub async fn rotate_signing_key(options: &Options) -> anyhow::Result<String> {
    // Whoever holds the store is the only one that may sign.
    let store = open_store(options).await.context("the server must be stopped first")?;
    let keys = signing::rotate(&options.data_dir, &OsEntropy, SystemClock.now_ms());
    store.close().await?;
    Ok(keys?.signing.id())
}

/// Writes the store of a stopped server anew; how many bytes it took before, and takes now.
pub async fn compact(options: &Options) -> anyhow::Result<(u64, u64)> {
    let store = open_store(options).await.context("the server must be stopped first")?;
    Storage::compact(store).await.context("cannot compact the store")
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
    let search =
        if options.listen.is_empty() { None } else { text_index(&options.data_dir, options.search)? };
    let config = HomeserverConfig {
        federation,
        server_name: options.server_name.clone(),
        signing_key,
        old_keys: keys.old,
        default_room_version: options.default_room_version,
        room_memory: options.room_memory,
        rooms: options.rooms,
        sessions: options.sessions,
        media: options::media(&options.media, &options.data_dir.join("media"))?,
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
    let mut acme = None;
    if let Some((addresses, certificate)) = options.tls {
        let tls = match certificate {
            Certificate::Files(files) => Arc::new(Tls::load(files)?),
            Certificate::Acme(settings) => {
                let folder = options.data_dir.join("acme");
                let tls = Arc::new(Tls::to_come(Acme::files(&folder)));
                acme = Some(Acme::new(settings, folder, tls.clone(), Arc::new(SystemClock)));
                tls
            }
        };
        for address in addresses {
            let tls = Some(tls.clone());
            listeners.push(Listener { tcp: bind(address).await?, tls, serves: Serves::Matrix });
        }
    }
    let urls = listeners.iter().map(Listener::url).collect::<Result<_, _>>()?;
    for address in &options.listen_metrics {
        listeners.push(Listener { tcp: bind(*address).await?, tls: None, serves: Serves::Metrics });
    }
    // One that answers nobody else, as the commands start it, needs no commands either.
    let control = if listeners.is_empty() { None } else { bind_control(&options.data_dir) };
    Ok(Running { app, urls, listeners, control, acme })
}

/// The full-text index, if there is to be one; otherwise none is left on the disk either.
fn text_index(data_dir: &Path, enabled: bool) -> anyhow::Result<Option<Arc<TextIndex>>> {
    let folder = data_dir.join("search");
    if enabled {
        let index = TextIndex::open(&folder).context("cannot open the full-text index")?;
        return Ok(Some(Arc::new(index)));
    }
    // Messages are in there, and nobody would take out those that are redacted or purged from now on.
    match std::fs::remove_dir_all(&folder) {
        Ok(()) => tracing::info!("search is off: its index was removed"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", folder.display())),
    }
    Ok(None)
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
        let certificate = async {
            match &self.acme {
                Some(acme) => acme.keep().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop => {}
            _ = accepting => {}
            () = commands => {}
            () = certificate => {}
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
        let origin = Origin { address: address.ip(), trusted_proxies: trusted_proxies.clone() };
        let serving = connection::serve(
            stream,
            tls.clone(),
            origin,
            router.clone(),
            graceful.watcher(),
            closed.clone(),
        );
        tokio::spawn(serving);
    }
}
