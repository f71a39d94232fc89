//! A page that shows how the federation behaves: plots over its size and over time, and a room's event graph.

mod graph;
mod plot;

use std::time::Duration;

use anyhow::{Context, Result};
use ruma::{OwnedEventId, OwnedRoomId};
use storage::schema;
use tokio::time::Instant;

use self::plot::{Plot, Scale, Series};
use crate::{
    client::Client,
    fault,
    host::HostOptions,
    invariant::History,
    network::Conditions,
    plant::{self, Planted, plant},
    run, scenario,
    seed::Seed,
    storm::{Storm, Strategy},
    workload,
    world::{Options, World, queues},
};

/// The sizes of federations that are measured.
const SIZES: [usize; 6] = [2, 5, 10, 20, 50, 100];

/// Messages over which a measurement is averaged.
const MESSAGES: u64 = 5;

/// Simulated seconds of the run whose queues and links are shown, and its hosts.
const FAULTY: (u64, usize) = (180, 6);

/// The page, as HTML that needs no other file; `tell` hears of each step.
pub fn page(seed: Seed, tell: impl Fn(&str)) -> Result<String> {
    let mut sizes = Vec::new();
    for servers in SIZES {
        tell(&format!("{servers} servers"));
        sizes.push(run_on_own(sized(seed, servers))?);
    }
    tell("a run with faults");
    let faulty = run_on_own(faulty(seed))?;
    tell("an event graph");
    let graph = run_on_own(forked(seed))?;
    let of = |value: fn(&Size) -> f64| sizes.iter().map(|size| (to_f64(size.servers), value(size))).collect();
    let over_size = |title: &'static str, y: &'static str, series: Vec<Series>| {
        Plot { title, x: ("servers", Scale::Logarithmic), y: (y, Scale::Linear), series }.svg()
    };
    let convergence = over_size(
        "Convergence time of a message",
        "milliseconds",
        vec![
            Series { name: "to 90 % of servers", points: of(|size| size.most_ms) },
            Series { name: "to all servers", points: of(|size| size.all_ms) },
        ],
    );
    let requests = over_size(
        "Requests and connections per message",
        "count",
        vec![
            Series { name: "requests", points: of(|size| size.requests) },
            Series { name: "connections of the sender at a time", points: of(|size| size.connections) },
        ],
    );
    let queues = Plot {
        title: "Queue depth in a run with faults",
        x: ("seconds", Scale::Linear),
        y: ("rows of all servers", Scale::Linear),
        series: faulty.queues,
    };
    let body = [
        ("Convergence", convergence),
        ("Requests and connections", requests),
        ("Queues", queues.svg()),
        ("Traffic of each link, in requests", plot::matrix(&faulty.links)),
        ("A room's event graph", graph),
    ];
    let sections = body.map(|(title, svg)| format!("<section><h2>{title}</h2>{svg}</section>\n")).concat();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Ganglion simulated</title>\
         <style>body{{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}\
         svg{{max-width:100%;height:auto}}</style></head>\n<body><h1>Ganglion simulated</h1>\n\
         <p>Seed {seed}. Whole servers on one thread and simulated time; the same seed gives the same page.</p>\n\
         {sections}</body></html>\n"
    ))
}

/// The storm study as a plot.
pub fn storm_plot(storms: &[Storm]) -> String {
    let of = |strategy: Strategy, value: fn(&Storm) -> u64| {
        let storms = storms.iter().filter(move |storm| storm.strategy == strategy);
        storms.map(|storm| (to_f64(storm.servers), u64_to_f64(value(storm)))).collect()
    };
    Plot {
        title: "One message into a cold room, a third of its servers dead",
        x: ("servers", Scale::Logarithmic),
        y: ("connections; milliseconds", Scale::Logarithmic),
        series: vec![
            Series {
                name: "sender's connections, full mesh",
                points: of(Strategy::FullMesh, |storm| storm.sender_peak),
            },
            Series {
                name: "sender's connections, Ganglion",
                points: of(Strategy::Budgeted, |storm| storm.sender_peak),
            },
            Series { name: "ms to 90 %, full mesh", points: of(Strategy::FullMesh, |storm| storm.most_ms) },
            Series { name: "ms to 90 %, Ganglion", points: of(Strategy::Budgeted, |storm| storm.most_ms) },
        ],
    }
    .svg()
}

fn run_on_own<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(future)
}

/// What a message costs in a federation of one size.
struct Size {
    servers: usize,
    most_ms: f64,
    all_ms: f64,
    requests: f64,
    connections: f64,
}

fn options(seed: Seed, servers: usize, lasts: Duration) -> Options {
    Options {
        seed,
        servers,
        lasts,
        faults: Vec::new(),
        host: HostOptions::default(),
        conditions: Conditions::default(),
        keep_trace: false,
    }
}

async fn sized(seed: Seed, servers: usize) -> Result<Size> {
    let options = options(seed, servers, Duration::ZERO);
    let Planted { disk, room, .. } = plant(&options).await?;
    let world = World::asleep(options, |_| disk.copy())?;
    for host in world.hosts() {
        host.start().await?;
    }
    let sender = Client::log_in(world.host(0), (plant::CREATOR, "P"), world.shared()).await?;
    // The first one is cold; the others are what a conversation costs.
    arrival(&world, &sender, &room).await?;
    let before = world.network().traffic();
    world.network().reset_peaks();
    let (mut most, mut all) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..MESSAGES {
        let (to_most, to_all) = arrival(&world, &sender, &room).await?;
        most += to_most;
        all += to_all;
    }
    let requests = world.network().traffic().requests - before.requests;
    let hosts = world.network().traffic_of_hosts();
    let connections = hosts.get(&world.host(0).name).map_or(0, |host| host.connections_peak);
    let mean = |sum: f64| sum / u64_to_f64(MESSAGES);
    Ok(Size {
        servers,
        most_ms: mean(most.as_secs_f64() * 1000.0),
        all_ms: mean(all.as_secs_f64() * 1000.0),
        requests: mean(u64_to_f64(requests)),
        connections: u64_to_f64(connections),
    })
}

/// Sends a message and waits until all servers have it: the time to nine of ten of them, and to all.
async fn arrival(world: &World, sender: &Client, room: &OwnedRoomId) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let event: OwnedEventId = sender.send(room, "hello").await?;
    let mut most = None;
    loop {
        let mut waiting = 0;
        for (_, boot) in world.boots() {
            waiting += usize::from(boot.storage().get(&schema::EVENT_IDS, &event).await?.is_none());
        }
        if most.is_none() && waiting * 10 <= world.hosts().len() {
            most = Some(start.elapsed());
        }
        if waiting == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let all = start.elapsed().saturating_sub(Duration::from_secs(1));
            return Ok((most.unwrap_or(all), all));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a run with faults was like over time.
struct Faulty {
    queues: Vec<Series>,
    links: Vec<(String, String, u64)>,
}

async fn faulty(seed: Seed) -> Result<Faulty> {
    let (seconds, hosts) = FAULTY;
    let mut options = options(seed, hosts, Duration::from_secs(seconds));
    options.faults = fault::draw(seed, fault::Profile::Everything, hosts, options.lasts);
    let world = World::new(options).await?;
    let users = world.users("user").await?;
    let room = world.public_room(&users).await?;
    let (sampling, start) = (world.clone(), Instant::now());
    let samples = tokio::spawn(async move {
        let mut series: Vec<Series> =
            ["staged", "outbox", "catch-up", "EDUs"].map(|name| Series { name, points: Vec::new() }).into();
        while sampling.goes_on() {
            let mut rows = [0; 4];
            for (_, boot) in sampling.boots() {
                let Ok(lengths) = queues(&boot).await else { continue };
                for (sum, (_, length)) in rows.iter_mut().zip(lengths) {
                    *sum += length;
                }
            }
            for (series, rows) in series.iter_mut().zip(rows) {
                series.points.push((start.elapsed().as_secs_f64(), to_f64(rows)));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        series
    });
    world.under_faults(workload::chat::chat(&world, &room, &users, 3000)).await?;
    let links = world.network().links();
    world.verdict().end();
    let links =
        links.into_iter().map(|(from, to, traffic)| (from.to_string(), to.to_string(), traffic.requests));
    Ok(Faulty { queues: samples.await?, links: links.collect() })
}

/// The event graph of a room whose administrators do not agree, across partitions.
async fn forked(seed: Seed) -> Result<String> {
    let scenario = scenario::find("power-fight").context("the scenario exists")?;
    let mut options = run::options(scenario, seed, &run::Wish { servers: Some(3), ..run::Wish::default() });
    options.lasts = Duration::from_secs(30);
    options.faults =
        vec![fault::Fault { at_ms: 5000, for_ms: 20_000, kind: fault::Kind::Partition { side: vec![0] } }];
    let world = World::new(options).await?;
    (scenario.play)(&world).await?;
    world.heal().await?;
    world.settle().await?;
    let room = world.rooms().into_iter().next().context("the scenario has a room")?;
    let history = History::read(&world, &room).await?;
    world.verdict().end();
    let side = history.sides.first().context("somebody is in the room")?;
    Ok(graph::svg(side))
}

fn to_f64(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

fn u64_to_f64(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}
