//! One direction between two hosts.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::KEEP_ALIVE;

/// What links are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The shortest time one way, in milliseconds.
    pub latency_least_ms: u64,
    /// What most times lie within above the shortest; one in four takes longer, up to eight times that.
    pub latency_spread_ms: u64,
    /// Bytes per second.
    pub bandwidth: u64,
    /// Requests of a thousand that get lost.
    pub lost_requests: u32,
    /// Requests of a thousand whose answer gets lost.
    pub lost_answers: u32,
    /// Requests of a thousand that arrive twice.
    pub duplicates: u32,
    /// Device updates of a thousand that their sender loses before it sends them.
    pub lost_updates: u32,
}

impl Default for Conditions {
    /// Servers in the same part of the world, nothing wrong.
    fn default() -> Self {
        Self {
            latency_least_ms: 10,
            latency_spread_ms: 30,
            bandwidth: 10_000_000,
            lost_requests: 0,
            lost_answers: 0,
            duplicates: 0,
            lost_updates: 0,
        }
    }
}

impl Conditions {
    /// The same without losses and duplicates.
    #[must_use]
    pub fn reliable(self) -> Self {
        Self { lost_requests: 0, lost_answers: 0, duplicates: 0, lost_updates: 0, ..self }
    }

    /// Draws conditions: from good to bad ones.
    pub fn draw(random: &mut ChaCha8Rng) -> Self {
        let is_bad = random.random_ratio(1, 2);
        let up_to =
            |random: &mut ChaCha8Rng, most: u32| if is_bad { random.random_range(0..=most) } else { 0 };
        Self {
            latency_least_ms: random.random_range(1..=80),
            latency_spread_ms: random.random_range(1..=300),
            bandwidth: random.random_range(50_000..=20_000_000),
            lost_requests: up_to(random, 100),
            lost_answers: up_to(random, 100),
            duplicates: up_to(random, 100),
            lost_updates: 0,
        }
    }

    /// How long a message takes one way.
    fn trip(&self, random: &mut ChaCha8Rng) -> Duration {
        let spread = random.random_range(0..=self.latency_spread_ms);
        // Whole numbers only: floating point may differ between machines.
        let tail = match random.random_range(0_u32..32) {
            0 => 8,
            1..=2 => 4,
            3..=7 => 2,
            _ => 1,
        };
        Duration::from_millis(self.latency_least_ms + spread * tail)
    }

    fn transfer(&self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.bandwidth.max(1))
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// Time to make a connection first.
    pub(super) connect: Duration,
    /// Time until it arrives.
    pub(super) there: Duration,
    /// Time until the answer is back, without its transfer.
    pub(super) back: Duration,
    /// Bytes per second, for the answer.
    pub(super) conditions: Conditions,
    /// It does not arrive.
    pub(super) is_lost: bool,
    /// Its answer does not.
    pub(super) is_answer_lost: bool,
    /// It arrives once more, this much later.
    pub(super) duplicate: Option<Duration>,
    /// How much longer the host takes.
    pub(super) slow: Duration,
    /// Whether the host does not refuse while it is down.
    pub(super) is_silent: bool,
}

impl Fate {
    /// Time until an answer of this size is back.
    pub(super) fn answer_takes(&self, bytes: usize) -> Duration {
        self.back + self.conditions.transfer(bytes)
    }
}

/// What passed over a link.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkTraffic {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies, both ways.
    pub bytes: u64,
}

/// One direction between two hosts.
pub(super) struct Link {
    random: ChaCha8Rng,
    /// When all that was sent before is through.
    free_at: Instant,
    /// Until when a connection is kept that nobody uses.
    warm_until: Option<Instant>,
    in_use: u32,
    pub(super) traffic: LinkTraffic,
}

impl Link {
    pub(super) fn new(random: ChaCha8Rng) -> Self {
        Self { random, free_at: Instant::now(), warm_until: None, in_use: 0, traffic: LinkTraffic::default() }
    }

    pub(super) fn fate(&mut self, conditions: &Conditions, bytes: usize) -> Fate {
        let now = Instant::now();
        let random = &mut self.random;
        let (there, back) = (conditions.trip(random), conditions.trip(random));
        let is_warm = self.in_use > 1 || self.warm_until.is_some_and(|until| until > now);
        let begins = self.free_at.max(now);
        self.free_at = begins + conditions.transfer(bytes);
        Fate {
            // TCP and TLS 1.3: one round trip each.
            connect: if is_warm { Duration::ZERO } else { 2 * (there + back) },
            there: there + (self.free_at - now),
            back,
            conditions: *conditions,
            is_lost: random.random_ratio(conditions.lost_requests, 1000),
            is_answer_lost: random.random_ratio(conditions.lost_answers, 1000),
            duplicate: random
                .random_ratio(conditions.duplicates, 1000)
                .then(|| Duration::from_millis(random.random_range(1..5000))),
            slow: Duration::ZERO,
            is_silent: false,
        }
    }

    /// Whether the next of its sender's device updates is lost.
    pub(super) fn loses_update(&mut self, conditions: &Conditions) -> bool {
        conditions.lost_updates > 0 && self.random.random_ratio(conditions.lost_updates, 1000)
    }

    /// A request begins; says whether it is the only one.
    pub(super) fn begin(&mut self, bytes: usize) -> bool {
        self.in_use += 1;
        self.traffic.requests += 1;
        self.traffic.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.in_use == 1
    }

    /// A request ends; says whether it was the last one.
    pub(super) fn end(&mut self, bytes: usize) -> bool {
        self.in_use -= 1;
        self.traffic.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        if bytes > 0 {
            self.warm_until = Some(Instant::now() + KEEP_ALIVE);
        }
        self.in_use == 0
    }
}
