//! A federation: hosts, the network between them, their users, and what is known to have happened.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::{join, join_all};
use parking_lot::Mutex;
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde_json::{Value, json};
use storage::{Direction, KeyRange, Table, Value as Stored, key::Key, schema};
use tokio::time::Instant;

use crate::{
    client::{Client, Shared},
    disk::Disk,
    fault::Fault,
    follower::Follower,
    host::{Boot, Host, HostOptions},
    invariant::{Ledger, Verdict},
    network::{Conditions, Endpoint, Network},
    plant,
    seed::Seed,
    trace::Trace,
};

/// How long everything may take to come to rest: the longest back-off and a fifth, twice.
const SETTLE_MAX: Duration = Duration::from_secs(3 * 3600);

/// How often is looked whether everything has come to rest, and for how many looks it must have.
const SETTLE_LOOKS: (Duration, u32) = (Duration::from_secs(2), 3);

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it follows from.
    pub seed: Seed,
    /// Number of hosts.
    pub servers: usize,
    /// How long the workload lasts.
    pub lasts: Duration,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What hosts are like.
    pub host: HostOptions,
    /// What links are like.
    pub conditions: Conditions,
    /// Whether all of the trace is kept.
    pub keep_trace: bool,
}

/// A federation. Cloning shares it.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    options: Options,
    trace: Arc<Trace>,
    network: Network,
    hosts: Vec<Arc<Host>>,
    ledger: Arc<Ledger>,
    verdict: Arc<Verdict>,
    clients: Mutex<Vec<Arc<Client>>>,
    followers: Mutex<Vec<Arc<Follower>>>,
    /// Endpoints that are no hosts: the network does not keep them.
    peers: Mutex<Vec<Arc<dyn Endpoint>>>,
    rooms: Mutex<Vec<OwnedRoomId>>,
    ends: Mutex<Option<Instant>>,
}

impl World {
    /// A world of hosts that are up.
    pub async fn new(options: Options) -> Result<Self> {
        let world = Self::asleep(options, |_| Disk::default())?;
        for host in world.hosts() {
            host.start().await?;
        }
        Ok(world)
    }

    /// A world of hosts that are down; `disk` gives each one's disk.
    pub fn asleep(options: Options, disk: impl Fn(usize) -> Disk) -> Result<Self> {
        let trace = Arc::new(Trace::new(options.keep_trace));
        // Nothing gets lost while the scenario sets up.
        let network = Network::new(options.seed, options.conditions.reliable(), trace.clone());
        let make = |number| {
            let made = (options.seed, options.host.clone());
            Host::new(host_name(number)?, disk(number), made, &network, &trace)
        };
        let hosts = (0..options.servers).map(make).collect::<Result<_>>()?;
        Ok(Self(Arc::new(Inner {
            options,
            trace,
            network,
            hosts,
            ledger: Arc::default(),
            verdict: Arc::default(),
            clients: Mutex::default(),
            followers: Mutex::default(),
            peers: Mutex::default(),
            rooms: Mutex::default(),
            ends: Mutex::default(),
        })))
    }

    /// What the run is made of.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// What happened so far.
    pub fn trace(&self) -> &Arc<Trace> {
        &self.0.trace
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// A host by its number.
    pub fn host(&self, number: usize) -> &Arc<Host> {
        &self.0.hosts[number % self.0.hosts.len()]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.0.hosts
    }

    /// Some of the hosts, but not all.
    pub fn some_hosts(&self, random: &mut ChaCha8Rng) -> Vec<OwnedServerName> {
        let mut some: Vec<_> = self.hosts().iter().map(|host| host.name.clone()).collect();
        some.shuffle(random);
        some.truncate(random.random_range(1..some.len().max(2)));
        some
    }

    /// The servers that are up, with their hosts' names.
    pub fn boots(&self) -> Vec<(OwnedServerName, Arc<Boot>)> {
        self.hosts().iter().filter_map(|host| Some((host.name.clone(), host.boot()?))).collect()
    }

    /// What was acknowledged to clients.
    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Whether something has gone wrong, and what.
    pub fn verdict(&self) -> &Arc<Verdict> {
        &self.0.verdict
    }

    /// What clients note things in.
    pub fn shared(&self) -> Shared<'_> {
        (&self.0.trace, &self.0.ledger, &self.0.verdict)
    }

    /// All users' clients.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.0.clients.lock().clone()
    }

    /// Keeps an endpoint on the network until the world ends.
    pub fn keep(&self, peer: Arc<dyn Endpoint>) {
        self.0.peers.lock().push(peer);
    }

    /// The clients that follow their rooms.
    pub fn followers(&self) -> Vec<Arc<Follower>> {
        self.0.followers.lock().clone()
    }

    /// The rooms that the invariants are about.
    pub fn rooms(&self) -> Vec<OwnedRoomId> {
        self.0.rooms.lock().clone()
    }

    /// Registers a user, who follows what happens with `/sync`.
    pub async fn user(&self, name: &str, host: usize) -> Result<Arc<Client>> {
        let client = self.quiet_user(name, host).await?;
        self.0.followers.lock().push(Follower::start(&client, &self.0.verdict));
        Ok(client)
    }

    /// The member of a planted room on each host, following with `/sync`.
    pub async fn planted_users(&self) -> Result<Vec<Arc<Client>>> {
        let creator = Client::log_in(self.host(0), (plant::CREATOR, "P"), self.shared()).await?;
        let mut users = vec![creator];
        for number in 1..self.hosts().len() {
            // The room was planted, the account was not.
            users.push(Client::register(self.host(number), plant::MEMBER, self.shared()).await?);
        }
        self.0.clients.lock().extend(users.iter().cloned());
        let followers = users.iter().map(|user| Follower::start(user, &self.0.verdict));
        self.0.followers.lock().extend(followers);
        Ok(users)
    }

    /// Registers a user who follows nothing.
    pub async fn quiet_user(&self, name: &str, host: usize) -> Result<Arc<Client>> {
        let client = Client::register(self.host(host), name, self.shared()).await?;
        self.0.clients.lock().push(client.clone());
        Ok(client)
    }

    /// One user on each host, `prefix` and a number.
    pub async fn users(&self, prefix: &str) -> Result<Vec<Arc<Client>>> {
        let mut users = Vec::new();
        for number in 0..self.hosts().len() {
            users.push(self.user(&format!("{prefix}{number}"), number).await?);
        }
        Ok(users)
    }

    /// Has the invariants be about a room.
    pub fn watch_room(&self, room: &RoomId) {
        self.0.rooms.lock().push(room.to_owned());
    }

    /// Creates a room that the invariants are about.
    pub async fn room(&self, creator: &Client, options: Value) -> Result<OwnedRoomId> {
        let room = creator.create_room(options).await?;
        self.0.rooms.lock().push(room.clone());
        Ok(room)
    }

    /// A public room with these members, whose first one created it.
    pub async fn public_room(&self, members: &[Arc<Client>]) -> Result<OwnedRoomId> {
        let (creator, others) = members.split_first().context("a room needs a member")?;
        let options = json!({ "preset": "public_chat", "name": "room" });
        let room = self.room(creator, options).await?;
        for other in others {
            other.join(&room, creator.host.name.as_str()).await?;
        }
        Ok(room)
    }

    /// Runs a workload while the faults happen; it lasts as long as the options say, and until all faults are over.
    pub async fn under_faults(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let conditions = self.0.options.conditions;
        self.network().set_conditions(conditions);
        *self.0.ends.lock() = Some(Instant::now() + self.0.options.lasts);
        let faults = join_all(self.0.options.faults.iter().map(|fault| fault.happen(self)));
        let _ongoing = self.trace().begin(format_args!("the workload and its faults"));
        let (worked, happened) = join(work, faults).await;
        happened.into_iter().collect::<Result<()>>()?;
        worked
    }

    /// Whether the workload is to go on.
    pub fn goes_on(&self) -> bool {
        !self.verdict().is_over() && self.0.ends.lock().is_none_or(|ends| Instant::now() < ends)
    }

    /// Calls `change` for each directed pair of hosts on different sides.
    pub fn cut(&self, side: &[usize], change: impl Fn(&ServerName, &ServerName)) {
        let side: BTreeSet<_> = side.iter().map(|number| &self.host(*number).name).collect();
        for from in self.hosts() {
            for to in self.hosts() {
                if side.contains(&from.name) != side.contains(&to.name) {
                    change(&from.name, &to.name);
                }
            }
        }
    }

    /// Ends all that is wrong: every host is up, every link works.
    pub async fn heal(&self) -> Result<()> {
        self.trace().note(format_args!("healed"));
        self.network().heal();
        for host in self.hosts() {
            host.recover().await?;
        }
        Ok(())
    }

    /// Waits until nothing is left to be done; what never comes to rest breaks the invariant that queues drain.
    pub async fn settle(&self) -> Result<()> {
        let _ongoing = self.trace().begin(format_args!("coming to rest"));
        let deadline = Instant::now() + SETTLE_MAX;
        let (pause, looks) = SETTLE_LOOKS;
        let (mut quiet, mut busy) = (0, None);
        while quiet < looks {
            if Instant::now() > deadline {
                let busy = busy.unwrap_or_default();
                self.verdict().fail("queues_drain", format!("no rest in {SETTLE_MAX:?}: {busy}"));
            }
            if self.verdict().is_over() {
                break;
            }
            tokio::time::sleep(pause).await;
            busy = self.busy().await?;
            quiet = if busy.is_none() { quiet + 1 } else { 0 };
        }
        Ok(())
    }

    /// What is left to be done, if anything.
    pub async fn busy(&self) -> Result<Option<String>> {
        let in_flight = self.network().traffic().in_flight;
        if in_flight > 0 {
            return Ok(Some(format!("{in_flight} requests are under way")));
        }
        for (name, boot) in self.boots() {
            for (what, rows) in queues(&boot).await? {
                if rows > 0 {
                    return Ok(Some(format!("{name} has {rows} rows in {what}")));
                }
            }
        }
        Ok(None)
    }

    /// A member of a room on each of its hosts, at most `limit`.
    pub async fn voices(&self, room: &RoomId, limit: usize) -> Vec<Arc<Client>> {
        let (mut voices, mut heard) = (Vec::<Arc<Client>>::new(), BTreeSet::new());
        for client in self.clients() {
            if voices.len() == limit || heard.contains(&client.host.name) {
                continue;
            }
            let Some(boot) = client.host.boot() else { continue };
            let Ok(handle) = boot.homeserver().room(room).await else { continue };
            if handle.is_joined(&client.user_id).await.unwrap_or(false) {
                heard.insert(client.host.name.clone());
                voices.push(client);
            }
        }
        voices
    }

    /// Stops every host in order.
    pub async fn stop(&self) {
        join_all(self.hosts().iter().map(|host| host.stop())).await;
    }
}

/// The lengths of a server's durable queues, counted to a thousand.
pub async fn queues(boot: &Boot) -> Result<[(&'static str, usize); 5]> {
    async fn length<K: Key, V: Stored>(boot: &Boot, table: &Table<K, V>) -> Result<usize> {
        Ok(boot.storage().range(table, KeyRange::all(), Direction::Ascending, 1000).await?.len())
    }
    Ok([
        ("STAGED", length(boot, &schema::STAGED).await?),
        ("OUTBOX", length(boot, &schema::OUTBOX).await?),
        ("CATCH_UP", length(boot, &schema::CATCH_UP).await?),
        ("EDU_QUEUE", length(boot, &schema::EDU_QUEUE).await?),
        ("STALE_DEVICE_LISTS", length(boot, &schema::STALE_DEVICE_LISTS).await?),
    ])
}

/// The name of a host: a letter, or a number with one.
pub fn host_name(number: usize) -> Result<OwnedServerName> {
    let letter =
        u8::try_from(number).ok().filter(|number| *number < 26).map(|number| char::from(b'a' + number));
    let name = letter.map_or_else(|| format!("s{number}"), String::from);
    Ok(OwnedServerName::try_from(name)?)
}
