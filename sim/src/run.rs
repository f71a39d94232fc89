//! One run of a scenario, from its seed to its verdict.

use std::{cell::RefCell, sync::Once, time::Duration};

use anyhow::{Context, Result};
use rand::RngExt;
use ruma::RoomVersionId;
use storage::{Direction, Durability, KeyRange, schema};
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    fault::{self, Fault},
    host::HostOptions,
    invariant::{self, Violation},
    network::{Conditions, Traffic},
    plant,
    pulse::{self, Pulse},
    scenario::{Quirk, Scenario},
    seed::Seed,
    world::{Options, World},
};

/// Hosts that speak once more in each room after healing, so that the branches of its graph meet.
const CLOSING_VOICES: usize = 8;

/// Tasks that the run itself still has when all hosts have stopped.
const OWN_TASKS: usize = 0;

/// Servers of a run, at most, that tell each other who is online; where there are more, operators switch that off.
const PRESENCE_SERVERS_MAX: usize = 50;

/// Device updates of a thousand that forgetful hosts lose.
const LOST_UPDATES: u32 = 250;

/// State resets of one host that an outcome keeps.
const RESETS_MAX: usize = 10;

/// How long what is left of stopped hosts may take to end: longer than any request to another server.
const END_MAX: Duration = Duration::from_secs(600);

/// How long a run may take besides its workload: it comes to rest three times, and then its hosts stop.
const RUN_MAX: Duration = Duration::from_secs(10 * 3600);

/// What was asked for instead of what the seed says.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Number of hosts.
    pub servers: Option<usize>,
    /// How long the workload lasts.
    pub lasts: Option<Duration>,
    /// What goes wrong.
    pub faults: Option<Vec<Fault>>,
    /// Whether a commit waits for the disk.
    pub durability: Option<Durability>,
    /// Whether all of the trace is kept.
    pub keep_trace: bool,
    /// For how long the simulated clock may stand still, in real time.
    pub patience: Option<Duration>,
}

impl Wish {
    /// The options of the command line that repeat a run, without its faults.
    pub fn spelled(&self, scenario: &Scenario, seed: Seed) -> String {
        let mut spelled = format!("--scenario {} --seed {seed}", scenario.name);
        if let Some(servers) = self.servers {
            spelled.extend([" --servers ", &servers.to_string()]);
        }
        if let Some(lasts) = self.lasts {
            spelled.extend([" --minutes ", &(lasts.as_secs_f64() / 60.0).to_string()]);
        }
        spelled
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it followed from.
    pub seed: Seed,
    /// Number of hosts.
    pub servers: usize,
    /// What went wrong in it.
    pub faults: Vec<Fault>,
    /// The first invariant that did not hold, if any.
    pub violation: Option<Violation>,
    /// The hash of its trace.
    pub hash: String,
    /// The lines of the trace that were kept.
    pub lines: Vec<String>,
    /// How many lines there were.
    pub line_count: u64,
    /// What was sent.
    pub traffic: Traffic,
    /// Events that were acknowledged to clients.
    pub acknowledged: usize,
    /// Simulated time.
    pub lasted: Duration,
    /// The inputs of resolutions that went back to older state without a reason.
    pub resets: Vec<Vec<u8>>,
}

/// What a seed, and whoever asks, make of a scenario.
pub fn options(scenario: &Scenario, seed: Seed, wish: &Wish) -> Options {
    let mut random = seed.stream("options");
    let (least, most) = scenario.servers;
    let servers = random.random_range(least..=most);
    let servers = wish.servers.unwrap_or(servers);
    let lasts = wish.lasts.unwrap_or(scenario.lasts);
    let mut conditions = Conditions::draw(&mut random);
    if scenario.profile == fault::Profile::Nothing {
        conditions = conditions.reliable();
    }
    if scenario.quirk == Some(Quirk::Forgetful) {
        conditions.lost_updates = LOST_UPDATES;
    }
    let versions = [RoomVersionId::V12, RoomVersionId::V11, RoomVersionId::V10, RoomVersionId::V6];
    let host = HostOptions {
        room_version: versions[random.random_range(0..versions.len())].clone(),
        // Some seeds passivate actors all the time.
        idle_after: Duration::from_secs(if random.random_ratio(1, 4) { 3 } else { 900 }),
        durability: wish.durability.unwrap_or(Durability::Always),
        // Each message is followed by two changes of presence, which take three of five requests among many servers.
        sends_presence: servers <= PRESENCE_SERVERS_MAX && scenario.quirk != Some(Quirk::Reticent),
        ..HostOptions::default()
    };
    let faults = fault::draw(seed, scenario.profile, servers, lasts);
    Options {
        seed,
        servers,
        lasts,
        faults: wish.faults.clone().unwrap_or(faults),
        host,
        conditions,
        keep_trace: wish.keep_trace,
    }
}

/// Runs a scenario on a runtime of its own, on this thread.
pub fn run(scenario: &Scenario, seed: Seed, wish: &Wish) -> Result<Outcome> {
    catch_panics();
    let options = options(scenario, seed, wish);
    let give_up = |what: &str| abandon(&wish.spelled(scenario, seed), what);
    pulse::watched(wish.patience.unwrap_or(pulse::PATIENCE), give_up, |pulse| {
        runtime()?.block_on(play(scenario, options, pulse))
    })
}

fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("a runtime")?;
    Ok(runtime)
}

/// Ends the process, since a run does not: it never waits, so that nothing on its thread can end it.
fn abandon(spelled: &str, what: &str) {
    eprintln!("{spelled} hangs\n  breaks ends: {what}");
    eprintln!("  replay: cargo run --release -p sim -- replay {spelled}");
    std::process::exit(1);
}

async fn play(scenario: &Scenario, options: Options, pulse: &Pulse) -> Result<Outcome> {
    let (seed, servers, faults) = (options.seed, options.servers, options.faults.clone());
    let most = RUN_MAX + options.lasts;
    let is_planted = scenario.quirk == Some(Quirk::Planted);
    let world = if is_planted { plant::grown(options).await? } else { World::new(options).await? };
    pulse.describe_by(world.trace());
    let watching = tokio::spawn(invariant::watch(world.clone()));
    let verdict = world.verdict().clone();
    let whole = async {
        (scenario.play)(&world).await?;
        conclude(&world).await
    };
    let deadline = Instant::now() + most;
    // What waits is dropped before the choice's own code runs, so that it must be asked in the condition.
    let too_late = async {
        tokio::time::sleep_until(deadline).await;
        still_on(&world, most).await
    };
    let stuck = async {
        pulse.stands_still().await;
        pulse.describe()
    };
    let ended = tokio::select! {
        biased;
        () = verdict.over() => Ok(()),
        what = stuck => {
            verdict.fail("ends", what);
            Ok(())
        }
        ended = whole => ended,
        what = too_late => {
            verdict.fail("ends", what);
            Ok(())
        }
    };
    if let Err(error) = ended
        && !verdict.is_over()
    {
        verdict.fail("scenario", format!("{error:#}"));
    }
    let is_good = !verdict.is_over();
    let mut resets = Vec::new();
    for (_, boot) in world.boots() {
        let all = KeyRange::all();
        let rows = boot.storage().range(&schema::STATE_RESETS, all, Direction::Ascending, RESETS_MAX).await?;
        resets.extend(rows.into_iter().map(|(_, record)| record.to_vec()));
    }
    verdict.end();
    watching.abort();
    let traffic = world.network().traffic();
    if is_good {
        if tokio::time::timeout_at(deadline, world.stop()).await.is_err() {
            verdict.fail("ends", still_on(&world, most).await);
        }
        let mut waited = Duration::ZERO;
        while tasks() > OWN_TASKS && waited < END_MAX {
            tokio::time::sleep(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
        }
        if tasks() > OWN_TASKS {
            verdict.fail("no_leak", format!("{} tasks are left when all hosts have stopped", tasks()));
        }
    }
    if let Some(panic) = PANICS.with_borrow_mut(|panics| std::mem::take(panics).into_iter().next()) {
        verdict.fail("no_crash", panic);
    }
    Ok(Outcome {
        seed,
        servers,
        faults,
        violation: verdict.violation(),
        hash: world.trace().hash(),
        lines: world.trace().lines(),
        line_count: world.trace().count(),
        traffic,
        acknowledged: world.ledger().all().len(),
        lasted: world.trace().elapsed(),
        resets,
    })
}

/// What still goes on in a world that does not end.
async fn still_on(world: &World, most: Duration) -> String {
    let busy = world.busy().await.unwrap_or_else(|error| Some(format!("{error:#}")));
    let ongoing: Vec<_> = world.trace().ongoing().into_iter().chain(busy).collect();
    format!("no end in {most:?}: {}", ongoing.join("; "))
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Heals the world, lets it come to rest, has every server speak twice more in each room, and checks the invariants.
async fn conclude(world: &World) -> Result<()> {
    world.heal().await?;
    world.settle().await?;
    for room in world.rooms() {
        // Once so that all learn who is in the room, and whom to send to; once more so that all branches meet.
        for word in ["closing", "closed"] {
            for voice in world.voices(&room, CLOSING_VOICES).await {
                // Whoever may not speak any more has nothing to add.
                drop(voice.send(&room, word).await);
            }
            world.settle().await?;
        }
    }
    if world.verdict().is_over() {
        return Ok(());
    }
    invariant::check_at_rest(world).await
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has panics noted where the run can find them: tasks and actors keep them to themselves.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            before(info);
        }));
    });
    PANICS.with_borrow_mut(Vec::clear);
}

#[cfg(test)]
mod tests;
