//! Messages to devices arrive, and who shares a room knows the keys of each other's devices.
//!
//! That none comes twice or too early is noted by the clients as they follow.

use anyhow::Result;

use super::History;
use crate::world::World;

pub(super) fn told(world: &World) -> Option<String> {
    let followers = world.followers();
    for (from, to, number) in world.ledger().told() {
        let Some(follower) = followers.iter().find(|follower| follower.client.user_id == to) else {
            continue;
        };
        if !follower.messages().contains(&(from.to_string(), number)) {
            return Some(format!("message {number} of {from} was accepted, and {to} never got it"));
        }
    }
    None
}

pub(super) async fn known(world: &World, histories: &[History]) -> Result<Option<String>> {
    let mut tracking = Vec::new();
    for follower in world.followers().into_iter().filter(|follower| follower.tracks_devices()) {
        let (user, host) = (&follower.client.user_id, &follower.client.host.name);
        let side = histories.iter().flat_map(|history| &history.sides).find(|side| side.host == *host);
        // Nobody tells those who are out of the room.
        if let Some(side) = side
            && side.handle.is_joined(user).await?
        {
            tracking.push(follower);
        }
    }
    for owner in &tracking {
        let own = &owner.client.user_id;
        let Ok(keys) = owner.client.keys_of(own).await else { continue };
        if keys.is_null() {
            continue;
        }
        for other in &tracking {
            let known = other.devices_of(own);
            if known.as_ref() != Some(&keys) {
                let known = known.unwrap_or_default();
                let user = &other.client.user_id;
                return Ok(Some(format!("the devices of {own} have {keys}, and {user} knows {known}")));
            }
        }
    }
    Ok(None)
}
