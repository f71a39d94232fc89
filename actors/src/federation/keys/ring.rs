//! What is known of other servers' keys, and of how they answer when they are asked for them.

use std::{collections::BTreeMap, sync::Arc};

use dashmap::DashMap;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Mutex;

use super::{ASK_AGAIN_MS, DatedKeys, KEYS_MAX};

/// A server that did not answer is not asked again for this long; then ever longer.
pub(super) const RETRY_FIRST_MS: u64 = 2000;

/// Doublings of that after one failure after another: about an hour at most.
const DOUBLINGS_MAX: u32 = 11;

/// A server is never left alone for longer.
pub(super) const PAUSE_MAX_MS: u64 = RETRY_FIRST_MS << DOUBLINGS_MAX;

/// Failures after which a server seems gone, so that nothing waits for its keys any more: a quarter of a minute or more.
pub(super) const SILENCES_MAX: u32 = 3;

/// Servers that are kept in memory; strangers can name any number of them.
const KNOWN_MAX: usize = 20_000;

/// What is known of other servers' keys.
#[derive(Default)]
pub(crate) struct KeyRing {
    known: DashMap<OwnedServerName, Arc<Mutex<Known>>>,
}

impl KeyRing {
    pub(super) fn of(&self, server: &ServerName) -> Arc<Mutex<Known>> {
        if self.known.len() >= KNOWN_MAX {
            // What is not in use just now is in the store, or can be asked for again.
            self.known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        self.known.entry(server.to_owned()).or_default().clone()
    }
}

/// What is known of one server.
#[derive(Default)]
pub(super) struct Known {
    pub(super) loaded: bool,
    pub(super) keys: DatedKeys,
    pub(super) failures: u32,
    pub(super) ask_again_ms: u64,
    pub(super) ask_notaries_again_ms: u64,
}

impl Known {
    /// Those of its keys that are wanted, whenever they are valid.
    pub(super) fn wanted(&self, wanted: &BTreeMap<String, u64>) -> DatedKeys {
        wanted.keys().filter_map(|id| Some((id.clone(), self.keys.get(id)?.clone()))).collect()
    }

    /// Adds keys; returns those that had to go for them, which were valid for the shortest time.
    pub(super) fn add(&mut self, keys: DatedKeys) -> Vec<String> {
        self.keys.extend(keys);
        let mut gone = Vec::new();
        while self.keys.len() > KEYS_MAX
            && let Some((id, _)) = self.keys.iter().min_by_key(|(_, key)| key.valid_until_ms)
        {
            let id = id.clone();
            self.keys.remove(&id);
            gone.push(id);
        }
        gone
    }

    /// For how long the server has not answered, if it did not the last time.
    pub(super) fn silence(&self) -> Option<Silence> {
        match self.failures {
            0 => None,
            1..=SILENCES_MAX => Some(Silence::Brief),
            _ => Some(Silence::Long),
        }
    }

    /// Notes how asking the server went.
    pub(super) fn asked(&mut self, is_success: bool, now_ms: u64) {
        self.failures = if is_success { 0 } else { self.failures.saturating_add(1) };
        let doublings = self.failures.saturating_sub(1).min(DOUBLINGS_MAX);
        let pause_ms = if is_success { ASK_AGAIN_MS } else { RETRY_FIRST_MS << doublings };
        self.ask_again_ms = now_ms + pause_ms;
    }
}

/// For how long a server has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::federation) enum Silence {
    /// It may answer soon.
    Brief,
    /// It seems gone: nothing waits for it any more.
    Long,
}
