//! A server of the simulation: its disk, its clock, its power switch, and the real server running on them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use actors::{
    directory::ClassConfig,
    env::{Clock, Env, SeededEntropy},
    federation::{FederationConfig, OldKey},
    homeserver::{ConversationConfig, Homeserver, HomeserverConfig},
    media::MediaConfig,
    push::NoPushGateways,
};
use anyhow::{Context, Result};
use axum::{Router, body::Body, response::Response};
use engine::{pdu::SigningKey, room_version};
use futures_util::future::BoxFuture;
use gateway::{
    app::{App, Registration, Settings},
    password::{PasswordCost, Passwords},
    router,
};
use parking_lot::Mutex;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use ruma::{OwnedServerName, RoomVersionId, ServerName};
use storage::{Durability, Storage};
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::Instant,
};
use tower::ServiceExt;

use crate::{
    disk::{Disk, Mounted},
    network::{Endpoint, Gone, Network, Wire},
    seed::Seed,
    trace::Trace,
};

/// When simulated time begins, in milliseconds since the epoch.
pub const START_MS: u64 = 1_700_000_000_000;

/// How long requests under way may take to finish once a host stops.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Whether one boot of a host still runs. What is left of a boot without power reaches nobody.
#[derive(Default)]
pub struct Power {
    is_off: AtomicBool,
    changed: Notify,
}

impl Power {
    /// Whether it was cut.
    pub fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Relaxed)
    }

    /// Waits until it is cut.
    pub async fn off(&self) {
        let changed = self.changed.notified();
        if !self.is_off() {
            changed.await;
        }
    }

    fn cut(&self) {
        self.is_off.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

/// What hosts are like.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The version of new rooms.
    pub room_version: RoomVersionId,
    /// Whether a commit waits for the disk.
    pub durability: Durability,
    /// Bytes that each class of actors may hold.
    pub memory: u64,
    /// Requests to others that may be under way at a time; none for as many as there are.
    pub connections_max: Option<usize>,
    /// How long actors that nobody uses stay.
    pub idle_after: Duration,
    /// Whether others are told who is online.
    pub sends_presence: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            room_version: room_version::DEFAULT,
            durability: Durability::Always,
            memory: 16 << 20,
            connections_max: Some(64),
            idle_after: ClassConfig::default().idle_after,
            sends_presence: true,
        }
    }
}

/// A clock that goes wrong by some amount.
struct HostClock {
    start: Instant,
    skew_ms: Arc<AtomicI64>,
}

impl Clock for HostClock {
    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        (START_MS + elapsed).saturating_add_signed(self.skew_ms.load(Ordering::Relaxed))
    }
}

/// A server of the simulation.
pub struct Host {
    /// Its name.
    pub name: OwnedServerName,
    options: HostOptions,
    seed: Seed,
    network: Network,
    trace: Arc<Trace>,
    start: Instant,
    disk: Arc<Disk>,
    skew_ms: Arc<AtomicI64>,
    /// The furthest that the clock was ahead since the present key is in use, in milliseconds.
    fastest_ms: AtomicI64,
    random: Mutex<ChaCha8Rng>,
    keys: Mutex<Keys>,
    running: Mutex<Option<Arc<Boot>>>,
    /// Held while the server starts or ends: there are never two on one disk.
    changing: tokio::sync::Mutex<()>,
    /// Faults that want the host down.
    held_down: AtomicU64,
    /// Whether a commit may have failed since the start, so that errors are no wonder.
    has_failed: AtomicBool,
    /// Whether its answers do not reach its clients.
    is_mute: AtomicBool,
}

struct Keys {
    signing: Arc<SigningKey>,
    old: Vec<OldKey>,
    generation: u32,
}

/// One run of a host's server, from its start to its end.
pub struct Boot {
    app: App,
    storage: Storage,
    router: Router,
    power: Arc<Power>,
    handlers: Mutex<BTreeMap<u64, AbortHandle>>,
    requests: AtomicU64,
}

impl Boot {
    /// The server's actors.
    pub fn homeserver(&self) -> &Homeserver {
        self.app.homeserver()
    }

    /// The server's store.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Whether the host still has power.
    pub fn is_on(&self) -> bool {
        !self.power.is_off()
    }

    /// Answers a request; one whose asker goes away is given up, as hyper does.
    async fn answer(self: Arc<Self>, request: http::Request<Body>) -> Result<Response, Gone> {
        if self.power.is_off() {
            return Err(Gone);
        }
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let router = self.router.clone();
        let work = tokio::spawn(async move { router.oneshot(router::alias(request)).await });
        self.handlers.lock().insert(id, work.abort_handle());
        let _given_up = GivenUp { boot: self.clone(), id };
        match work.await {
            Ok(Ok(response)) if !self.power.is_off() => Ok(response),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => Err(Gone),
        }
    }
}

/// Ends a handler whose asker goes away.
struct GivenUp {
    boot: Arc<Boot>,
    id: u64,
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(handler) = self.boot.handlers.lock().remove(&self.id) {
            handler.abort();
        }
    }
}

impl Host {
    /// A host that is down, with this disk.
    pub fn new(
        name: OwnedServerName,
        disk: Disk,
        (seed, options): (Seed, HostOptions),
        network: &Network,
        trace: &Arc<Trace>,
    ) -> Result<Arc<Self>> {
        let signing = signing_key(seed, &name, 0)?;
        let host = Arc::new(Self {
            options,
            network: network.clone(),
            trace: trace.clone(),
            start: Instant::now().checked_sub(trace.elapsed()).context("the world has begun before")?,
            disk: Arc::new(disk),
            skew_ms: Arc::default(),
            fastest_ms: AtomicI64::new(0),
            random: Mutex::new(seed.stream(&format!("host {name}"))),
            keys: Mutex::new(Keys { signing, old: Vec::new(), generation: 0 }),
            running: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            held_down: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            is_mute: AtomicBool::new(false),
            name,
            seed,
        });
        let endpoint: Arc<dyn Endpoint> = host.clone();
        network.attach(&host.name, Arc::downgrade(&endpoint));
        Ok(host)
    }

    /// Its disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What it is like.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// The running server; none while it is down.
    pub fn boot(&self) -> Option<Arc<Boot>> {
        self.running.lock().clone()
    }

    /// Sets the clock wrong.
    pub fn skew(&self, by_ms: i64) {
        self.trace.note(format_args!("{} clock off by {by_ms} ms", self.name));
        self.skew_ms.store(by_ms, Ordering::Relaxed);
        self.network.sets_clock(&self.name);
        self.fastest_ms.fetch_max(by_ms, Ordering::Relaxed);
    }

    /// Fills the disk.
    pub fn fill_disk(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
        self.disk.set_full(true);
    }

    /// Makes room on the disk, and starts the server again, which needs that after a commit has failed.
    pub async fn empty_disk(&self) -> Result<()> {
        self.disk.set_full(false);
        if self.running.lock().is_some() {
            self.crash().await;
            return self.start().await;
        }
        Ok(())
    }

    /// Lets answers get lost on the way to clients, or arrive again.
    pub fn set_mute(&self, is_mute: bool) {
        self.is_mute.store(is_mute, Ordering::Relaxed);
    }

    /// Whether answers to clients get lost.
    pub fn is_mute(&self) -> bool {
        self.is_mute.load(Ordering::Relaxed)
    }

    /// Whether a commit may have failed since the start.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Ends all that is wrong with the host.
    pub async fn recover(&self) -> Result<()> {
        self.held_down.store(0, Ordering::Relaxed);
        self.skew_ms.store(0, Ordering::Relaxed);
        self.network.sets_clock(&self.name);
        self.set_mute(false);
        if self.disk.is_full() {
            self.empty_disk().await?;
        }
        self.start().await
    }

    /// Starts the server on what the disk holds, if it is down.
    pub async fn start(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        if self.running.lock().is_some() || self.held_down.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let _ongoing = self.trace.begin(format_args!("{} starts", self.name));
        self.has_failed.store(self.disk.is_full(), Ordering::Relaxed);
        let (seed, commit_takes, is_silent) = {
            let mut random = self.random.lock();
            (
                random.random(),
                Duration::from_micros(random.random_range(200..4000)),
                random.random_ratio(1, 2),
            )
        };
        self.network.set_silent(&self.name, is_silent);
        self.network.starts(&self.name);
        let power = Arc::new(Power::default());
        let store = Mounted { disk: self.disk.clone(), power: power.clone(), commit_takes };
        let storage = Storage::open(Arc::new(store), self.options.durability).await?;
        let clock = HostClock { start: self.start, skew_ms: self.skew_ms.clone() };
        let env = Env { clock: Arc::new(clock), entropy: Arc::new(SeededEntropy::new(seed)) };
        let cost = PasswordCost { memory_kib: 8, iterations: 1, lanes: 1 };
        let passwords = Passwords::new(cost, env.entropy.clone())?;
        let homeserver = Homeserver::start(self.configuration(&power), env, storage.clone()).await;
        let registration = Registration { enabled: true, ..Registration::default() };
        let app = App::new(homeserver, passwords, Settings { registration, ..Settings::default() });
        let boot = Boot {
            router: router::router(app.clone()),
            app,
            storage,
            power,
            handlers: Mutex::default(),
            requests: AtomicU64::new(0),
        };
        *self.running.lock() = Some(Arc::new(boot));
        self.trace.note(format_args!("{} up", self.name));
        Ok(())
    }

    fn configuration(&self, power: &Arc<Power>) -> HomeserverConfig {
        let keys = self.keys.lock();
        let class = ClassConfig {
            budget_bytes: self.options.memory,
            idle_after: self.options.idle_after,
            ..ClassConfig::default()
        };
        let wire = Wire {
            network: self.network.clone(),
            own: self.name.clone(),
            key: keys.signing.clone(),
            power: power.clone(),
            budget: self.options.connections_max.map(Semaphore::new),
        };
        HomeserverConfig {
            server_name: self.name.clone(),
            signing_key: keys.signing.clone(),
            old_keys: keys.old.clone(),
            federation: Some(FederationConfig {
                client: Arc::new(wire),
                trusted_key_servers: Vec::new(),
                destinations: class,
                shares_device_names: true,
                sends_presence: self.options.sends_presence,
            }),
            default_room_version: self.options.room_version.clone(),
            room_memory: self.options.memory,
            rooms: class,
            sessions: class,
            media: MediaConfig::default(),
            conversation: ConversationConfig::default(),
            push: Arc::new(NoPushGateways),
            search: None,
            services: actors::appservice::Services::default(),
        }
    }

    /// Cuts the power: what was not durable is lost, and nobody hears anything more of this boot.
    pub async fn crash(&self) {
        let _changing = self.changing.lock().await;
        let Some(boot) = self.running.lock().take() else { return };
        let _ongoing = self.trace.begin(format_args!("{} crashes", self.name));
        self.trace.note(format_args!("{} crashes", self.name));
        boot.power.cut();
        for handler in std::mem::take(&mut *boot.handlers.lock()).into_values() {
            handler.abort();
        }
        let commit_arrives = self.random.lock().random_ratio(1, 2);
        self.disk.lose_power(commit_arrives).await;
        bury(boot);
    }

    /// Stops the server as a service manager does.
    pub async fn stop(&self) {
        let _changing = self.changing.lock().await;
        let Some(boot) = self.running.lock().take() else { return };
        let _ongoing = self.trace.begin(format_args!("{} stops", self.name));
        self.trace.note(format_args!("{} stops", self.name));
        let homeserver = boot.homeserver();
        homeserver.stop_waiting();
        let deadline = Instant::now() + STOP_MAX;
        while !boot.handlers.lock().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        homeserver.shutdown().await;
        boot.power.cut();
        for handler in std::mem::take(&mut *boot.handlers.lock()).into_values() {
            handler.abort();
        }
        self.trace.note(format_args!("{} down", self.name));
    }

    /// Keeps the host down until [`Self::release`] is called as often.
    pub fn hold_down(&self) {
        self.held_down.fetch_add(1, Ordering::Relaxed);
    }

    /// One who wanted the host down wants so no longer; it starts if it was the last one.
    pub async fn release(&self) -> Result<()> {
        let _ =
            self.held_down.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        self.start().await
    }

    /// Replaces the signing key; the server uses the new one from its next start.
    pub fn rotate_key(&self) -> Result<()> {
        let mut keys = self.keys.lock();
        // Not before the last moment that anything was signed at, however wrong the clock was.
        let fastest_ms = self.fastest_ms.swap(self.skew_ms.load(Ordering::Relaxed).max(0), Ordering::Relaxed);
        let clock = HostClock { start: self.start, skew_ms: Arc::new(fastest_ms.into()) };
        let expired_ms = clock.now_ms();
        let old = OldKey { id: keys.signing.id(), key: keys.signing.public_key(), expired_ms };
        keys.old.push(old);
        keys.generation += 1;
        keys.signing = signing_key(self.seed, &self.name, keys.generation)?;
        Ok(())
    }
}

/// Ends what is left of a boot without power: its tasks have nobody who waits for them.
fn bury(boot: Arc<Boot>) {
    tokio::spawn(async move {
        boot.homeserver().stop_waiting();
        boot.homeserver().shutdown().await;
    });
}

/// The key of a host, which follows from the seed.
pub fn signing_key(seed: Seed, name: &ServerName, generation: u32) -> Result<Arc<SigningKey>> {
    let secret = seed.bytes(&format!("key {name} {generation}"));
    let key = SigningKey::new(&secret, &format!("k{generation}")).context("the key's version is valid")?;
    Ok(Arc::new(key))
}

impl Endpoint for Host {
    fn is_up(&self) -> bool {
        self.running.lock().is_some()
    }

    fn serve(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<Response, Gone>> {
        match self.boot() {
            Some(boot) => Box::pin(boot.answer(request)),
            None => Box::pin(async { Err(Gone) }),
        }
    }
}
