//! What happened in a run, as lines and as one hash.

use sha2::{Digest, Sha256};

/// The log of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    lines: Vec<String>,
}

impl Trace {
    /// Notes what happened at a moment, in milliseconds of simulated time.
    pub fn note(&mut self, at_ms: u64, what: &str) {
        self.lines.push(format!("{at_ms} {what}"));
    }

    /// All that happened, in order.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// A hash of all that happened: equal runs have equal hashes.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for line in &self.lines {
            hasher.update(line);
            hasher.update(b"\n");
        }
        hasher.finalize().iter().take(16).fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"))
    }
}
