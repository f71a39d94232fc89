//! The goals of docs/performance.md, measured in one go: each group on a new server, one after the other.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    Accounts, Client, Profile, Progress,
    launch::Launched,
    process::usage,
    report::{Report, Row, memory_mib},
    run::{Settings, run},
};

/// How long a server is left alone before its idle memory is read.
const REST: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Seconds of load for each goal.
    #[arg(long, default_value_t = 10.0)]
    each: f64,
    /// A data directory that the example `grow` made: adds the goals of old and large rooms. Messages are added to it.
    #[arg(long)]
    grown: Option<PathBuf>,
    /// Only the goals whose group has this name.
    #[arg(long)]
    only: Option<String>,
}

/// What the example `grow` says about the room that it made.
#[derive(Deserialize)]
struct Grown {
    room_id: String,
    access_token: String,
    user_id: String,
    members: u64,
    events: u64,
}

/// A goal and what came out.
struct Goal {
    name: String,
    wanted: String,
    found: String,
    is_met: bool,
}

/// All goals.
#[derive(Default)]
pub struct Table(Vec<Goal>);

impl Table {
    /// The goals as a table in Markdown.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec!["| goal | wanted | measured | met |".to_owned(), "|---|---|---|---|".to_owned()];
        lines.extend(self.0.iter().map(|goal| {
            let met = if goal.is_met { "yes" } else { "no" };
            format!("| {} | {} | {} | {met} |", goal.name, goal.wanted, goal.found)
        }));
        lines
    }

    /// At least so much is wanted.
    fn at_least(&mut self, name: impl Into<String>, wanted: f64, found: f64, unit: &str) {
        self.add(name.into(), "≥", wanted, found, unit, found >= wanted);
    }

    /// Less than that is wanted.
    fn below(&mut self, name: impl Into<String>, wanted: f64, found: f64, unit: &str) {
        self.add(name.into(), "<", wanted, found, unit, found < wanted);
    }

    fn add(&mut self, name: String, sign: &str, wanted: f64, found: f64, unit: &str, is_met: bool) {
        let found = if found < 10.0 { format!("{found:.3} {unit}") } else { format!("{found:.0} {unit}") };
        self.0.push(Goal { name, wanted: format!("{sign} {wanted} {unit}"), found, is_met });
    }
}

/// A server and how to put load on it.
struct Bench<'a> {
    server: Launched,
    options: &'a Options,
    progress: &'a Progress,
}

impl Bench<'_> {
    async fn run(&self, name: &str, profile: &Profile) -> Result<Report> {
        let accounts = Accounts { base: self.server.url.clone(), shared_secret: None, run: name.to_owned() };
        let settings = Settings {
            rate: None,
            length: Duration::from_secs_f64(self.options.each),
            other: None,
            server_pid: Some(self.server.pid()),
        };
        run(profile, accounts, &settings, self.progress).await.context(profile.name())
    }
}

/// Measures the goals that are asked for, on servers with `settings`.
pub async fn measure(
    binary: &Path,
    settings: &[(String, String)],
    options: &Options,
    progress: &Progress,
) -> Result<Table> {
    let mut table = Table::default();
    let wants = |group: &str| options.only.as_deref().is_none_or(|only| only == group);
    let bench = async || {
        // Hashing passwords is measured by the profile `log-ins`.
        let quick = [("password.argon2_memory", "64 KiB"), ("password.argon2_iterations", "1")];
        let quick = quick.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let settings = [&quick, settings].concat();
        anyhow::Ok(Bench { server: Launched::start(binary, &settings, None).await?, options, progress })
    };
    if wants("idle") {
        idle(&bench().await?, &mut table).await?;
    }
    if wants("send") {
        send(&bench().await?, &mut table).await?;
    }
    if wants("members") {
        members(&bench().await?, &mut table).await?;
    }
    if wants("fan-out") {
        fan_out(&bench().await?, &mut table).await?;
    }
    if wants("sync") {
        initial_sync(&bench().await?, &mut table).await?;
    }
    if let Some(grown) = &options.grown
        && wants("grown")
    {
        old_room(binary, settings, grown, options, progress, &mut table).await?;
    }
    Ok(table)
}

fn row<'a>(report: &'a Report, start: &str) -> Result<&'a Row> {
    report.rows.iter().find(|row| row.name.starts_with(start)).context("the report lacks a row")
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn start_up(server: &Launched, about: &str, table: &mut Table) {
    table.below(format!("start-up, {about}"), 200.0, ms(server.answered_after), "ms");
    table.below(format!("the same, until the store is open, {about}"), 200.0, ms(server.ready_after), "ms");
}

async fn idle(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    start_up(&bench.server, "empty store", table);
    tokio::time::sleep(REST).await;
    table.below("idle memory", 40.0, memory_mib(&usage(bench.server.pid())?), "MiB");
    Ok(())
}

async fn send(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    for (senders, wanted) in [(1, 1000.0), (64, 3000.0)] {
        let report = bench.run(&format!("s{senders}"), &Profile::OneRoom { senders, members: 0 }).await?;
        let sent = row(&report, "send")?;
        table.at_least(format!("messages into one room, {senders} sender(s)"), wanted, sent.rate, "/s");
        let cpu = report.cpu_ms_each().unwrap_or_default();
        table.below(format!("CPU per message, {senders} sender(s)"), 0.3, cpu, "ms");
    }
    Ok(())
}

async fn members(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let mut found = Vec::new();
    for members in [10, 1000] {
        let profile = Profile::OneRoom { senders: 8, members: members - 8 };
        let report = bench.run(&format!("m{members}"), &profile).await?;
        let cpu = report.cpu_ms_each().unwrap_or_default();
        table.below(format!("CPU per message, 8 senders, {members} local members"), 0.3, cpu, "ms");
        found.push(cpu);
    }
    table.below(
        "the same at 1,000 members as a multiple of that at 10",
        1.2,
        found[1] / found[0].max(1e-9),
        "×",
    );
    Ok(())
}

async fn fan_out(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let report = bench.run("f", &Profile::FanOut { members: 500, messages: 20.0 }).await?;
    let delivered = row(&report, "delivery")?;
    table.below("20 messages/s to 500 waiting members, p99", 100.0, delivered.quantile(0.99), "ms");
    table.below("members' deliveries that did not come", 1.0, failures(delivered), "");
    let empty = row(&report, "empty sync")?;
    table.below("another user's empty sync meanwhile, p50", 2.0, empty.quantile(0.5), "ms");
    table.below("another user's empty sync meanwhile, p99", 2.0, empty.quantile(0.99), "ms");
    Ok(())
}

async fn initial_sync(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    for (rooms, wanted) in [(30, 5.0), (500, 60.0)] {
        let report = bench.run(&format!("i{rooms}"), &Profile::InitialSync { rooms }).await?;
        let p50 = row(&report, "initial")?.quantile(0.5);
        table.below(format!("initial sync of {rooms} rooms, p50"), wanted, p50, "ms");
    }
    Ok(())
}

async fn old_room(
    binary: &Path,
    settings: &[(String, String)],
    folder: &Path,
    options: &Options,
    progress: &Progress,
    table: &mut Table,
) -> Result<()> {
    let text = std::fs::read(folder.join("grown.json")).context("the folder was not made by `grow`")?;
    let grown: Grown = serde_json::from_slice(&text)?;
    let about = format!("{} members, {} events", grown.members, grown.events);
    let server = Launched::start(binary, settings, Some(folder.to_owned())).await?;
    start_up(&server, &about, &mut *table);
    tokio::time::sleep(REST).await;
    table.below(format!("idle memory, {about}"), 40.0, memory_mib(&usage(server.pid())?), "MiB");
    let answer = json!({ "access_token": grown.access_token, "user_id": grown.user_id });
    let user = Client::anonymous(&server.url).logged_in(&answer)?;
    user.call(Method::GET, "/_matrix/client/v3/account/whoami", None).await?;
    let first = Instant::now();
    user.send(&grown.room_id, &format!("cold{}", server.pid()), "the first one").await?;
    table.below(format!("first message into the cold room, {about}"), 100.0, ms(first.elapsed()), "ms");
    progress.begin("messages into the old room");
    let before = usage(server.pid())?;
    let (start, mut count) = (Instant::now(), 0_u32);
    let length = Duration::from_secs_f64(options.each);
    while start.elapsed() < length {
        user.send(&grown.room_id, &format!("old{}-{count}", server.pid()), "one more").await?;
        progress.step();
        count += 1;
    }
    let used = f64::from(u32::try_from(usage(server.pid())?.cpu_ms - before.cpu_ms)?);
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    table.at_least(format!("messages, 1 sender, {about}"), 1000.0, rate, "/s");
    table.below(format!("CPU per message, 1 sender, {about}"), 0.3, used / f64::from(count.max(1)), "ms");
    server.stop().await
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn failures(row: &Row) -> f64 {
    row.failed as f64
}
