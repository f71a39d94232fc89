//! What happened in a run, as lines and as one hash.

use std::{collections::VecDeque, fmt, time::Duration};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Lines that a trace keeps if it does not keep all: what came before a failure.
const KEPT: usize = 40;

/// The log of a run: hashed as it comes, kept as far as it is asked for.
pub struct Trace {
    start: Instant,
    inner: Mutex<Inner>,
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
        Self { start: Instant::now(), inner: Mutex::new(inner) }
    }

    /// Simulated time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes what happens now.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let at = self.elapsed();
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
