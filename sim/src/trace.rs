//! What happened in a run, as lines and as one hash.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::pulse;

/// Lines that a trace keeps if it does not keep all: what came before a failure.
const KEPT: usize = 40;

/// The log of a run: hashed as it comes, kept as far as it is asked for.
pub struct Trace {
    start: Instant,
    inner: Mutex<Inner>,
    going_on: Mutex<GoingOn>,
}

/// What has begun and not ended, by the order of the beginnings.
#[derive(Default)]
struct GoingOn {
    begun: u64,
    open: BTreeMap<u64, (Duration, String)>,
}

/// Something that goes on until this is dropped.
pub struct Ongoing<'a> {
    trace: &'a Trace,
    number: u64,
}

impl Drop for Ongoing<'_> {
    fn drop(&mut self) {
        self.trace.going_on.lock().open.remove(&self.number);
    }
}

struct Inner {
    hasher: Sha256,
    lines: VecDeque<String>,
    keep_all: bool,
    count: u64,
}

impl Trace {
    /// An empty trace that begins now; it keeps all lines, or the last ones.
    pub fn new(keep_all: bool) -> Self {
        let inner = Inner { hasher: Sha256::new(), lines: VecDeque::new(), keep_all, count: 0 };
        Self { start: Instant::now(), inner: Mutex::new(inner), going_on: Mutex::default() }
    }

    /// Simulated time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Keeps in mind that something goes on, for a run that does not end; that is no line of the trace.
    pub fn begin(&self, what: fmt::Arguments<'_>) -> Ongoing<'_> {
        let mut going_on = self.going_on.lock();
        going_on.begun += 1;
        let number = going_on.begun;
        going_on.open.insert(number, (self.elapsed(), what.to_string()));
        Ongoing { trace: self, number }
    }

    /// What goes on now, and since when.
    pub fn ongoing(&self) -> Vec<String> {
        let going_on = self.going_on.lock();
        let tell = |(since, what): &(Duration, String)| format!("{what}, since {} s", since.as_secs());
        going_on.open.values().map(tell).collect()
    }

    /// Notes what happens now.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let at = self.elapsed();
        pulse::beat(at);
        let line = format!("{:>5}.{:03} {what}", at.as_secs(), at.subsec_millis());
        let mut inner = self.inner.lock();
        inner.hasher.update(&line);
        inner.hasher.update(b"\n");
        inner.count += 1;
        if !inner.keep_all && inner.lines.len() == KEPT {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    /// Shows that the simulated clock moves; that is no line of the trace.
    pub fn beat(&self) {
        pulse::beat(self.elapsed());
    }

    /// The lines that were kept, in order.
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().lines.iter().cloned().collect()
    }

    /// How many lines there were.
    pub fn count(&self) -> u64 {
        self.inner.lock().count
    }

    /// A hash of all that happened: equal runs have equal hashes.
    pub fn hash(&self) -> String {
        let hash = self.inner.lock().hasher.clone().finalize();
        hash.iter().take(16).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

/// A short fingerprint of bytes, for trace lines (FNV-1a).
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
