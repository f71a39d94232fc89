use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use parking_lot::Mutex;

use super::*;
use crate::{fault::Kind, minimise::minimise, scenario};

/// Seeds that the test plays, from 0 on, each in the scenario whose place in the list is its number modulo the list's
/// length.
const SEEDS: u64 = 200;

/// Scenarios with seeds that found a bug: docs/simulation.md says which.
const FOUND: [(&str, u64); 57] = [
    ("quiet-network", 4),
    ("large-join", 2),
    ("hostile-peer", 9),
    ("noise", 10),
    ("busy-room", 23),
    ("joins-and-leaves", 25),
    ("large-join", 6),
    ("large-join", 29),
    ("chat", 33),
    ("chat", 7128),
    ("joins-and-leaves", 36),
    ("bans-racing", 37),
    ("key-rotation", 39),
    ("noise", 43),
    ("large-join", 51),
    ("joins-and-leaves", 58),
    ("joins-and-leaves", 11),
    ("joins-and-leaves", 149),
    ("joins-and-leaves", 150),
    ("joins-and-leaves", 164),
    ("joins-and-leaves", 5596),
    ("large-join", 106),
    ("large-join", 145),
    ("bans-racing", 147),
    ("bans-racing", 187),
    ("power-fight", 192),
    ("bans-racing", 202),
    ("bans-racing", 231),
    ("bans-racing", 2792),
    ("bans-racing", 5325),
    ("bans-racing", 13808),
    ("large-join", 216),
    ("devices", 3),
    ("devices", 4),
    ("devices", 6),
    ("devices", 23),
    ("devices", 92),
    ("devices", 113),
    ("devices", 155),
    ("devices", 175),
    ("devices", 183),
    ("devices", 231),
    ("devices", 242),
    ("devices", 3446),
    ("devices", 5033),
    ("restarts", 455),
    ("redactions", 1218),
    ("redactions", 1252),
    ("redactions", 2544),
    ("redactions", 2816),
    ("outages", 6594),
    ("outages", 2),
    ("outages", 3),
    ("outages", 4),
    ("outages", 17),
    ("outages", 20),
    ("outages", 23),
];

fn play(name: &str, seed: u64) -> Outcome {
    let wish = Wish { keep_trace: true, ..Wish::default() };
    run(scenario::find(name).unwrap(), Seed(seed), &wish).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for name in ["chat", "bans-racing"] {
        let (first, second, other) = (play(name, 7), play(name, 7), play(name, 8));
        assert_eq!(first.lines, second.lines);
        assert_eq!(first.hash, second.hash);
        assert_ne!(first.hash, other.hash);
        assert!(first.line_count > 100, "{name} does nothing");
    }
}

#[test]
fn invariants_hold() {
    let of_seed = |seed| &scenario::ALL[usize::try_from(seed).unwrap() % scenario::ALL.len()];
    let found = FOUND.iter().map(|(name, seed)| (scenario::find(name).unwrap(), *seed));
    let plays: Vec<_> = found.chain((0..SEEDS).map(|seed| (of_seed(seed), seed))).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((scenario, seed)) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(scenario, Seed(*seed), &Wish::default()).unwrap();
                    if let Some(Violation { invariant, what }) = outcome.violation {
                        failed.lock().push(format!("{} {seed} breaks {invariant}: {what}", scenario.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A server that acknowledges before a commit is on its disk loses what it acknowledged when the power goes.
#[test]
fn acknowledging_too_early_is_found() {
    let crash = |at_ms| Fault { at_ms, for_ms: 1000, kind: Kind::Crash { host: 0 } };
    let wish = Wish {
        servers: Some(1),
        faults: Some(vec![crash(15_000), crash(45_000)]),
        durability: Some(storage::Durability::Interval(Duration::from_secs(10))),
        ..Wish::default()
    };
    let scenario = scenario::find("chat").unwrap();
    let outcome = run(scenario, Seed(1), &wish).unwrap();
    let violation = outcome.violation.unwrap();
    assert_eq!(violation.invariant, "nothing_lost", "{violation:?}");
    let outcome = run(scenario, Seed(1), &Wish { durability: None, ..wish }).unwrap();
    assert_eq!(outcome.violation, None);
}

#[test]
fn a_failure_is_shrunk_to_the_fault_that_causes_it() {
    let scenario = Scenario {
        name: "allergic",
        about: "fails if a host's name does not resolve",
        profile: fault::Profile::Everything,
        servers: (2, 2),
        lasts: Duration::from_secs(1),
        quirk: None,
        play: |world| {
            Box::pin(async move {
                if world.options().faults.iter().any(|fault| matches!(fault.kind, Kind::Dns { .. })) {
                    bail!("a name does not resolve");
                }
                Ok(())
            })
        },
    };
    let faults = [Kind::Slow { host: 0, by_ms: 1 }, Kind::Dns { host: 1 }, Kind::Tls { host: 0 }]
        .map(|kind| Fault { at_ms: 0, for_ms: 400, kind });
    let wish = Wish { faults: Some(faults.into()), ..Wish::default() };
    let failed = run(&scenario, Seed(1), &wish).unwrap();
    assert!(failed.violation.is_some());
    let least = minimise(&scenario, &failed, &wish, |_, _| {}).unwrap();
    assert_eq!(least.faults, [Fault { at_ms: 0, for_ms: 100, kind: Kind::Dns { host: 1 } }]);
}

#[test]
fn a_run_whose_clock_stands_still_is_ended() {
    let scenario = Scenario {
        name: "restless",
        about: "goes on without waiting",
        profile: fault::Profile::Nothing,
        servers: (1, 1),
        lasts: Duration::from_secs(1),
        quirk: None,
        play: |world| {
            Box::pin(world.under_faults(async {
                loop {
                    tokio::task::yield_now().await;
                }
            }))
        },
    };
    let wish = Wish { patience: Some(Duration::from_secs(1)), ..Wish::default() };
    let violation = run(&scenario, Seed(1), &wish).unwrap().violation.unwrap();
    assert_eq!(violation.invariant, "ends");
    assert!(violation.what.contains("stands still"), "{}", violation.what);
    assert!(violation.what.contains("the workload"), "{}", violation.what);
}

#[test]
fn a_run_that_does_not_end_says_what_still_goes_on() {
    let scenario = Scenario {
        name: "endless",
        about: "waits for what never comes",
        profile: fault::Profile::Nothing,
        servers: (1, 1),
        lasts: Duration::from_secs(1),
        quirk: None,
        play: |world| Box::pin(world.under_faults(std::future::pending())),
    };
    let violation = run(&scenario, Seed(1), &Wish::default()).unwrap().violation.unwrap();
    assert_eq!(violation.invariant, "ends");
    assert!(violation.what.contains("the workload"), "{}", violation.what);
}
