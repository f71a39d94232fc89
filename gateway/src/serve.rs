//! The production wiring: from a configuration to a server that answers.

mod connection;
mod front;
mod options;

use std::{
    fs::Permissions,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use actors::{
    appservice::Services,
    env::{Clock, Entropy, Env},
    federation::FederationConfig,
    homeserver::{Homeserver, HomeserverConfig},
    search::TextIndex,
};
use anyhow::Context;
use storage::{
    Direction, KeyRange, Storage, Store,
    backend::{Backend, Files},
    schema,
};
use tokio::net::UnixListener;

use self::front::{Front, Listener};
pub use self::options::{Certificate, FederationOptions, Options, StoreKind};
use crate::{
    app::App,
    client::about::About,
    config, control, metrics,
    outbound::{Outbound, appservice::ServiceHttp, push::PushClient},
    password::Passwords,
    router, signing,
    tls::{Acme, Tls},
};

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

/// A server that is up.
pub struct Running {
    /// What handlers share.
    pub app: App,
    front: Front,
    control: Option<UnixListener>,
    acme: Option<Acme>,
}

/// Replaces the signing key of a stopped server, or makes one in place of one that is lost; returns the new one's ID.
pub async fn rotate_signing_key(options: &Options) -> anyhow::Result<String> {
    if !options.data_dir.join("store").exists() {
        anyhow::bail!("there is no server in {}", options.data_dir.display());
    }
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

/// Brings the store of a stopped server into the form of the back end that is configured; which other one it had, if any.
pub async fn convert(options: &Options) -> anyhow::Result<Option<&'static str>> {
    backend(options).convert().await.context("cannot convert the store; the server must be stopped first")
}

/// Takes from other users of the machine what a data directory that was there before may permit them.
fn close_to_others(data_dir: &Path) {
    const OTHERS: u32 = 0o007;
    let closed = std::fs::metadata(data_dir).and_then(|about| {
        let mode = about.permissions().mode();
        match mode & OTHERS {
            0 => Ok(()),
            _ => std::fs::set_permissions(data_dir, Permissions::from_mode(mode & !OTHERS)),
        }
    });
    if let Err(error) = closed {
        tracing::warn!(path = %data_dir.display(), %error, "other users of this machine may read the data directory");
    }
}

/// Binds the listeners, opens the store and starts the actors.
pub async fn start(mut options: Options) -> anyhow::Result<Running> {
    // Password hashes and keys are in there.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.data_dir)
        .with_context(|| format!("cannot create the data directory {}", options.data_dir.display()))?;
    close_to_others(&options.data_dir);
    let is_silent = options.is_silent();
    // Before anything is begun: what is wrong with them is the operator's to correct.
    let services = if is_silent { Services::default() } else { services(&options)? };
    let (front, acme) = listen(&mut options)?;
    let env = Env { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy) };
    let storage = Storage::open(open_store(&options).await?, options.durability).await?;
    let registration = &mut options.settings.registration;
    if !registration.enabled && registration.tokens.is_empty() {
        let token = secret_file(&options.data_dir.join("registration-token"), || env.entropy.token(32))?;
        registration.tokens.push(token);
    }
    check_signing_key(&options, &storage).await?;
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
    // Commands leave the index as it is.
    let search = if is_silent { None } else { text_index(&options.data_dir, options.search)? };
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
        services,
    };
    let passwords = Passwords::new(options.password_cost, env.entropy.clone())?;
    let homeserver = Homeserver::start(config, env, storage).await;
    let app = App::new(homeserver, passwords, options.settings);
    let control = if is_silent { None } else { bind_control(&options.data_dir) };
    front.start(router::router(app.clone()), metrics::router(app.clone()));
    Ok(Running { app, front, control, acme })
}

/// The application services that are registered, and how they are reached.
fn services(options: &Options) -> anyhow::Result<Services> {
    let registered = config::registrations(&options.registrations, &options.server_name)
        .context("an application service is not registered as it has to be")?;
    for service in &registered {
        let url = service.url.as_deref().unwrap_or("no URL");
        tracing::info!(service = service.id, url, sender = %service.sender, "an application service is registered");
    }
    Ok(Services::new(registered, Arc::new(ServiceHttp::new()?)))
}

/// Begins to take connections.
fn listen(options: &mut Options) -> anyhow::Result<(Front, Option<Acme>)> {
    let (mut matrix, mut metrics, mut acme) = (Vec::new(), Vec::new(), None);
    for address in &options.listen {
        matrix.push(Listener::bind(*address, None)?);
    }
    if let Some((addresses, certificate)) = options.tls.take() {
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
            matrix.push(Listener::bind(address, Some(tls.clone()))?);
        }
    }
    for address in &options.listen_metrics {
        metrics.push(Listener::bind(*address, None)?);
    }
    let (settings, conversation) = (&options.settings, &options.conversation);
    let about = About::new(settings, conversation.delay_max, conversation.thread_subscriptions);
    Ok((Front::open(matrix, metrics, about, &settings.trusted_proxies)?, acme))
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

/// The control socket; a server without it works, but not for commands beside it.
fn bind_control(data_dir: &Path) -> Option<UnixListener> {
    let bound = control::bind(data_dir);
    bound
        .inspect_err(|error| tracing::warn!(%error, "no control socket: commands need a stopped server"))
        .ok()
}

pub(crate) async fn open_store(options: &Options) -> anyhow::Result<Arc<dyn Store>> {
    backend(options).open().await.context("cannot open the store")
}

fn backend(options: &Options) -> Backend {
    let files = Files { path: options.data_dir.join("store"), cache_bytes: options.store_cache_bytes };
    match options.store {
        StoreKind::Sled => Backend::Sled(files),
        StoreKind::Fjall => Backend::Fjall(files),
        StoreKind::Memory => Backend::Memory,
    }
}

/// The content of a file that only its user can read, made on first use.
pub(crate) fn secret_file(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    if let Some(text) = secret(path)? {
        return Ok(text);
    }
    let text = make();
    write_secret(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(text)
}

/// What a file holds, if anything: an empty one may be left of a start that was cut short.
pub(crate) fn secret(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a file that only its user can read: whole or, if the machine stops meanwhile, not at all.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::{fs, io::Write, os::unix::fs::OpenOptionsExt};
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    // What was cut short before.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => fs::File::open(".")?.sync_all(),
    }
}

/// Refuses to go on without the key of a server that others know by it.
async fn check_signing_key(options: &Options, storage: &Storage) -> anyhow::Result<()> {
    if signing::exists(&options.data_dir)? {
        return Ok(());
    }
    let accounts = storage.range(&schema::ACCOUNTS, KeyRange::all(), Direction::Ascending, 1).await?;
    if !accounts.is_empty() {
        anyhow::bail!(
            "there are accounts, but no signing.key in {}: restore it from a backup; if it is lost, \
             `ganglion rotate-signing-key` makes a new one, which other servers may take for an impostor's",
            options.data_dir.display()
        );
    }
    Ok(())
}

impl Running {
    /// The URLs at which it serves the Matrix APIs, those without TLS first.
    pub fn urls(&self) -> &[String] {
        &self.front.urls
    }

    /// Answers requests until `stop` resolves, then finishes those under way and closes the store.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
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
            () = commands => {}
            () = certificate => {}
        }
        tracing::info!("stopping: finishing requests under way");
        self.app.homeserver().stop_waiting();
        self.front.close().await;
        self.app.homeserver().shutdown().await;
        tracing::info!("stopped");
    }
}
