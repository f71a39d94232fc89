//! No server accepts what a hostile peer forged.

use anyhow::Result;
use storage::schema::Standing;

use super::History;
use crate::world::World;

pub(super) async fn refused(world: &World, histories: &[History]) -> Result<Option<String>> {
    for event in world.ledger().forbidden() {
        for History { room, sides } in histories {
            for side in sides {
                let known = side.handle.any_event(&event).await?;
                if known.is_some_and(|known| known.standing == Standing::Accepted) {
                    return Ok(Some(format!("{room}: {} accepted the forged {event}", side.host)));
                }
            }
        }
    }
    Ok(None)
}
