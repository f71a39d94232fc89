//! A server process of its own for each test, on a free port and an empty directory.

use std::{
    fs::{File, OpenOptions},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::{Client, Link, federation};

/// How long a server may take to answer its first request; debug builds on a busy machine are slow.
const START_MAX: Duration = Duration::from_secs(60);

/// How long a server may take to stop when asked to.
const STOP_MAX: Duration = Duration::from_secs(40);

/// Lines of a server's log that a failed test shows.
pub(crate) const LOG_LINES_MAX: usize = 400;

/// The variable that points the tests at a homeserver that runs already.
const OUTSIDE: &str = "GANGLION_TEST_SERVER_URL";

/// What every test's server is configured with: open, cheap passwords, no limits.
const CONFIG: &str = r#"
[registration]
enabled = true
shared_secret = "secret"
[rate_limits]
enabled = false
[password]
argon2_memory = "64 KiB"
argon2_iterations = 1
[logging]
level = "warn"
"#;

/// A running server; killed when dropped.
pub struct Server {
    process: Option<Child>,
    data: TempDir,
    port: u16,
    extra: String,
    settings: Vec<(String, String)>,
    outside: Option<String>,
    name: String,
}

impl Server {
    /// Starts a server with open registration.
    ///
    /// With `GANGLION_TEST_SERVER_URL` set, this is the homeserver there (open registration, no rate limits)
    /// instead, to see how another server answers; kills and restarts are not for it.
    pub async fn start() -> Self {
        match std::env::var(OUTSIDE) {
            Ok(url) => {
                let data = tempfile::tempdir().expect("a temporary directory");
                let (extra, settings) = (String::new(), Vec::new());
                let name = "localhost".to_owned();
                Self { process: None, data, port: 0, extra, settings, outside: Some(url), name }
            }
            Err(_) => Self::start_with("").await,
        }
    }

    /// Starts a server whose configuration has further lines.
    pub async fn start_with(extra: &str) -> Self {
        Self::launched(extra.to_owned(), Vec::new()).await
    }

    /// Starts a server with other settings, such as `("registration.guests", "true")`, from the environment.
    pub async fn start_with_settings(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| (variable(key), (*value).to_owned()));
        Self::launched(String::new(), settings.collect()).await
    }

    /// Starts a server that federates on loopback, over TLS, whose configuration has further lines.
    pub async fn start_federating(extra: &str) -> Self {
        let port = free_port();
        let extra = format!("{}{extra}", federation::configuration(port));
        Self::named(format!("localhost:{port}"), extra, Vec::new()).await
    }

    /// Starts a server that federates on loopback and that others reach through a link.
    pub async fn start_behind(link: &Link) -> Self {
        let extra = federation::configuration_behind_link();
        Self::on_port(link.target(), link.server_name(), extra, Vec::new()).await
    }

    async fn launched(extra: String, settings: Vec<(String, String)>) -> Self {
        Self::named("localhost".to_owned(), extra, settings).await
    }

    async fn named(name: String, extra: String, settings: Vec<(String, String)>) -> Self {
        Self::on_port(free_port(), name, extra, settings).await
    }

    async fn on_port(port: u16, name: String, extra: String, settings: Vec<(String, String)>) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut server = Self { process: None, data, port, extra, settings, outside: None, name };
        server.launch().await;
        server
    }

    /// Changes a setting for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        let name = variable(key);
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.to_owned()));
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The binary with this server's configuration and data.
    fn ganglion(&self) -> Command {
        let mut command = Command::new(binary());
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| name.to_string_lossy().starts_with("GANGLION_")) {
            command.env_remove(name);
        }
        command
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .args(["--server-name", &self.name, "--data-dir"])
            .arg(self.data_dir())
            .arg("--config")
            .arg(self.data.path().join("ganglion.toml"));
        command
    }

    /// Runs another command of the binary, such as `user list`, with a line of input.
    ///
    /// It needs no running server: [`Self::stop`] it first to see it work on a store of its own.
    pub async fn command(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = tokio::process::Command::from(self.ganglion());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A command that reads no input may be gone already.
        let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(START_MAX, child.wait_with_output()).await;
        output.expect("a command ends").expect("its output can be read")
    }

    async fn launch(&mut self) {
        let config = self.data.path().join("ganglion.toml");
        std::fs::write(&config, format!("{CONFIG}\n{}", self.extra)).expect("the configuration is written");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log: File = log.expect("the log can be written");
        let process = self
            .ganglion()
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.process = Some(process);
        self.wait_until_up().await;
    }

    async fn wait_until_up(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "waits for a real process")]
        let start = Instant::now();
        // One that needs the store, and so waits for it.
        let url = format!("{}/_matrix/client/v3/login", self.url());
        while reqwest::get(&url).await.is_err() {
            let process = self.process.as_mut().expect("it was just started");
            if let Some(status) = process.try_wait().expect("its status can be read") {
                panic!("the server ended at once: {status}\n{}", self.log());
            }
            assert!(start.elapsed() < START_MAX, "the server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The client-server API's base URL.
    pub fn url(&self) -> String {
        let outside = self.outside.as_ref().map(|url| url.trim_end_matches('/').to_owned());
        outside.unwrap_or_else(|| format!("http://127.0.0.1:{}", self.port))
    }

    /// What the server wrote to its log, from its first start on.
    pub fn log(&self) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.data.path().join("log")
    }

    /// A name that no other test has used on this server.
    pub fn unique(&self, name: &str) -> String {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        if self.outside.is_none() {
            return name.to_owned();
        }
        format!("{name}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// The server's process ID.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Kills the server without warning.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts the server again after [`Self::kill`] or [`Self::stop`], on the same directory and port.
    pub async fn restart(&mut self) {
        self.kill();
        self.launch().await;
    }

    /// Asks the server to stop with SIGTERM and waits until it has.
    pub async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let terminate = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
        assert!(terminate.expect("`kill` runs").success());
        #[expect(clippy::disallowed_methods, reason = "waits for a real process")]
        let start = Instant::now();
        loop {
            if let Some(status) = process.try_wait().expect("its status can be read") {
                assert!(status.success(), "the server stopped with {status}");
                return;
            }
            assert!(start.elapsed() < STOP_MAX, "the server does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client without a user.
    pub fn anonymous(&self) -> Client {
        Client::new(&self.url())
    }

    /// Registers a user of this name; [`Self::unique`] makes the name so.
    pub async fn client(&self, name: &str) -> Client {
        let name = self.unique(name);
        let mut client = self.anonymous();
        let body = json!({ "username": name, "password": format!("password of {name}"), "auth": { "type": "m.login.dummy" } });
        let answer = client.post("/_matrix/client/v3/register", &body).await.ok();
        client.log_in_as(&answer);
        client
    }

    /// Registers several users.
    pub async fn clients<const N: usize>(&self, names: [&str; N]) -> [Client; N] {
        let mut clients = Vec::with_capacity(N);
        for name in names {
            clients.push(self.client(name).await);
        }
        clients.try_into().unwrap_or_else(|_| unreachable!("a client for each name"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n");
            eprintln!("---- the end of the server's log ----\n{last}\n----");
        }
    }
}

/// Below those that systems choose from by themselves.
const PORTS: Range<u16> = 20_000..32_000;

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("GANGLION__{}", key.to_uppercase().replace('.', "__"))
}

/// A port that nobody listens on just now, and that this process gives away once.
///
/// Not one that the system chooses: it would choose the same again, for a connection of another test, before the server that it is
/// for listens there or while it is restarted.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(997).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(number % u32::from(PORTS.end - PORTS.start)).expect("a port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The folder of this run's build profile, as in `target/debug`.
pub(crate) fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).expect("the test is in target/PROFILE/deps").to_owned()
}

/// Names the binary of a server that is built already, of a release, say, for tests that measure.
const BUILT: &str = "GANGLION_TEST_BINARY";

/// The server's binary, built once: a run of some tests only may leave it out.
///
/// Cargo builds it with the integration tests of its package. Built so, for the whole workspace, it has its dependencies
/// with the features that `cargo test --workspace` gives them, and nothing is built again.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(built) = std::env::var_os(BUILT) {
            return built.into();
        }
        let profile = profile_folder();
        let mut build = Command::new(env!("CARGO"));
        build.args(["test", "--no-run", "--workspace", "--locked", "--test", "users"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(profile.parent().expect("target"));
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(build.status().expect("cargo runs").success(), "the server does not build");
        profile.join("ganglion")
    })
}
