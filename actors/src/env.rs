//! Clock and randomness, passed in so that a run can be repeated.
//!
//! The real ones are in the gateway's production wiring; the ones here are for tests and the simulator.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, distr::Alphanumeric};
use rand_chacha::ChaCha12Rng;
use ruma::MilliSecondsSinceUnixEpoch;

/// Tells the time of day.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;

    /// The time as Matrix writes it.
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        // Canonical JSON has no larger numbers; the year is 287,396 by then.
        MilliSecondsSinceUnixEpoch(js_int::UInt::new_saturating(self.now_ms()))
    }
}

/// Gives random bytes, good enough for secrets in production.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A string of `length` letters and digits.
    fn token(&self, length: usize) -> String {
        let mut seed = [0; 32];
        self.fill(&mut seed);
        ChaCha12Rng::from_seed(seed).sample_iter(Alphanumeric).take(length).map(char::from).collect()
    }

    /// `bytes` random bytes in hexadecimal.
    fn hex(&self, bytes: usize) -> String {
        let mut raw = vec![0; bytes];
        self.fill(&mut raw);
        raw.iter().fold(String::with_capacity(2 * bytes), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// Whether a moment has come that is never more than `longest_ms` ahead. If it is, the clock was set back meanwhile, and waiting for
/// it would take as long as that jump.
pub(crate) fn has_come(at_ms: u64, now_ms: u64, longest_ms: u64) -> bool {
    at_ms <= now_ms || at_ms - now_ms > longest_ms
}

/// Clock and randomness of one server.
#[derive(Clone)]
pub struct Env {
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Gives random bytes.
    pub entropy: Arc<dyn Entropy>,
}

/// Randomness that follows from a seed.
pub struct SeededEntropy(Mutex<ChaCha12Rng>);

impl SeededEntropy {
    /// The randomness of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(ChaCha12Rng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill(bytes);
    }
}

/// A clock that moves with tokio's, which tests and the simulator pause.
pub struct TokioClock {
    start: tokio::time::Instant,
    start_ms: u64,
}

impl TokioClock {
    /// A clock that shows `start_ms` now.
    pub fn new(start_ms: u64) -> Self {
        Self { start: tokio::time::Instant::now(), start_ms }
    }
}

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }
}

/// A clock that moves only when it is told to.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// Moves the clock.
    pub fn advance(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_waits_for_a_clock_that_was_set_back() {
        let now_ms = 1_000_000;
        for (at_ms, expected) in
            [(now_ms, true), (now_ms + 1, false), (now_ms + 500, false), (now_ms + 501, true)]
        {
            assert_eq!(has_come(at_ms, now_ms, 500), expected, "{at_ms}");
        }
    }

    #[test]
    fn a_seed_decides_everything_that_is_drawn() {
        let draw = |seed| {
            let entropy = SeededEntropy::new(seed);
            (entropy.next_u64(), entropy.token(24), entropy.hex(16), entropy.next_u64())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let (first, token, hex, second) = draw(7);
        assert_ne!(first, second);
        assert!(token.len() == 24 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{token}");
        assert!(hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hex}");
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_show_the_time_that_they_are_given() {
        let clock = TokioClock::new(1_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now_ms(), 1_250);
        let clock = ManualClock::new(5);
        clock.advance(10);
        assert_eq!(clock.now().get(), js_int::uint!(15));
    }
}
