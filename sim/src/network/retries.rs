//! How soon hosts try others again that did not take their transactions.
//!
//! The rule is that of the server's destinations: the first retry comes after two seconds, the time doubles with each failure
//! up to an hour, and is a fifth shorter or longer at random. A sign of life (a request, or an answer to one) ends the wait,
//! but no retry begins within two seconds after the one before, and the next wait is that after two failures. A start ends
//! it as well, and a clock that is set may.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actors::federation::FederationError;
use http::StatusCode;
use ruma::{OwnedServerName, ServerName};
use tokio::time::Instant;

use super::answers::Pair;

/// About how long the first back-off is.
const FIRST: Duration = Duration::from_secs(2);

/// About how long a back-off is at most.
const MOST: Duration = Duration::from_secs(3600);

/// How long after a try the next one comes at the earliest, whatever signs of life there are.
const ALIVE_PAUSE: Duration = Duration::from_secs(2);

/// The wait after a transaction that was refused for what is in it: another one follows.
const OTHER: Duration = Duration::from_secs(1);

/// What a retry may be too early by: clocks and timers know whole milliseconds, and a timer that is almost due counts.
const SLACK: Duration = Duration::from_millis(100);

/// How the transactions of each host to each other host went.
#[derive(Default)]
pub(super) struct Retries {
    by_pair: BTreeMap<Pair, Tries>,
    /// Those that keep to the rule: a hostile peer need not.
    hosts: BTreeSet<OwnedServerName>,
    hasty: Vec<String>,
}

#[derive(Default)]
struct Tries {
    /// Failures since the last success, or since the sender started.
    failures: u32,
    /// The last failure, until a transaction is taken.
    failed: Option<Failed>,
    /// Requests of the other host that the sender deals with.
    dealing: u32,
    /// The other host's last sign of life.
    sign: Option<Instant>,
}

struct Failed {
    began: Instant,
    ended: Instant,
    /// When the next try may come.
    due: Instant,
}

impl Retries {
    /// A transaction begins.
    pub(super) fn begins(&mut self, (from, to): &Pair) {
        let now = Instant::now();
        let tries = self.by_pair.entry((from.clone(), to.clone())).or_default();
        let Some(failed) = tries.failed.as_ref().filter(|_| self.hosts.contains(from)) else { return };
        let is_alive = tries.dealing > 0 || tries.sign.is_some_and(|sign| sign >= failed.ended);
        let due = if is_alive { failed.due.min(failed.began + ALIVE_PAUSE) } else { failed.due };
        if now + SLACK < due {
            let (failures, early) = (tries.failures, due - now);
            let after = now - failed.ended;
            self.hasty.push(format!(
                "{from} tries {to} again {after:?} after failure {failures}, {early:?} too early"
            ));
        }
        if is_alive {
            tries.failures = tries.failures.min(1);
        }
    }

    /// A transaction ends that began then.
    pub(super) fn ends(&mut self, pair: &Pair, began: Instant, error: Option<&FederationError>) {
        let tries = self.by_pair.entry(pair.clone()).or_default();
        let now = Instant::now();
        let Some(error) = error else {
            tries.failures = 0;
            tries.failed = None;
            return;
        };
        let wait = if is_about_content(error) {
            OTHER
        } else {
            tries.failures += 1;
            least_wait(tries.failures)
        };
        tries.failed = Some(Failed { began, ended: now, due: now + wait });
    }

    /// A request of one host arrives at another one.
    pub(super) fn is_dealt_with(&mut self, from: &ServerName, by: &ServerName) {
        self.by_pair.entry((by.to_owned(), from.to_owned())).or_default().dealing += 1;
    }

    /// A request of one host was answered or given up by another one; or an answer of `from` arrives there.
    pub(super) fn was_heard(&mut self, from: &ServerName, by: &ServerName, was_dealt_with: bool) {
        let tries = self.by_pair.entry((by.to_owned(), from.to_owned())).or_default();
        tries.dealing -= u32::from(was_dealt_with);
        tries.sign = Some(Instant::now());
    }

    /// A host starts, or its clock, by which it knows when to try again, is set: it gives everybody a chance.
    pub(super) fn starts(&mut self, host: &OwnedServerName) {
        self.hosts.insert(host.clone());
        for ((from, _), tries) in &mut self.by_pair {
            if from == host {
                (tries.failures, tries.failed) = (0, None);
            }
        }
    }

    /// Retries that came too early.
    pub(super) fn hasty(&self) -> &[String] {
        &self.hasty
    }
}

/// The shortest wait after so many failures.
fn least_wait(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MOST) * 4 / 5
}

/// Whether a server refuses what is in a transaction, and may take another one.
fn is_about_content(error: &FederationError) -> bool {
    const CONTENT: [StatusCode; 3] =
        [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
    matches!(error, FederationError::Status { status, .. } if CONTENT.contains(status))
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    async fn fail(retries: &mut Retries, pair: &Pair, wait_ms: u64) {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        retries.begins(pair);
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(10)).await;
        retries.ends(pair, began, Some(&FederationError::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn each_back_off_is_longer_unless_the_server_shows_up() {
        let pair = (owned_server_name!("a"), owned_server_name!("b"));
        let mut retries = Retries::default();
        retries.starts(&pair.0);
        for wait_ms in [0, 1600, 3200, 6400] {
            fail(&mut retries, &pair, wait_ms).await;
        }
        assert!(retries.hasty().is_empty(), "{:?}", retries.hasty());
        fail(&mut retries, &pair, 6400).await;
        assert_eq!(retries.hasty().len(), 1);
        // A request that arrives is a sign of life; the next back-off is a short one.
        retries.is_dealt_with(&pair.1, &pair.0);
        retries.was_heard(&pair.1, &pair.0, true);
        for wait_ms in [0, 3200] {
            fail(&mut retries, &pair, wait_ms).await;
        }
        retries.starts(&pair.0);
        fail(&mut retries, &pair, 0).await;
        assert_eq!(retries.hasty().len(), 1, "{:?}", retries.hasty());
        fail(&mut retries, &pair, 1000).await;
        assert_eq!(retries.hasty().len(), 2);
    }
}
