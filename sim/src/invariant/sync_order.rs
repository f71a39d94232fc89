//! `/sync` tells of each event once, in the order of the timeline, and leaves none out that came while it followed.

use std::collections::BTreeMap;

use anyhow::Result;
use engine::id::TimelineIndex;

use crate::{follower::RoomLog, world::World};

pub(super) async fn follows_timeline(world: &World) -> Result<Option<String>> {
    for follower in world.followers() {
        let user = &follower.client.user_id;
        let Some(boot) = follower.client.host.boot() else { continue };
        for (room, log) in follower.rooms() {
            let Ok(handle) = boot.homeserver().room(&room).await else { continue };
            let timeline = handle.timeline_forward(TimelineIndex(i64::MIN), usize::MAX / 2).await?;
            let order: BTreeMap<_, _> =
                timeline.iter().enumerate().map(|(place, event)| (event.pdu.event_id(), place)).collect();
            let mut last = None;
            for event in &log.events {
                let Some(place) = order.get(event) else {
                    return Ok(Some(format!("{user} was told of {event}, which is not in {room}")));
                };
                if last > Some(*place) {
                    return Ok(Some(format!("{user} was told of {event} too late in {room}")));
                }
                last = Some(*place);
            }
            let still_in = handle.is_joined(user).await?;
            if let Some(event) = left_out(&log, &timeline, &order).filter(|_| still_in) {
                return Ok(Some(format!("{user} was never told of {event} in {room}")));
            }
        }
    }
    Ok(None)
}

/// An event that arrived in its place after the follower's last jump, and was not told.
fn left_out(
    log: &RoomLog,
    timeline: &[std::sync::Arc<actors::room::StoredEvent>],
    order: &BTreeMap<&ruma::OwnedEventId, usize>,
) -> Option<ruma::OwnedEventId> {
    let unbroken = &log.events[log.unbroken_from..];
    let from = *order.get(unbroken.first()?)?;
    // What filled a hole has another place than number, and is not news.
    let arrived =
        timeline[from..].iter().filter(|event| event.index == Some(TimelineIndex::from(position(event))));
    let missing = arrived.map(|event| event.pdu.event_id()).find(|id| !unbroken.contains(id));
    missing.cloned()
}

fn position(event: &actors::room::StoredEvent) -> engine::id::Position {
    engine::id::Position(event.short.0)
}
