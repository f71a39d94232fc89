//! The simulator's command line.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use sim::{
    fault::Fault,
    invariant,
    minimise::minimise,
    pulse, report,
    run::{Outcome, Wish, run},
    scenario::{self, Scenario},
    seed::Seed,
    storm::{self, Strategy},
};

/// The server's own: runs of a thousand servers allocate a great deal.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Simulates federations of Ganglion servers, deterministically, from a seed.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs scenarios, for one seed or many.
    Run {
        #[command(flatten)]
        what: What,
        /// Many seeds, as `0..200`.
        #[arg(long, conflicts_with = "seed")]
        seeds: Option<String>,
        /// Runs at a time, each on a thread.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        /// Shrinks the faults of the first failure.
        #[arg(long)]
        minimise: bool,
    },
    /// Lists scenarios and invariants.
    List,
    /// Repeats one run, with the faults of a file if one is given, and prints its timeline.
    Replay {
        #[command(flatten)]
        what: What,
        /// The faults, as `--minimise` wrote them.
        #[arg(long)]
        faults: Option<PathBuf>,
        /// The inputs of a state resolution, as `sim run` wrote them when a server raised an alarm.
        #[arg(long, conflicts_with = "scenario")]
        resolution: Option<PathBuf>,
    },
    /// Writes a page with plots of how the federation behaves, and a room's event graph.
    Report {
        /// The file.
        #[arg(long, default_value = "report.html")]
        out: PathBuf,
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The storm study: one message into rooms of many servers.
    Storm {
        /// Numbers of servers.
        #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 3000])]
        servers: Vec<usize>,
        /// Writes the plot to this file.
        #[arg(long)]
        plot: Option<PathBuf>,
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Args)]
struct What {
    /// The scenario; all of them if none is named.
    #[arg(long)]
    scenario: Option<String>,
    /// The seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of hosts; drawn from the seed if it is not given.
    #[arg(long)]
    servers: Option<usize>,
    /// Minutes that the workload lasts.
    #[arg(long)]
    minutes: Option<f64>,
    /// Writes the timeline to this file.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Seconds of real time for which the simulated clock may stand still: a run that hangs is ended, at the latest after
    /// twice as long.
    #[arg(long, default_value_t = pulse::PATIENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
}

impl What {
    fn scenarios(&self) -> Result<Vec<&'static Scenario>> {
        match &self.scenario {
            None => Ok(scenario::ALL.iter().collect()),
            Some(name) => {
                let found = scenario::find(name);
                Ok(vec![found.with_context(|| format!("there is no scenario {name}; see `sim list`"))?])
            }
        }
    }

    fn wish(&self) -> Result<Wish> {
        let lasts = self.minutes.map(|minutes| Duration::try_from_secs_f64(60.0 * minutes)).transpose()?;
        let keep_trace = self.trace.is_some();
        let patience = Some(Duration::from_secs(self.patience));
        Ok(Wish { servers: self.servers, lasts, keep_trace, patience, ..Wish::default() })
    }
}

fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into()),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match Arguments::parse().command {
        Command::Run { what, seeds, jobs, minimise, .. } => sweep(&what, seeds.as_deref(), jobs, minimise),
        Command::List => {
            list();
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay { what: _, faults: _, resolution: Some(path) } => {
            let record = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            say(&sim::resolution::replay(&record)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay { what, faults, resolution: None } => replay(&what, faults.as_deref()),
        Command::Report { out, seed } => {
            let page = report::page(Seed(seed), |step| say(&format!("{step} …")))?;
            std::fs::write(&out, page).with_context(|| format!("cannot write {}", out.display()))?;
            say(&format!("wrote {}", out.display()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Storm { servers, plot, seed } => storm_study(&servers, plot.as_deref(), Seed(seed)),
    }
}

#[expect(clippy::print_stdout, reason = "the output of the command")]
fn say(text: &str) {
    println!("{text}");
}

fn list() {
    say("scenarios:");
    for Scenario { name, about, .. } in &scenario::ALL {
        say(&format!("  {name:<18} {about}"));
    }
    say("invariants:");
    for (name, about) in invariant::NAMES {
        say(&format!("  {name:<18} {about}"));
    }
}

fn seeds_of(what: &What, seeds: Option<&str>) -> Result<std::ops::Range<u64>> {
    let Some(seeds) = seeds else { return Ok(what.seed..what.seed + 1) };
    let (from, to) = seeds.split_once("..").context("--seeds is a range, as in 0..200")?;
    let range = from.parse()?..to.parse()?;
    ensure!(!range.is_empty(), "the range of seeds is empty");
    Ok(range)
}

/// Runs seeds, spread over the scenarios: each seed plays one of them if there are several.
fn sweep(what: &What, seeds: Option<&str>, jobs: usize, shrink: bool) -> Result<ExitCode> {
    let (scenarios, seeds, wish) = (what.scenarios()?, seeds_of(what, seeds)?, what.wish()?);
    let one = seeds.end - seeds.start == 1;
    let plays: Vec<_> = seeds
        .flat_map(|seed| {
            let chosen = if one { scenarios.clone() } else { vec![pick(&scenarios, seed)] };
            chosen.into_iter().map(move |scenario| (scenario, Seed(seed)))
        })
        .collect();
    let bar = ProgressBar::new(u64::try_from(plays.len())?);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} left {eta} {msg}")?);
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((scenario, seed)) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(scenario, *seed, &wish);
                    if outcome.as_ref().map_or(true, |outcome| outcome.violation.is_some()) {
                        bar.println(format!("{} {seed} fails", scenario.name));
                    }
                    outcomes.lock().push((*scenario, *seed, outcome));
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|(_, seed, _)| *seed);
    let mut failed = 0;
    for (scenario, _, outcome) in outcomes {
        let outcome = outcome?;
        if let Some(path) = &what.trace {
            write_trace(path, &outcome)?;
        }
        if one || outcome.violation.is_some() || !outcome.resets.is_empty() {
            tell(&wish, scenario, &outcome);
        }
        if outcome.violation.is_some() {
            failed += 1;
            if shrink && failed == 1 {
                shrunk(scenario, &outcome, &wish)?;
            }
        }
    }
    say(&format!("{} runs, {failed} failed", plays.len()));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pick(scenarios: &[&'static Scenario], seed: u64) -> &'static Scenario {
    scenarios[usize::try_from(seed).unwrap_or(0) % scenarios.len()]
}

fn tell(wish: &Wish, scenario: &Scenario, outcome: &Outcome) {
    let Outcome { seed, servers, hash, line_count, acknowledged, traffic, .. } = outcome;
    let lasted = outcome.lasted.as_secs();
    say(&format!(
        "{} {seed}: {servers} servers, {} faults, {acknowledged} events, {} requests, {lasted} s simulated, \
         trace {hash} of {line_count} lines",
        scenario.name,
        outcome.faults.len(),
        traffic.requests,
    ));
    for (number, record) in outcome.resets.iter().enumerate() {
        let path = format!("sim-{}-{seed}-reset-{number}.json", scenario.name);
        match std::fs::write(&path, record) {
            Ok(()) => say(&format!("  a state was reset: replay --resolution {path}")),
            Err(error) => say(&format!("  a state was reset, and {path} cannot be written: {error}")),
        }
    }
    if let Some(violation) = &outcome.violation {
        say(&format!("  breaks {}: {}", violation.invariant, violation.what));
        say(&format!("  replay: cargo run --release -p sim -- replay {}", wish.spelled(scenario, *seed)));
    }
}

fn shrunk(scenario: &Scenario, outcome: &Outcome, wish: &Wish) -> Result<()> {
    let bar = ProgressBar::new_spinner();
    let least = minimise(scenario, outcome, wish, |runs, faults| {
        bar.set_message(format!("{runs} runs, {faults} faults left"));
        bar.tick();
    })?;
    bar.finish_and_clear();
    let path = PathBuf::from(format!("sim-{}-{}.json", scenario.name, outcome.seed));
    std::fs::write(&path, serde_json::to_string_pretty(&least.faults)?)?;
    say(&format!("  {} of {} faults are enough:", least.faults.len(), outcome.faults.len()));
    for Fault { at_ms, for_ms, kind } in &least.faults {
        say(&format!("    at {at_ms} ms for {for_ms} ms: {kind:?}"));
    }
    let spelled = wish.spelled(scenario, outcome.seed);
    say(&format!("  replay: cargo run --release -p sim -- replay {spelled} --faults {}", path.display()));
    Ok(())
}

fn write_trace(path: &std::path::Path, outcome: &Outcome) -> Result<()> {
    std::fs::write(path, outcome.lines.join("\n")).with_context(|| format!("cannot write {}", path.display()))
}

fn replay(what: &What, faults: Option<&std::path::Path>) -> Result<ExitCode> {
    ensure!(what.scenario.is_some(), "name the scenario with --scenario");
    let faults: Option<Vec<Fault>> = match faults {
        Some(path) => Some(serde_json::from_slice(&std::fs::read(path)?)?),
        None => None,
    };
    let Some(scenario) = what.scenarios()?.pop() else { bail!("there is no such scenario") };
    let wish = Wish { faults, keep_trace: true, ..what.wish()? };
    let outcome = run(scenario, Seed(what.seed), &wish)?;
    match &what.trace {
        Some(path) => write_trace(path, &outcome)?,
        None => outcome.lines.iter().for_each(|line| say(line)),
    }
    tell(&wish, scenario, &outcome);
    Ok(if outcome.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn storm_study(servers: &[usize], plot: Option<&std::path::Path>, seed: Seed) -> Result<ExitCode> {
    let mut storms = Vec::new();
    for servers in servers {
        for strategy in [Strategy::FullMesh, Strategy::Budgeted] {
            say(&format!("{servers} servers, {strategy:?} …"));
            storms.push(storm::measure(*servers, strategy, seed)?);
        }
    }
    say(&storm::table(&storms));
    if let Some(path) = plot {
        std::fs::write(path, report::storm_plot(&storms))?;
    }
    Ok(ExitCode::SUCCESS)
}
