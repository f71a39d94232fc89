//! Budgets: who goes, who stays, and that nothing is lost meanwhile.

use super::*;

const ACTOR_BYTES: u64 = 1000;

fn budget_of(actors: u64) -> ClassConfig {
    ClassConfig { budget_bytes: actors * ACTOR_BYTES, ..ClassConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn many_keys_stay_within_the_budget_and_nothing_is_lost() {
    let (directory, disk) = directory(budget_of(40)).await;
    let tasks: Vec<_> = (0..16_u32)
        .map(|task| {
            let directory = directory.clone();
            tokio::spawn(async move {
                let mut bytes_max = 0;
                for number in 0..200 {
                    let key = ((task * 31 + number * 7) % 300).to_string();
                    append(&directory, &key, number).await.unwrap();
                    bytes_max = bytes_max.max(directory.stats().bytes);
                    // Bursts, and pauses of different lengths.
                    if number % 5 == 0 {
                        tokio::time::sleep(Duration::from_millis(u64::from(number % 13))).await;
                    }
                }
                bytes_max
            })
        })
        .collect();
    let mut bytes_max = 0;
    for task in tasks {
        bytes_max = bytes_max.max(task.await.unwrap());
    }
    assert_eq!(disk.lines(), 16 * 200);
    assert!(bytes_max <= 40 * ACTOR_BYTES * 6 / 5, "{bytes_max}");
    let stats = directory.stats();
    assert!(stats.passivated > 200 && stats.crashed == 0, "{stats:?}");
    assert_eq!(stats.active, stats.activated - stats.passivated);
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_go_first() {
    let (directory, disk) = directory(budget_of(10)).await;
    for number in 0..100 {
        append(&directory, "hot", number).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        append(&directory, &number.to_string(), number).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(disk.starts("hot"), 1);
    assert!(directory.peek(&"99".to_owned()).is_some());
    assert!(directory.peek(&"50".to_owned()).is_none());
    assert!((8..=10).contains(&directory.stats().active), "{:?}", directory.stats());
}

#[tokio::test(start_paused = true)]
async fn actors_in_use_stay_over_the_budget_until_they_are_let_go() {
    let (directory, _) = directory(budget_of(5)).await;
    let mut leases = Vec::new();
    for key in 0..600 {
        leases.push(get(&directory, &key.to_string()).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(directory.stats().active, 600);
    leases.truncate(3);
    append(&directory, "0", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let stats = directory.stats();
    assert!(stats.active <= 5, "{stats:?}");
    assert!((0..3).all(|key| directory.peek(&key.to_string()).is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_wait_long_for_room() {
    let (directory, disk) = directory(budget_of(1)).await;
    let scribe = get(&directory, "slow").await.unwrap();
    let call = begin(async move { scribe.call(ScribeMessage::Stall).await }).await;
    call.abort();
    let before = Instant::now();
    for key in ["a", "b"] {
        append(&directory, key, 1).await.unwrap();
    }
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    tokio::time::sleep(2 * STALL).await;
    assert_eq!(disk.log("slow"), [0]);
}

/// The same on threads, where interleavings are real; the keys are few, so that they collide.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_on_many_threads() {
    let (directory, disk) = directory(budget_of(0)).await;
    let supervisor = directory.0.supervisor.get().unwrap().clone();
    let sweeps = tokio::spawn(async move {
        while supervisor.cast(SupervisorMessage::Sweep).is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let tasks: Vec<_> = (0..8_u32)
        .map(|task| {
            let directory = directory.clone();
            tokio::spawn(async move {
                for number in 0..400 {
                    let key = ((task + number * 7) % 30).to_string();
                    append(&directory, &key, task * 1000 + number).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    directory.drain_all().await;
    sweeps.await.unwrap();
    let mut lines: Vec<_> = disk.logs.lock().values().flatten().copied().collect();
    lines.sort_unstable();
    let sent: Vec<_> = (0..8).flat_map(|task| (0..400).map(move |number| task * 1000 + number)).collect();
    assert_eq!(lines, sent);
    let stats = directory.stats();
    assert!(stats.passivated > 100 && stats.crashed == 0, "{stats:?}");
    assert_eq!((stats.active, stats.bytes, stats.backlog, disk.alive()), (0, 0, 0, 0));
}
