use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::{activation::CRASHES_FREE, *};

/// What survives the actors: the log of each key, and how many actors of a key are alive.
#[derive(Default)]
struct Disk {
    logs: Mutex<BTreeMap<String, Vec<u32>>>,
    alive: Mutex<BTreeMap<String, u32>>,
}

/// Appends numbers to its key's log.
struct Scribe;

enum ScribeMessage {
    Append(u32, RpcReplyPort<usize>),
    Stall(RpcReplyPort<()>),
    Panic,
}

/// How long a stalled actor takes for a message.
const STALL: Duration = Duration::from_secs(20);

struct ScribeState {
    key: String,
    disk: Arc<Disk>,
    log: Vec<u32>,
}

impl Drop for ScribeState {
    fn drop(&mut self) {
        *self.disk.alive.lock().entry(self.key.clone()).or_default() -= 1;
    }
}

impl Actor for Scribe {
    type Msg = ScribeMessage;
    type State = ScribeState;
    type Arguments = (String, Arc<Disk>, Meter);

    async fn pre_start(
        &self,
        _myself: ActorRef<ScribeMessage>,
        (key, disk, meter): Self::Arguments,
    ) -> Result<ScribeState, ActorProcessingErr> {
        if key == "unstartable" {
            return Err("the disk is full".into());
        }
        tokio::task::yield_now().await;
        let mut alive = disk.alive.lock();
        let count = alive.entry(key.clone()).or_default();
        *count += 1;
        assert_eq!(*count, 1, "two actors of {key} are alive");
        drop(alive);
        meter.set_bytes(1000);
        let log = disk.logs.lock().get(&key).cloned().unwrap_or_default();
        Ok(ScribeState { key, disk, log })
    }

    async fn handle(
        &self,
        _myself: ActorRef<ScribeMessage>,
        message: ScribeMessage,
        state: &mut ScribeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ScribeMessage::Append(number, reply) => {
                tokio::task::yield_now().await;
                state.log.push(number);
                state.disk.logs.lock().insert(state.key.clone(), state.log.clone());
                let _ = reply.send(state.log.len());
            }
            ScribeMessage::Stall(reply) => {
                tokio::time::sleep(STALL).await;
                let _ = reply.send(());
            }
            ScribeMessage::Panic => panic!("asked to"),
        }
        Ok(())
    }
}

impl DirectoryActor for Scribe {
    type Key = String;
    type Context = Arc<Disk>;
    const CLASS: &'static str = "scribe";

    fn new() -> Self {
        Self
    }

    fn arguments(key: &String, context: &Arc<Disk>, meter: Meter) -> Self::Arguments {
        (key.clone(), context.clone(), meter)
    }
}

async fn directory(config: ClassConfig) -> (Directory<Scribe>, Arc<Disk>) {
    let disk = Arc::new(Disk::default());
    (Directory::start(disk.clone(), config).await, disk)
}

async fn append(directory: &Directory<Scribe>, key: &str, number: u32) -> Result<usize, CallError> {
    let scribe = directory.get(&key.to_owned()).await?;
    scribe.call(|reply| ScribeMessage::Append(number, reply)).await
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_actor() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let calls = (0..50).map(|number| {
        let directory = directory.clone();
        tokio::spawn(async move { append(&directory, "a", number).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(disk.logs.lock()["a"].len(), 50);
    assert_eq!(directory.stats().activated, 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_actor_goes_and_comes_back_with_what_it_had() {
    let idle_after = Duration::from_secs(60);
    let (directory, _) = directory(ClassConfig { idle_after, ..ClassConfig::default() }).await;
    append(&directory, "a", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((directory.stats().active, directory.stats().bytes), (0, 0));
    assert_eq!(append(&directory, "a", 2).await.unwrap(), 2);
    assert_eq!(directory.stats().passivated, 1);
}

#[tokio::test(start_paused = true)]
async fn a_leased_actor_stays() {
    let idle_after = Duration::from_secs(1);
    let (directory, _) = directory(ClassConfig { idle_after, ..ClassConfig::default() }).await;
    let lease = directory.get(&"a".to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(directory.stats().active, 1);
    drop(lease);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(directory.stats().active, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_while_actors_come_and_go_under_a_small_budget() {
    let config = ClassConfig { budget_bytes: 5_000, ..ClassConfig::default() };
    let (directory, disk) = directory(config).await;
    let tasks: Vec<_> = (0..8_u32)
        .map(|task| {
            let directory = directory.clone();
            tokio::spawn(async move {
                for number in 0..100 {
                    let key = ((task * 31 + number * 7) % 40).to_string();
                    append(&directory, &key, number).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(u64::from(number % 13))).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(disk.logs.lock().values().map(Vec::len).sum::<usize>(), 800);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let stats = directory.stats();
    assert!(stats.bytes <= 6_000, "{stats:?}");
    assert!(stats.passivated > 10, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_frees_the_key_and_spares_the_others() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    append(&directory, "b", 1).await.unwrap();
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let directory = directory.clone();
            tokio::spawn(async move {
                if number == 20 {
                    let scribe = directory.get(&"a".to_owned()).await.unwrap();
                    let _ = scribe.call(|_: RpcReplyPort<()>| ScribeMessage::Panic).await;
                    return Ok(0);
                }
                append(&directory, "a", number).await
            })
        })
        .collect();
    let mut acknowledged = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(0) | Err(CallError::Crashed) => {}
            Ok(_) => acknowledged += 1,
            Err(error) => panic!("{error}"),
        }
    }
    append(&directory, "a", 100).await.unwrap();
    assert!(disk.logs.lock()["a"].len() > acknowledged);
    assert_eq!(append(&directory, "b", 2).await.unwrap(), 2);
    assert_eq!(directory.stats().crashed, 1);
}

#[tokio::test(start_paused = true)]
async fn repeated_crashes_delay_the_next_start() {
    let (directory, _) = directory(ClassConfig::default()).await;
    for _ in 0..CRASHES_FREE {
        let scribe = directory.get(&"a".to_owned()).await.unwrap();
        let _ = scribe.call(|_: RpcReplyPort<()>| ScribeMessage::Panic).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = directory.get(&"a".to_owned()).await;
    assert!(matches!(refused, Err(ActivateError::BackingOff { .. })));
    tokio::time::sleep(Duration::from_secs(1)).await;
    append(&directory, "a", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_refuses_until_the_actor_is_through_with_it() {
    let config =
        ClassConfig { backlog_max: 2, call_timeout: Duration::from_secs(5), ..ClassConfig::default() };
    let (directory, _) = directory(config).await;
    let scribe = directory.get(&"a".to_owned()).await.unwrap();
    let stalled: Vec<_> = (0..2)
        .map(|_| {
            let scribe = scribe.clone();
            tokio::spawn(async move { scribe.call(ScribeMessage::Stall).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(matches!(append(&directory, "a", 1).await, Err(CallError::Busy { .. })));
    append(&directory, "b", 1).await.unwrap();
    for call in stalled {
        assert!(matches!(call.await.unwrap(), Err(CallError::TimedOut)));
    }
    // The callers have given up, but their messages are still before the actor.
    assert!(matches!(append(&directory, "a", 1).await, Err(CallError::Busy { .. })));
    assert_eq!(directory.stats().backlog, 2);
    tokio::time::sleep(2 * STALL).await;
    append(&directory, "a", 1).await.unwrap();
    assert_eq!(directory.stats().backlog, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_an_error_and_shutdown_ends_everyone() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let failed = directory.get(&"unstartable".to_owned()).await;
    assert!(matches!(failed, Err(ActivateError::Failed(reason)) if reason.contains("disk is full")));
    for key in 0..10 {
        append(&directory, &key.to_string(), 1).await.unwrap();
    }
    directory.drain_all().await;
    assert_eq!(disk.alive.lock().values().sum::<u32>(), 0);
    assert!(matches!(directory.get(&"0".to_owned()).await, Err(ActivateError::Stopping)));
}
