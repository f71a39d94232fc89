//! A server process of its own for each test, on a free port and an empty directory.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use crate::Client;

/// How long a server may take to answer its first request; debug builds on a busy machine are slow.
const START_MAX: Duration = Duration::from_secs(60);

/// How long a server may take to stop when asked to.
const STOP_MAX: Duration = Duration::from_secs(40);

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
}

impl Server {
    /// Starts a server with open registration.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a server whose configuration has further lines.
    pub async fn start_with(extra: &str) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut server = Self { process: None, data, port: free_port(), extra: extra.to_owned() };
        server.launch().await;
        server
    }

    async fn launch(&mut self) {
        let config = self.data.path().join("ganglion.toml");
        std::fs::write(&config, format!("{CONFIG}\n{}", self.extra)).expect("the configuration is written");
        let process = Command::new(binary())
            .args(["--server-name", "localhost", "--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(self.data.path().join("data"))
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        self.process = Some(process);
        self.wait_until_up().await;
    }

    async fn wait_until_up(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "waits for a real process")]
        let start = Instant::now();
        let url = format!("{}/_matrix/client/versions", self.url());
        while reqwest::get(&url).await.is_err() {
            let process = self.process.as_mut().expect("it was just started");
            if let Some(status) = process.try_wait().expect("its status can be read") {
                panic!("the server ended at once: {status}");
            }
            assert!(start.elapsed() < START_MAX, "the server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The client-server API's base URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
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

    /// Registers a user of this name.
    pub async fn client(&self, name: &str) -> Client {
        let mut client = self.anonymous();
        let body = json!({ "username": name, "password": format!("password of {name}"), "auth": { "type": "m.login.dummy" } });
        let answer = client.post("/_matrix/client/v3/register", &body).await.ok();
        client.log_in_as(&answer);
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// The server's binary, built once: `cargo test` builds other packages' libraries only.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("the test's own path");
        let profile = test.ancestors().nth(2).expect("the test is in target/PROFILE/deps").to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "gateway", "--locked"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(profile.parent().expect("target"));
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(build.status().expect("cargo runs").success(), "the server does not build");
        profile.join("ganglion")
    })
}
