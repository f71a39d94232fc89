//! Limits on what one other server may ask for, so that it cannot take what the rest needs.
//!
//! A server has a few requests worked on at a time; more of them wait, and too many are refused. Above a rate its
//! requests are slowed down first.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use dashmap::DashMap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ApiResult};

/// Servers that are remembered; the idle ones are forgotten first.
const ORIGINS_MAX: usize = 10_000;

/// How long a server is told to wait that has too many requests waiting.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What one other server may ask for.
#[derive(Clone, Copy, Debug)]
pub struct OriginRates {
    /// Requests that are worked on at a time.
    pub concurrent: u32,
    /// Requests that may wait for that; more are refused.
    pub waiting: u32,
    /// Requests per second that are answered without delay.
    pub per_second: u32,
    /// How long each further one is delayed.
    pub delay: Duration,
}

/// The limits of all servers; none if limits are off.
#[derive(Default)]
pub struct Origins(Option<Limits>);

struct Limits {
    rates: OriginRates,
    origins: DashMap<OwnedServerName, Arc<Origin>>,
}

struct Origin {
    /// Those that are worked on.
    working: Arc<Semaphore>,
    /// Those that are worked on and those that wait.
    known: Arc<Semaphore>,
    rate: DefaultDirectRateLimiter,
}

/// A request's place among those of its server.
pub struct OriginPlace {
    _working: Option<OwnedSemaphorePermit>,
    _known: Option<OwnedSemaphorePermit>,
}

impl Origins {
    /// Limits with these rates.
    pub fn new(rates: OriginRates) -> Self {
        Self(Some(Limits { rates, origins: DashMap::new() }))
    }

    /// Waits until a request of a server may be worked on; refuses it if too many of its requests wait already.
    pub async fn enter(&self, server: &ServerName) -> ApiResult<OriginPlace> {
        let Some(limits) = &self.0 else { return Ok(OriginPlace { _working: None, _known: None }) };
        let origin = limits.origin(server);
        let Ok(known) = origin.known.clone().try_acquire_owned() else {
            tracing::info!(origin = %server, "a server sends more requests than it may");
            return Err(ApiError::limit_exceeded(RETRY_AFTER));
        };
        if origin.rate.check().is_err() {
            tokio::time::sleep(limits.rates.delay).await;
        }
        // The semaphore is never closed.
        let working = origin.working.clone().acquire_owned().await.ok();
        Ok(OriginPlace { _working: working, _known: Some(known) })
    }
}

impl Limits {
    fn origin(&self, server: &ServerName) -> Arc<Origin> {
        if self.origins.len() >= ORIGINS_MAX {
            self.origins.retain(|_, origin| Arc::strong_count(origin) > 1);
        }
        let rates = self.rates;
        let places = |count: u32| Arc::new(Semaphore::new(count as usize));
        let per_second = NonZeroU32::new(rates.per_second).unwrap_or(NonZeroU32::MIN);
        let new = || {
            Arc::new(Origin {
                working: places(rates.concurrent.max(1)),
                known: places(rates.concurrent.max(1).saturating_add(rates.waiting)),
                rate: RateLimiter::direct(Quota::per_second(per_second)),
            })
        };
        self.origins.entry(server.to_owned()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn origins(concurrent: u32, waiting: u32, per_second: u32) -> Origins {
        Origins::new(OriginRates { concurrent, waiting, per_second, delay: Duration::from_secs(1) })
    }

    #[tokio::test]
    async fn a_server_with_too_many_requests_is_refused_and_others_are_not() {
        let origins = origins(1, 1, 100);
        let (loud, quiet) = (server_name!("loud.example.org"), server_name!("quiet.example.org"));
        let first = origins.enter(loud).await.unwrap();
        let mut second = Box::pin(origins.enter(loud));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert_eq!(origins.enter(loud).await.err().unwrap().errcode(), "M_LIMIT_EXCEEDED");
        origins.enter(quiet).await.unwrap();
        drop(first);
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn requests_above_the_rate_are_slowed_down() {
        let origins = origins(10, 10, 2);
        let server = server_name!("loud.example.org");
        let start = tokio::time::Instant::now();
        for _ in 0..2 {
            origins.enter(server).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        origins.enter(server).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
    }
}
