//! Servers that federate on loopback: a certificate authority for all of a test's servers, and Synapse as a peer.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    Client, Link, environment,
    server::{LOG_LINES_MAX, free_port},
};

/// How long Synapse may take to answer its first request.
const START_MAX: Duration = Duration::from_secs(120);

/// The authority that the certificates of all servers of a test run come from, as files.
pub(crate) struct Authority {
    folder: TempDir,
}

impl Authority {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Authority> = OnceLock::new();
        SHARED.get_or_init(|| Self::new().expect("certificates can be made"))
    }

    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "test authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut certificate = CertificateParams::new(names)?;
        certificate.distinguished_name.push(DnType::CommonName, "test server");
        let certificate = certificate.signed_by(&key, &authority)?;
        fs::write(folder.path().join("ca.pem"), authority.pem())?;
        fs::write(folder.path().join("certificate.pem"), certificate.pem())?;
        fs::write(folder.path().join("key.pem"), key.serialize_pem())?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// What a Ganglion server that federates on loopback is configured with.
pub(crate) fn configuration(port: u16) -> String {
    let authority = Authority::shared();
    let path = |name| authority.path(name).display().to_string();
    format!(
        "[listen]\ntls = [\"127.0.0.1:{port}\"]\n\
         [tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n\
         [federation]\nenabled = true\nextra_ca = [\"{}\"]\nallow_private_addresses = true\n",
        path("certificate.pem"),
        path("key.pem"),
        path("ca.pem")
    )
}

/// The same for a server behind a link, which has the certificate.
pub(crate) fn configuration_behind_link() -> String {
    let ca = Authority::shared().path("ca.pem").display().to_string();
    format!("[federation]\nenabled = true\nextra_ca = [\"{ca}\"]\nallow_private_addresses = true\n")
}

/// A Synapse homeserver; killed when dropped.
pub struct Synapse {
    process: Option<Child>,
    folder: TempDir,
    client_port: u16,
    server_name: String,
}

impl Synapse {
    /// Starts a Synapse with open registration and no limits.
    pub async fn start() -> Self {
        let (client_port, federation_port) = (free_port(), free_port());
        Self::named(format!("localhost:{federation_port}"), client_port, federation_port).await
    }

    /// Starts a Synapse that others reach through a link.
    pub async fn start_behind(link: &Link) -> Self {
        Self::named(link.server_name(), link.target(), free_port()).await
    }

    async fn named(server_name: String, client_port: u16, federation_port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        write_configuration(folder.path(), &server_name, client_port, federation_port);
        let mut synapse = Self { process: None, folder, client_port, server_name };
        synapse.launch().await;
        synapse
    }

    async fn launch(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.folder.path().join("output"));
        let log = log.expect("the log can be written");
        let process = Command::new(environment::synapse())
            .args(["-m", "synapse.app.homeserver", "-c"])
            .arg(self.folder.path().join("homeserver.yaml"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("Synapse starts");
        self.process = Some(process);
        #[expect(clippy::disallowed_methods, reason = "waits for a real process")]
        let start = Instant::now();
        while reqwest::get(format!("{}/_matrix/client/versions", self.url())).await.is_err() {
            let process = self.process.as_mut().expect("it was just started");
            let ended = process.try_wait().expect("its status can be read");
            assert!(ended.is_none(), "Synapse ended at once\n{}", self.log());
            assert!(start.elapsed() < START_MAX, "Synapse does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Where its client-server API is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The server's name.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// A client without a user; it reaches the key API too.
    pub fn anonymous(&self) -> Client {
        Client::new(&self.url())
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("output"), read("homeserver.log"))
    }

    /// Registers a user of this name.
    pub async fn client(&self, name: &str) -> Client {
        let mut client = Client::new(&self.url());
        let auth = json!({ "type": "m.login.dummy" });
        let body = json!({ "username": name, "password": format!("password of {name}"), "auth": auth });
        let answer = client.post("/_matrix/client/v3/register", &body).await.ok();
        client.log_in_as(&answer);
        client
    }

    /// Kills the server without warning.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts the server again after [`Self::kill`].
    pub async fn restart(&mut self) {
        self.kill();
        self.launch().await;
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n");
            eprintln!("---- the end of Synapse's log ----\n{last}\n----");
        }
    }
}

/// Writes `homeserver.yaml`, which JSON is too, and the log's configuration.
fn write_configuration(folder: &Path, server_name: &str, client_port: u16, federation_port: u16) {
    let authority = Authority::shared();
    let path = |name: &str| folder.join(name).display().to_string();
    let unlimited = json!({ "per_second": 1_000_000, "burst_count": 1_000_000 });
    let listener = |port: u16, tls: bool| {
        json!({
            "type": "http", "bind_addresses": ["127.0.0.1"], "port": port, "tls": tls, "x_forwarded": false,
            "resources": [{ "names": ["client", "federation"], "compress": false }],
        })
    };
    let configuration = json!({
        "server_name": server_name,
        "public_baseurl": format!("http://127.0.0.1:{client_port}/"),
        "pid_file": path("pid"),
        "listeners": [listener(client_port, false), listener(federation_port, true)],
        "tls_certificate_path": authority.path("certificate.pem"),
        "tls_private_key_path": authority.path("key.pem"),
        "database": { "name": "sqlite3", "args": { "database": path("homeserver.db") } },
        "log_config": path("log.yaml"),
        "media_store_path": path("media"),
        "signing_key_path": path("signing.key"),
        // Only the old spelling of this key is read.
        "ip_range_blacklist": [],
        "federation_custom_ca_list": [authority.path("ca.pem")],
        "trusted_key_servers": [],
        "suppress_key_server_warning": true,
        "enable_registration": true,
        "enable_registration_without_verification": true,
        "bcrypt_rounds": 4,
        "macaroon_secret_key": "macaroon",
        "form_secret": "form",
        "report_stats": false,
        "url_preview_enabled": false,
        "allow_public_rooms_over_federation": true,
        "room_list_publication_rules": [{ "action": "allow" }],
        "rc_message": unlimited, "rc_registration": unlimited, "rc_joins_per_room": unlimited,
        "rc_login": { "address": unlimited, "account": unlimited, "failed_attempts": unlimited },
        "rc_joins": { "local": unlimited, "remote": unlimited },
        "rc_invites": { "per_room": unlimited, "per_user": unlimited, "per_issuer": unlimited },
        "rc_room_creation": unlimited,
        "rc_profile": unlimited,
        "rc_federation": {
            "window_size": 1000, "sleep_limit": 1_000_000, "sleep_delay": 1, "reject_limit": 1_000_000,
            "concurrent": 1000,
        },
        "federation": { "destination_min_retry_interval": "1s", "destination_retry_multiplier": 1, "destination_max_retry_interval": "1s" },
    });
    let log = json!({
        "version": 1,
        "handlers": { "file": { "class": "logging.FileHandler", "filename": path("homeserver.log") } },
        "root": { "level": "WARNING", "handlers": ["file"] },
        "disable_existing_loggers": false,
    });
    fs::write(folder.join("homeserver.yaml"), configuration.to_string())
        .expect("the configuration is written");
    fs::write(folder.join("log.yaml"), log.to_string()).expect("the configuration is written");
    // Made by hand, since Synapse makes one only when it is asked to generate a configuration.
    let key = "ed25519 a_test 0hvRvlWIFrKlgkAhGsnLXYCCI+KJ1IUrCrJkQ1MgC5s\n";
    fs::write(folder.join("signing.key"), key).expect("the key is written");
}
