//! No accepted event is of somebody who, by the state before it, was not in the room, and nobody joins while banned; and
//! none that came in its place is of somebody who by then was out of the room: such an event is to be soft-failed.
//!
//! Written without the engine's authorization rules, so that a mistake in them shows.

use std::{collections::BTreeMap, sync::Arc};

use actors::room::StoredEvent;
use anyhow::Result;
use engine::{
    id::{Position, TimelineIndex},
    state::StateRoot,
};
use ruma::{OwnedUserId, UserId};
use storage::schema::Standing;

use super::{History, Side};

pub(super) async fn silent(histories: &[History]) -> Result<Option<String>> {
    for History { room, sides } in histories {
        for side in sides {
            let mut known = Known::new();
            for (id, event) in side.with_standing(Standing::Accepted) {
                let pdu = &event.pdu;
                let is_allowed: fn(&str) -> bool = match pdu.kind() {
                    "m.room.create" => continue,
                    // Whoever is banned may do nothing, and whoever is not may at least join or leave.
                    "m.room.member" => |membership| membership != "ban",
                    _ => |membership| membership == "join",
                };
                let membership = membership(side, &mut known, (event.before, pdu.sender())).await?;
                if !is_allowed(&membership) {
                    let (host, sender) = (&side.host, pdu.sender());
                    return Ok(Some(format!(
                        "{room}: {host} accepted {id} of {sender}, whose membership was {membership}"
                    )));
                }
            }
            if let Some(what) = late(side, &mut known).await? {
                return Ok(Some(format!("{room}: {what}")));
            }
        }
    }
    Ok(None)
}

/// An event that was accepted although its sender was out of the room when it came, as the state after what came last
/// before it says.
///
/// The number of an event says when it was first stored, its place in the timeline when it came, or into which hole of the
/// timeline it was put. Where both are the same, it came as news. A lower place is one in an older hole: it was no news,
/// and its state is that of its own branch. A higher one has an event that was known before, because others refer to it:
/// it may have come as news later, or have been put into a hole that was opened later. Neither is said of it, and what
/// comes next to it is not judged by it: it may be the join that lets its sender speak again.
async fn late(side: &Side, known: &mut Known) -> Result<Option<String>> {
    let timeline = side.handle.timeline_forward(TimelineIndex(i64::MIN), usize::MAX / 2).await?;
    let is_old = |event: &&Arc<StoredEvent>| event.index < Some(number(event));
    let came: Vec<_> = timeline.iter().filter(|event| !is_old(event)).collect();
    let is_news = |event: &&Arc<StoredEvent>| event.index == Some(number(event));
    for (before, event) in came.iter().zip(came.iter().skip(1)) {
        if !is_news(before) || !is_news(event) {
            continue;
        }
        let (pdu, host) = (&event.pdu, &side.host);
        if pdu.kind() == "m.room.member" {
            continue;
        }
        let membership = membership(side, known, (before.after, pdu.sender())).await?;
        if ["leave", "ban"].contains(&membership.as_str()) {
            let (id, sender) = (pdu.event_id(), pdu.sender());
            return Ok(Some(format!(
                "{host} accepted {id} of {sender}, who was out of the room ({membership})"
            )));
        }
    }
    Ok(None)
}

/// When an event was first stored, as a place in the timeline.
fn number(event: &StoredEvent) -> TimelineIndex {
    TimelineIndex::from(Position(event.short.0))
}

/// Memberships that were looked up before: most events change no state.
type Known = BTreeMap<(StateRoot, OwnedUserId), String>;

async fn membership(side: &Side, known: &mut Known, (state, user): (StateRoot, &UserId)) -> Result<String> {
    let key = (state, user.to_owned());
    if let Some(membership) = known.get(&key) {
        return Ok(membership.clone());
    }
    let member = side.handle.state_event(state, "m.room.member", user.as_str()).await?;
    let membership = member.map_or("none".to_owned(), |member| actors::room::membership_of(&member.pdu));
    known.insert(key, membership.clone());
    Ok(membership)
}
