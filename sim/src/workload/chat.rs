//! Users who talk.

use std::sync::Arc;

use anyhow::Result;
use futures_util::future::try_join_all;
use ruma::RoomId;

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// All users talk, each with pauses of up to `pause_ms`.
pub async fn chat(world: &World, room: &RoomId, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    try_join_all(users.iter().map(|user| talk(world, room, user, pause_ms))).await.map(drop)
}

/// The longest pause of each of a room's users, with which the room hears something about once a second: people in a room
/// share one conversation, however many they are. A few are slower than that.
pub fn calm(users: usize) -> u64 {
    let users = u64::try_from(users).unwrap_or(u64::MAX);
    users.saturating_mul(2000).max(6000)
}

async fn talk(world: &World, room: &RoomId, user: &Client, pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("talk {} {room}", user.user_id));
    let mut number = 0;
    while pause(world, &mut random, pause_ms).await {
        number += 1;
        may_refuse(user.send(room, &format!("{number} of {}", user.user_id)).await)?;
    }
    Ok(())
}
