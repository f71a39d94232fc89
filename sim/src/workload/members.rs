//! Users who come and go, are invited, kicked and banned.

use std::sync::Arc;

use anyhow::Result;
use rand::{RngExt, seq::IndexedRandom};
use ruma::RoomId;

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// Users join and leave at random.
pub async fn come_and_go(world: &World, room: &RoomId, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("come and go {room}"));
    let hosts = world.hosts();
    while pause(world, &mut random, pause_ms).await {
        let Some(user) = users.choose(&mut random) else { return Ok(()) };
        let via = &hosts[random.random_range(0..hosts.len())].name;
        if random.random_ratio(1, 2) {
            may_refuse(user.join(room, via.as_str()).await)?;
        } else {
            may_refuse(user.membership(room, "leave", None).await)?;
        }
    }
    Ok(())
}

/// A moderator kicks, bans and unbans users, who come back and talk whenever they can.
pub async fn moderate(
    world: &World,
    room: &RoomId,
    moderators: &[Arc<Client>],
    users: &[Arc<Client>],
) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("moderate {room}"));
    while pause(world, &mut random, 4000).await {
        let (Some(moderator), Some(user)) = (moderators.choose(&mut random), users.choose(&mut random))
        else {
            return Ok(());
        };
        let action = ["kick", "ban", "unban", "invite"].choose(&mut random).copied().unwrap_or("kick");
        may_refuse(moderator.membership(room, action, Some(user)).await)?;
    }
    Ok(())
}

/// Users join whenever they can, and talk.
pub async fn insist(world: &World, room: &RoomId, user: &Client, via: &str) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("insist {} {room}", user.user_id));
    while pause(world, &mut random, 3000).await {
        if random.random_ratio(1, 3) {
            may_refuse(user.join(room, via).await)?;
        }
        may_refuse(user.send(room, "still here").await)?;
    }
    Ok(())
}
