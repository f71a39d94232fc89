//! `loadtest`: load against a homeserver by URL, with a table at the end.

use std::time::Duration;

use anyhow::Result;
use benches::{process, scenario};
use clap::{Parser, Subcommand};

/// Puts load on a homeserver that allows open registration and has no rate limits.
#[derive(Parser)]
struct Arguments {
    /// The homeserver's client-server API.
    #[arg(long, default_value = "http://127.0.0.1:8008")]
    url: String,
    /// The server's process, whose memory and CPU time are then reported.
    #[arg(long)]
    server_pid: Option<u32>,
    /// A name for this run; users are named after it, so it must be new to the server.
    #[arg(long)]
    run: String,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Users send into one room as fast as they are answered.
    OneRoom {
        /// Number of senders.
        #[arg(long, default_value_t = 1)]
        senders: usize,
        /// Seconds to send for.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// A user with many rooms syncs from nothing.
    InitialSync {
        /// Number of rooms.
        #[arg(long, default_value_t = 500)]
        rooms: usize,
        /// How many syncs to time.
        #[arg(long, default_value_t = 10)]
        times: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let before = arguments.server_pid.map(process::usage).transpose()?;
    match arguments.scenario {
        Scenario::OneRoom { senders, seconds } => {
            let duration = Duration::from_secs(seconds);
            report(&scenario::one_room(&arguments.url, senders, duration, &arguments.run).await?);
        }
        Scenario::InitialSync { rooms, times } => {
            let (created, synced) =
                scenario::initial_sync(&arguments.url, rooms, times, &arguments.run).await?;
            report(&created);
            report(&synced);
        }
    }
    if let (Some(pid), Some(before)) = (arguments.server_pid, before) {
        let after = process::usage(pid)?;
        report(&format!(
            "server: {} MiB resident (before: {} MiB), {} ms of CPU, {} descriptors",
            after.resident_kib / 1024,
            before.resident_kib / 1024,
            after.cpu_ms - before.cpu_ms,
            after.descriptors,
        ));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn report(line: &impl std::fmt::Display) {
    println!("{line}");
}
