//! What is known of the servers that media come from: who is asked how much at a time, and who not again yet.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RemoteError;
use crate::env::has_come;

/// Media that are fetched from one server at a time.
const FETCHES_MAX: usize = 8;

/// How long a server that could not be reached is left alone, the first time; twice as long each further time.
const BACK_OFF_FIRST: Duration = Duration::from_secs(5);

/// The longest that it is.
const BACK_OFF_MAX: Duration = Duration::from_secs(10 * 60);

/// The same in milliseconds.
const BACK_OFF_MAX_MS: u64 = BACK_OFF_MAX.as_secs() * 1000;

/// Servers that are remembered before those that nothing is known of are forgotten.
const ORIGINS_MAX: usize = 4096;

/// The servers that media come from.
#[derive(Default)]
pub(super) struct Origins(DashMap<OwnedServerName, Arc<Origin>>);

struct Origin {
    permits: Arc<Semaphore>,
    trouble: Mutex<Trouble>,
}

#[derive(Clone, Copy, Default)]
struct Trouble {
    failures: u32,
    until_ms: u64,
}

impl Origins {
    /// Waits until one more may be fetched from a server; refuses if it could not be reached a short time ago.
    pub(super) async fn turn(
        &self,
        server_name: &ServerName,
        now_ms: u64,
    ) -> Result<OwnedSemaphorePermit, RemoteError> {
        if self.0.len() >= ORIGINS_MAX {
            self.0.retain(|_, origin| {
                Arc::strong_count(origin) > 1
                    || origin.permits.available_permits() < FETCHES_MAX
                    || origin.trouble.lock().until_ms > now_ms
            });
        }
        let origin = self.0.entry(server_name.to_owned()).or_insert_with(|| Arc::new(Origin::new())).clone();
        let until_ms = origin.trouble.lock().until_ms;
        if !has_come(until_ms, now_ms, BACK_OFF_MAX_MS) {
            let seconds = (until_ms - now_ms).div_ceil(1000);
            return Err(RemoteError::Unreachable(format!("it is asked again in {seconds} s")));
        }
        let permit = origin.permits.clone().acquire_owned().await;
        permit.map_err(|_| RemoteError::Unreachable("this server is stopping".to_owned()))
    }

    /// Notes that a server could not be reached.
    pub(super) fn failed(&self, server_name: &ServerName, now_ms: u64) {
        let Some(origin) = self.0.get(server_name).map(|origin| origin.clone()) else { return };
        let mut trouble = origin.trouble.lock();
        // Of those that were under way together, the first counts.
        if !has_come(trouble.until_ms, now_ms, BACK_OFF_MAX_MS) {
            return;
        }
        let wait = BACK_OFF_FIRST.saturating_mul(1 << trouble.failures.min(16)).min(BACK_OFF_MAX);
        trouble.failures += 1;
        trouble.until_ms = now_ms + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 2);
    }

    /// Notes that a server is there.
    pub(super) fn answered(&self, server_name: &ServerName) {
        if let Some(origin) = self.0.get(server_name) {
            *origin.trouble.lock() = Trouble::default();
        }
    }
}

impl Origin {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(FETCHES_MAX)), trouble: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use ruma::server_name;

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_gone_is_left_alone_longer_and_longer() {
        let (origins, server) = (Origins::default(), server_name!("example.org"));
        let mut now_ms = 1_000_000;
        for seconds in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            drop(origins.turn(server, now_ms).await.unwrap());
            origins.failed(server, now_ms);
            origins.failed(server, now_ms);
            assert!(origins.turn(server, now_ms + seconds * 1000 - 1).await.is_err(), "{seconds}");
            now_ms += seconds * 1000;
        }
        drop(origins.turn(server, now_ms).await.unwrap());
        origins.failed(server, now_ms);
        assert!(origins.turn(server, now_ms).await.is_err());
        let set_back = now_ms - 900_000;
        assert!(origins.turn(server, set_back).await.is_ok(), "it waits for a clock that was set back");
        origins.answered(server);
        let turns: Vec<_> = (0..FETCHES_MAX).map(|_| origins.turn(server, now_ms).now_or_never()).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(origins.turn(server, now_ms).now_or_never().is_none(), "it is asked for too much at a time");
        assert!(origins.turn(server_name!("other.org"), now_ms).now_or_never().is_some());
    }
}
