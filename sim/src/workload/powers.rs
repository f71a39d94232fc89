//! Administrators who do not agree.

use std::sync::Arc;

use anyhow::Result;
use rand::{RngExt, seq::IndexedRandom};
use ruma::RoomId;
use serde_json::json;

use super::{may_refuse, pause};
use crate::{client::Client, world::World};

/// Administrators raise and lower each other, and change what the room is called and who may come in.
pub async fn fight(world: &World, room: &RoomId, fighters: &[Arc<Client>], pause_ms: u64) -> Result<()> {
    let mut random = world.options().seed.stream(&format!("fight {room}"));
    while pause(world, &mut random, pause_ms).await {
        let (Some(one), Some(other)) = (fighters.choose(&mut random), fighters.choose(&mut random)) else {
            return Ok(());
        };
        match random.random_range(0..5) {
            0..=1 => {
                let Some(mut levels) = may_refuse(one.state(room, "m.room.power_levels").await)? else {
                    continue;
                };
                levels["users"][other.user_id.as_str()] = random.random_range(0..=100).into();
                may_refuse(one.set_state(room, ("m.room.power_levels", ""), levels).await)?;
            }
            2 => {
                let name = json!({ "name": format!("room {}", random.random_range(0..1000)) });
                may_refuse(one.set_state(room, ("m.room.name", ""), name).await)?;
            }
            3 => {
                let rule = if random.random_ratio(1, 2) { "invite" } else { "public" };
                let rule = json!({ "join_rule": rule });
                may_refuse(one.set_state(room, ("m.room.join_rules", ""), rule).await)?;
            }
            _ => {
                let topic = json!({ "topic": format!("{}", random.random_range(0..1000)) });
                may_refuse(one.set_state(room, ("m.room.topic", ""), topic).await)?;
            }
        }
    }
    Ok(())
}
