//! What `/sync` told a member of a room makes the room's state, however often state resolution changed its mind.
//!
//! Keys that the room's state does not have any more are left out: `/sync` cannot tell of their end.

use anyhow::Result;

use super::History;
use crate::world::World;

pub(super) async fn is_told(world: &World, histories: &[History]) -> Result<Option<String>> {
    for follower in world.followers() {
        let (user, host) = (&follower.client.user_id, &follower.client.host.name);
        let rooms = follower.rooms();
        for History { room, sides } in histories {
            let Some(side) = sides.iter().find(|side| side.host == *host) else { continue };
            if !side.handle.is_joined(user).await? {
                continue;
            }
            let Some(log) = rooms.get(room).filter(|log| !log.was_left) else {
                return Ok(Some(format!("{user} is in {room}, and was last told that they are not")));
            };
            if let Some((key, held)) =
                side.state.iter().find(|(key, held)| log.state.get(*key) != Some(*held))
            {
                let told = log.state.get(key);
                return Ok(Some(format!("{room}: {key:?} is {held}, and {user} was last told of {told:?}")));
            }
        }
    }
    Ok(None)
}
