//! Receipts, typing notices and presence, which may get lost, and must not get in the way.

use std::sync::Arc;

use anyhow::Result;
use rand::{RngExt, seq::IndexedRandom};
use ruma::RoomId;

use crate::{
    client::{Client, Noise},
    workload::{may_refuse, pause},
    world::World,
};

/// Users read, type, come and go.
pub async fn noise(world: &World, room: &RoomId, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("noise {room}"));
    while pause(world, &mut random, pause_ms).await {
        let Some(user) = users.choose(&mut random) else { return Ok(()) };
        let newest = world.ledger().all().last().map(|acknowledged| acknowledged.event.clone());
        let noise = match random.random_range(0..3) {
            0 => Noise::Typing(random.random_ratio(1, 2)),
            1 => Noise::Presence(
                ["online", "unavailable", "offline"].choose(&mut random).copied().unwrap_or("online"),
            ),
            _ => match &newest {
                Some(event) => Noise::Read(event),
                None => continue,
            },
        };
        may_refuse(user.make_noise(room, noise).await)?;
    }
    Ok(())
}
