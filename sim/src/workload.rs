//! What users do while the faults happen.

pub mod chat;
pub mod devices;
pub mod members;
pub mod noise;
pub mod powers;
pub mod redactions;

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::{client::CallError, world::World};

/// Waits for a random time up to `most_ms`; says whether the workload is to go on then.
pub async fn pause(world: &World, random: &mut ChaCha8Rng, most_ms: u64) -> bool {
    tokio::time::sleep(Duration::from_millis(random.random_range(1..=most_ms))).await;
    world.goes_on()
}

/// A refusal is what a workload expects at times; nothing else is.
pub fn may_refuse<T>(result: Result<T, CallError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Its host may be down, or the room may have decided otherwise meanwhile.
        Err(_) => Ok(None),
    }
}
