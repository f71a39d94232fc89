//! `loadtest`: load against a homeserver by URL, with a table at the end.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use benches::{
    Accounts, Profile, Progress, goals,
    report::{self, Report},
    run::{Settings, run},
    sweep::Sweep,
};
use clap::{Args, Parser, Subcommand};

/// Puts load on a homeserver that has no rate limits and lets users register, openly or with a shared secret.
#[derive(Parser)]
struct Arguments {
    /// Shows two saved reports beside each other: B as a multiple of A.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Option<Vec<PathBuf>>,
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Options {
    /// The homeserver's client-server API.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8008")]
    url: String,
    /// A second homeserver that federates with it, for `federated-join`.
    #[arg(long, global = true)]
    other_url: Option<String>,
    /// Register users with this shared secret instead of openly.
    #[arg(long, global = true)]
    shared_secret: Option<String>,
    /// The server's process, whose memory, CPU time and descriptors are then reported.
    #[arg(long, global = true)]
    server_pid: Option<u32>,
    /// A name for this run, new to the server: users are named after it. Random if it is not given.
    #[arg(long, global = true)]
    run: Option<String>,
    /// Seconds of load.
    #[arg(long, global = true, default_value_t = 10.0)]
    seconds: f64,
    /// Requests per second of all senders together, whatever the server does; each sender waits for the answer
    /// to its last request without it.
    #[arg(long, global = true)]
    rate: Option<f64>,
    /// Write the report as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Write the report as a page with plots.
    #[arg(long, global = true)]
    html: Option<PathBuf>,
    /// Run against a new Ganglion for each value of a setting, as in `room_memory=32MiB,128MiB,512MiB`.
    #[arg(long, global = true)]
    sweep: Option<Sweep>,
    /// The server to start for `--sweep` and `goals`.
    #[arg(long, global = true, default_value = "target/release/ganglion")]
    server_binary: PathBuf,
    /// A setting of the servers to start, as in `storage.cache=16MiB`; may be given again.
    #[arg(long = "set", global = true, value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Profile(Profile),
    /// Measures a Ganglion against the goals of docs/performance.md, each on a new server.
    Goals(goals::Options),
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a setting is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { compare, options, command } = Arguments::parse();
    if let Some([a, b]) = compare.as_deref() {
        show(&report::compare(&Report::load(a)?, &Report::load(b)?));
        return Ok(());
    }
    let progress = Progress::on_terminal();
    match command.context("name a profile, `goals` or --compare; --help lists them")? {
        Command::Profile(profile) => put_load(&options, &profile, &progress).await,
        Command::Goals(wanted) => {
            let (binary, settings) = (&options.server_binary, &options.settings);
            let table = goals::measure(binary, settings, &wanted, &progress).await?;
            progress.end();
            show(&table.lines());
            Ok(())
        }
    }
}

async fn put_load(options: &Options, profile: &Profile, progress: &Progress) -> Result<()> {
    let run_name = options.run.clone().map_or_else(random_name, Ok)?;
    let accounts = |base: &String| Accounts {
        base: base.clone(),
        shared_secret: options.shared_secret.clone(),
        run: run_name.clone(),
    };
    let settings = Settings {
        rate: options.rate,
        length: Duration::try_from_secs_f64(options.seconds).context("--seconds")?,
        other: options.other_url.as_ref().map(accounts),
        server_pid: options.server_pid,
    };
    if let Some(sweep) = &options.sweep {
        let reports =
            sweep.run(&options.server_binary, &options.settings, profile, &settings, progress).await?;
        progress.end();
        show(&report::sweep_lines(&sweep.key, &reports));
        write(options.html.as_deref(), || report::sweep_page(&sweep.key, &reports))?;
        return write(options.json.as_deref(), || serde_json::to_string_pretty(&reports).unwrap_or_default());
    }
    let report = run(profile, accounts(&options.url), &settings, progress).await?;
    progress.end();
    show(&report::lines(&report));
    write(options.html.as_deref(), || report::page(&report))?;
    options.json.as_deref().map_or(Ok(()), |path| report.save(path))
}

fn write(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()).with_context(|| format!("cannot write {}", path.display()))
}

fn random_name() -> Result<String> {
    let number = getrandom::u32().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(format!("{number:08x}"))
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn show(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}
