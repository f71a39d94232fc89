//! A Ganglion of its own for a run, as a process with an empty store.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::Method;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::Client;

/// How long a server may take to answer its first request.
const START_MAX: Duration = Duration::from_secs(60);

/// How long a server may take to stop when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// How often to look whether it has come so far.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Open, without limits; what else is set wins.
const SETTINGS: [(&str, &str); 3] =
    [("registration.enabled", "true"), ("rate_limits.enabled", "false"), ("logging.level", "warn")];

/// A server process; killed when dropped.
pub struct Launched {
    process: Child,
    /// Where its files are, unless they were there before.
    _folder: Option<TempDir>,
    /// The client-server API's base URL.
    pub url: String,
    /// From its start to its first answer.
    pub answered_after: Duration,
    /// From its start to its first answer to a request that may need the store.
    pub ready_after: Duration,
}

/// A setting's environment variable.
///
/// `room_memory` stands for `actors.room_memory`, and so do the section's other keys.
fn variable(key: &str) -> String {
    let key = if key.contains('.') { key.to_owned() } else { format!("actors.{key}") };
    format!("GANGLION__{}", key.to_uppercase().replace('.', "__"))
}

impl Launched {
    /// Starts the binary with these settings, in `data_dir` or in a new folder, and waits until it answers.
    pub async fn start(
        binary: &Path,
        settings: &[(String, String)],
        data_dir: Option<PathBuf>,
    ) -> Result<Self> {
        let folder = if data_dir.is_none() { Some(tempfile::tempdir()?) } else { None };
        let place = data_dir.or_else(|| folder.as_ref().map(|folder| folder.path().to_owned()));
        let place = place.context("there is no folder for the server")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(binary);
        for (key, value) in SETTINGS {
            command.env(variable(key), value);
        }
        command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
        command
            .args(["--server-name", "localhost", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(&place)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let url = format!("http://127.0.0.1:{port}");
        let (answered_after, ready_after) = (Duration::ZERO, Duration::ZERO);
        let mut launched = Self { process, _folder: folder, url, answered_after, ready_after };
        launched.wait_for("/_matrix/client/versions", start).await?;
        launched.answered_after = start.elapsed();
        launched.wait_for("/_matrix/client/v3/login", start).await?;
        launched.ready_after = start.elapsed();
        Ok(launched)
    }

    /// Waits until a path is answered.
    async fn wait_for(&mut self, path: &str, start: Instant) -> Result<()> {
        let client = Client::anonymous(&self.url);
        while client.call_raw(Method::GET, path, None).await.is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server ended at once: {status}");
            }
            if start.elapsed() > START_MAX {
                bail!("the server does not answer");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The server's process ID.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks the server to stop and waits until it has.
    pub async fn stop(mut self) -> Result<()> {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let start = Instant::now();
        while told.success() && start.elapsed() < STOP_MAX {
            if self.process.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the server does not stop")
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        // One that has ended already is all the better.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::variable;

    #[test]
    fn keys_without_a_section_are_those_of_the_actors() {
        assert_eq!(variable("room_memory"), "GANGLION__ACTORS__ROOM_MEMORY");
        assert_eq!(variable("storage.cache"), "GANGLION__STORAGE__CACHE");
    }
}
