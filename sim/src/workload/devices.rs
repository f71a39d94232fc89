//! Users who write to each other's devices, and whose devices get new keys.

use std::sync::Arc;

use anyhow::Result;
use futures_util::future::try_join_all;
use rand::{RngExt, seq::IndexedRandom};

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// All users write to others' devices, each with pauses of up to `pause_ms`, and now and then get new keys.
pub async fn use_devices(world: &World, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    try_join_all(users.iter().map(|user| use_device(world, user, users, pause_ms))).await.map(drop)
}

async fn use_device(world: &World, user: &Client, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("device of {}", user.user_id));
    let mut version = 1;
    while pause(world, &mut random, pause_ms).await {
        let Some(other) = users.choose(&mut random) else { return Ok(()) };
        if random.random_ratio(1, 4) {
            version += 1;
            may_refuse(user.upload_keys(version).await)?;
        } else if other.user_id != user.user_id {
            may_refuse(user.tell(other).await)?;
        }
    }
    Ok(())
}
