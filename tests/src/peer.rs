//! Real clients of other makers, driven over standard input and output by lines of JSON.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::environment;

/// A command that takes longer has failed. Paging back 1,000 messages is the longest.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// matrix-nio (Python).
    Nio,
    /// mautrix (Python).
    Mautrix,
    /// An application service made with mautrix (Python).
    MautrixBridge,
    /// matrix-js-sdk (`JavaScript`).
    Js,
}

/// A running client: a script of `tests/clients` and the library behind it.
///
/// A command is one line, `{"command": …, …}`; so is its answer, `{"ok": …}` or `{"error": …}`.
/// All scripts know the same commands; `tests/clients/README.md` lists them.
#[derive(Debug)]
pub struct Peer {
    kind: PeerKind,
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts a client of the homeserver at `url`; installs its packages first, if need be.
    pub fn start(kind: PeerKind, url: &str) -> Self {
        match kind {
            PeerKind::Nio => Self::python(kind, "nio/client.py", url),
            PeerKind::Mautrix => Self::python(kind, "mautrix/client.py", url),
            PeerKind::MautrixBridge => Self::python(kind, "mautrix/bridge.py", url),
            PeerKind::Js => {
                let mut command = Command::new("node");
                command.arg("client.mjs").arg(url).current_dir(environment::node());
                Self::spawn(kind, command)
            }
        }
    }

    fn python(kind: PeerKind, script: &str, url: &str) -> Self {
        let mut command = Command::new(environment::python());
        command.arg(environment::script(script)).arg(url).env("PYTHONDONTWRITEBYTECODE", "1");
        Self::spawn(kind, command)
    }

    fn spawn(kind: PeerKind, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{kind:?} does not start: {error}"));
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { kind, _child: child, input, output }
    }

    /// Runs a command; panics if it fails or takes too long.
    pub async fn call(&mut self, command: &str, arguments: Value) -> Value {
        let mut line = arguments;
        line["command"] = json!(command);
        let exchange = async {
            self.input.write_all(format!("{line}\n").as_bytes()).await?;
            self.output.next_line().await
        };
        let answer = timeout(COMMAND_LIMIT, exchange).await;
        let answer =
            answer.unwrap_or_else(|error| panic!("{:?} takes too long for {line}: {error}", self.kind));
        let answer = answer.unwrap_or_else(|error| panic!("{:?} broke at {line}: {error}", self.kind));
        let answer = answer.unwrap_or_else(|| panic!("{:?} ended at {line}", self.kind));
        let mut answer: Value = serde_json::from_str(&answer)
            .unwrap_or_else(|error| panic!("{:?} answers {answer:?}: {error}", self.kind));
        assert!(answer.get("ok").is_some(), "{:?} fails at {line}: {answer}", self.kind);
        answer["ok"].take()
    }
}
