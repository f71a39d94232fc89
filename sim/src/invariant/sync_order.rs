//! `/sync` tells of each event once, in the order of the timeline, and leaves none out that came while it followed.
//!
//! It may leave out state events that lost to others, since clients would take them for the state: `sync_state` says
//! what they are to know. What it told of a room that lacked members may be refused once they are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use actors::room::{StoredEvent, is_dummy};
use anyhow::Result;
use engine::id::{Position, TimelineIndex};
use ruma::OwnedEventId;
use storage::schema::Standing;

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
                    let known = handle.any_event(event).await?;
                    let is_fine = known.is_some_and(|known| match known.standing {
                        Standing::Rejected | Standing::SoftFailed => handle.snapshot().head.corrected,
                        // The end of an invite or a knock, in a room that the server is not in.
                        Standing::Outlier => known.pdu.state_key() == Some(user.as_str()),
                        Standing::Accepted => false,
                    });
                    if is_fine {
                        continue;
                    }
                    return Ok(Some(format!("{user} was told of {event}, which is not in {room}")));
                };
                if filled_hole(&timeline[*place]) && timeline[*place].pdu.state_key() == Some(user.as_str()) {
                    // How the user's membership ended, told while the event had no place yet.
                    continue;
                }
                if last > Some(*place) {
                    return Ok(Some(format!("{user} was told of {event} too late in {room}")));
                }
                last = Some(*place);
            }
            let still_in = handle.is_joined(user).await?;
            let mut missing = left_out(&log, &timeline, &order).into_iter();
            if let Some(event) = missing.find(|event| still_in && event.pdu.state_key().is_none()) {
                let (id, told) = (
                    event.pdu.event_id(),
                    if log.was_left { "that they had left" } else { "of other events" },
                );
                return Ok(Some(format!("{user} was never told of {id} in {room}, and last {told}")));
            }
        }
    }
    Ok(None)
}

/// The events that arrived in their places after the follower's last jump, and were not told.
fn left_out(
    log: &RoomLog,
    timeline: &[Arc<StoredEvent>],
    order: &BTreeMap<&OwnedEventId, usize>,
) -> Vec<Arc<StoredEvent>> {
    let unbroken = &log.events[log.unbroken_from..];
    let Some(from) = unbroken.first().and_then(|first| order.get(first)) else { return Vec::new() };
    let unbroken: BTreeSet<_> = unbroken.iter().collect();
    let arrived = timeline[*from..].iter().filter(|event| !filled_hole(event));
    let is_shown = |event: &&Arc<StoredEvent>| !is_dummy(&event.pdu);
    let missing = arrived.filter(is_shown).filter(|event| !unbroken.contains(event.pdu.event_id()));
    missing.cloned().collect()
}

/// Whether the event got its place in a hole, and was no news then: its place is not its number.
fn filled_hole(event: &StoredEvent) -> bool {
    event.index != Some(TimelineIndex::from(Position(event.short.0)))
}
