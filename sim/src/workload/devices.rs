//! Users who write to each other's devices, whose devices get new keys, and who are out of the room for a while.

use std::sync::Arc;

use anyhow::Result;
use futures_util::future::try_join_all;
use rand::{RngExt, seq::IndexedRandom};
use ruma::RoomId;

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// All users write to others' devices, each with pauses of up to `pause_ms`, now and then get new keys, and leave the
/// room and come back; the first one, through whose server they come, stays.
pub async fn use_devices(world: &World, room: &RoomId, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    try_join_all(users.iter().map(|user| use_device(world, room, (user, users), pause_ms))).await.map(drop)
}

async fn use_device(
    world: &World,
    room: &RoomId,
    (user, users): (&Client, &[Arc<Client>]),
    pause_ms: u64,
) -> Result<()> {
    let via = users.first().map_or("", |first| first.host.name.as_str());
    let mut random = world.options().seed.stream(&format!("device of {}", user.user_id));
    let mut version = 0;
    while pause(world, &mut random, pause_ms).await {
        let Some(other) = users.choose(&mut random) else { return Ok(()) };
        if random.random_ratio(1, 8) && user.host.name != via {
            may_refuse(user.membership(room, "leave", None).await)?;
            pause(world, &mut random, pause_ms).await;
            may_refuse(user.join(room, via).await)?;
        } else if random.random_ratio(1, 4) {
            version += 1;
            may_refuse(user.upload_keys(version).await)?;
        } else if other.user_id != user.user_id {
            may_refuse(user.tell(other).await)?;
        }
    }
    Ok(())
}

/// Each device gets new keys, with pauses of up to `pause_ms`.
pub async fn renew_keys(world: &World, devices: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    let renew = async |(number, device): (usize, &Arc<Client>)| {
        let mut random = world.options().seed.stream(&format!("keys {number} of {}", device.user_id));
        let mut version = 0;
        while pause(world, &mut random, pause_ms).await {
            version += 1;
            may_refuse(device.upload_keys(version).await)?;
        }
        Ok(())
    };
    try_join_all(devices.iter().enumerate().map(renew)).await.map(drop)
}
