//! Users who take back what was said.

use std::{collections::VecDeque, sync::Arc};

use anyhow::Result;
use futures_util::future::try_join_all;
use rand::RngExt;
use ruma::{OwnedEventId, RoomId};

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// How far back is thought of what to take back.
const REMEMBERED: usize = 5;

/// All users talk, each with pauses of up to `pause_ms`, and take back some of it.
pub async fn regret(world: &World, room: &RoomId, users: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    try_join_all(users.iter().map(|user| waver(world, room, user, pause_ms))).await.map(drop)
}

/// A user takes back what they said before, with pauses of up to `pause_ms`.
pub async fn take_back(
    world: &World,
    room: &RoomId,
    (user, mut said): (&Client, Vec<OwnedEventId>),
    pause_ms: u64,
) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("take back {} {room}", user.user_id));
    while pause(world, &mut random, pause_ms).await && !said.is_empty() {
        let event = said.swap_remove(random.random_range(0..said.len()));
        may_refuse(user.redact(room, &event).await)?;
    }
    Ok(())
}

async fn waver(world: &World, room: &RoomId, user: &Client, pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("regret {} {room}", user.user_id));
    let mut said = VecDeque::<OwnedEventId>::new();
    while pause(world, &mut random, pause_ms).await {
        if random.random_ratio(1, 3)
            && let Some(event) = said.remove(random.random_range(0..=said.len()))
        {
            may_refuse(user.redact(room, &event).await)?;
            continue;
        }
        said.extend(may_refuse(user.send(room, "something rash").await)?);
        if said.len() > REMEMBERED {
            said.pop_front();
        }
    }
    Ok(())
}
