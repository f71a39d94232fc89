//! What was acknowledged to a client is still there: on its own server always, and in the graph of all others.

use anyhow::Result;
use storage::schema::Standing;

use super::History;
use crate::world::World;

pub(super) async fn kept(world: &World, histories: &[History]) -> Result<Option<String>> {
    for acknowledged in world.ledger().all() {
        let (room, event) = (&acknowledged.room, &acknowledged.event);
        let Some((_, boot)) = world.boots().into_iter().find(|(name, _)| *name == acknowledged.host) else {
            continue;
        };
        let own = boot.homeserver().room(room).await?.any_event(event).await?;
        if own.is_none_or(|own| own.standing != Standing::Accepted) {
            return Ok(Some(format!("{room}: {} acknowledged {event} and lost it", acknowledged.host)));
        }
        let Some(history) = histories.iter().find(|history| history.room == *room) else { continue };
        // A server that has left the room since may have had the last word in it.
        if !history.sides.iter().any(|side| side.host == acknowledged.host) {
            continue;
        }
        if let Some(side) = history.sides.iter().find(|side| !side.graph.contains_key(event)) {
            let (host, other) = (&acknowledged.host, &side.host);
            return Ok(Some(format!("{room}: {host} acknowledged {event}, and {other} never got it")));
        }
    }
    Ok(None)
}

/// An event that some server does not have, of those that were acknowledged after the first `before` ones.
pub(super) async fn arrived(world: &World, before: usize) -> Result<Option<String>> {
    for (name, boot) in world.boots() {
        for acknowledged in world.ledger().all().split_off(before) {
            let (room, event) = (&acknowledged.room, &acknowledged.event);
            let known = boot.homeserver().room(room).await?.any_event(event).await?;
            if known.is_none_or(|known| known.standing == Standing::Outlier) {
                let host = &acknowledged.host;
                return Ok(Some(format!(
                    "{room}: {host} acknowledged {event}, and nobody gave it to {name}"
                )));
            }
        }
    }
    Ok(None)
}
