//! The binary `ganglion`: arguments and wiring only.

use std::{net::SocketAddr, path::PathBuf, pin::pin, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use gateway::{
    check,
    config::{Config, Flags},
    control::{self, Request},
    media::MediaCommand,
    notices::NoticeCommand,
    serve::{self, Options},
    telemetry,
    users::{self, UserCommand},
};
use tokio::signal::unix::{SignalKind, signal};

/// The system's allocator keeps several times the memory in use once many threads hand buffers to each other.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Matrix homeserver.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    flags: CommonFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct CommonFlags {
    /// The configuration file.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The server's name, the part after the colon of its user IDs.
    #[arg(long, global = true)]
    server_name: Option<String>,
    /// The address to listen on, plain HTTP.
    #[arg(long, global = true)]
    listen: Option<SocketAddr>,
    /// Where the server keeps its files.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve,
    /// Look for whatever keeps the server from working, beside the running server or without it.
    Check,
    /// Replace the signing key of a stopped server; what the old one signed stays valid.
    RotateSigningKey,
    /// Write the store of a stopped server anew, so that it takes less of the disk; as much as it then takes has to be free.
    Compact,
    /// Bring the store of a stopped server into the form of the back end that `storage.backend` names; there has to be room for both.
    Convert,
    /// List what users reported, whether the server runs or not; times are milliseconds since 1970.
    Reports,
    /// Manage accounts, whether the server runs or not.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Manage media, whether the server runs or not.
    Media {
        #[command(subcommand)]
        command: MediaCommand,
    },
    /// Tell users something in the server's name, whether the server runs or not.
    Notice {
        #[command(subcommand)]
        command: NoticeCommand,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { flags, command } = Arguments::parse();
    let flags = Flags {
        config: flags.config,
        server_name: flags.server_name,
        listen: flags.listen.map(|listen| listen.to_string()),
        data_dir: flags.data_dir,
    };
    let command = command.unwrap_or(Command::Serve);
    let config = Config::load(&flags, std::env::vars());
    if let (Ok(config), false) = (&config, matches!(command, Command::Check)) {
        telemetry::init(&config.logging).map_err(anyhow::Error::msg)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Check => {
            let report = runtime.block_on(check::run(config, flags.config.as_deref()));
            tell(&report.to_string());
            return Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Serve => runtime.block_on(run(&config?))?,
        Command::RotateSigningKey => {
            let id = runtime.block_on(serve::rotate_signing_key(&Options::new(&config?)))?;
            tell(&format!("This server signs with {id} from its next start on."));
        }
        Command::Compact => {
            let (before, after) = runtime.block_on(serve::compact(&Options::new(&config?)))?;
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            tell(&format!("The store took {} MiB, and takes {} MiB now.", mib(before), mib(after)));
        }
        Command::Convert => match runtime.block_on(serve::convert(&Options::new(&config?)))? {
            Some(before) => tell(&format!("The store was one of {before}, and is converted.")),
            None => tell("The store is one of the configured back end already."),
        },
        Command::Reports => runtime.block_on(users::run(Options::new(&config?), UserCommand::Reports))?,
        Command::User { command } => runtime.block_on(users::run(Options::new(&config?), command))?,
        Command::Media { command } => {
            runtime.block_on(control::run(Options::new(&config?), Request::Media(command), false))?;
        }
        Command::Notice { command } => {
            runtime.block_on(control::run(Options::new(&config?), Request::Notice(command), false))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(config: &Config) -> anyhow::Result<()> {
    for key in config.without_effect() {
        tracing::warn!(key, "this key has no effect in this version");
    }
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(descriptors) => tracing::info!(descriptors, "file descriptors allowed"),
        Err(error) => tracing::warn!(%error, "the limit of file descriptors stays as it is"),
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut stop = pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    let running = tokio::select! {
        biased;
        started = serve::start(Options::new(config)) => started?,
        () = &mut stop => {
            tracing::info!("stopped while starting");
            return Ok(());
        }
    };
    greet(config, &running);
    running.serve(stop).await;
    Ok(())
}

/// Tells whoever started the server how to use it.
#[expect(
    clippy::print_stdout,
    reason = "for the person at the terminal, whatever the log's level and format"
)]
fn greet(config: &Config, running: &serve::Running) {
    for url in running.urls() {
        println!("Ganglion serves {} on {url}", config.server_name);
    }
    let Some(url) = running.urls().first() else { return };
    println!("Point a Matrix client at {url} as its homeserver.");
    match running.app.settings().registration.tokens.first() {
        Some(token) if !config.registration.enabled => {
            println!("Register the first user there with the registration token {token}");
        }
        _ if config.registration.enabled => println!("Anybody may register there."),
        _ => {}
    }
}

#[expect(clippy::print_stdout, reason = "for the person at the terminal")]
fn tell(line: &str) {
    println!("{line}");
}
