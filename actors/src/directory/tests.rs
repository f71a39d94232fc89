mod crash;
mod memory;

use std::{collections::BTreeMap, sync::atomic::AtomicU32};

use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use tokio::task::JoinHandle;

use super::*;

/// What survives the actors.
#[derive(Default)]
struct Disk {
    /// The log of each key.
    logs: Mutex<BTreeMap<String, Vec<u32>>>,
    /// How often the actor of each key was started.
    starts: Mutex<BTreeMap<String, u32>>,
    /// Actors in memory.
    alive: AtomicU32,
    /// The actors that have ended, in order.
    ended: Mutex<Vec<String>>,
    /// What the next starts do.
    start: Mutex<Start>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Start {
    #[default]
    Works,
    Fails,
    Panics,
    Hangs,
    TakesLong,
    EndsAtOnce,
}

/// How long a start takes that takes long, and a message that stalls.
const STALL: Duration = Duration::from_secs(15);

/// Appends numbers to its key's log.
struct Scribe;

enum ScribeMessage {
    Append(u32, RpcReplyPort<usize>),
    Note(u32, Place),
    Stall(RpcReplyPort<()>),
    Hang(RpcReplyPort<()>),
    End(RpcReplyPort<()>),
    Panic(RpcReplyPort<()>),
}

struct ScribeState {
    key: String,
    disk: Arc<Disk>,
    start: u32,
    log: Vec<u32>,
}

impl ScribeState {
    fn append(&mut self, number: u32) {
        let latest = self.disk.starts.lock()[&self.key];
        assert_eq!(self.start, latest, "two actors of {} are live", self.key);
        self.log.push(number);
        self.disk.logs.lock().insert(self.key.clone(), self.log.clone());
    }
}

impl Drop for ScribeState {
    fn drop(&mut self) {
        self.disk.alive.fetch_sub(1, Ordering::Relaxed);
        self.disk.ended.lock().push(self.key.clone());
    }
}

impl Actor for Scribe {
    type Msg = ScribeMessage;
    type State = ScribeState;
    type Arguments = (String, Arc<Disk>, Meter);

    async fn pre_start(
        &self,
        myself: ActorRef<ScribeMessage>,
        (key, disk, meter): Self::Arguments,
    ) -> Result<ScribeState, ActorProcessingErr> {
        let start = {
            let mut starts = disk.starts.lock();
            let count = starts.entry(key.clone()).or_default();
            *count += 1;
            *count
        };
        meter.set_bytes(1000);
        let how = *disk.start.lock();
        match how {
            Start::Works => tokio::task::yield_now().await,
            Start::Fails => return Err("the disk is full".into()),
            Start::Panics => panic!("asked to"),
            Start::Hangs => std::future::pending().await,
            Start::TakesLong => tokio::time::sleep(STALL).await,
            Start::EndsAtOnce => myself.stop(None),
        }
        let log = disk.logs.lock().get(&key).cloned().unwrap_or_default();
        disk.alive.fetch_add(1, Ordering::Relaxed);
        Ok(ScribeState { key, disk, start, log })
    }

    async fn handle(
        &self,
        myself: ActorRef<ScribeMessage>,
        message: ScribeMessage,
        state: &mut ScribeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ScribeMessage::Append(number, reply) => {
                tokio::task::yield_now().await;
                state.append(number);
                let _ = reply.send(state.log.len());
            }
            ScribeMessage::Note(number, _place) => {
                tokio::task::yield_now().await;
                state.append(number);
            }
            ScribeMessage::Stall(reply) => {
                tokio::time::sleep(STALL).await;
                state.append(0);
                let _ = reply.send(());
            }
            ScribeMessage::Hang(_reply) => std::future::pending().await,
            ScribeMessage::End(_reply) => myself.stop(None),
            ScribeMessage::Panic(_reply) => panic!("asked to"),
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

impl Disk {
    fn next_starts(&self, start: Start) {
        *self.start.lock() = start;
    }

    fn log(&self, key: &str) -> Vec<u32> {
        self.logs.lock().get(key).cloned().unwrap_or_default()
    }

    fn lines(&self) -> usize {
        self.logs.lock().values().map(Vec::len).sum()
    }

    fn starts(&self, key: &str) -> u32 {
        self.starts.lock().get(key).copied().unwrap_or_default()
    }

    fn alive(&self) -> u32 {
        self.alive.load(Ordering::Relaxed)
    }
}

async fn get(directory: &Directory<Scribe>, key: &str) -> Result<Handle<Scribe>, ActivateError> {
    directory.get(&key.to_owned()).await
}

/// Starts `future` and lets it run as far as it gets now.
async fn begin<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let task = tokio::spawn(future);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    task
}

async fn append(directory: &Directory<Scribe>, key: &str, number: u32) -> Result<usize, CallError> {
    let scribe = directory.get(&key.to_owned()).await?;
    scribe.call(|reply| ScribeMessage::Append(number, reply)).await
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_actor() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    assert!(directory.peek(&"a".to_owned()).is_none());
    let calls = (0..50).map(|number| {
        let directory = directory.clone();
        tokio::spawn(async move { append(&directory, "a", number).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(disk.log("a"), (0..50).collect::<Vec<_>>());
    assert_eq!(directory.stats().activated, 1);
    assert!(directory.peek(&"a".to_owned()).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_idle_actor_goes_and_comes_back_with_what_it_had() {
    let idle_after = Duration::from_secs(60);
    let (directory, disk) = directory(ClassConfig { idle_after, ..ClassConfig::default() }).await;
    append(&directory, "a", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    append(&directory, "a", 2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(directory.stats().active, 1);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!((directory.stats().active, directory.stats().bytes, disk.alive()), (0, 0, 0));
    assert_eq!(append(&directory, "a", 3).await.unwrap(), 3);
    assert_eq!(directory.stats().passivated, 1);
}

#[tokio::test(start_paused = true)]
async fn a_leased_actor_stays() {
    let idle_after = Duration::from_secs(1);
    let (directory, _) = directory(ClassConfig { idle_after, ..ClassConfig::default() }).await;
    let lease = get(&directory, "a").await.unwrap();
    let other = lease.clone();
    drop(lease);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(directory.stats().active, 1);
    drop(other);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(directory.stats().active, 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_goes_on_when_its_caller_gives_up() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    disk.next_starts(Start::TakesLong);
    let caller = {
        let directory = directory.clone();
        begin(async move { get(&directory, "a").await.map(drop) }).await
    };
    caller.abort();
    tokio::time::sleep(STALL / 2).await;
    append(&directory, "a", 1).await.unwrap();
    assert_eq!((disk.starts("a"), disk.log("a")), (1, vec![1]));
}

#[tokio::test(start_paused = true)]
async fn no_second_actor_starts_before_a_slow_one_has_ended() {
    let config = ClassConfig { idle_after: Duration::from_secs(1), ..ClassConfig::default() };
    let (directory, disk) = directory(config).await;
    for (number, message) in [(1, ScribeMessage::Stall as fn(_) -> _), (2, ScribeMessage::Hang)] {
        let scribe = get(&directory, "a").await.unwrap();
        let call = begin(async move { scribe.call(message).await }).await;
        call.abort();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(directory.peek(&"a".to_owned()).is_none(), "it is being passivated");
        // Drained at last, or killed.
        append(&directory, "a", number).await.unwrap();
    }
    assert_eq!((disk.log("a"), disk.starts("a")), (vec![0, 1, 2], 3));
    assert_eq!((directory.stats().passivated, directory.stats().crashed), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_refuses_until_the_actor_is_through_with_it() {
    let config =
        ClassConfig { backlog_max: 2, call_timeout: Duration::from_secs(5), ..ClassConfig::default() };
    let (directory, _) = directory(config).await;
    let scribe = get(&directory, "a").await.unwrap();
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
async fn a_cast_has_its_place_in_the_backlog() {
    let (directory, disk) = directory(ClassConfig { backlog_max: 3, ..ClassConfig::default() }).await;
    let scribe = get(&directory, "a").await.unwrap();
    let notes: Vec<_> =
        (0..5).map(|number| scribe.cast(|place| ScribeMessage::Note(number, place))).collect();
    assert!(notes[..3].iter().all(Result::is_ok));
    assert!(notes[3..].iter().all(|note| matches!(note, Err(CallError::Busy { .. }))));
    drop(scribe);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((directory.stats().backlog, disk.log("a")), (0, vec![0, 1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_works_off_what_was_sent_and_ends_everyone() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let held = get(&directory, "0").await.unwrap();
    let calls: Vec<_> = (0..100)
        .map(|number| {
            let directory = directory.clone();
            tokio::spawn(async move { append(&directory, &(number % 10).to_string(), number).await })
        })
        .collect();
    disk.next_starts(Start::TakesLong);
    let starting = {
        let directory = directory.clone();
        begin(async move { get(&directory, "late").await.map(drop) }).await
    };
    directory.drain_all().await;
    let stats = directory.stats();
    assert_eq!((stats.active, stats.bytes, stats.backlog, disk.alive()), (0, 0, 0, 0));
    let mut acknowledged = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => acknowledged += 1,
            Err(CallError::Activate(ActivateError::Stopping)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(acknowledged > 0);
    assert_eq!(disk.lines(), acknowledged);
    assert!(starting.is_finished());
    assert!(matches!(get(&directory, "0").await, Err(ActivateError::Stopping)));
    let call = held.call(|reply| ScribeMessage::Append(1, reply)).await;
    assert!(matches!(call, Err(CallError::Crashed)));
    directory.drain_all().await;
}

/// What actors do when they end can show: the same run ends them in the same order.
#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_actors_in_the_order_of_their_keys() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let keys: Vec<_> = (100..150).map(|key| key.to_string()).collect();
    for key in keys.iter().rev() {
        append(&directory, key, 1).await.unwrap();
    }
    directory.drain_all().await;
    assert_eq!(*disk.ended.lock(), keys);
}

#[tokio::test(start_paused = true)]
async fn actors_end_with_their_directory() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    append(&directory, "a", 1).await.unwrap();
    assert_eq!(disk.alive(), 1);
    drop(directory);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(disk.alive(), 0);
}
