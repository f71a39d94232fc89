//! A unix socket in the data directory, through which commands reach a running server.
//!
//! The store belongs to one process at a time, so a command cannot open it beside the server. Whoever can
//! open the socket may do everything: its directory is open to the server's own user alone. One line of
//! JSON goes in, one comes back.

use std::{
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use storage::backend::OpenError;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::Instant,
};

use crate::{
    app::App,
    media::{self, MediaCommand},
    notices::{self, NoticeCommand},
    serve::{self, Options},
    users::{self, UserRequest},
};

/// The longest line; a list of users is what needs the most.
const LINE_MAX: u64 = 64 << 20;

/// How long a command's line may take to come.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a command may take: removing a million files is the longest.
const EXECUTION_MAX: Duration = Duration::from_secs(3600);

/// How long a command waits for a store that is in use: a server that starts takes no commands before it has opened its store.
const STARTING_MAX: Duration = Duration::from_secs(10);

/// How often it looks meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What a command asks for.
#[derive(Clone, Serialize, Deserialize)]
pub enum Request {
    /// Something about accounts.
    User(UserRequest),
    /// Something about media.
    Media(MediaCommand),
    /// Something to tell users.
    Notice(NoticeCommand),
}

/// What a command leads to: lines to print, or what went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Lines to print.
    Done(Vec<String>),
    /// What went wrong.
    Failed(String),
}

fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control").join("socket")
}

/// Binds the socket. The caller has the store open, so a socket that is there already is a dead server's.
pub fn bind(data_dir: &Path) -> std::io::Result<UnixListener> {
    let directory = data_dir.join("control");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
    let path = socket(data_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Whether a server runs on this data directory.
pub async fn is_running(data_dir: &Path) -> bool {
    UnixStream::connect(socket(data_dir)).await.is_ok()
}

/// Carries out commands, one after the other, until it is dropped.
pub async fn serve(listener: &UnixListener, app: &App) {
    loop {
        let result = match listener.accept().await {
            Ok((stream, _)) => tokio::time::timeout(EXECUTION_MAX, answer(stream, app)).await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections on the control socket");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a command on the control socket failed"),
            Err(_) => tracing::warn!("a command on the control socket took too long"),
        }
    }
}

async fn answer(mut stream: UnixStream, app: &App) -> std::io::Result<()> {
    let line = tokio::time::timeout(TIMEOUT, read_line(&mut stream)).await??;
    if line.is_empty() {
        return Ok(()); // somebody looked whether the server runs
    }
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => execute(app, request).await,
        Err(error) => Answer::Failed(format!("not a command: {error}")),
    };
    write_line(&mut stream, &answer).await
}

/// Carries out a command on this server.
async fn execute(app: &App, request: Request) -> Answer {
    match request {
        Request::User(request) => users::execute(app, request).await,
        Request::Media(command) => media::execute(app, command).await,
        Request::Notice(command) => notices::execute(app, command).await,
    }
}

/// Carries out a command, through the running server or on the store if none runs, and prints what comes of it.
pub async fn run(options: Options, request: Request, makes_store: bool) -> anyhow::Result<()> {
    let answer = carry_out(options, request, makes_store).await?;
    match answer {
        Answer::Done(lines) => {
            let mut out = std::io::stdout().lock();
            lines.iter().try_for_each(|line| writeln!(out, "{line}")).context("cannot print")
        }
        Answer::Failed(message) => bail!(message),
    }
}

/// Has a command carried out by the running server, or by one of its own that answers nobody.
async fn carry_out(options: Options, request: Request, makes_store: bool) -> anyhow::Result<Answer> {
    let silent = Options { listen: Vec::new(), listen_metrics: Vec::new(), tls: None, ..options };
    let start = Instant::now();
    loop {
        let asked = ask(&silent.data_dir, &request).await;
        if let Some(answer) = asked.context("cannot talk to the running server")? {
            return Ok(answer);
        }
        let exists = silent.data_dir.join("store").exists();
        ensure!(exists || makes_store, "there is no store in {}", silent.data_dir.display());
        match serve::start(silent.clone()).await {
            Ok(server) => {
                let answer = execute(&server.app, request).await;
                server.app.homeserver().shutdown().await;
                return Ok(answer);
            }
            Err(error) if is_in_use(&error) && start.elapsed() < STARTING_MAX => {
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OpenError::Locked { .. })))
}

/// Has the running server carry out a command; none if no server runs.
pub async fn ask(data_dir: &Path, request: &Request) -> std::io::Result<Option<Answer>> {
    let mut stream = match UnixStream::connect(socket(data_dir)).await {
        Ok(stream) => stream,
        Err(error) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    write_line(&mut stream, request).await?;
    let line = read_line(&mut stream).await?;
    Ok(Some(serde_json::from_slice(&line)?))
}

async fn read_line(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut line).await?;
    Ok(line)
}

async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}
