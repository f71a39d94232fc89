//! Faults: what goes wrong in a run, and when; drawn from the seed, and short enough to be read.

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{network::Trouble, seed::Seed, world::World};

/// Moments of a run at which the answers of a host to its clients get lost, at most.
const MUTE_MAX: usize = 3;

/// One fault. Each ends by itself, so that any can be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When it begins, in milliseconds after the workload's start.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// What goes wrong.
    pub kind: Kind,
}

/// What goes wrong. Hosts are named by their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A host loses power, and is started again afterwards.
    Crash {
        /// The host.
        host: usize,
    },
    /// A host is stopped in order, and started again afterwards.
    Restart {
        /// The host.
        host: usize,
    },
    /// Nothing passes between some hosts and the others.
    Partition {
        /// The hosts on one side.
        side: Vec<usize>,
    },
    /// Nothing passes from one host to another; answers do.
    OneWay {
        /// Whence nothing comes.
        from: usize,
        /// Where nothing arrives.
        to: usize,
    },
    /// A host answers late.
    Slow {
        /// The host.
        host: usize,
        /// How much.
        by_ms: u64,
    },
    /// A host's name does not resolve.
    Dns {
        /// The host.
        host: usize,
    },
    /// A host's certificate is not good.
    Tls {
        /// The host.
        host: usize,
    },
    /// A host's disk is full; the host is started again afterwards, as its operator would.
    DiskFull {
        /// The host.
        host: usize,
    },
    /// A host's clock is wrong.
    Skew {
        /// The host.
        host: usize,
        /// By how much.
        by_ms: i64,
    },
    /// A host gets a new signing key, and is started again with it.
    NewKey {
        /// The host.
        host: usize,
    },
    /// A host does what its clients ask for, and its answers get lost.
    Mute {
        /// The host.
        host: usize,
    },
}

/// Which faults a scenario can bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// None.
    Nothing,
    /// Of the network, that to clients among it.
    Network,
    /// Hosts stop and lose power; the network works.
    Hosts,
    /// Of the network and of hosts.
    Everything,
}

/// Draws the faults of a run that lasts this long, in their order.
pub fn draw(seed: Seed, profile: Profile, hosts: usize, lasts: Duration) -> Vec<Fault> {
    let mut faults = draw_faults(&mut seed.stream("faults"), profile, hosts, lasts);
    faults.extend(draw_mute(&mut seed.stream("lost answers"), profile, hosts, lasts));
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// Moments at which clients get no answers: short ones, since a client that gets none makes the same request again.
fn draw_mute(random: &mut ChaCha8Rng, profile: Profile, hosts: usize, lasts: Duration) -> Vec<Fault> {
    if profile == Profile::Nothing {
        return Vec::new();
    }
    let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1);
    (0..random.random_range(0..=MUTE_MAX))
        .map(|_| {
            let (at_ms, for_ms) = (random.random_range(0..lasts_ms), random.random_range(100..=4000));
            Fault { at_ms, for_ms, kind: Kind::Mute { host: random.random_range(0..hosts) } }
        })
        .collect()
}

fn draw_faults(random: &mut ChaCha8Rng, profile: Profile, hosts: usize, lasts: Duration) -> Vec<Fault> {
    if profile == Profile::Nothing || hosts < 2 {
        return Vec::new();
    }
    let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1);
    // From none to about one in ten seconds.
    let most = usize::try_from(lasts_ms / 10_000).unwrap_or(0).clamp(2, 60);
    let count = random.random_range(0..=most);
    (0..count)
        .map(|_| {
            let at_ms = random.random_range(0..lasts_ms);
            let for_ms = random.random_range(100..=(lasts_ms / 3).clamp(200, 120_000));
            Fault { at_ms, for_ms, kind: draw_kind(random, profile, hosts) }
        })
        .collect()
}

fn draw_kind(random: &mut ChaCha8Rng, profile: Profile, hosts: usize) -> Kind {
    let host = random.random_range(0..hosts);
    if profile == Profile::Hosts {
        return if random.random_ratio(1, 2) { Kind::Restart { host } } else { Kind::Crash { host } };
    }
    let kinds = if profile == Profile::Everything { 10 } else { 5 };
    match random.random_range(0..kinds) {
        0 => {
            let mut side: Vec<_> = (0..hosts).collect();
            side.shuffle(random);
            side.truncate(random.random_range(1..hosts));
            side.sort_unstable();
            Kind::Partition { side }
        }
        1 => Kind::OneWay { from: host, to: (host + random.random_range(1..hosts)) % hosts },
        2 => Kind::Slow { host, by_ms: random.random_range(100..70_000) },
        3 => Kind::Dns { host },
        4 => Kind::Tls { host },
        5 => Kind::Restart { host },
        6 => Kind::DiskFull { host },
        7 => Kind::Skew { host, by_ms: random.random_range(-30_000..30_000) },
        8 => Kind::NewKey { host },
        _ => Kind::Crash { host },
    }
}

impl Fault {
    /// Lets it happen, from its beginning to its end.
    pub async fn happen(&self, world: &World) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(self.at_ms)).await;
        world.trace().note(format_args!("fault {:?} for {} ms", self.kind, self.for_ms));
        let _ongoing = world.trace().begin(format_args!("fault {:?}", self.kind));
        self.kind.begin(world).await?;
        tokio::time::sleep(Duration::from_millis(self.for_ms)).await;
        world.trace().note(format_args!("fault {:?} ends", self.kind));
        self.kind.end(world).await
    }
}

impl Kind {
    async fn begin(&self, world: &World) -> Result<()> {
        let network = world.network();
        match self {
            Self::Crash { host } => {
                world.host(*host).hold_down();
                world.host(*host).crash().await;
            }
            Self::Restart { host } => {
                world.host(*host).hold_down();
                world.host(*host).stop().await;
            }
            Self::NewKey { host } => {
                world.host(*host).hold_down();
                world.host(*host).stop().await;
                world.host(*host).rotate_key()?;
            }
            Self::Partition { side } => world.cut(side, |from, to| network.block(from, to)),
            Self::OneWay { from, to } => network.block(&world.host(*from).name, &world.host(*to).name),
            Self::Slow { host, by_ms } => {
                network.slow(&world.host(*host).name, Duration::from_millis(*by_ms));
            }
            Self::Dns { host } => network.trouble(&world.host(*host).name, Trouble::Dns),
            Self::Tls { host } => network.trouble(&world.host(*host).name, Trouble::Tls),
            Self::DiskFull { host } => world.host(*host).fill_disk(),
            Self::Skew { host, by_ms } => world.host(*host).skew(*by_ms),
            Self::Mute { host } => world.host(*host).set_mute(true),
        }
        Ok(())
    }

    async fn end(&self, world: &World) -> Result<()> {
        let network = world.network();
        match self {
            Self::Crash { host } | Self::Restart { host } | Self::NewKey { host } => {
                world.host(*host).release().await?;
            }
            Self::Partition { side } => world.cut(side, |from, to| network.unblock(from, to)),
            Self::OneWay { from, to } => network.unblock(&world.host(*from).name, &world.host(*to).name),
            Self::Slow { host, .. } => network.end_slow(&world.host(*host).name),
            Self::Dns { host } => network.end_trouble(&world.host(*host).name, Trouble::Dns),
            Self::Tls { host } => network.end_trouble(&world.host(*host).name, Trouble::Tls),
            Self::DiskFull { host } => world.host(*host).empty_disk().await?,
            Self::Skew { host, .. } => world.host(*host).skew(0),
            Self::Mute { host } => world.host(*host).set_mute(false),
        }
        Ok(())
    }
}
