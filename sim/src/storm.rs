//! The storm study: one message into a room of many servers, a third of them dead, all of them cold.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ruma::OwnedEventId;
use serde::Serialize;
use serde_json::json;
use storage::schema;
use tokio::time::Instant;

use crate::{
    client::Client,
    host::HostOptions,
    network::Conditions,
    plant::{self, Planted, plant},
    seed::Seed,
    world::{Options, World},
};

/// How the sender sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// To everyone at once, as many servers do.
    FullMesh,
    /// Within Ganglion's budget of connections.
    Budgeted,
}

/// What one storm was like.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Number of servers in the room.
    pub servers: usize,
    /// Those of them that are dead.
    pub dead: usize,
    /// How the sender sent.
    pub strategy: Strategy,
    /// The most connections that the sender had at a time.
    pub sender_peak: u64,
    /// The most connections of all servers together at a time.
    pub total_peak: u64,
    /// Requests of all servers until the last living one had the message.
    pub requests: u64,
    /// Milliseconds until nine of ten living servers had the message.
    pub most_ms: u64,
    /// Milliseconds until all living servers had it.
    pub all_ms: u64,
}

/// How often is looked who has the message.
const LOOK: Duration = Duration::from_millis(50);

/// How long everybody may take.
const ALL_MAX: Duration = Duration::from_secs(6 * 3600);

/// Measures one storm, on a runtime of its own.
pub fn measure(servers: usize, strategy: Strategy, seed: Seed) -> Result<Storm> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(storm(servers, strategy, seed))
}

async fn storm(servers: usize, strategy: Strategy, seed: Seed) -> Result<Storm> {
    let connections_max = match strategy {
        Strategy::FullMesh => None,
        Strategy::Budgeted => HostOptions::default().connections_max,
    };
    let host = HostOptions { connections_max, memory: 1 << 20, ..HostOptions::default() };
    let conditions = Conditions::default();
    let lasts = Duration::ZERO;
    let options = Options { seed, servers, lasts, faults: Vec::new(), host, conditions, keep_trace: false };
    let Planted { disk, room, .. } = plant(&options).await?;
    let world = World::asleep(options, |_| disk.copy())?;
    let is_dead = |number: usize| number % 3 == 2;
    let dead = (0..servers).filter(|number| is_dead(*number)).count();
    for (number, host) in world.hosts().iter().enumerate() {
        if is_dead(number) {
            // Half of the dead refuse connections, the others do not answer at all.
            world.network().set_silent(&host.name, number % 2 == 0);
        } else {
            host.start().await?;
        }
    }
    let sender = Client::log_in(world.host(0), (plant::CREATOR, "P"), world.shared()).await?;
    world.network().reset_peaks();
    let (start, before) = (Instant::now(), world.network().traffic());
    let event = sender.send(&room, "one message").await?;
    let (mut waiting, living): (Vec<_>, _) = (
        (1..servers).filter(|number| !is_dead(*number)).collect(),
        (1..servers).filter(|number| !is_dead(*number)).count(),
    );
    let mut most = None;
    while !waiting.is_empty() {
        ensure!(start.elapsed() < ALL_MAX, "{} servers never get the message", waiting.len());
        tokio::time::sleep(LOOK).await;
        waiting = still_waiting(&world, waiting, &event).await?;
        if most.is_none() && waiting.len() * 10 <= living {
            most = Some(start.elapsed());
        }
    }
    let all = start.elapsed();
    let traffic = world.network().traffic();
    let hosts = world.network().traffic_of_hosts();
    let sender_peak = hosts.get(&world.host(0).name).map_or(0, |host| host.connections_peak);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Storm {
        servers,
        dead,
        strategy,
        sender_peak,
        total_peak: traffic.connections_peak,
        requests: traffic.requests - before.requests,
        most_ms: ms(most.unwrap_or(all)),
        all_ms: ms(all),
    })
}

/// Those of some hosts that do not have an event.
async fn still_waiting(world: &World, hosts: Vec<usize>, event: &OwnedEventId) -> Result<Vec<usize>> {
    let mut waiting = Vec::with_capacity(hosts.len());
    for number in hosts {
        let boot = world.host(number).boot().context("the host is up")?;
        if boot.storage().get(&schema::EVENT_IDS, event).await?.is_none() {
            waiting.push(number);
        }
    }
    Ok(waiting)
}

/// Storms as rows of a table in Markdown.
pub fn table(storms: &[Storm]) -> String {
    let mut table = String::from(
        "| servers | dead | sending | sender's peak of connections | peak of all | requests | to 90 % | to 100 % |\n\
         |---:|---:|---|---:|---:|---:|---:|---:|\n",
    );
    for storm in storms {
        let strategy = match storm.strategy {
            Strategy::FullMesh => "full mesh",
            Strategy::Budgeted => "Ganglion",
        };
        let Storm { servers, dead, sender_peak, total_peak, requests, most_ms, all_ms, .. } = storm;
        let seconds = |ms: &u64| format!("{}.{:02} s", ms / 1000, ms % 1000 / 10);
        let (most, all) = (seconds(most_ms), seconds(all_ms));
        let numbers = format!("{servers} | {dead} | {strategy} | {sender_peak} | {total_peak} | {requests}");
        table.extend(["| ", &numbers, " | ", &most, " | ", &all, " |\n"]);
    }
    table
}

/// Storms as JSON.
pub fn json(storms: &[Storm]) -> serde_json::Value {
    json!(storms)
}
